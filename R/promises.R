#' Promises from mirai
#'
#' With package promises, mirai and mirai maps can be used wherever a promise can: in
#' [promises::then()] and its operators, in Shiny's outputs, observers and extended tasks, and as
#' what a plumber endpoint returns.
#'
#' @param x a mirai, or a mirai map.
#'
#' @returns `as.promise()` returns a promise: see [promises::promise()]. `is.promising()` returns
#'   `TRUE`.
#'
#' @details
#' The promise of a mirai is fulfilled with its value. An error value rejects it: that of an error
#' in the evaluation, with the original condition, of its own class and with all of its fields; any
#' other (such as timed out, or operation canceled) with an error that has its text as message. An
#' interrupt of the evaluation is no failure of the promise: the value is a `"miraiInterrupt"`.
#'
#' That of a mirai map is fulfilled with the list of all values, and is rejected as soon as an element
#' fails, as if by [promises::promise_all()].
#'
#' Shiny and plumber see by themselves that a mirai which they are given is a promise, if promises is
#' version 1.3.0 or later. With an older one, tell them: `as.promise(m)`, or `m %...>% plot()`.
#'
#' Nothing looks whether a mirai has resolved. The arrival of the result wakes the event loop
#' of package later that was current when the promise was made, so any number of promises may be
#' pending at no cost. The promise of a mirai settles even if nothing else refers to the mirai.
#' @seealso [mirai()], [mirai_map()]; `vignette("promises-and-shiny", "mirai")`.
#' @examplesIf requireNamespace("promises", quietly = TRUE)
#' library(promises)
#' daemons(1)
#' mirai(1 + 1) %...>% print()
#' mirai(stop("no")) %...!% (function(cnd) print(conditionMessage(cnd)))
#'
#' done <- FALSE
#' mirai_map(1:3, sqrt) %...>% print() %>% finally(function() done <<- TRUE)
#' # At an idle prompt, and in Shiny, this happens by itself:
#' while (!done) later::run_now(Inf)
#' daemons(0)
#' @name as.promise
#' @aliases is.promising
NULL

#' @rdname as.promise
#' @exportS3Method promises::as.promise
as.promise.mirai <- function(x) {
  .Call(rs_prepare_promise)
  promises::promise(function(resolve, reject) {
    when_resolved(x, function(i) settle_with(x$data, resolve, reject), reject)
  })
}

#' @rdname as.promise
#' @exportS3Method promises::as.promise
as.promise.mirai_map <- function(x) {
  .Call(rs_prepare_promise)
  promises::promise(function(resolve, reject) {
    when_resolved(
      unclass(x),
      function(i) {
        if (i > 0L) {
          return(rejects(x[[i]]$data) && settle_with(x[[i]]$data, resolve, reject))
        }
        values <- .Call(rs_collect_list, unclass(x))
        failed <- Find(rejects, values)
        settle_with(if (is.null(failed)) values else failed, resolve, reject)
      },
      reject
    )
  })
}

#' @exportS3Method promises::is.promising
is.promising.mirai <- function(x) TRUE

#' @exportS3Method promises::is.promising
is.promising.mirai_map <- function(x) TRUE

rejects <- function(value) is_error_value(value) && !is_mirai_interrupt(value)

# TRUE, because the promise is then settled.
settle_with <- function(value, resolve, reject) {
  if (rejects(value)) {
    reject(value_condition(value))
  } else {
    resolve(value)
  }
  TRUE
}

# Has `settle` called from the current event loop with the index of each of `x` that fails, and
# with 0 when all have resolved, until it returns TRUE. What it refers to is kept until then. An
# error in it (a value that cannot be unserialized) is for `reject`.
when_resolved <- function(x, settle, reject) {
  .Call(rs_when_resolved, x, list(settle, reject), later::current_loop()$id)
}

# Called from native code. TRUE: the promise has been settled.
settle_promise <- function(functions, index) {
  tryCatch(functions[[1L]](index), error = function(cnd) {
    functions[[2L]](cnd)
    TRUE
  })
}

# Functions to call with the outcome of each element of a map.
promise_each <- function(map, handlers) {
  for (m in map) {
    promises::then(m, handlers[[1L]], if (length(handlers) > 1L) handlers[[2L]])
  }
}

check_handlers <- function(x, call) {
  if (is.function(x)) {
    x <- list(x)
  }
  if (!is.list(x) || !length(x) %in% 1:2 || !all(vapply(x, is.function, NA))) {
    stop_argument(".promise", "a function, or a list of one or two functions", call)
  }
  if (!requireNamespace("promises", quietly = TRUE)) {
    stop_error("'.promise' needs package promises, which is not installed", call)
  }
  x
}
