# Shared memory, and the descriptors of its segments, are given back when nothing uses them any more.

skip_if_not(file.exists("/proc/self/maps"), "no /proc")

test_that("memory and descriptors are given back", {
  profile <- local_test_daemons(1)
  pid <- mirai(Sys.getpid())[]
  x <- real()
  expect_true(nothing_left())
  got <- lapply(1:5, function(i) echo(x))
  expect_identical(mappings(), 5L)
  expect_identical(descriptors(), 0L)
  rm(got)
  expect_true(nothing_left())
  # Never read.
  unread <- lapply(1:5, function(i) mirai(x, x = x))
  call_mirai(unread)
  rm(unread)
  expect_true(nothing_left())
  # Cancelled, running and not begun.
  busy <- lapply(1:5, function(i) mirai(Sys.sleep(60), x = x))
  expect_identical(descriptors(), 5L)
  stop_mirai(busy)
  expect_true(nothing_left())
  m <- mirai_map(1:3, function(i, x) i, .args = list(x))
  m[]
  rm(m)
  expect_true(nothing_left())
  mirai(gc())[]
  expect_true(wait_until(function() mappings(pid) == 0L && descriptors(pid) == 0L))
  busy <- lapply(1:3, function(i) mirai(Sys.sleep(60), x = x))
  daemons(0)
  expect_true(nothing_left())
  expect_true(all(vapply(busy, function(m) m$data == 19L, NA)))
})

test_that("results that are dropped unread are given back, also of many mirai", {
  local_test_daemons(1)
  x <- real()
  # From the 257th on, 64 mirai share one block: see tasks.rs.
  many <- lapply(1:300, function(i) mirai(i, i = i))
  unread <- lapply(1:5, function(i) mirai(x, x = x))
  more <- lapply(1:300, function(i) mirai(i, i = i))
  call_mirai(c(many, unread, more))
  rm(unread)
  # Values are freed although other mirai of the block are kept, and those are intact.
  expect_identical(collect_mirai(many), as.list(1:300))
  gc()
  expect_identical(collect_mirai(more), as.list(1:300))
  expect_true(nothing_left())
  # and when all have been dropped
  unread <- c(lapply(1:300, function(i) mirai(i, i = i)), lapply(1:5, function(i) mirai(x, x = x)))
  call_mirai(unread)
  rm(unread)
  expect_true(nothing_left())
})

test_that("shared memory of garbage does not pile up before R collects it", {
  local_test_daemons(1)
  pid <- mirai(Sys.getpid())[]
  x <- real(1e8)
  for (i in 1:12) {
    y <- echo(x)
    expect_lt(mappings(), 8L)
    expect_lt(mappings(pid), 8L)
  }
})

test_that("an idle daemon gives back what tasks have left", {
  local_test_daemons(1)
  pid <- mirai(Sys.getpid())[]
  # So large that the daemon collects also where it takes collections for slow: see gc.rs.
  x <- real(2.2e8)
  mirai(length(x), x = x)[]
  expect_true(wait_until(function() mappings(pid) == 0L))
  expect_identical(descriptors(pid), 0L)
})

test_that("a daemon that is killed leaks no shared memory", {
  local_test_daemons(2)
  x <- real()
  for (i in 1:5) {
    kept <- mirai(list(Sys.getpid(), x), x = x)[]
    tools::pskill(kept[[1]], tools::SIGKILL)
    expect_identical(kept[[2]], x)
    lost <- mirai(
      {
        tools::pskill(Sys.getpid(), tools::SIGKILL)
        x
      },
      x = x
    )
    daemons(0)
    daemons(2)
  }
  rm(kept, lost)
  expect_true(nothing_left())
})

test_that("many tasks with large vectors do not use up descriptors", {
  out <- r_output(c(
    "library(mirai)",
    "daemons(1)",
    "x <- numeric(4e4)",
    "busy <- mirai(Sys.sleep(1))",
    "m <- lapply(1:600, function(i) mirai({ x[1] <- i; x }, x = x, i = i))",
    "n <- length(list.files('/proc/self/fd'))",
    "limit <- as.integer(system('ulimit -n', intern = TRUE))",
    "ok <- vapply(seq_along(m), function(i) identical(m[[i]][], replace(x, 1, i)), NA)",
    "cat(n < limit / 2 + 50, all(ok), '\n')"
  ))
  expect_match(tail(out, 1), "TRUE TRUE")
})

test_that("a round trip needs no more memory on the host than the data once more", {
  skip_on_cran()
  peak <- function(code) {
    out <- r_output(c(
      "library(mirai)",
      "daemons(1)",
      "mirai(1)[]",
      "x <- numeric(300e6 / 8); x[1] <- 1",
      "line <- function() grep('^VmHWM', readLines('/proc/self/status'), value = TRUE)",
      "hwm <- function() as.numeric(gsub('[^0-9]', '', line())) / 1024",
      "before <- hwm()",
      code,
      "cat('peak', hwm() - before, '\n')"
    ))
    as.numeric(sub("peak ", "", grep("^peak", out, value = TRUE)))
  }
  expect_lt(peak("y <- mirai(x, x = x)[]"), 100)
  expect_lt(peak("y <- mirai(x, x = x)[]; s <- sum(y)"), 330)
})

test_that("memory of a large queue is given back to the system", {
  skip_if_not(file.exists("/proc/self/statm"), "there is no /proc")
  skip_if_not(grepl("glibc", extSoftVersion()[["iconv"]]), "the allocator is not glibc's")
  out <- r_output(c(
    "library(mirai)",
    "invisible(daemons(1))",
    "megabytes <- function() {",
    "  invisible(gc(full = TRUE))",
    "  pages <- scan('/proc/self/statm', 0, quiet = TRUE)[[2L]]",
    "  pages * 4096 / 2^20",
    "}",
    "mirai(1)[]",
    "before <- megabytes()",
    "for (i in 1:2) {",
    "  map <- mirai_map(seq_len(150000L), identity)",
    "  call_mirai(map)",
    "  cat(megabytes() - before > 80, '')",
    "  rm(map)",
    "  end <- Sys.time() + 20",
    "  while (megabytes() - before > 50 && Sys.time() < end) Sys.sleep(0.1)",
    "  cat(megabytes() - before < 50, '\n')",
    "}",
    "invisible(daemons(0))"
  ))
  expect_identical(utils::tail(out, 2L), c("TRUE TRUE ", "TRUE TRUE "))
})
