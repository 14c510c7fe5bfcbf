#' Watch a session live
#'
#' Shows what a session's daemons do, as it happens: the queue, the tasks that run and since when, throughput,
#' failures, and daemons with their memory. It watches this session, or any other R session of the same user on this
#' machine, also while that session's R is busy or waits.
#'
#' @param pid process id of the R session to watch, as `Sys.getpid()` tells it there. `NULL`: this session if it has
#'   daemons set, otherwise the only other session that has.
#' @param where `"terminal"`, or `"browser"` for a page (needs package shiny), which also draws a timeline.
#' @param format `"text"`, or `"json"` for programs: prints each snapshot as a line of JSON.
#' @param ... for `where = "browser"`: further arguments of [shiny::runApp()], such as `port` or `launch.browser`.
#' @param n number of snapshots after which to return.
#' @param timeout time in milliseconds after which to return.
#' @returns `NULL`, invisibly: upon Ctrl-C, when the session that is watched ends, after `n` snapshots, or after
#'   `timeout`.
#' @details
#' From another terminal, watch a session by
#'
#' ```
#' Rscript -e 'mirai::mirai_monitor()'
#' ```
#'
#' In a terminal, with package cli, the view is redrawn in place. Otherwise each snapshot is printed below the last.
#'
#' There is a snapshot at once, and then whenever something has changed (or the throughput falls), at most 4 a second.
#' It lists up to 200
#' running tasks and 200 daemons of each compute profile, and says how many more there are. A session that nobody
#' watches does nothing for it, and a monitor that does not keep up misses snapshots. Up to 16 monitors may watch a
#' session.
#'
#' A session can be watched from its first call of [daemons()] on. Until it ends, it listens at a socket in a
#' directory that only its user can enter: `mirai-UID` in the directory for temporary files (environment variable
#' `TMPDIR`, or `/tmp`), or `mirai` in `XDG_RUNTIME_DIR`. It lets in processes of its own user only. A session that
#' was started with another `TMPDIR` than the monitor is found if `pid` names it.
#'
#' The page in the browser is served on this machine, at an address with a random token, without which it shows
#' nothing.
#'
#' Sessions on Windows cannot be watched.
#'
#' The fields of a snapshot in JSON:
#'
#' * `version` (1), `pid`, `host`, `time`, `memory`: of the session. Times are in seconds since 1970, sizes in bytes,
#'   durations in seconds.
#' * `profiles`: for each compute profile with daemons (`profiles_more` are not listed)
#'     * `name`, `urls` (`urls_more` are not listed).
#'     * `tasks`: numbers of tasks that are `queued` and `running`, and that ended so far as `done`, `failed`,
#'       `cancelled`, `timed_out` and `lost`.
#'     * `throughput`: numbers of tasks that ended in `last_1s` and `last_10s`.
#'     * `queue`: `bytes` of the tasks in the queue, their `peak`, and the `capacity` (or `null`).
#'     * `running`: tasks with `id`, `name`, `daemon`, `started`, `age`, the oldest first; `running_more` are not
#'       listed.
#'     * `daemons`: those connected, and `gone`: the last that are not, with the columns of [daemon_log()] except
#'       `url`; `daemons_more` are not listed.
#'     * `failures`: the last tasks that failed, timed out or were lost.
#'     * `recent`: the last tasks that ended, with `started` and `ended`.
#' @seealso [task_log()] and [daemon_log()] for all of it as data frames; `vignette("monitoring", "mirai")`.
#' @examplesIf .Platform$OS.type == "unix"
#' daemons(2)
#' x <- mirai_map(1:4, function(i) Sys.sleep(i / 10))
#' mirai_monitor(n = 2, timeout = 1000)
#' mirai_monitor(format = "json", n = 1)
#' daemons(0)
#' @export
mirai_monitor <- function(
  pid = NULL,
  where = c("terminal", "browser"),
  format = c("text", "json"),
  ...,
  n = Inf,
  timeout = Inf
) {
  call <- sys.call()
  where <- check_choice(where, c("terminal", "browser"), "where", call)
  format <- check_choice(format, c("text", "json"), "format", call)
  if (!is_number(n) || n < 1 || (is.finite(n) && n != trunc(n))) {
    stop_argument("n", "a whole number of snapshots, or Inf", call)
  }
  check_positive(timeout, "timeout", "a single positive number of milliseconds")
  in_browser <- where == "browser"
  if (in_browser && format == "json") {
    stop_argument("format", "\"text\" with 'where = \"browser\"'", call)
  }
  if (!in_browser && ...length()) {
    stop_argument("...", "empty unless 'where = \"browser\"'", call)
  }
  until_interrupted({
    if (in_browser) {
      load_shiny(call)
    }
    pid <- watched_pid(pid, call)
    number <- with_call(.Call(rs_monitor_attach, pid), call)
    on.exit(.Call(rs_monitor_detach, number))
    if (in_browser) {
      watch_page(number, pid, n, timeout, list(...))
    } else {
      watch_terminal(number, pid, n, timeout, format)
    }
  })
  invisible(NULL)
}

# Evaluates `expr` until Ctrl-C. An error after that comes from functions that put things back and were not prepared for
# it: it is no news.
until_interrupted <- function(expr) {
  interrupted <- FALSE
  evaluated <- function() {
    withCallingHandlers(
      expr,
      interrupt = function(cnd) interrupted <<- TRUE,
      error = function(cnd) if (interrupted) invokeRestart("interrupted")
    )
  }
  tryCatch(withRestarts(evaluated(), interrupted = function() NULL), interrupt = function(cnd) NULL)
}

check_choice <- function(x, choices, name, call) {
  if (identical(x, choices)) {
    return(choices[[1L]])
  }
  if (!is.character(x) || length(x) != 1L || !x %in% choices) {
    stop_argument(name, paste(encodeString(choices, quote = "\""), collapse = " or "), call)
  }
  x
}

# The process id of the session to watch.
watched_pid <- function(pid, call) {
  if (!is.null(pid)) {
    if (!is_positive_count(pid)) {
      stop_argument("pid", "the process id of an R session, or NULL", call)
    }
    return(as.integer(pid))
  }
  if (.Call(rs_monitor_own)) {
    return(Sys.getpid())
  }
  sessions <- .Call(rs_monitor_sessions)
  others <- sessions$pid != Sys.getpid()
  pids <- sessions$pid[others]
  if (!length(pids)) {
    text <- paste0(
      "there is nothing to watch: neither this R session nor another one of yours on this machine has daemons set. ",
      "Call daemons() first"
    )
    stop_error(text, call, "mirai_error_no_daemons")
  }
  if (length(pids) > 1L) {
    text <- paste0(
      "several R sessions can be watched. Choose one by its process id, as in mirai_monitor(",
      pids[[1L]],
      "):\n",
      paste0("  ", format(pids), "  ", sessions$command[others], collapse = "\n")
    )
    stop_error(text, call, "mirai_error_argument")
  }
  pids
}

# Time in milliseconds for the first snapshot to arrive.
first_snapshot_patience <- 5000

# Between two snapshots, ages in the terminal are redrawn this often, in milliseconds.
redraw_interval <- 1000

# Shows snapshots on stdout until Ctrl-C, the end of the session, `n` snapshots or `timeout` milliseconds.
watch_terminal <- function(number, pid, n, timeout, format) {
  screen <- if (format == "json") json_screen() else text_screen()
  on.exit(screen$close())
  ended <- tryCatch(
    show_snapshots(number, pid, n, timeout, screen),
    interrupt = function(cnd) FALSE
  )
  screen$close()
  if (ended) {
    screen$say(paste0("Session ", pid, " has ended."))
  }
}

# Returns whether the session has ended.
show_snapshots <- function(number, pid, n, timeout, screen) {
  began <- proc.time()[["elapsed"]]
  left <- function() timeout - 1000 * (proc.time()[["elapsed"]] - began)
  shown <- 0
  while (shown < n && left() > 0) {
    patience <- if (shown) screen$interval() else first_snapshot_patience
    line <- .Call(rs_monitor_next, number, screen$newest, min(patience, left()))
    if (isFALSE(line)) {
      return(TRUE)
    }
    if (is.character(line)) {
      screen$show(line)
      shown <- shown + 1
    } else if (shown) {
      screen$redraw()
    } else if (left() > 0) {
      stop_error(no_answer(pid), NULL, "mirai_error_connect")
    }
  }
  FALSE
}

no_answer <- function(pid) paste0("session ", pid, " does not answer: is it stopped (by Ctrl-Z, for example)?")

# What shows snapshots: `show` a new one, `redraw` the last; `interval` is the time in milliseconds after which to
# redraw; `newest`: whether only the newest is wanted of several that have arrived. `close` may be called twice.
json_screen <- function() {
  list(
    newest = FALSE,
    interval = function() Inf,
    show = function(line) {
      cat(line, "\n", sep = "")
      flush(stdout())
    },
    redraw = function() NULL,
    close = function() NULL,
    say = function(text) message(text)
  )
}

text_screen <- function() {
  has_cli <- requireNamespace("cli", quietly = TRUE)
  style <- monitor_style(has_cli && cli::num_ansi_colors() > 1L)
  say <- function(text) cat(text, "\n", sep = "")
  if (has_cli && cli::is_ansi_tty(stdout())) {
    return(c(redrawn_screen(style), say = say))
  }
  list(
    newest = TRUE,
    interval = function() Inf,
    show = function(line) {
      cat(monitor_lines(.Call(rs_monitor_read, line), Inf, getOption("width"), style), "", sep = "\n")
      flush(stdout())
    },
    redraw = function() NULL,
    close = function() NULL,
    say = say
  )
}

# On the terminal's alternate screen, so that what was there before comes back at the end.
redrawn_screen <- function(style) {
  last <- NULL
  lines <- function(size) monitor_lines(last, size[[1L]] - 1L, size[[2L]], style)
  draw <- function() {
    size <- terminal_size()
    cat("\033[H", paste0(lines(size), "\033[K\n"), "\033[J", sep = "")
    flush(stdout())
  }
  list(
    newest = TRUE,
    interval = function() redraw_interval,
    show = function(line) {
      if (is.null(last)) {
        cat("\033[?1049h\033[?25l")
      }
      last <<- .Call(rs_monitor_read, line)
      draw()
    },
    redraw = draw,
    close = function() {
      if (length(last)) {
        # Back to the screen as it was, with the last view below.
        cat("\033[?25h\033[?1049l", paste0(lines(terminal_size()), "\n"), sep = "")
        flush(stdout())
        last <<- NULL
      }
    }
  )
}

# Rows and columns of the terminal.
terminal_size <- function() {
  size <- .Call(rs_terminal_size)
  if (all(size > 0L)) size else c(24L, 80L)
}
