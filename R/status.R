#' Status of daemons
#'
#' Shows the daemons of a compute profile, and how many tasks wait, run and have ended. [info()] has the same numbers as
#' a vector.
#'
#' @param .compute name of a compute profile, or `NULL` for the current one. Or a cluster, see [make_cluster()].
#' @returns A list. Printing it shows the first two elements:
#'
#'   * `$connections`: with dispatcher, `1`. Without, the number of connected daemons.
#'   * `$daemons`: with dispatcher, an integer matrix with a row for each URL. The columns: `i` is the index of the URL,
#'     `online` the number of daemons connected now, `instance` the number of connections so far, `assigned` and
#'     `complete` the numbers of tasks so far. Without dispatcher, the URL.
#'   * `$mirai`: the numbers of tasks `awaiting` (in the queue), `executing`, and `completed` so far, with any outcome.
#'     Their sum is the number of tasks submitted.
#'   * `$memory`: megabytes of serialized data in the queue: `used` now, `peak` so far, and `capacity`, which is the
#'     argument `memory` of [daemons()].
#'
#'   If no daemons are set, the first two are `0L` and the others are missing.
#'
#'   In [edition 2][mirai-edition], with dispatcher or without, `$connections` is the number of connected daemons and
#'   `$daemons` the URL, or the URLs.
#' @seealso [info()], [daemons()], [daemons_set()].
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
#' Returns the numbers of [status()] that programs need most.
#'
#' @inheritParams status
#' @returns A named integer vector. `connections`: daemons connected now. `cumulative`: connections so far. `awaiting`,
#'   `executing`, `completed`: tasks in the queue, running, and ended with any outcome. Printing it also
#'   says how many of those that ended have failed. `NULL` if no daemons are set.
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

# The integers of info(), without the class and the tally, which are for printing only.
plain_info <- function(x) if (inherits(x, "miraiInfo")) unclass(x)[seq_along(x)] else x

#' @export
Ops.miraiInfo <- function(e1, e2) {
  f <- get(.Generic, mode = "function")
  if (missing(e2)) f(plain_info(e1)) else f(plain_info(e1), plain_info(e2))
}

#' @export
Math.miraiInfo <- function(x, ...) get(.Generic, mode = "function")(plain_info(x), ...)

#' @export
`[<-.miraiInfo` <- function(x, ..., value) `[<-`(plain_info(x), ..., value = value)

#' @export
`[[<-.miraiInfo` <- function(x, ..., value) `[[<-`(plain_info(x), ..., value = value)

#' @export
as.data.frame.miraiInfo <- function(x, ..., nm = deparse1(substitute(x))) as.data.frame(plain_info(x), ..., nm = nm)

#' @export
print.miraiInfo <- function(x, ...) {
  print(plain_info(x))
  tally <- attr(x, "tally")[-1L]
  names(tally) <- c("failed", "cancelled", "timed out", "lost")
  tally <- tally[tally > 0]
  if (length(tally)) {
    cat("of the completed:", toString(paste(tally, names(tally))), "\n")
  }
  invisible(x)
}
