#' What happened to tasks and daemons
#'
#' `task_log()` has a row for each task, `daemon_log()` for each daemon. The log is written by the dispatcher itself: it
#' is true also while R is busy, and costs next to nothing.
#'
#' @inheritParams status
#' @param n the number of rows: the tasks that were submitted last.
#' @returns A data frame. Times are `POSIXct`, with microseconds; durations are in seconds.
#'
#' `task_log()` has the columns:
#'
#' * `id`: number of the mirai, which is its attribute `"id"`; `NA` if it has none.
#' * `name`: name of the element of a map, or `NA`.
#' * `state`: `"queued"`, `"running"`, `"done"`, `"failed"` (an error of its own), `"cancelled"`, `"timed_out"` or
#'   `"lost"` (with its daemon, or when daemons were reset). A task that waits for its arguments (see section
#'   *Pipelines* of [mirai()]) is `"queued"`. If one of them has failed, it is `"failed"`, with 0 attempts.
#' * `daemon`: the daemon that has started it, as in `daemon_log()`.
#' * `submitted`, `started`, `ended`: when, by the clock of the host.
#' * `spent`: seconds that the daemon was busy with it.
#' * `attempts`: how often it has been started, as far as the host knows.
#' * `bytes_in`, `bytes_out`: size of what was sent to the daemon, with the values of arguments that were mirai, and of
#'   the value.
#' * `error`: message of the error, if it has failed; the first 256 bytes.
#'
#' `daemon_log()` has the columns:
#'
#' * `daemon`: number of the connection.
#' * `url`: where it has connected.
#' * `host`, `pid`: its machine and its process there.
#' * `state`: `"idle"`, `"busy"`, `"leaving"`, `"left"` (with a goodbye) or `"lost"` (without).
#' * `since`: when it has connected, or when it has gone.
#' * `tasks`, `busy`: number of tasks that it has finished, and the seconds that they have taken.
#' * `memory`: bytes of memory that the process has, if it runs on this machine.
#' * `reason`: why it was lost, if that is known.
#'
#' Both have no rows if no daemons are set.
#' @details
#' Of tasks that are over, the last 100,000 are kept, and of daemons that are gone the last 10,000. Of a queue, the
#' oldest 100,000 tasks have a row.
#'
#' `plot()` of a task log draws the timeline: a lane for each daemon, coloured by the states of its tasks. Where many
#' tasks fall on one spot, the colour is that of the worst state.
#' @seealso [status()], [info()]; [is_error_value()] for why a task was lost.
#' @examples
#' daemons(2)
#' x <- mirai_map(1:6, function(i) if (i == 4) stop("four") else Sys.sleep(i / 50))
#' x[]
#' task_log()[c("id", "state", "daemon", "spent", "error")]
#' daemon_log()[c("daemon", "state", "tasks", "busy")]
#' plot(task_log())
#' daemons(0)
#' @export
task_log <- function(.compute = NULL, n = Inf) {
  if (!is.numeric(n) || length(n) != 1L || is.na(n) || n < 0) {
    stop_argument("n", "a number of rows", sys.call())
  }
  x <- .Call(rs_log_of_tasks, check_profile(.compute), as.numeric(n))
  if (is.null(x)) {
    x <- no_tasks()
  }
  x$id[x$id == 0L] <- NA
  for (column in c("submitted", "started", "ended")) {
    x[[column]] <- as_time(x[[column]])
  }
  as_log(x, "mirai_task_log")
}

#' @rdname task_log
#' @export
daemon_log <- function(.compute = NULL) {
  x <- .Call(rs_log_of_daemons, check_profile(.compute))
  if (is.null(x)) {
    x <- no_daemons()
  }
  x$since <- as_time(x$since)
  as_log(x, NULL)
}

as_time <- function(seconds) .POSIXct(seconds)

as_log <- function(x, class) structure(x, class = c(class, "data.frame"), row.names = .set_row_names(length(x[[1L]])))

no_tasks <- function() {
  list(
    id = integer(),
    name = character(),
    state = character(),
    daemon = integer(),
    submitted = double(),
    started = double(),
    ended = double(),
    spent = double(),
    attempts = integer(),
    bytes_in = double(),
    bytes_out = double(),
    error = character()
  )
}

no_daemons <- function() {
  list(
    daemon = integer(),
    url = character(),
    host = character(),
    pid = integer(),
    state = character(),
    since = double(),
    tasks = double(),
    busy = double(),
    memory = double(),
    reason = character()
  )
}

# States of tasks on daemons, from what is drawn below to what is drawn above, by colours that differ for the
# colour-blind, too.
state_colours <- c(
  done = "#4C8CBF",
  running = "#A6CEE3",
  cancelled = "#999999",
  timed_out = "#E69F00",
  failed = "#D55E00",
  lost = "#5B1A18"
)

#' @rdname task_log
#' @param x a task log.
#' @param bins number of spots along the time axis.
#' @param ... further arguments for [plot.default()].
#' @export
plot.mirai_task_log <- function(x, bins = 1000L, ...) {
  if (!is_count(bins) || bins < 1) {
    stop_argument("bins", "a whole number of at least 1", sys.call())
  }
  used <- c("state", "daemon", "started", "ended")
  if (!all(used %in% names(x))) {
    stop_argument("x", paste("a task log with the columns", toString(used)), sys.call())
  }
  begun <- x[!is.na(x$started) & !is.na(x$daemon), , drop = FALSE]
  if (!nrow(begun)) {
    graphics::plot.new()
    graphics::title(main = "No task has started")
    return(invisible(x))
  }
  now <- as.numeric(Sys.time())
  from <- as.numeric(begun$started)
  to <- as.numeric(begun$ended)
  to[is.na(to)] <- max(now, to, na.rm = TRUE)
  origin <- min(from)
  span <- max(max(to) - origin, 1e-6)
  daemons <- sort(unique(begun$daemon))
  lane <- match(begun$daemon, daemons)
  cells <- timeline_cells(lane, (from - origin) / span, (to - origin) / span, begun$state, length(daemons), bins)
  old <- graphics::par(mar = c(4, 4, 2, 1))
  on.exit(graphics::par(old))
  arguments <- list(
    x = NULL,
    xlim = c(0, span),
    ylim = c(length(daemons) + 0.5, 0.5),
    xlab = "seconds since the first task started",
    ylab = "daemon",
    yaxt = "n",
    xaxs = "i",
    yaxs = "i",
    bty = "n"
  )
  do.call(graphics::plot.default, utils::modifyList(arguments, list(...)))
  shown <- pretty(seq_along(daemons), n = 12)
  shown <- shown[shown %in% seq_along(daemons)]
  graphics::axis(2, at = shown, labels = daemons[shown], las = 1, tick = FALSE)
  thick <- if (length(daemons) > 60L) 0.5 else 0.4
  graphics::rect(
    cells$from * span,
    cells$lane - thick,
    cells$to * span,
    cells$lane + thick,
    col = state_colours[cells$state],
    border = NA
  )
  present <- names(state_colours)[names(state_colours) %in% cells$state]
  graphics::legend(
    "top",
    legend = present,
    fill = state_colours[present],
    border = NA,
    horiz = TRUE,
    bty = "n",
    xpd = NA,
    inset = c(0, -0.08)
  )
  invisible(x)
}

# Rectangles of the timeline: for each lane the runs of bins that have the same worst state. `from` and `to` are
# fractions of the time shown. Work and result are bounded by lanes and bins, however many tasks there are.
timeline_cells <- function(lane, from, to, state, lanes, bins) {
  first <- pmin(as.integer(from * bins), bins - 1L)
  last <- pmax(first, pmin(as.integer(ceiling(to * bins)) - 1L, bins - 1L))
  worst <- matrix(0L, bins, lanes)
  for (level in seq_along(state_colours)) {
    these <- state == names(state_colours)[[level]]
    if (!any(these)) {
      next
    }
    # +1 where a task begins and -1 after it ends: the running sum is the number at work in each bin.
    size <- (bins + 1L) * lanes
    begins <- tabulate((lane[these] - 1L) * (bins + 1L) + first[these] + 1L, size)
    ends <- tabulate((lane[these] - 1L) * (bins + 1L) + last[these] + 2L, size)
    active <- matrix(cumsum(begins - ends), bins + 1L, lanes)[seq_len(bins), , drop = FALSE]
    worst[active > 0L] <- level
  }
  runs <- lapply(seq_len(lanes), function(j) {
    run <- rle(worst[, j])
    end <- cumsum(run$lengths)
    painted <- run$values > 0L
    list(
      lane = rep(j, sum(painted)),
      from = (end - run$lengths)[painted],
      to = end[painted],
      level = run$values[painted]
    )
  })
  column <- function(name) unlist(lapply(runs, `[[`, name))
  list(
    lane = column("lane"),
    from = column("from") / bins,
    to = column("to") / bins,
    state = names(state_colours)[column("level")]
  )
}
