#' Promises from mirai
#'
#' With package promises, mirai and mirai maps work wherever a promise does: in [promises::then()] and its operators, in
#' Shiny's outputs, observers and extended tasks, and as the value of a plumber endpoint.
#'
#' @param x a mirai, or a mirai map.
#'
#' @returns `as.promise()`: a promise, see [promises::promise()]. `is.promising()`: `TRUE`.
#'
#' @details
#' The promise of a mirai is fulfilled with the value of the mirai. An error value rejects it. If the evaluation raised
#' an error, the reason is the original condition, with its class and fields. For other error values (such as timed
#' out), the reason is a simple error with the text of the error value. An interrupt of the evaluation does not reject
#' the promise: the value is a `"miraiInterrupt"`.
#'
#' The promise of a mirai map is fulfilled with the list of all values. It is rejected when the first element fails, as
#' by [promises::promise_all()].
#'
#' With promises 1.3.0 or later, Shiny and plumber recognise a mirai as a promise. With an older version, convert it:
#' `as.promise(m)`, or `m %...>% plot()`.
#'
#' There is no polling. When the result arrives, it wakes the event loop of package later that was current when the
#' promise was made. A pending promise costs no processor time. The promise settles even if nothing else refers to the
#' mirai.
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

# Settles a promise with the value of a mirai. Returns TRUE: the promise is settled.
settle_with <- function(value, resolve, reject) {
  if (rejects(value)) {
    reject(value_condition(value))
  } else {
    resolve(value)
  }
  TRUE
}

# Has `settle` called from the current event loop: with the index of each of `x` that fails, and with 0 when all have
# resolved, until it returns TRUE. Keeps `x` and both functions until then. If `settle` raises an error, because a value
# cannot be unserialized, `reject` is called with it.
when_resolved <- function(x, settle, reject) {
  .Call(rs_when_resolved, x, list(settle, reject), later::current_loop()$id)
}

# promises.rs calls this with the functions of when_resolved(). Returns whether the promise has been settled.
settle_promise <- function(functions, index) {
  tryCatch(functions[[1L]](index), error = function(cnd) {
    functions[[2L]](cnd)
    TRUE
  })
}

# For the argument `.promise` of mirai_map(): calls the handlers with the outcome of each element.
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
