#' Evaluate an expression asynchronously
#'
#' Evaluates an expression in another R process. Returns at once a *mirai*, an object that will hold the value. If
#' [daemons()] are set, a daemon evaluates the expression. Without daemons, each `mirai()` starts its own R process,
#' which ends afterwards.
#'
#' @param .expr an expression to evaluate. It is quoted, so wrap several statements in braces. If it is the name of a
#'   variable that holds a language object (a call, an expression or a symbol), that object is evaluated.
#' @param ... named objects that the expression uses. They are assigned to the daemon's global environment for the
#'   evaluation. Or a single environment, such as `environment()`: then its objects are assigned, including those whose
#'   names begin with a dot, except `.Random.seed`. An object that is a mirai stands for its value: see section
#'   *Pipelines*.
#' @param .args a named list, or an environment, of objects that are local to the evaluation. Functions that `.expr`
#'   calls do not see them; use `...` for those.
#' @param .timeout milliseconds after which the mirai resolves to error value 5 (timed out). `NULL` for no limit. With
#'   dispatcher, the task is also cancelled: it is taken off the queue, or interrupted if it is running.
#' @param .compute name of the compute profile to use, or `NULL` for the current one: `"default"`, unless
#'   [with_daemons()] or [local_daemons()] has changed it.
#' @param .retry whether the task is attempted again if it fails: `TRUE`, `FALSE`, or a value of [retry_config()], which
#'   explains them. `NULL` for the option `retry` of [daemons()].
#' @param .priority a number: of the tasks that wait in the dispatcher's queue, those of higher priority go first, and
#'   those of the same priority in the order of submission. See section *Priority*.
#' @param .on_report a function of one or two arguments. It is called with each value that [mirai_report()] sends ahead,
#'   and with the index of the element: 1 for a single mirai. It is called while the session waits for mirai, and by
#'   package later at an idle prompt and in Shiny.
#'
#' @returns A mirai, invisibly: an environment of class `"mirai"`. `m$data` is the value. It never waits: until the
#'   mirai has resolved, it is an *unresolved value*, a logical `NA` of class `"unresolvedValue"`. `m[]` and
#'   [call_mirai()] wait. `attr(m, "id")` is an integer that increases with each mirai of the session.
#'
#'   If the evaluation raises an error, the value is a character string of classes `"miraiError"`, `"errorValue"` and
#'   `"try-error"`: see [is_error_value()].
#'
#' @details The expression is evaluated in a new environment, whose parent is the daemon's global environment. Only the
#'   objects in `...` and `.args` are sent; nothing else of the session is.
#'
#' If the daemon ends during the evaluation, the value is error value 19 (connection reset). With `.retry = TRUE`, or
#' `daemons(retry = TRUE)`, the task is run again on another daemon instead. When daemons are reset, pending mirai
#' resolve to 19, too.
#'
#' @section Priority: A daemon that is free takes the task of the highest priority. A task of higher priority interrupts
#' none that is running, and goes behind the tiny tasks that a daemon holds ahead, a millisecond of work. A task does
#' not rise by waiting: while tasks of higher priority keep all daemons busy, it waits, for as long as they come. So
#' give high priorities to few or short tasks. A task that is attempted again keeps its priority.
#'
#' Without dispatcher, tasks do not wait in one queue, and `.priority` has no effect.
#'
#' @section Pipelines: A mirai that is given as an argument, in `...` or in the list `.args`, stands for its value. So
#' does a list, if all its elements are mirai: the task gets a list of their values, with the same names. The mirai may
#' belong to another compute profile. `mirai()` does not wait for them.
#'
#' * The task waits in the dispatcher until they have resolved. It is `"queued"` in [task_log()] and `awaiting` in
#'   [info()] meanwhile. Then it stands in the queue where it would have stood, by its priority and its submission.
#'   `.timeout` counts from the submission.
#' * The values go from daemon to daemon as they are: the session does not read them, and need not be idle. On one
#'   machine, large vectors stay in the same shared memory. If the session has read a value already, it sends that one.
#' * If one of them resolves to an error value, the task is not evaluated. It resolves to a `"miraiError"`, whose
#'   message is `an argument could not be computed:` with the message of that error value. `$parent` is the error value
#'   itself: in a chain, that of the first task that failed.
#' * If the task ends without the values, because it is cancelled with [stop_mirai()], times out, or one of them fails,
#'   the mirai that it waits for are cancelled, too, if nobody else wants their values: no other unresolved task needs
#'   it, no variable or other R object has the mirai, and its value does not go to a checkpoint. Only R's garbage
#'   collector knows the second. [stop_mirai()] has R collect garbage, and so has a later wait or reading of a value.
#' * With `.retry`, another attempt gets the same values.
#'
#' Not so the objects of an environment, or a mirai that is deeper within an object: they are sent as they are. With
#' `daemons(sync = TRUE)`, and in [everywhere()], the call waits for the values.
#'
#' @seealso [daemons()] to keep processes ready; [mirai_map()] for many tasks; [call_mirai()], [collect_mirai()],
#'   [unresolved()], [stop_mirai()]; [is_error_value()]; `vignette("mirai", "mirai")`.
#' @examples
#' m <- mirai(x + 2 * y, x = 1, y = 10)
#' m
#' m[]
#'
#' # Send all objects of the calling environment
#' square <- function(x) x^2
#' n <- 4
#' m <- mirai(square(n), environment())
#' call_mirai(m)$data
#'
#' # The second task waits for the first, without the session
#' numbers <- mirai(rnorm(1e6))
#' m <- mirai(mean(x), x = numbers)
#' m[]
#'
#' # Errors are values
#' m <- mirai(stop("sorry"))
#' m[]
#' is_mirai_error(m$data)
#' @export
mirai <- function(
  .expr,
  ...,
  .args = list(),
  .timeout = NULL,
  .compute = NULL,
  .retry = NULL,
  .priority = 0,
  .on_report = NULL
) {
  if (missing(.expr)) {
    stop_error("missing expression, perhaps wrap in {}?", sys.call(), "mirai_error_argument")
  }
  expr <- substitute(.expr)
  if (is.symbol(expr) && exists(as.character(expr), envir = parent.frame()) && is.language(.expr)) {
    expr <- .expr
  }
  dots <- if (...length()) list(...)
  globals <- if (length(dots)) named_dots(dots)
  args <- if (length(.args)) named_args(.args)
  if (!is.null(.timeout)) {
    check_positive(.timeout, ".timeout")
  }
  if (!is.null(.compute)) {
    .compute <- check_profile(.compute)
  }
  rules <- if (!is.null(.retry) || !identical(.priority, 0)) task_rules(.retry, .priority)
  if (!is.null(.on_report)) {
    .on_report <- report_handler(.on_report, sys.call())
  }
  sent <- expr
  if (!the$tracer_sought) {
    find_tracer()
  }
  if (!is.null(the$tracer)) {
    span <- local_span("mirai", "producer", NULL, check_profile(.compute))
    sent <- with_context(expr)
  }
  m <- .Call(rs_submit, sent, globals, args, .timeout, .compute, give_up, rules, names(dots), .args)
  if (is.logical(m)) {
    globals <- awaited(globals, !is.null(names(dots)))
    args <- awaited(args, !is.environment(.args))
    m <- evaluate_sync(expr, globals, args, check_profile(.compute))
  }
  if (!is.null(the$tracer)) {
    span$set_attribute("mirai.id", attr(m, "id"))
  }
  if (!is.null(.on_report) && !is.null(m)) {
    on_reports(list(m), .on_report)
  }
  invisible(m)
}

# Whether to return NULL if the queue is full, rather than wait. try_mirai() has another value of this constant.
give_up <- FALSE

#' Evaluate asynchronously if the queue has room
#'
#' The same as [mirai()], except if [daemons()] were set with a `memory` limit and the queue is full. Then `mirai()`
#' waits for room, and `try_mirai()` returns `NULL` at once.
#'
#' @inheritParams mirai
#' @returns A mirai, invisibly, or `NULL` if the queue is full.
#' @seealso [mirai()], [daemons()] and its argument `memory`.
#' @examples
#' daemons(1, memory = 100)
#' m <- try_mirai(1 + 1)
#' if (!is.null(m)) m[]
#' daemons(0)
#' @export
try_mirai <- mirai

# The same function, in an environment where the constant is TRUE.
environment(try_mirai) <- list2env(
  list(give_up = TRUE),
  parent = environment(mirai)
)

# The function of the active binding `data` of a mirai that has not been read. Each mirai has a copy, whose environment
# is the mirai itself. That has `.task`: see tasks.rs.
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
`[.mirai` <- function(x, ...) {
  if (missing(..1)) {
    return(collect_one(x))
  }
  collect_one(x, collection_arguments(substitute(list(...)), parent.frame()), sys.call())
}

#' @export
print.unresolvedValue <- function(x, ...) {
  cat("'unresolved' logi NA\n")
  invisible(x)
}
