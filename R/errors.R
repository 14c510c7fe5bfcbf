#' Error values
#'
#' A task that fails does not raise an error in your session. Its value is an *error value*. These functions test for
#' error values, and for mirai and mirai maps.
#'
#' @param x an object.
#' @returns `TRUE` or `FALSE`.
#' @details
#' `is_error_value()` is `TRUE` for three kinds of values:
#'
#' * `"errorValue"`, an integer: the evaluation was ended from outside. 5: timed out. 7: object closed. 19: connection
#'   reset (the daemon was lost, or daemons were reset). 20: operation canceled (by [stop_mirai()]). If a daemon was
#'   lost, attribute `"reason"` of 19 says which one, and why as far as that is known: `daemon 2 (pid 4711 on node) was
#'   killed by signal 9`. If daemons were reset, it says that. [conditionMessage()] has it, too.
#' * `"miraiError"`: the evaluation raised an error. The value is a character string, `Error in <call>: <message>`.
#'   `$stack.trace` is a list of the calls on the stack, innermost first: as strings, or as calls in
#'   [edition 2][mirai-edition]. `$message`, `$call`, `$condition.class` and all other fields of the original condition
#'   are there, too. [conditionMessage()] and [conditionCall()] work. `is_mirai_error()` tests for this kind. If an
#'   argument of the task was a mirai that has failed, the condition has class `"mirai_error_pipeline"`, and `$parent`
#'   is that error value.
#' * `"miraiInterrupt"`: the evaluation was interrupted by the user. The value is an empty string.
#'   `is_mirai_interrupt()` tests for this kind.
#'
#' @seealso [mirai-errors] for the errors that functions of this package raise; [mirai()], [stop_mirai()].
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

# An integer error value, or an interrupt, as one line of text, with the reason if there is one.
error_reason <- function(code) {
  if (is_mirai_interrupt(code)) {
    return("the evaluation was interrupted")
  }
  reason <- attr(code, "reason", exact = TRUE)
  paste(c(error_text(code), reason), collapse = ": ")
}

#' @export
conditionMessage.errorValue <- function(c) error_reason(c)

#' @export
conditionCall.errorValue <- function(c) NULL

#' @export
conditionMessage.miraiError <- function(c) attr(c, "message", exact = TRUE)

#' @export
conditionCall.miraiError <- function(c) attr(c, "call", exact = TRUE)

# Makes a "miraiError" from a condition and the calls on the stack, outermost first.
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
  call <- small_call(call)
  # Fields with these names would change what the character vector is.
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

# The message of a condition, as one string. Does not fail, even if the class's own method does.
condition_text <- function(cnd) {
  tryCatch(
    paste(as.character(conditionMessage(cnd)), collapse = "\n"),
    error = function(e) "(the condition has no message)"
  )
}

# The field `message` of a condition, if conditionMessage() returns something else: for example with the messages of
# parent conditions added. Otherwise NULL.
own_message <- function(cnd, message) {
  own <- if (is.list(cnd)) unclass(cnd)$message
  if (is.character(own) && !identical(own, message)) own
}

# The text of a call: from its source reference, or deparsed.
call_text <- function(call) {
  source <- attr(call, "srcref")
  text <- if (!is.null(source)) {
    tryCatch(as.character(source), error = function(e) NULL)
  }
  # The limit matters for a call that contains large data.
  if (is.null(text)) {
    text <- deparse(call, nlines = 50L)
  }
  paste(text, collapse = "\n")
}

new_mirai_interrupt <- function() {
  structure("", class = c("miraiInterrupt", "errorValue", "try-error"))
}

# The value of a task that returned none. `text` is NULL if the task jumped to top level. Otherwise R could not
# serialize the value, and `text` is R's error message.
failure_value <- function(text) {
  if (is.null(text)) {
    return(new_mirai_interrupt())
  }
  # The prefix is there twice if native code has passed the error on.
  message <- sub("^(Error[^:\n]*:\\s+)+", "", trimws(text))
  new_mirai_error(simpleError(message), list())
}

# The value of a mirai whose result raised an error when it was unserialized here. Called from tasks.rs.
unreadable_value <- function(cnd) {
  new_mirai_error(simpleError(conditionMessage(cnd)), list())
}

# The condition that an error value stands for.
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
    # If this session has the class's method of conditionMessage(), too, the method would add the parents' messages
    # twice. Then the condition gets its own message back.
    bare <- cnd
    bare$message <- own
    return(if (identical(condition_text(bare), own)) cnd else bare)
  }
  simpleError(error_reason(value), call)
}
