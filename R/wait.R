#' Wait for mirai
#'
#' Waits until a mirai, or each of a list of mirai, has resolved. Ctrl-C and [setTimeLimit()] end the wait. The tasks go
#' on.
#'
#' @param x a mirai, or a list of mirai (such as a mirai map), which may have maps in it. Anything else is returned as
#'   it is, without waiting.
#' @returns `x`, invisibly. Then `x$data` is the value.
#' @details
#' To wait and get the values, use `x[]`, or [collect_mirai()], which has options. `call_mirai_()` is the same as
#' `call_mirai()`, kept for older code.
#'
#' There is no polling for results. R's time limits, and some of its event handlers (such as those of Tcl/Tk), can only
#' be polled: during a wait, R checks them every 100 ms. Event handlers that wait for input, such as those of R's web
#' server and of graphics devices, are called at once.
#' @seealso [collect_mirai()] for the values, [race_mirai()] for the first of several, [unresolved()] to
#'   look without waiting.
#' @examples
#' m <- mirai(Sys.getpid())
#' call_mirai(m)$data
#' @export
call_mirai <- function(x) {
  if (missing(x)) {
    check_waitable(x)
  }
  if (is_mirai(x)) {
    return(invisible(.Call(rs_wait_all, x)))
  }
  if (is.list(x)) {
    .Call(rs_wait_all, mirai_in(x))
  }
  invisible(x)
}

#' @rdname call_mirai
#' @export
call_mirai_ <- call_mirai

#' Wait for the first of several mirai
#'
#' Waits until one of several mirai has resolved, and tells which.
#'
#' @param x a mirai, or a list of mirai.
#' @returns The index of a mirai that has resolved. If several have, the smallest index. `0L` for an empty list.
#' @seealso [call_mirai()], [collect_mirai()].
#' @examples
#' daemons(2)
#' x <- list(mirai({Sys.sleep(5); "slow"}), mirai("fast"))
#' race_mirai(x)
#' daemons(0)
#' @export
race_mirai <- function(x) {
  check_waitable(x)
  .Call(rs_race, x)
}

#' Cancel mirai
#'
#' Cancels tasks. Each mirai resolves at once to error value 20 (operation canceled). A task that waits is taken off the
#' queue. A task that runs is interrupted, and its daemon takes the next task when the evaluation has ended. Native code
#' that does not check for interrupts may delay that.
#'
#' What a task waits for, by its arguments, is cancelled with it if nobody else wants it: see section *Pipelines* of
#' [mirai()].
#'
#' @param x a mirai, or a list of mirai (such as a mirai map), which may have maps in it.
#' @returns A logical vector, invisibly: for each mirai, whether it was cancelled. `FALSE` if it had resolved already,
#'   or is not a mirai. For a map in a list, whether any of its mirai was.
#' @seealso [mirai()] and its argument `.timeout`; [is_error_value()].
#' @examples
#' m <- mirai(Sys.sleep(60))
#' stop_mirai(m)
#' m$data
#' @export
stop_mirai <- function(x) {
  if (missing(x)) {
    check_waitable(x)
  }
  if (is_mirai(x)) {
    return(invisible(.Call(rs_cancel, x)))
  }
  if (!is.list(x)) {
    return(invisible(FALSE))
  }
  found <- are_mirai(x)
  x <- unclass(x)
  stopped <- found
  stopped[found] <- .Call(rs_cancel, x[found])
  for (i in which(!found)) {
    stopped[[i]] <- is_mirai_map(x[[i]]) && any(stop_mirai(x[[i]]))
  }
  invisible(stopped)
}

#' Has a mirai resolved?
#'
#' Checks, without waiting, whether a mirai is still unresolved.
#'
#' @param x a mirai, the `$data` of a mirai, or a list of these, or of mirai maps.
#' @returns `TRUE` if `x`, or an element of the list, is unresolved. Otherwise `FALSE`, also for other objects.
#' @seealso [call_mirai()], [race_mirai()].
#' @examples
#' m <- mirai(Sys.sleep(0.1))
#' unresolved(m)
#' m[]
#' unresolved(m)
#' @export
unresolved <- function(x) .Call(rs_pending, x) > 0L

are_mirai <- function(x) vapply(unclass(x), is_mirai, NA, USE.NAMES = FALSE)

# The mirai in a list, those in maps in it included.
mirai_in <- function(x) {
  found <- are_mirai(x)
  x <- unclass(x)
  if (all(found)) x else c(x[found], unlist(lapply(Filter(is_mirai_map, x[!found]), unclass), FALSE))
}

check_waitable <- function(x, call = sys.call(-1L)) {
  if (!missing(x) && (is_mirai(x) || is.list(x) && all(are_mirai(x)))) {
    return()
  }
  stop_argument("x", "a mirai, or a list of mirai", call)
}
