#' Evaluate on every daemon
#'
#' Evaluates an expression on each connected daemon, for its side effects: to attach packages, to load data, or to open
#' a database connection. The variables, packages and options that it leaves stay, whatever `cleanup` the daemons have.
#'
#' @inheritParams mirai
#' @param .min the least number of daemons to evaluate the expression. If fewer are connected, the next daemons that
#'   connect evaluate it before any other task.
#' @returns A list of mirai of class `"mirai_map"`, one for each daemon, invisibly. `[]` waits for all of them.
#' @details
#' A daemon evaluates the expression before all tasks that are submitted later, so you need not wait for it. A daemon
#' that replaces a crashed one evaluates it again: see section *Crashes* of [daemons()].
#'
#' Where an argument is a mirai, or a list of mirai, `everywhere()` waits for the values, because it cannot let later
#' tasks go first. An error if one of them is an error value.
#'
#' The evaluation does not advance the random number streams of tasks. If daemons were set with a `seed`, it has the
#' same random numbers on each daemon, independent of those of tasks.
#' @seealso [daemons()] and its argument `cleanup`; [mirai()].
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
  dots <- if (...length()) list(...)
  globals <- if (length(dots)) named_dots(dots)
  args <- if (length(.args)) named_args(.args)
  check_count(.min, ".min")
  profile <- check_profile(.compute)
  globals <- awaited(globals, !is.null(names(dots)))
  args <- awaited(args, !is.environment(.args))
  for (failed in Filter(is_error_value, list(globals, args))) {
    cnd <- value_condition(argument_error(failed))
    cnd$call <- sys.call()
    stop(cnd)
  }
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

# With a `seed`: the random number stream for one call of everywhere(), as a list of variables to assign. Otherwise
# NULL. Each is a substream of the first task's stream. Substreams are 2^76 numbers apart, streams 2^127.
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
