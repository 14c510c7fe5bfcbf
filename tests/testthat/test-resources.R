# Descriptors, threads and memory do not leak, and idle processes use no CPU time.

skip_if_not(dir.exists("/proc/self"), "there is no /proc")

test_that("a session at its limit of descriptors gets errors and recovers", {
  skip_if(Sys.which("prlimit") == "", "prlimit is not installed")
  # Before the package has started anything, and after.
  for (early in c(TRUE, FALSE)) {
    said <- r_output(c(
      "library(mirai)",
      "Sys.unsetenv('RUST_BACKTRACE')", # of the errors, which are expected
      "try_that <- function(expr) tryCatch(expr, error = function(e) FALSE)",
      if (!early) "d <- daemons(1, .compute = 'first'); stopifnot(mirai(1, .compute = 'first')[] == 1)",
      "limit <- function(n) system2('prlimit', c('--pid', Sys.getpid(), paste0('--nofile=', n, ':1024')))",
      "free <- setdiff(0:1000, as.integer(list.files('/proc/self/fd')))",
      "failed <- 0",
      "for (spare in c(0:4, 6, 9, 14)) {",
      "  limit(free[spare + 1L])",
      "  m <- try_that(mirai(2, .compute = 'none')[])",
      "  d <- try_that(daemons(2))",
      "  limit(1000)",
      "  failed <- failed + identical(m, FALSE) + identical(d, FALSE)",
      "  stopifnot(identical(m, FALSE) || m %in% c(2, 19L), identical(daemons_set(), !identical(d, FALSE)))",
      "  if (daemons_set()) daemons(0)",
      "}",
      if (!early) "stopifnot(mirai(3, .compute = 'first')[] == 3)",
      "stopifnot(failed > 5, daemons(1) == 1L, mirai(4)[] == 4, mirai(5, .compute = 'none')[] == 5)",
      "cat('fine\\n')"
    ))
    expect_identical(said[length(said)], "fine")
  }
})

test_that("many profiles come and go, and leave no descriptor, thread or process", {
  mirai(1, .compute = test_profile())[]
  profiles <- vapply(1:20, function(i) test_profile(), "")
  once <- function() {
    for (p in profiles) {
      daemons(url = local_url(), .compute = p)
    }
    for (p in profiles[1:3]) {
      launch_local(1L, .compute = p)
      expect_identical(mirai("here", .compute = p)[], "here")
    }
    pids <- vapply(profiles[1:3], function(p) mirai(Sys.getpid(), .compute = p)[], 1L)
    for (p in profiles) {
      daemons(0, .compute = p)
    }
    expect_true(all_end(pids))
  }
  once()
  gc()
  before <- resources()
  for (i in 1:3) {
    once()
  }
  expect_true(wait_until(function() all(resources() <= before)))
})

test_that("thousands of mirai may be dropped while pending", {
  local_test_daemons(2)
  pids <- daemon_pids()
  for (round in 1:2) {
    for (i in 1:1000) {
      mirai(
        {
          if (i %% 100 == 0) {
            gc()
          }
          list(i, x)
        },
        i = i,
        x = new.env(parent = emptyenv())
      )
      if (i %% 250 == 0) gc()
    }
  }
  kept <- mirai("kept")
  gc()
  expect_identical(kept[], "kept")
  expect_healthy(pids)
})

test_that("idle host and daemons use no CPU", {
  file <- local_file()
  host <- r_process(c(
    "library(mirai)",
    "d <- daemons(4)",
    "daemons(1, dispatcher = FALSE, .compute = 'other')",
    "mirai(1)[]; mirai(Sys.sleep(1e6), .timeout = 1e6, .compute = 'other')",
    put(paste0("c(Sys.getpid(), ", all_pids, ")"), file),
    "Sys.sleep(1e6)"
  ))
  pids <- read_ints(file)
  expect_length(pids, 5L)
  Sys.sleep(0.5)
  before <- cpu_ticks(pids)
  Sys.sleep(2)
  expect_identical(cpu_ticks(pids), before)
})
