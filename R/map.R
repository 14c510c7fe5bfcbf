new_mirai_map <- function(x) structure(x, class = "mirai_map")

#' @export
print.mirai_map <- function(x, ...) {
  n <- length(x)
  cat(paste0("< mirai map [", n - .Call(rs_pending, unclass(x)), "/", n, "] >\n"))
  invisible(x)
}

#' @export
`[.mirai_map` <- function(x, ...) collect_all(unclass(x), NULL)

# Values of a list of mirai, once all are there.
collect_all <- function(x, options) {
  x <- unclass(x)
  .Call(rs_wait_all, x)
  lapply(x, function(m) .Call(rs_collect, m))
}
