#' Status of daemons
#'
#' @param .compute name of a compute profile, or `NULL` for the current one; or a cluster, see
#'   [make_cluster()].
#' @returns A list. Its print method shows the first two of its elements:
#'
#'   * `$connections`: with dispatcher `1`; without, the number of daemons connected.
#'   * `$daemons`: with dispatcher an integer matrix with a row for each URL. Its columns are `i`, its
#'     index; `online`, the number of daemons connected there; `instance`, of connections so far;
#'     `assigned` and `complete`, of tasks so far. Without dispatcher, the URL.
#'   * `$mirai`: the number of tasks `awaiting` (in the queue), `executing` and `completed` so far, however
#'     they ended. Together they are as many as were submitted.
#'   * `$memory`: megabytes of serialized data in the queue, `used` now, `peak` so far, and
#'     `capacity` as set by the `memory` argument of [daemons()].
#'
#'   If no daemons are set, both of the first two are `0L` and there are no others.
#'
#'   In [edition 2][mirai-edition], the first two are with dispatcher what they are without: the number of
#'   daemons connected, and the URL (or URLs, if there are several).
#' @seealso [info()]
#' @examples
#' daemons(2)
#' status()
#' status()$mirai
#' daemons(0)
#' @export
status <- function(.compute = NULL) {
  profile <- check_profile(.compute)
  warn_failed_launches(profile, sys.call())
  x <- .Call(rs_profile_status, profile)
  if (is.null(x) || x$sync) {
    return(list(connections = 0L, daemons = 0L))
  }
  out <- if (x$round_robin || edition() == 2L) {
    list(connections = x$connections, daemons = x$urls)
  } else {
    columns <- c("i", "online", "instance", "assigned", "complete")
    values <- c(seq_along(x$urls), x$online, x$instance, x$assigned, x$complete)
    list(
      connections = 1L,
      daemons = matrix(values, ncol = 5L, dimnames = list(x$urls, columns))
    )
  }
  out$mirai <- structure(x$tasks, names = c("awaiting", "executing", "completed"))
  out$memory <- structure(x$memory, names = c("used", "peak", "capacity"))
  structure(out, class = "miraiStatus")
}

#' @export
print.miraiStatus <- function(x, ...) {
  print(unclass(x)[c("connections", "daemons")])
  invisible(x)
}

#' Status of daemons in five numbers
#'
#' @inheritParams status
#' @returns A named integer vector: `connections` now and `cumulative` ones; tasks `awaiting`,
#'   `executing` and `completed` (however they ended). Printing it also says how many of the completed ones have failed.
#'   `NULL` if no daemons are set.
#' @seealso [status()], [daemons()].
#' @examples
#' info()
#' daemons(1)
#' info()
#' daemons(0)
#' @export
info <- function(.compute = NULL) {
  x <- .Call(rs_profile_status, check_profile(.compute))
  if (is.null(x) || x$sync) {
    return(NULL)
  }
  structure(
    c(x$connections, x$cumulative, x$tasks),
    names = c("connections", "cumulative", "awaiting", "executing", "completed"),
    tally = .Call(rs_tally_of_tasks, check_profile(.compute)),
    class = "miraiInfo"
  )
}

#' @export
print.miraiInfo <- function(x, ...) {
  print(c(unclass(x)[seq_along(x)]))
  tally <- attr(x, "tally")[-1L]
  names(tally) <- c("failed", "cancelled", "timed out", "lost")
  tally <- tally[tally > 0]
  if (length(tally)) {
    cat("of the completed:", toString(paste(tally, names(tally))), "\n")
  }
  invisible(x)
}
