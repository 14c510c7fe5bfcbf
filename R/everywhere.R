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
#' use up random number streams. If daemons were set with a `seed`, it has the same random numbers on each
#' of them, so that it does not matter which of them evaluates what. They are independent of those of
#' the tasks.
#' @seealso [daemons()], [mirai()].
#' @examples
#' daemons(2)
#' everywhere(rate <<- 100)
#' m <- mirai(rate + 1)
#' m[]
#' daemons(0)
#' @export
everywhere <- function(.expr, ..., .args = list(), .min = 1L, .compute = NULL) {
  if (missing(.expr)) {
    stop_error("missing expression, perhaps wrap in {}?", sys.call(), "mirai_error_argument")
  }
  expr <- substitute(.expr)
  if (is.symbol(expr) && exists(as.character(expr), envir = parent.frame()) && is.language(.expr)) {
    expr <- .expr
  }
  globals <- if (...length()) named_dots(list(...))
  args <- if (length(.args)) named_args(.args)
  check_count(.min, ".min")
  profile <- check_profile(.compute)
  if (is.null(globals[[".Random.seed"]])) {
    globals <- c(globals, setup_stream(profile))
  }
  ms <- .Call(rs_submit_everywhere, expr, globals, args, .min, profile)
  if (is.null(ms)) {
    stop_no_daemons(profile)
  }
  if (is.logical(ms)) {
    ms <- list(evaluate_sync(expr, globals, args, profile, setup = TRUE))
  }
  invisible(new_mirai_map(ms))
}

# Under `seed`, a stream for one call of everywhere(), as a list to be assigned; otherwise NULL. These are
# substreams of the first task's: as far from its numbers as 2^76 of them, and from the next task's by more.
setup_stream <- function(profile) {
  stream <- the$setup_streams[[profile]]
  if (is.null(stream)) {
    return(NULL)
  }
  the$setup_streams[[profile]] <- parallel::nextRNGSubStream(stream)
  list(.Random.seed = stream)
}

start_setup_streams <- function(profile, seed) {
  the$setup_streams[[profile]] <- if (!is.null(seed)) parallel::nextRNGSubStream(.Call(rs_peek_stream, profile))
}
