#' Run a daemon
#'
#' Connects to a host and evaluates its mirai until told to end. This is what a daemon process runs,
#' usually as `Rscript -e 'mirai::daemon(...)'`.
#'
#' @param url the URL at which the host listens.
#' @param dispatcher whether the host was set with a dispatcher. Accepted for compatibility: the
#'   host says so itself.
#' @param ... ignored.
#' @param asyncdial `FALSE`: an error if the host cannot be connected to. `TRUE`: try again until it
#'   can.
#' @param autoexit what to do when the host goes away. `TRUE`: leave at once; what R does not finish
#'   within 200 ms is given up. `NA`: finish the running task first. `FALSE`: stay, and connect again to
#'   whoever listens at `url` next. The number of a signal, such as `tools::SIGINT`: raise that.
#' @param cleanup what to restore after each task. `TRUE`: the global environment, the attached
#'   packages (which are detached but stay loaded) and the options. `FALSE`: nothing. Or the sum of 1
#'   (global environment), 2 (packages), 4 (options) and 8 (collect garbage). What was there when the
#'   daemon started, or was made by [everywhere()], stays.
#' @param output `FALSE` to discard what is written to stdout and stderr once connected, `TRUE` to let it
#'   through.
#' @param idletime,walltime milliseconds without a task, and since the start, after which to leave.
#' @param maxtasks number of tasks after which to leave.
#' @param timerstart number of tasks after which `idletime` and `walltime` begin to count.
#' @param tls how to know the host at a secure URL, `tls+tcp://` or `wss://`: `c(certificates, "")`, where
#'   the first is text in PEM format, or the name of a file with it. For a host that was set without certificates
#'   of its own, [launch_remote()] shows it, and `nextget("tls")` has it; otherwise it is the host's certificate,
#'   followed by those of the authorities that have signed it.
#' @param rs an initial value for `.Random.seed`.
#' @param tlscert another name of `tls`.
#'
#' @returns An integer, invisibly: why it has ended. 0 by the host, 1 `idletime`, 2 `walltime`, 3
#'   `maxtasks`. See [nextcode()].
#' @details
#' A limit never cuts a task short: it is looked at between tasks, and no task is lost by a daemon that
#' leaves.
#'
#' Each part of the cleanup is done although another fails. What cannot be restored (such as the global
#' environment after a task has called [lockEnvironment()] on it) is told on the daemon's stderr, once.
#' @seealso [daemons()], which starts local daemons; [launch_local()], [launch_remote()]; [nextcode()] for
#'   the exit status.
#' @examples
#' \dontrun{
#' # In one R session
#' daemons(url = "ipc:///tmp/example")
#' # In another process
#' # Rscript -e 'mirai::daemon("ipc:///tmp/example")'
#' }
#' @export
daemon <- function(
  url,
  dispatcher = TRUE,
  ...,
  asyncdial = FALSE,
  autoexit = TRUE,
  cleanup = TRUE,
  output = FALSE,
  idletime = Inf,
  walltime = Inf,
  maxtasks = Inf,
  timerstart = 0L,
  tls = NULL,
  rs = NULL,
  tlscert = NULL
) {
  check_string(url, "url")
  check_flag(asyncdial, "asyncdial")
  check_flag(output, "output")
  for (name in c("idletime", "walltime", "maxtasks")) {
    check_positive(get(name), name)
  }
  check_count(timerstart, "timerstart")
  tls <- either_tls(tls, tlscert, sys.call())
  check_tls(tls, sys.call())
  if (!is_autoexit(autoexit)) {
    stop_argument("autoexit", "TRUE, FALSE, NA or a signal number", sys.call())
  }
  if (!is_cleanup(cleanup)) {
    stop_argument("cleanup", "TRUE, FALSE or a whole number from 0 to 15", sys.call())
  }
  if (!is.null(rs)) {
    if (!is.numeric(rs) || length(rs) != 7L || anyNA(rs)) {
      stop_argument("rs", "seven integers", sys.call())
    }
    assign(".Random.seed", as.integer(rs), envir = globalenv())
  }
  settings <- list(
    # A signal's number is moved out of the way of TRUE and FALSE.
    if (is.logical(autoexit)) as.integer(autoexit) else 100L + as.integer(autoexit),
    if (isTRUE(cleanup)) 7L else as.integer(cleanup),
    output,
    idletime,
    walltime,
    maxtasks,
    timerstart,
    asyncdial,
    tempdir(),
    interactive(),
    tls[1L]
  )
  code <- .Call(rs_run_daemon, url, settings)
  if (is.character(code)) {
    stop_error(code, sys.call(), "mirai_error_connect")
  }
  if (code < 0L) {
    .Call(rs_serve_events)
    code <- 0L
  }
  invisible(code)
}

#' Is this process a daemon?
#'
#' @returns `TRUE` within the evaluation of a mirai on a daemon, otherwise `FALSE`.
#' @seealso [daemon()], [daemons()].
#' @examples
#' on_daemon()
#' mirai(mirai::on_daemon())[]
#' @export
on_daemon <- function() .Call(rs_daemon_state) > 0L

#' Explain why a daemon has ended
#'
#' @param code the value of [daemon()].
#' @param xc another name of `code`.
#' @returns A character string.
#' @seealso [daemon()].
#' @examples
#' nextcode(1L)
#' @export
nextcode <- function(code, xc) {
  if (missing(code) && !missing(xc)) {
    code <- xc
  }
  if (missing(code) || !is_count(code) || code > 3) {
    stop_argument("code", "a value of daemon(): 0, 1, 2 or 3", sys.call())
  }
  c(
    "0 | The host has gone, or has ended this daemon",
    "1 | The daemon has reached its idletime",
    "2 | The daemon has reached its walltime",
    "3 | The daemon has reached its maxtasks"
  )[[code + 1L]]
}
