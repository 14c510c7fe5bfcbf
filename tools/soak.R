# Long undisturbed work: see tools/soak.
library(mirai)
source("tools/resources.R")

args <- commandArgs(TRUE)
scale <- if (identical(args[1L], "--scale")) as.numeric(args[2L]) else 1
stopifnot(is.numeric(scale), scale > 0)

# How much more than after three tenths is still no leak. R's pages count as in use, also those that are empty, and their number
# goes up and down by some ten megabytes.
slack <- c(rss_mb = 15, used_mb = 25, threads = 2, descriptors = 2, mappings = 60, files = 0, processes = 0)

# Made here, so that the environment of the function that calls mirai_map(), with the last results, is not sent with it.
itself <- function(x) x

maps <- function(n) {
  while (n > 0) {
    size <- min(n, 1e5)
    values <- mirai_map(seq_len(size), itself, .compute = "local")[]
    stopifnot(identical(values, as.list(seq_len(size))))
    n <- n - size
  }
}

singles <- function(n) {
  for (i in seq_len(n)) stopifnot(mirai(x, x = i, .compute = "local")[] == i)
}

network <- function(n) {
  size <- min(n, 1e4)
  for (i in seq_len(n / size)) {
    values <- mirai_map(seq_len(size), itself, .compute = "tcp")[]
    stopifnot(identical(values, as.list(seq_len(size))))
  }
}

resolving <- function(n) {
  while (n > 0) {
    size <- min(n, 1e3)
    settled <- 0L
    for (i in seq_len(size)) promises::then(mirai(1, .compute = "local"), function(x) settled <<- settled + x)
    while (settled < size) later::run_now(Inf)
    n <- n - size
  }
}

one_offs <- function(n) {
  for (i in seq_len(n)) stopifnot(mirai(1, .compute = "none")[] == 1)
}

invisible(daemons(2, .compute = "local"))
invisible(daemons(url = "tcp://127.0.0.1:0", .compute = "tcp"))
for (i in 1:2) launch_local(1L, .compute = "tcp")

# The log of each profile grows to this many tasks: see task_log().
logged <- 1e5
maps(logged)
network(logged)

seen <- list()
for (tenth in 1:10) {
  maps(7e4 * scale)
  singles(1e4 * scale)
  network(2e4 * scale)
  resolving(1e4 * scale)
  one_offs(100 * scale)
  seen[[tenth]] <- resources()
  cat(format(Sys.time(), "%H:%M:%S"), tenth, "tenths:", paste(names(seen[[tenth]]), round(seen[[tenth]], 1), collapse = ", "), "\n")
}
invisible(daemons(0, .compute = "local"))
invisible(daemons(0, .compute = "tcp"))
leaks <- grown(seen[[3L]], seen[[10L]], slack)
if (length(leaks)) cat("FAILED: grown:", toString(leaks), "\n")
cat(as.integer(!length(leaks)), "passed,", as.integer(length(leaks) > 0L), "failed, 0 skipped\n")
quit(status = as.integer(length(leaks) > 0L))
