#' Evaluate on every daemon
#'
#' Evaluates an expression on each connected daemon, for its side effects: attaching
#' packages, making data or a database connection available. What it leaves behind stays,
#' whatever the daemons' `cleanup` setting.
#'
#' @inheritParams mirai
#' @param .min the number of daemons that shall evaluate it at least. If fewer are connected,
#'   those that connect next will, before anything else.
#' @returns A list of mirai of class `"mirai_map"`, one for each evaluation, invisibly. Wait
#'   for it with `[]` if need be.
#' @details
#' On each daemon the evaluation happens before any task that is submitted later. It does not
#' use up random number streams.
#' @examples
#' daemons(2)
#' everywhere(rate <<- 100)
#' m <- mirai(rate + 1)
#' m[]
#' daemons(0)
#' @export
everywhere <- function(.expr, ..., .args = list(), .min = 1L, .compute = NULL) {
  if (missing(.expr)) stop("missing expression, perhaps wrap in {}?")
  expr <- substitute(.expr)
  if (is.symbol(expr) && exists(as.character(expr), envir = parent.frame()) && is.language(.expr)) {
    expr <- .expr
  }
  globals <- if (...length()) named_dots(list(...))
  args <- if (length(.args)) named_args(.args)
  check_count(.min, ".min")
  profile <- check_profile(.compute)
  ms <- .Call(rs_submit_everywhere, expr, globals, args, .min, profile)
  if (is.null(ms)) stop_no_daemons(profile)
  if (is.logical(ms)) ms <- list(evaluate_sync(expr, globals, args, profile, setup = TRUE))
  invisible(new_mirai_map(ms))
}
