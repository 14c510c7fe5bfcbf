# What tools/r-for-windows checks of the package on R for Windows.
library(mirai)

passed <- 0L
failed <- 0L

check <- function(what, condition) {
  wrong <- tryCatch(if (isTRUE(condition)) NULL else "FALSE", error = conditionMessage)
  if (is.null(wrong)) {
    passed <<- passed + 1L
  } else {
    failed <<- failed + 1L
    cat("FAILED: ", what, ": ", wrong, "\n", sep = "")
  }
}

# The value of a task, or an error value after a minute.
value <- function(...) mirai(..., .timeout = 60000)[]

check("a task without daemons", value(Sys.getpid()) != Sys.getpid())
check("an error of a call", inherits(tryCatch(mirai(), error = identity), "mirai_error"))

invisible(daemons(2))
check("a task", value(1 + 1) == 2)
check("a map", identical(mirai_map(1:10, sqrt)[.flat], sqrt(1:10)))
check("an error of a task", is_mirai_error(value(stop("boom"))))
x <- runif(1e6)
check("a large vector there and back", identical(value(x, x = x), x))
text <- c("\u00e4", "\u4e2d", NA)
check("text", identical(value(text, text = text), text))
check("a condition", {
  m <- mirai({
    warning("w")
    1
  })
  m[] == 1 && conditionMessage(mirai_conditions(m)[[1L]]) == "w"
})
check("everywhere()", {
  everywhere(a <<- 42)
  all(mirai_map(1:4, function(i) a)[.flat] == 42)
})

# Waits until the task has made the file, and so runs.
runs <- function(file) {
  while (!file.exists(file)) {
    Sys.sleep(0.01)
  }
}
for (how in c("evaluates", "sleeps")) {
  file <- tempfile()
  m <- mirai(
    {
      file.create(file)
      if (how == "sleeps") Sys.sleep(600) else repeat {}
    },
    file = file,
    how = how
  )
  runs(file)
  stop_mirai(m)
  check(paste("cancelling a task that", how), is_error_value(m$data) && value(3) == 3)
}
check("a time limit of a task", mirai(Sys.sleep(600), .timeout = 200)[] == 5L)
check("a time limit of R", {
  setTimeLimit(elapsed = 1, transient = TRUE)
  m <- mirai(Sys.sleep(600))
  error <- tryCatch(m[], error = conditionMessage)
  setTimeLimit()
  stop_mirai(m)
  grepl("elapsed time limit", error)
})
check("a daemon that ends, and another in its place", {
  is_error_value(value(quit("no", 3))) && value(4) == 4
})
check("a daemon that is terminated", is_error_value(value(tools::pskill(Sys.getpid()) && Sys.sleep(600))))
invisible(daemons(0))

for (url in c("tcp://127.0.0.1:0", "ws://127.0.0.1:0", "tls+tcp://127.0.0.1:0")) {
  daemons(url = url)
  launch_local(1)
  check(url, value(5) == 5)
  daemons(0)
}
check("a library with blanks and other characters in its path", {
  place <- file.path(tempfile(), "a (1) & %b%")
  dir.create(place, recursive = TRUE)
  file.copy(getNamespaceInfo("mirai", "path"), place, recursive = TRUE)
  .libPaths(c(place, .libPaths()))
  daemons(1)
  value(.libPaths()[[1L]]) == normalizePath(place, "/")
})
invisible(daemons(0))
check("a cluster", {
  cl <- make_cluster(2)
  sums <- parallel::clusterApply(cl, 1:2, function(i) i + 1)
  stop_cluster(cl)
  identical(sums, list(2, 3))
})

cat(passed, " passed, ", failed, " failed\n", sep = "")
quit("no", as.integer(failed > 0L))
