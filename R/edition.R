#' Editions: the 2.x interface
#'
#' A few functions behave differently in this package and in the 2.x releases of mirai, for which many packages were
#' written. The *edition* chooses: 1, the default, is this package's own behaviour; 2 is that of 2.x.
#'
#' `options(mirai.edition = 2)` sets the edition for the session. The environment variable `MIRAI_EDITION` sets it for
#' all sessions that have the variable. The option wins. Both are read at each call of one of these functions, so you
#' can change the edition at any time, without setting daemons again.
#'
#' @details
#' | | edition 1 | edition 2 |
#' |---|---|---|
#' | `status()$connections`, with dispatcher | always 1 | the number of daemons connected |
#' | `status()$daemons`, with dispatcher | a matrix, a row for each URL | the URL, or the URLs |
#' | URLs of `daemons(n)` | one for each daemon | one for all |
#' | `launch_local(2)`, `launch_remote(2)` | a daemon at the second URL | two daemons |
#' | `host_url(TRUE, 5555)` | arguments `ws`, `tls`, `port` | arguments `tls`, `port`; `ws` by name |
#' | value of `daemons()` | the number of daemons, or the URL | `TRUE`, or `FALSE` after a reset, invisibly |
#' | `$stack.trace` of an error | a list of strings | a list of calls |
#' | `mirai_map()` without daemons | starts one, with a warning | is an error |
#'
#' Everything else is the same in both. `vignette("coming-from-2x", "mirai")` has examples.
#' @seealso [daemons()], [status()]; `vignette("coming-from-2x", "mirai")`.
#' @examples
#' old <- options(mirai.edition = 2)
#' daemons(2)
#' status()$connections
#' daemons(0)
#' options(old)
#' @name mirai-edition
#' @aliases mirai.edition MIRAI_EDITION
NULL

# The current edition, 1 or 2.
edition <- function() {
  given <- getOption("mirai.edition")
  if (!is.null(given)) {
    if (is_number(given) && given %in% 1:2) {
      return(as.integer(given))
    }
    given <- deparse(given, nlines = 1L)[1L]
    stop_error(paste0("option 'mirai.edition' must be 1 or 2, not ", given), class = "mirai_error_argument")
  }
  given <- Sys.getenv("MIRAI_EDITION")
  if (given %in% c("", "1")) {
    return(1L)
  }
  if (given == "2") {
    return(2L)
  }
  text <- paste0("environment variable MIRAI_EDITION must be 1 or 2, not \"", given, "\"")
  stop_error(text, class = "mirai_error_argument")
}

# Tells daemons the edition, if it has changed. Called when daemons are set, and for each task with a process of its
# own.
tell_edition <- function() {
  now <- edition()
  if (now == the$told_edition) {
    return()
  }
  the$told_edition <- now
  update_hooks()
}

# On a daemon: keeps the edition, which comes with the registry of hooks that the host has sent. The daemon's loop in
# the glue calls this.
keep_edition <- function(registry) the$host_edition <- attr(registry, "edition", exact = TRUE)

# Whether a stack trace made in this process (a daemon, or a session with `sync = TRUE`) is a list of calls. An invalid
# edition is not an error here, because another error is being recorded.
traces_calls <- function() {
  wanted <- if (on_daemon()) the$host_edition else tryCatch(edition(), error = function(e) NULL)
  identical(wanted, 2L)
}

# Converts a stack trace to the form of the current edition. A daemon may have been told another one.
edition_trace <- function(trace) {
  if (edition() == 1L) {
    return(lapply(trace, function(call) if (is.character(call)) call else call_text(call)))
  }
  lapply(trace, function(call) {
    if (!is.character(call)) {
      return(call)
    }
    tryCatch(str2lang(call), error = function(e) as.name(call))
  })
}

# A call as a stack trace contains it: without its source reference, which would bring the whole file along, and without
# its arguments if they are large.
trace_call <- function(call) small_call(utils::removeSource(call))

# A call without its arguments, if they are large, such as data that do.call() has put there.
small_call <- function(call) {
  if (is.call(call) && utils::object.size(call) > 1e5) as.call(list(call[[1L]], quote(...))) else call
}
