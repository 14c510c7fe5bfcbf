#' How often a task is attempted again
#'
#' A value for the argument `retry` of [daemons()], or `.retry` of [mirai()] and [mirai_map()]: after which failures a
#' task is attempted again, how often, and how long it waits before.
#'
#' @param crash number of further attempts after the daemon was lost during the task. `Inf` for no limit.
#' @param error number of further attempts after the task raised an R error. `Inf` for no limit.
#' @param backoff seconds to wait before another attempt: a numeric vector with the elements `first`, `factor` and
#'   `most`. The first wait takes `first` seconds, each later one `factor` times the one before, but not more than
#'   `most`. A random part, up to a half, is taken off each wait, so that tasks that failed together are not attempted
#'   together. Elements that are left out have their default. `0` for no wait.
#' @param when a function of one argument, the condition that the task has raised, which returns whether another attempt
#'   may help. `NULL` for any error. It is evaluated on the daemon, at once, where the error was raised: it is sent with
#'   each task, together with its environment unless that is the global one. If it fails or does not return `TRUE`,
#'   there is no other attempt.
#'
#' @returns A list of class `"miraiRetry"`.
#' @details
#' `retry = FALSE`, the default, starts no task twice. `retry = TRUE` attempts a task again after each lost daemon, at
#' once and without limit; it stands for `retry_config(crash = Inf, backoff = 0)`.
#'
#' A task that is attempted again may have done part of its work before. Use retries for tasks that can be repeated.
#'
#' Crashes and errors are counted apart. A task that waits for its next attempt does not keep a daemon. Then it has its
#' old place in the queue. It has the same random number stream in each attempt, if [daemons()] were set with a `seed`.
#' [stop_mirai()] and `.timeout` end it during the wait, too; `.timeout` covers all attempts together.
#'
#' The value is that of the last attempt, and so are [mirai_conditions()] and [mirai_reports()]. [task_log()] shows the
#' number of attempts. An interrupt is no error, and neither is an error value that the task returns without raising an
#' error, such as error value 19 of a mirai of its own.
#'
#' Tasks of [everywhere()] have one attempt. So have tasks without daemons, and with `daemons(sync = TRUE)`.
#' @seealso [daemons()], [mirai()], [mirai_map()]; [task_log()]; `vignette("resilience", "mirai")`.
#' @examples
#' # A service that is down now and then
#' once_more <- retry_config(
#'   error = 5,
#'   backoff = c(first = 0.01, most = 1),
#'   when = function(cnd) grepl("timeout", conditionMessage(cnd))
#' )
#' once_more
#'
#' file <- tempfile()
#' daemons(1)
#' m <- mirai(
#'   {
#'     cat("x", file = file, append = TRUE)
#'     if (file.size(file) < 3) stop("timeout was reached")
#'     "answer"
#'   },
#'   file = file,
#'   .retry = once_more
#' )
#' m[]
#' task_log()$attempts
#' daemons(0)
#' unlink(file)
#' @export
retry_config <- function(crash = 3, error = 0, backoff = c(first = 0.1, factor = 2, most = 30), when = NULL) {
  call <- sys.call()
  check_attempts(crash, "crash", call)
  check_attempts(error, "error", call)
  if (!is.null(when) && !is.function(when)) {
    stop_argument("when", "a function of a condition, or NULL", call)
  }
  backoff <- full_backoff(backoff, call)
  structure(list(crash = crash, error = error, backoff = backoff, when = when), class = "miraiRetry")
}

#' @export
print.miraiRetry <- function(x, ...) {
  times <- function(n) if (is.finite(n)) n else "any number"
  wait <- if (x$backoff[["first"]] > 0) {
    paste0(x$backoff[["first"]], " s, times ", x$backoff[["factor"]], ", at most ", x$backoff[["most"]], " s")
  } else {
    "none"
  }
  cat(
    "further attempts after a lost daemon: ",
    times(x$crash),
    "; after an error: ",
    times(x$error),
    if (x$error > 0 && !is.null(x$when)) ", if `when` says so",
    "\nwait between attempts: ",
    wait,
    "\n",
    sep = ""
  )
  invisible(x)
}

check_attempts <- function(x, name, call) {
  if (!is_number(x) || x < 0 || x != trunc(x)) {
    stop_argument(name, "a single whole number, zero or greater, or Inf", call)
  }
}

# `backoff` with all three elements, in order.
full_backoff <- function(x, call) {
  full <- c(first = 0.1, factor = 2, most = 30)
  if (identical(as.vector(x), 0)) {
    return(c(first = 0, factor = 1, most = 0))
  }
  names <- names(x)
  if (!is.numeric(x) || anyNA(x) || is.null(names) || anyDuplicated(names) || !all(names %in% names(full))) {
    stop_argument("backoff", "a numeric vector with elements 'first', 'factor' and 'most', or 0", call)
  }
  full[names] <- x
  if (any(full < 0) || full[["factor"]] < 1 || !is.finite(full[["factor"]])) {
    stop_argument("backoff", "seconds that are not negative, and a 'factor' of 1 or greater", call)
  }
  if (full[["first"]] > full[["most"]]) {
    stop_argument("backoff", paste0("a 'first' wait of at most 'most' seconds, here ", full[["most"]]), call)
  }
  full
}

# For the glue: the numbers of a value for `retry`, and its function `when`.
retry_rules <- function(x) {
  if (is.null(x)) {
    x <- FALSE
  }
  if (is.logical(x)) {
    return(list(retry = c(if (x) Inf else 0, 0, 0, 1, 0), when = NULL))
  }
  list(retry = as.double(c(x$crash, x$error, x$backoff)), when = if (x$error > 0) x$when)
}

# For the glue: the rules of a task, or NULL if it has none of its own.
task_rules <- function(retry, priority, call = sys.call(-1L)) {
  if (!is_number(priority)) {
    stop_argument(".priority", "a single number", call)
  }
  if (is.null(retry)) {
    return(if (priority != 0) list(priority = priority))
  }
  if (!is_retry(retry)) {
    stop_argument(".retry", "TRUE, FALSE or a value of retry_config()", call)
  }
  c(retry_rules(retry), priority = priority)
}

# rules.rs calls this: the function `when` of a profile. NULL is the current one.
profile_when <- function(profile) retry_rules(the$settings[[check_profile(profile)]]$retry)$when

# On a daemon, where a task has raised a condition: tells the host to attempt it again, if `when` says so.
ask_for_retry <- function(when, cnd) {
  again <- tryCatch(isTRUE(when(cnd)), error = function(e) {
    note_condition(simpleWarning(paste0("'when' of retry_config() has failed: ", conditionMessage(e))))
    FALSE
  })
  if (again) .Call(rs_retry)
}
