#' mirai: asynchronous, parallel and distributed evaluation
#'
#' Start with [mirai()] to evaluate an expression in another process,
#' [daemons()] to keep processes ready for that, and [mirai_map()] to map over
#' them. [everywhere()] prepares all daemons; [status()] tells how they do.
#'
#' `vignette("mirai", "mirai")` goes through all of it, with examples. For code that was written for the 2.x
#' releases, see `vignette("coming-from-2x", "mirai")` and [mirai-edition].
#'
#' Times are in milliseconds, wherever they are arguments.
#'
#' @useDynLib mirai, .registration = TRUE, .fixes = "rs_"
#' @importFrom utils .DollarNames
#' @docType package
#' @name mirai-package
NULL

.onLoad <- function(libname, pkgname) {
  # Sockets in the file system do not go away by themselves.
  reg.finalizer(environment(.onLoad), function(e) .Call(rs_close_session), onexit = TRUE)
}
