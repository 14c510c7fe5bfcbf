# What the package is for, in short: tools/platforms runs it where all of its tests would take too long.
library(mirai)

check <- function(what, ok) {
  cat(if (isTRUE(ok)) "ok: " else "FAILED: ", what, "\n", sep = "")
  if (!isTRUE(ok)) quit(status = 1L)
}

check("a process of its own", identical(mirai(6 * 7)[], 42))
check("two daemons", daemons(2) == 2L)
check("a map", identical(mirai_map(1:1000, sqrt)[.flat], sqrt(1:1000)))
m <- mirai(stop("no"))
check("an error value", is_mirai_error(m[]) && identical(m$data$message, "no"))
m <- mirai(
  repeat {
    Sys.sleep(0.1)
  }
)
check("a task that is cancelled", stop_mirai(m) && m[] == 20L && mirai(1)[] == 1)
x <- seq_len(4e6) + 0.5
m <- mirai(
  {
    x[[2L]] <- 0
    list(x, any(grepl("memfd:mirai ", readLines("/proc/self/maps"))))
  },
  x = x
)[]
check("a large vector goes by shared memory", m[[2L]])
check("it comes back changed, and ours is as it was", sum(m[[1L]]) == sum(x) - 2.5 && x[[2L]] == 2.5)
m <- mirai(tools::pskill(Sys.getpid(), 9L))
check("a daemon that dies", m[] == 19L && grepl("signal 9", attr(m[], "reason")))
check("its task is the only one that is lost", identical(mirai_map(1:10, identity)[.flat], 1:10))
invisible(daemons(0))
invisible(daemons(1, url = host_url(tls = TRUE), remote = NULL))
launch_local(1)
check("TLS", identical(mirai(1:3)[], 1:3))
invisible(daemons(0))
