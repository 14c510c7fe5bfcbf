#' Evaluate an expression asynchronously
#'
#' Evaluates an expression in another process and returns at once, with an object
#' that will hold the value. With [daemons()] set, one of them evaluates it;
#' otherwise a fresh R process is started for it and ends afterwards.
#'
#' @param .expr an expression to evaluate. It is quoted, so wrap several statements
#'   in braces; or the name of a variable that holds a language object (a call, an
#'   expression, a symbol), in which case that is used.
#' @param ... named objects to assign to the daemon's global environment for the
#'   evaluation. Or a single environment, such as `environment()`, whose objects are
#'   (including those with names beginning with a dot, except `.Random.seed`).
#' @param .args a named list, or an environment, of objects that only `.expr` itself
#'   shall see.
#' @param .timeout milliseconds after which the mirai resolves to an error value of
#'   5 (timed out), or `NULL` for none. With dispatcher, the task is cancelled, too: it is
#'   taken out of the queue, or interrupted if it is running.
#' @param .compute name of the compute profile to use, or `NULL` for the current one
#'   (`"default"`, unless [with_daemons()] or [local_daemons()] says otherwise).
#'
#' @returns A mirai, invisibly: an environment of class `"mirai"`. Its `$data` is the
#'   value once that is there, and until then an unresolved value, a logical `NA` of
#'   class `"unresolvedValue"`. Reading it never blocks. To wait, use `m[]` or
#'   [call_mirai()]. `attr(m, "id")` is an integer that increases through the session.
#'
#'   An error in the evaluation makes the value a character string of classes
#'   `"miraiError"`, `"errorValue"` and `"try-error"`; see [is_error_value()].
#'
#' @details
#' The evaluation takes place in an environment whose parent is the daemon's global
#' environment. Nothing of the session is sent but what `...` and `.args` name.
#'
#' If a daemon ends in the middle of the evaluation, the value is an error value of 19
#' (connection reset), or the task is run again elsewhere if [daemons()] was told to
#' `retry`. If the number of daemons is reset, pending mirai resolve to 19, too.
#'
#' @seealso [daemons()], [mirai_map()]; [call_mirai()], [collect_mirai()], [unresolved()], [stop_mirai()];
#'   [is_error_value()].
#' @examples
#' m <- mirai(x + 2 * y, x = 1, y = 10)
#' m
#' m[]
#'
#' # An existing function and its variables, by way of the calling environment
#' square <- function(x) x^2
#' n <- 4
#' m <- mirai(square(n), environment())
#' call_mirai(m)$data
#'
#' # Errors are values
#' m <- mirai(stop("sorry"))
#' m[]
#' is_mirai_error(m$data)
#' @export
mirai <- function(.expr, ..., .args = list(), .timeout = NULL, .compute = NULL) {
  if (missing(.expr)) {
    stop_error("missing expression, perhaps wrap in {}?", sys.call(), "mirai_error_argument")
  }
  expr <- substitute(.expr)
  if (is.symbol(expr) && exists(as.character(expr), envir = parent.frame()) && is.language(.expr)) {
    expr <- .expr
  }
  globals <- if (...length()) named_dots(list(...))
  args <- if (length(.args)) named_args(.args)
  if (!is.null(.timeout)) {
    check_positive(.timeout, ".timeout")
  }
  if (!is.null(.compute)) {
    check_string(.compute, ".compute")
  }
  m <- .Call(rs_submit, expr, globals, args, .timeout, .compute, give_up)
  if (is.logical(m)) {
    m <- evaluate_sync(expr, globals, args, check_profile(.compute))
  }
  invisible(m)
}

# Whether to give up, rather than wait, when the queue is full.
give_up <- FALSE

#' Evaluate asynchronously if the queue has room
#'
#' The same as [mirai()], except when [daemons()] were set with a `memory` budget and
#' the queue has used it up: where `mirai()` waits for room, this returns at once.
#'
#' @inheritParams mirai
#' @returns A mirai, invisibly, or `NULL` if there is no room.
#' @seealso [mirai()], [daemons()] and its argument `memory`.
#' @examples
#' daemons(1, memory = 100)
#' m <- try_mirai(1 + 1)
#' if (!is.null(m)) m[]
#' daemons(0)
#' @export
try_mirai <- mirai

# The same body, with another constant in its scope.
environment(try_mirai) <- list2env(
  list(give_up = TRUE),
  parent = environment(mirai)
)

# Function of the active binding `data` of an unread mirai. Evaluated in copies whose
# environment is the mirai itself, which is where `.task` is: see tasks.rs.
data_binding <- function(value) {
  if (missing(value)) .Call(rs_data, .task) else stop_error("'data' of a mirai cannot be set", sys.call())
}
utils::globalVariables(".task")

#' @export
print.mirai <- function(x, ...) {
  cat(if (.Call(rs_pending, x)) "< mirai [] >\n" else "< mirai [$data] >\n")
  invisible(x)
}

#' @export
`[.mirai` <- function(x, option, ...) {
  if (missing(option) && !relays()) return(.Call(rs_collect, x))
  options <- check_options(collection_arguments(substitute(list(option, ...)), parent.frame()), sys.call())
  value <- .Call(rs_collect, x)
  if (!is.null(options$.relay) || relays()) relay(x)
  value
}

#' @export
print.unresolvedValue <- function(x, ...) {
  cat("'unresolved' logi NA\n")
  invisible(x)
}
