#' Run a daemon
#'
#' Connects to a host and evaluates its tasks until the host ends it. A daemon process runs this, usually as
#' `Rscript -e 'mirai::daemon(...)'`. You rarely need to call it yourself: [daemons()] and [launch_remote()] do.
#'
#' @param url the URL at which the host listens.
#' @param dispatcher ignored, kept for older code. The host tells the daemon whether it has a dispatcher.
#' @param ... ignored.
#' @param asyncdial what to do if the connection to the host fails. `FALSE`: raise an error. `TRUE`: try again until it
#'   succeeds.
#' @param autoexit what to do when the connection to the host is lost. `TRUE`: exit at once; a running task has 200 ms
#'   to end. `NA`: finish the running task, then exit. `FALSE`: stay, and connect to the next host that listens at
#'   `url`. A signal number, such as `tools::SIGINT`: raise that signal.
#' @param cleanup what to restore after each task. `TRUE`: the global environment, the attached packages (new ones are
#'   detached but stay loaded, and those that were detached are attached again), the options, and the daemon's stream of
#'   random numbers: the next task has another part of it if this one has chosen a seed or a generator, or has drawn
#'   thousands of numbers. `FALSE`: nothing. Or the sum of 1 (global environment and random numbers), 2 (packages), 4
#'   (options) and 8 (run the garbage collector). What existed when the daemon started stays, and so does what
#'   [everywhere()] made.
#' @param output what becomes of what tasks write to stdout and stderr. `FALSE`: it is discarded. `TRUE`: it goes at
#'   once to where the daemon's own streams go, for local daemons the host's terminal, and so do warnings. Each line
#'   begins with the task's number, as in `[task 12]`: see below. `"task"`: it is sent to the host with the task's
#'   value: see [mirai_output()].
#' @param idletime exit after this many milliseconds without a task.
#' @param walltime exit this many milliseconds after the start.
#' @param maxtasks exit after this number of tasks.
#' @param timerstart number of tasks after which `idletime` and `walltime` begin to count.
#' @param tls the certificates by which to verify the host, for a secure URL (`tls+tcp://` or `wss://`):
#'   `c(certificates, "")` with text in PEM format, or the name of a file. If the host made its own certificate,
#'   `nextget("tls")` returns it there, and the commands of [launch_remote()] contain it. Otherwise it is the host's
#'   certificate, followed by those of the authorities that signed it.
#' @param rs an initial value for `.Random.seed`.
#' @param tlscert another name of `tls`.
#'
#' @returns An integer, invisibly: why the daemon ended. 0: the host ended it, or went away. 1: `idletime`. 2:
#'   `walltime`. 3: `maxtasks`. [nextcode()] has the words.
#' @details
#' `idletime`, `walltime` and `maxtasks` are checked between tasks. They never interrupt a task, and no task is lost.
#'
#' With `output = TRUE`, the number of a task is that of its mirai on the host, `attr(m, "id")`, and that in
#' [task_log()]. The lines of several local daemons do not mix. A line without an end is shown after 100 ms, and ended
#' when the task is over. For the code of a task, stdout and stderr are pipes: `isatty()` is `FALSE`. On Windows, and if
#' you call `daemon()` in an interactive session, lines are printed as they are, without a number.
#'
#' If one part of the cleanup fails, the others are still done. The daemon reports on its stderr, once, what it could
#' not restore: for example the global environment, after a task has called [lockEnvironment()] on it.
#' @seealso [daemons()] to start local daemons; [launch_local()], [launch_remote()] to add some; [nextcode()] for the
#'   exit code.
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
  if (!is_output(output)) {
    stop_argument("output", 'TRUE, FALSE or "task"', sys.call())
  }
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
    autoexit = if (is.logical(autoexit)) autoexit else as.integer(autoexit),
    cleanup = if (isTRUE(cleanup)) 7L else as.integer(cleanup),
    output = output,
    idletime = idletime,
    walltime = walltime,
    maxtasks = maxtasks,
    timerstart = timerstart,
    asyncdial = asyncdial,
    tempdir = tempdir(),
    interruptible = interactive(),
    tls = tls[1L]
  )
  the$prints_warnings <- isTRUE(output)
  find_tracer()
  code <- .Call(rs_run_daemon, url, settings)
  if (code < 0L) {
    .Call(rs_serve_events)
    code <- 0L
  }
  if (!is.null(the$tracer)) {
    the$tracer$flush()
  }
  invisible(code)
}

#' Is this process a daemon?
#'
#' @returns `TRUE` in code that a daemon evaluates, otherwise `FALSE`.
#' @seealso [daemon()], [daemons()].
#' @examples
#' on_daemon()
#' mirai(mirai::on_daemon())[]
#' @export
on_daemon <- function() .Call(rs_daemon_state) > 0L

#' Explain the exit code of a daemon
#'
#' @param code the value that [daemon()] returned: 0, 1, 2 or 3.
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
