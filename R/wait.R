#' Wait for mirai
#'
#' Waits until a mirai, or each of a list of them, has resolved. Ctrl-C ends the wait, and so does
#' [setTimeLimit()]; the mirai are not affected by that.
#'
#' @param x a mirai, or a list of mirai (such as a mirai map). There is nothing to wait for in anything
#'   else, which is returned as it is.
#' @returns `x`, invisibly. For a mirai that has resolved, `x$data` is the value.
#' @details `call_mirai_()` is the same as `call_mirai()`, kept for older code. To get at
#'   the values themselves, `x[]` is the shortest way, and [collect_mirai()] has options.
#'
#'   There is no polling for the result. But time limits and some event handlers of R (such as those of
#'   Tcl/Tk) give no sign when they are due: R looks at them every 100 ms while this package waits.
#'   Handlers that wait for input, such as those of R's web server and of graphics devices, are called at once.
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
    .Call(rs_wait_all, unclass(x)[are_mirai(x)])
  }
  invisible(x)
}

#' @rdname call_mirai
#' @export
call_mirai_ <- call_mirai

#' Wait for the first of several mirai
#'
#' @param x a mirai, or a list of mirai.
#' @returns The index of a mirai that has resolved: the first in the list, if there are
#'   several already. `0L` for an empty list.
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
#' A task that waits in the queue is taken out of it. A running one is interrupted, and its
#' daemon stays in service: from the moment at which R lets itself be interrupted, which native code
#' may delay. Either way the mirai resolves at once, to an error value of 20 (operation canceled).
#'
#' @param x a mirai, or a list of mirai (such as a mirai map).
#' @returns Invisibly a logical vector, for each mirai whether it was cancelled: `FALSE`
#'   means that it had resolved already, or is no mirai.
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
  stopped <- are_mirai(x)
  stopped[stopped] <- .Call(rs_cancel, unclass(x)[stopped])
  invisible(stopped)
}

#' Has a mirai resolved?
#'
#' Tells without waiting whether a mirai is still unresolved, so it can be used in
#' conditions directly.
#'
#' @param x a mirai, the `$data` of one, or a list of these.
#' @returns `TRUE` if `x`, or any element of the list, is unresolved; otherwise `FALSE`, which
#'   includes anything that is not a mirai.
#' @seealso [call_mirai()], [race_mirai()].
#' @examples
#' m <- mirai(Sys.sleep(0.1))
#' unresolved(m)
#' m[]
#' unresolved(m)
#' @export
unresolved <- function(x) .Call(rs_pending, x) > 0L

are_mirai <- function(x) vapply(unclass(x), is_mirai, NA, USE.NAMES = FALSE)

check_waitable <- function(x, call = sys.call(-1L)) {
  if (!missing(x) && (is_mirai(x) || is.list(x) && all(are_mirai(x)))) {
    return()
  }
  stop_argument("x", "a mirai, or a list of mirai", call)
}
