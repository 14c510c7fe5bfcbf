#' Error values
#'
#' Tests for mirai, mirai maps, and for the values that stand for something that went
#' wrong.
#'
#' @param x an object.
#' @returns `TRUE` or `FALSE`.
#' @details
#' `is_error_value()` is `TRUE` for all of these:
#'
#' * An integer of class `"errorValue"`: the evaluation did not end by itself. 5 timed out,
#'   7 object closed, 19 connection reset (the daemon was lost, or daemons were reset), 20
#'   operation canceled (by [stop_mirai()]). If a daemon was lost, attribute `"reason"` of 19 says which one, and why as
#'   far as that is known: `daemon 2 (pid 4711 on node) was killed by signal 9`. [conditionMessage()] has it, too.
#' * A `"miraiError"`: the evaluation ended in an error. It is a character string of
#'   the form `Error in <call>: <message>`. Further to that, `$stack.trace` is a list of the
#'   calls on the stack, innermost first: as strings, or as calls in [edition 2][mirai-edition];
#'   `$message`, `$call`, `$condition.class` and every other field of the original condition can be
#'   had in the same way.
#'   [conditionMessage()] and [conditionCall()] work on it. Test with `is_mirai_error()`.
#' * A `"miraiInterrupt"`: the evaluation was interrupted by the user. It is an empty
#'   string. Test with `is_mirai_interrupt()`.
#'
#' @seealso [mirai-errors] for the errors that functions raise; [mirai()], [stop_mirai()].
#' @examples
#' m <- mirai(log("a"))
#' m[]
#' is_error_value(m$data)
#' is_mirai_error(m$data)
#' m$data$message
#' @name is_mirai
NULL

#' @rdname is_mirai
#' @export
is_mirai <- function(x) inherits(x, "mirai")

#' @rdname is_mirai
#' @export
is_mirai_map <- function(x) inherits(x, "mirai_map")

#' @rdname is_mirai
#' @export
is_error_value <- function(x) inherits(x, "errorValue")

#' @rdname is_mirai
#' @export
is_mirai_error <- function(x) inherits(x, "miraiError")

#' @rdname is_mirai
#' @export
is_mirai_interrupt <- function(x) inherits(x, "miraiInterrupt")

#' @export
print.errorValue <- function(x, ...) {
  cat(paste0("'errorValue' int ", x, " | ", error_text(x), "\n"))
  invisible(x)
}

error_text <- function(code) {
  switch(
    as.character(unclass(code)),
    "5" = "Timed out",
    "7" = "Object closed",
    "19" = "Connection reset",
    "20" = "Operation canceled",
    "Unknown error"
  )
}

#' @export
print.miraiError <- function(x, ...) {
  cat(paste0("'miraiError' chr ", as.vector(x), "\n"))
  invisible(x)
}

#' @export
print.miraiInterrupt <- function(x, ...) {
  cat("'miraiInterrupt' chr \"\"\n")
  invisible(x)
}

#' @export
`$.miraiError` <- function(x, name) {
  field <- attr(x, name, exact = TRUE)
  if (identical(name, "stack.trace")) edition_trace(field) else field
}

#' @export
.DollarNames.miraiError <- function(x, pattern = "") {
  grep(pattern, setdiff(names(attributes(x)), "class"), value = TRUE)
}

# An error value as one line of text, with the reason if there is one.
error_reason <- function(code) {
  reason <- attr(code, "reason", exact = TRUE)
  paste(c(error_text(code), reason), collapse = ": ")
}

#' @export
conditionMessage.errorValue <- function(c) error_reason(c)

#' @export
conditionMessage.miraiError <- function(c) attr(c, "message", exact = TRUE)

#' @export
conditionCall.miraiError <- function(c) attr(c, "call", exact = TRUE)

# Makes an error value of a condition and the calls that were on the stack, outermost
# first.
new_mirai_error <- function(cnd, calls) {
  message <- condition_text(cnd)
  call <- tryCatch(conditionCall(cnd), error = function(e) NULL)
  if (identical(call, evaluator_call)) {
    call <- NULL
  }
  text <- if (is.null(call)) {
    paste0("Error: ", message)
  } else {
    paste0("Error in ", deparse(call, nlines = 1L)[1L], ": ", message)
  }
  # Names that mean something else on a character vector cannot be kept.
  fields <- unclass(cnd)
  reserved <- c("", "names", "dim", "dimnames", "tsp", "class", "levels", "comment", "row.names")
  fields <- if (is.list(fields)) fields[setdiff(names(fields), c(reserved, "message", "call"))]
  attributes(text) <- c(
    fields,
    list(
      stack.trace = rev(lapply(calls, if (traces_calls()) trace_call else call_text)),
      message = message,
      call = call,
      condition.class = class(cnd),
      condition.message = own_message(cnd, message),
      class = c("miraiError", "errorValue", "try-error")
    )
  )
  text
}

# The message of a condition, whatever its class makes of that.
condition_text <- function(cnd) {
  tryCatch(
    paste(as.character(conditionMessage(cnd)), collapse = "\n"),
    error = function(e) "(the condition has no message)"
  )
}

# The field `message` of a condition, if its class makes another message of that: with those of its parents,
# say. Otherwise NULL.
own_message <- function(cnd, message) {
  own <- if (is.list(cnd)) unclass(cnd)$message
  if (is.character(own) && !identical(own, message)) own
}

# A call as it stands in the source, if that is known.
call_text <- function(call) {
  source <- attr(call, "srcref")
  text <- if (!is.null(source)) {
    tryCatch(as.character(source), error = function(e) NULL)
  }
  # Without end, a call into which large data was substituted could take for ever.
  if (is.null(text)) {
    text <- deparse(call, nlines = 50L)
  }
  paste(text, collapse = "\n")
}

new_mirai_interrupt <- function() {
  structure("", class = c("miraiInterrupt", "errorValue", "try-error"))
}

# The value of a task that has none: it has jumped to top level (NULL), or R could not
# serialize its value, with R's own words about that.
failure_value <- function(text) {
  if (is.null(text)) {
    return(new_mirai_interrupt())
  }
  # Twice where native code has passed an error on.
  message <- sub("^(Error[^:\n]*:\\s+)+", "", trimws(text))
  new_mirai_error(simpleError(message), list())
}

# The value of a task whose value ends in an R error when it is read here: called from tasks.rs.
unreadable_value <- function(cnd) {
  new_mirai_error(simpleError(conditionMessage(cnd)), list())
}

# The error that an error value was.
value_condition <- function(value, call = NULL) {
  if (is_mirai_error(value)) {
    fields <- attributes(value)
    class <- fields$condition.class
    own <- fields$condition.message
    fields <- fields[setdiff(names(fields), c("class", "condition.class", "condition.message", "stack.trace"))]
    cnd <- structure(c(fields, list(stack.trace = value$stack.trace)), class = class)
    if (is.null(own)) {
      return(cnd)
    }
    # If the class has its method of conditionMessage() here, too, that would add again what it has added.
    bare <- cnd
    bare$message <- own
    return(if (identical(condition_text(bare), own)) cnd else bare)
  }
  text <- if (is_mirai_interrupt(value)) "the evaluation was interrupted" else error_reason(value)
  simpleError(text, call)
}
