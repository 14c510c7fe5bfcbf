test_that("the log of tasks tells of each what became of it, when and where", {
  local_test_daemons(2)
  ok <- mirai(1)
  failed <- mirai(stop("on purpose"))
  call_mirai(list(ok, failed))
  late <- mirai(Sys.sleep(60), .timeout = 50)
  late[]
  stopped <- mirai(Sys.sleep(60))
  stop_mirai(stopped)
  running <- mirai(Sys.sleep(60))
  mine <- list(ok, failed, late, stopped, running)
  expect_true(wait_until(function() "running" %in% task_log()$state))
  log <- task_log()
  log <- log[match(vapply(mine, attr, 1L, "id"), log$id), ]
  expect_identical(log$state, c("done", "failed", "timed_out", "cancelled", "running"))
  expect_identical(log$error, c(NA, "on purpose", NA, NA, NA))
  expect_s3_class(log$submitted, "POSIXct")
  expect_true(all(log$submitted <= log$started, na.rm = TRUE))
  expect_true(all(log$started <= log$ended, na.rm = TRUE))
  expect_identical(is.na(log$ended), c(FALSE, FALSE, FALSE, FALSE, TRUE))
  expect_true(all(abs(as.numeric(difftime(log$submitted, Sys.time(), units = "secs"))) < 60))
  expect_true(all(log$bytes_in > 0))
  expect_true(log$daemon[[1L]] %in% 1:2)
  expect_identical(nrow(task_log(n = 2)), 2L)
  expect_identical(task_log(n = 1)$id, attr(running, "id"))
  expect_identical(nrow(task_log(n = 0)), 0L)
  expect_error(task_log(n = -1), class = "mirai_error_argument")
  stop_mirai(running)
})

test_that("names of a map's elements are in the log", {
  local_test_daemons(1)
  x <- mirai_map(list(a = 1, b = 2, 3), identity)
  x[]
  expect_identical(task_log()$name, c("a", "b", NA))
  y <- mirai_map(data.frame(v = 1:2, row.names = c("first", "second")), function(v) v)
  y[]
  expect_identical(task_log(n = 2)$name, c("first", "second"))
})

test_that("the log of daemons tells where they are, what they have done, and why they were lost", {
  local_test_daemons(2)
  mirai_map(1:20, function(i) i)[]
  log <- daemon_log()
  expect_identical(log$state, c("idle", "idle"))
  expect_identical(sum(log$tasks), 20)
  expect_identical(unique(log$host), Sys.info()[["nodename"]])
  expect_true(all(log$memory > 1e6))
  m <- mirai(Sys.getpid())
  pid <- m[]
  expect_true(pid %in% log$pid)
  k <- mirai(tools::pskill(Sys.getpid(), tools::SIGKILL))
  expect_identical(as.integer(k[]), 19L)
  expect_match(attr(k$data, "reason"), "^daemon [12] \\(pid [0-9]+ on .*\\) was killed by signal 9")
  expect_match(conditionMessage(k$data), "^Connection reset: daemon")
  expect_output(print(k$data), "'errorValue' int 19 | Connection reset", fixed = TRUE)
  lost <- daemon_log()
  lost <- lost[lost$state == "lost", ]
  expect_identical(nrow(lost), 1L)
  expect_match(lost$reason, "was killed by signal 9")
  expect_identical(lost$memory, NA_real_)
  q <- mirai(quit("no", status = 3))
  q[]
  expect_match(attr(q$data, "reason"), "exited with status 3$")
  expect_identical(task_log(n = 1)$state, "lost")
})

test_that("a process without daemons says why it was lost, too", {
  q <- mirai(quit("no", status = 3))
  q[]
  expect_match(attr(q$data, "reason"), "exited with status 3$")
  for (forks in c(TRUE, FALSE)) {
    local_options(mirai.fork_server = forks)
    k <- mirai(tools::pskill(Sys.getpid(), tools::SIGTERM))
    k[]
    expect_match(attr(k$data, "reason"), "was killed by signal 15$")
  }
})

test_that("a map and info() tell failures when they are printed", {
  local_test_daemons(1)
  x <- mirai_map(1:3, function(i) if (i > 1) stop("no") else i)
  x[]
  expect_output(print(x), "< mirai map [3/3, 2 failed] >", fixed = TRUE)
  expect_output(print(info()), "of the completed: 2 failed", fixed = TRUE)
  expect_identical(info()[["completed"]], 3L)
})

test_that("without daemons, the logs are empty", {
  expect_identical(dim(task_log("nobody")), c(0L, 12L))
  expect_identical(dim(daemon_log("nobody")), c(0L, 10L))
})

test_that("the timeline is drawn from few tasks and from very many, in bounded time", {
  file <- local_file(fileext = ".png")
  draw <- function(log, ...) {
    grDevices::png(file)
    on.exit(grDevices::dev.off())
    plot(log, ...)
  }
  expect_silent(draw(task_log("nobody")))
  local_test_daemons(1)
  mirai_map(1:3, function(i) if (i == 2) stop("no") else i)[]
  expect_silent(draw(task_log()))
  expect_error(draw(task_log(), bins = 0), class = "mirai_error_argument")
  expect_error(draw(task_log()[c("id", "state")]), "'x' must be a task log with the columns", fixed = TRUE)
  # 100,000 tasks on 400 daemons, one of them long, one of them failed
  n <- 100000L
  log <- as.list(task_log()[rep(1L, n), ])
  log$daemon <- rep_len(1:400, n)
  log$started <- as.POSIXct("2026-01-01") + seq(0, 100, length.out = n)
  log$ended <- log$started + 0.3
  log$ended[[1L]] <- log$started[[n]]
  log$state <- c("lost", rep("done", n - 2L), "failed")
  log <- as_log(log, "mirai_task_log")
  expect_silent(draw(log))
  seconds <- as.numeric(log$started - log$started[[1L]], units = "secs")
  cells <- timeline_cells(log$daemon, seconds / 101, (seconds + 0.3) / 101, log$state, 400L, 1000L)
  expect_lte(length(cells$lane), 400L * 1000L)
  expect_identical(cells$state[[1L]], "lost")
  expect_true("failed" %in% cells$state[cells$lane == log$daemon[[n]]])
  # A row for each bin that somebody was at work in.
  at <- function(lane, bin) cells$state[cells$lane == lane & cells$from <= bin & cells$to > bin]
  expect_identical(at(2L, 0.0002), "done")
})

test_that("the reason of a loss has what the daemon wrote last", {
  reason <- function(...) {
    local_test_daemons(1, ...)
    before <- mirai({
      message("of the task before")
      cat("of the task before\n", file = stderr())
    })
    before[]
    m <- mirai({
      cat("to stdout\n")
      message("to stderr \033[31m")
      tools::pskill(Sys.getpid(), tools::SIGKILL)
    })
    expect_reset(m[])
    attr(m$data, "reason")
  }
  expect_match(reason(), "was killed by signal 9. The last that it wrote:\nto stderr [31m", fixed = TRUE)
  expect_match(reason(output = "task"), "The last that it wrote:\nto stdout\nto stderr [31m", fixed = TRUE)
  local_test_daemons(1)
  m <- mirai(tools::pskill(Sys.getpid(), 11L))
  m[]
  expect_match(conditionMessage(m$data), "caught segfault.*Traceback:")
  # Nothing of a daemon that says nothing.
  local_test_daemons(1)
  m <- mirai(tools::pskill(Sys.getpid(), tools::SIGKILL))
  m[]
  expect_no_match(conditionMessage(m$data), "wrote")
})
