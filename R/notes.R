#' Warnings and messages of a mirai
#'
#' A mirai keeps the warnings and messages of its evaluation. `mirai_conditions()` returns them, without signalling them
#' again. To have them signalled, as if the expression had been evaluated here, collect with `.relay`: `m[.relay]`,
#' `x[.relay]`, or set `options(mirai.relay = TRUE)`.
#'
#' @param x a mirai, or a list of mirai (such as a mirai map).
#' @returns For a mirai, a list of conditions in the order in which they were signalled: each with its message, its
#' call and its classes. For a list of mirai, a list of these, with the names of `x`. Empty while a mirai is unresolved.
#' @details
#' What the expression has handled itself, by [suppressWarnings()] say, is not kept. At most 100 conditions and 64 KB of
#' messages are kept of one evaluation; attribute `"dropped"` has the number of those beyond. Further fields of a
#' condition are not kept, and of its call only what is small.
#'
#' A condition that is relayed from an element of a map says in its message which element that was, and has the fields
#' `location` (its index), `name` (its name, or `NULL`) and `parent` (the condition as it was).
#' @seealso [mirai()], [mirai_map()], [collection-options]; [mirai_report()] for what a running task sends ahead.
#' @examples
#' m <- mirai({
#'   message("reading")
#'   as.integer("x")
#' })
#' m[]
#' mirai_conditions(m)
#' @export
mirai_conditions <- function(x) {
  check_waitable(x)
  if (is_mirai(x)) {
    return(conditions_of(x))
  }
  lapply(unclass(x), conditions_of)
}

conditions_of <- function(m) notes_of(m)$conditions

# The conditions and the output of a mirai.
notes_of <- function(m) {
  notes <- .Call(rs_notes, m)
  if (is.null(notes)) list(conditions = list(), output = "") else .Call(rs_decode, notes)
}

#' What a mirai has printed
#'
#' If daemons were set with `daemons(output = "task")`, a mirai keeps what its evaluation has written to stdout and
#' stderr: by R code, by C code and by programs that it ran. `mirai_output()` returns it. To have it printed, as if the
#' expression had been evaluated here, collect with `.relay`: `m[.relay]`, `x[.relay]`, or set
#' `options(mirai.relay = TRUE)`.
#'
#' @param x a mirai, or a list of mirai (such as a mirai map).
#' @returns A character string for a mirai: `""` if nothing was printed, while the mirai is unresolved, and if output is
#'   not kept. For a list of mirai, a character vector with a string for each, with the names of `x`.
#' @details
#' At most 1 MB is kept of one evaluation: of more, the beginning and the end, with a line between them that says how
#' many bytes are left out. Bytes that are not UTF-8 become U+FFFD.
#'
#' Messages are in the output, since R prints them to stderr, and in [mirai_conditions()] as well. `.relay` shows them
#' once, as messages. Warnings are not in the output: a daemon does not print them.
#'
#' What a process prints that a task has left running belongs to the task that runs then on the same daemon, or to none.
#' Nothing is kept of a task whose daemon is lost.
#'
#' Daemons on Windows cannot keep it: there, `output = "task"` is an error.
#' @seealso [daemons()] for `output`; [mirai_conditions()] for warnings and messages; [collection-options].
#' @examplesIf .Platform$OS.type == "unix"
#' daemons(1, output = "task")
#' m <- mirai({
#'   print(summary(cars))
#'   message("done")
#' })
#' m[]
#' cat(mirai_output(m))
#' daemons(0)
#' @export
mirai_output <- function(x) {
  check_waitable(x)
  output <- function(m) notes_of(m)$output
  if (is_mirai(x)) output(x) else vapply(unclass(x), output, "")
}

#' @rdname collection-options
#' @export
.relay <- ".relay"

relays <- function() isTRUE(getOption("mirai.relay"))

# Signals the conditions of a mirai again, or those of each element of a map, and prints the output.
relay <- function(x) {
  if (is_mirai(x)) {
    return(relay_notes(notes_of(x), identity))
  }
  for (i in seq_along(x)) {
    relay_notes(notes_of(x[[i]]), function(cnd) located(cnd, names(x)[i], i))
  }
}

# Output has messages in it, which are signalled instead, each in its place.
relay_notes <- function(notes, locate) {
  rest <- notes$output
  for (cnd in notes$conditions) {
    if (inherits(cnd, "message")) {
      text <- conditionMessage(cnd)
      at <- if (nzchar(text)) regexpr(text, rest, fixed = TRUE) else -1L
      if (at > 0L) {
        cat(substr(rest, 1L, at - 1L))
        rest <- substr(rest, at + nchar(text), nchar(rest))
      }
    }
    relay_condition(locate(cnd))
  }
  cat(rest)
}

relay_condition <- function(cnd) {
  if (inherits(cnd, "warning")) {
    warning(cnd)
  } else if (inherits(cnd, "message")) {
    message(cnd)
  } else {
    signalCondition(cnd)
  }
}

# A condition of the element `i` of a map.
located <- function(cnd, name, i) {
  if (length(name) != 1L || is.na(name) || !nzchar(name)) {
    name <- NULL
  }
  out <- cnd
  out$message <- paste0("In index: ", i, ". ", if (!is.null(name)) paste0("With name: ", name, ". "), cnd$message)
  out[c("location", "name", "parent")] <- list(i, name, cnd)
  out
}

# Limits of what is kept of one evaluation: see mirai_conditions().
most_conditions <- 100L
most_text <- 65536
most_call <- 10000

# Nothing noted: see R/mirai-package.R.
no_notes <- list(noted = list(), noted_text = 0, noted_dropped = 0L)

# What evaluate_sync() puts back after its evaluation: the notes of the evaluation or task that called it.
notes_so_far <- function() mget(c("sync_depth", names(no_notes)), the)

# evaluate_sync() calls this before its evaluation, which then notes for itself.
begin_notes <- function() {
  put_notes(no_notes)
  the$sync_depth <- the$sync_depth + 1L
}

put_notes <- function(notes) list2env(notes, the)

# The handler of warnings and messages around the evaluation that evaluate_sync() has just begun. If that calls
# evaluate_sync() in its turn, a condition gets to both handlers: only the inner one notes it.
noting_here <- function() {
  depth <- the$sync_depth
  function(cnd) if (the$sync_depth == depth) note(cnd)
}

# Called on a daemon by the handlers around its tasks.
note_warning <- function(cnd) {
  note_condition(cnd)
  # With other values of the option, R prints it itself, or makes it an error. With 0, R would print it when the daemon
  # ends.
  if (the$prints_warnings && identical(as.integer(getOption("warn")), 0L)) {
    call <- tryCatch(conditionCall(cnd), error = function(e) NULL)
    if (identical(call, evaluator_call)) {
      call <- NULL
    }
    place <- if (!is.null(call)) paste0(" in ", deparse(call, nlines = 1L)[1L], " ")
    cat("Warning", place, ": ", condition_text(cnd), "\n", sep = "", file = stderr())
    tryInvokeRestart("muffleWarning")
  }
}

note_condition <- function(cnd) {
  if (the$sync_depth == 0L && .Call(rs_daemon_state) > 0L) {
    note(cnd)
    .Call(rs_noted)
  }
}

note <- function(cnd) {
  if (length(the$noted) >= most_conditions || the$noted_text >= most_text) {
    the$noted_dropped <- the$noted_dropped + 1L
    return()
  }
  message <- condition_text(cnd)
  size <- nchar(message, "bytes")
  if (the$noted_text + size > most_text) {
    the$noted_dropped <- the$noted_dropped + 1L
    return()
  }
  call <- tryCatch(conditionCall(cnd), error = function(e) NULL)
  # A call into which large data was substituted would go with every condition.
  if (identical(call, evaluator_call) || utils::object.size(call) > most_call) {
    call <- NULL
  }
  plain <- structure(list(message = message, call = call), class = class(cnd))
  the$noted <- c(the$noted, list(plain))
  the$noted_text <- the$noted_text + size
}

# Called from notes.rs when a task is over that has noted something, or printed `output`: all of it, as it is sent to
# the host.
take_notes <- function(output) {
  conditions <- the$noted
  if (the$noted_dropped > 0L) {
    attr(conditions, "dropped") <- the$noted_dropped
  }
  put_notes(no_notes)
  .Call(rs_encode, list(conditions = conditions, output = output))
}

#' Send a value ahead of the result
#'
#' Called in a running task, sends a value to the host at once: how far the task has come, or a first result. The host
#' reads the values sent so far with `mirai_reports()`.
#'
#' @param value any value.
#' @param m a mirai.
#' @returns `mirai_report()`: invisibly whether the value was sent. `FALSE`, without an error, where no task of a daemon
#'   runs: functions that report can be called anywhere.
#'
#'   `mirai_reports()`: a list of the values sent so far, the oldest first. The host keeps the last 1000 of a task, and
#'   not more than 16 MB; attribute `"dropped"` has the number of earlier ones.
#' @details
#' To be told of each value, pass a function as `.on_report` to [mirai()] or [mirai_map()]. If values arrive faster than
#' the session takes them, the function misses the oldest of those beyond the limits above. An error in it becomes a
#' warning.
#' @seealso [mirai()], [mirai_conditions()].
#' @examples
#' daemons(1)
#' m <- mirai({
#'   for (i in 1:3) mirai::mirai_report(i / 3)
#'   "done"
#' })
#' m[]
#' mirai_reports(m)
#'
#' # Be told at once
#' x <- mirai_map(
#'   1:2,
#'   function(x) mirai::mirai_report("begun"),
#'   .on_report = function(value, i) cat("Element", i, value, "\n")
#' )
#' x[]
#' daemons(0)
#' @export
mirai_report <- function(value) invisible(.Call(rs_report, value))

#' @rdname mirai_report
#' @export
mirai_reports <- function(m) {
  if (!is_mirai(m)) {
    stop_argument("m", "a mirai", sys.call())
  }
  reports <- .Call(rs_reports, m, 0)
  out <- lapply(reports, function(raw) .Call(rs_decode, raw))
  dropped <- attr(reports, "dropped")
  if (!is.null(dropped) && dropped > 0L) {
    attr(out, "dropped") <- dropped
  }
  out
}

# Checks the argument `.on_report`, and returns a function of the value and the index.
report_handler <- function(f, call) {
  if (!is.function(f)) {
    stop_argument(".on_report", "a function", call)
  }
  if (!requireNamespace("later", quietly = TRUE)) {
    stop_error("'.on_report' needs package later, which is not installed", call)
  }
  formals <- formals(args(f))
  if (length(formals) > 1L || "..." %in% names(formals)) f else function(value, i) f(value)
}

# Has `f` called with each value that one of these mirai sends ahead, and the mirai's index. The current event loop of
# package later calls it.
on_reports <- function(x, f) {
  x <- unclass(x)
  seen <- numeric(length(x))
  step <- function(i) {
    if (i == 0L) {
      return(TRUE)
    }
    reports <- .Call(rs_reports, x[[i]], seen[[i]])
    # Of a mirai that has resolved meanwhile, all that are kept.
    from <- attr(reports, "dropped")
    new <- seq_along(reports) + from > seen[[i]]
    seen[[i]] <<- max(seen[[i]], from + length(reports))
    for (raw in reports[new]) {
      tryCatch(f(.Call(rs_decode, raw), i), error = failed)
    }
    FALSE
  }
  failed <- function(cnd) warning("'.on_report' failed: ", condition_text(cnd), call. = FALSE)
  .Call(rs_prepare_promise)
  .Call(rs_when_reported, x, list(step, failed), later::current_loop()$id)
}
