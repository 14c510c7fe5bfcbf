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

conditions_of <- function(m) {
  notes <- .Call(rs_notes, m)
  if (is.null(notes)) list() else .Call(rs_decode, notes)$conditions
}

#' @rdname collection-options
#' @export
.relay <- ".relay"

relays <- function() isTRUE(getOption("mirai.relay"))

# Signals the conditions of a mirai again, or those of each element of a map.
relay <- function(x) {
  if (is_mirai(x)) {
    for (cnd in conditions_of(x)) {
      relay_condition(cnd)
    }
    return(invisible())
  }
  for (i in seq_along(x)) {
    for (cnd in conditions_of(x[[i]])) {
      relay_condition(located(cnd, names(x)[i], i))
    }
  }
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

# Called on a daemon by the handlers around its tasks.
note_condition <- function(cnd) {
  if (length(the$noted) >= most_conditions || the$noted_text >= most_text) {
    the$noted_dropped <- the$noted_dropped + 1L
    return()
  }
  if (.Call(rs_daemon_state) == 0L) {
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
  .Call(rs_noted)
}

# Called from notes.rs when a task is over that has noted something: all of it, as it is sent to the host.
take_notes <- function() {
  conditions <- the$noted
  if (the$noted_dropped > 0L) {
    attr(conditions, "dropped") <- the$noted_dropped
  }
  the$noted <- list()
  the$noted_text <- 0
  the$noted_dropped <- 0L
  .Call(rs_encode, list(conditions = conditions))
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
#' @seealso [mirai()], [mirai_conditions()].
#' @examples
#' daemons(1)
#' m <- mirai({
#'   for (i in 1:3) mirai::mirai_report(i / 3)
#'   "done"
#' })
#' m[]
#' mirai_reports(m)
#' daemons(0)
#' @export
mirai_report <- function(value) invisible(.Call(rs_report, value))

#' @rdname mirai_report
#' @export
mirai_reports <- function(m) {
  if (!is_mirai(m)) {
    stop_argument("m", "a mirai", sys.call())
  }
  reports <- .Call(rs_reports, m)
  out <- lapply(reports, function(raw) .Call(rs_decode, raw))
  dropped <- attr(reports, "dropped")
  if (!is.null(dropped) && dropped > 0L) {
    attr(out, "dropped") <- dropped
  }
  out
}
