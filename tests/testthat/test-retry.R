# A task that notes each of its attempts in a file, and fails until there have been `n`.
attempts_until <- function(n, fail, ..., file = local_file(frame = parent.frame())) {
  file <- force(file)
  m <- mirai(
    {
      cat("x", file = file, append = TRUE)
      attempt <- file.size(file)
      if (attempt < n) {
        fail(attempt)
      }
      attempt
    },
    n = n,
    fail = fail,
    file = file,
    ...
  )
  list(m = m, file = file)
}

test_that("a task that raises an error is attempted again, as often as it may", {
  local_test_daemons(1)
  again <- retry_config(error = 3, backoff = 0)
  expect_identical(attempts_until(4, function(i) stop("no"), .retry = again)$m[], 4)
  last <- attempts_until(5, function(i) stop("no ", i), .retry = again)
  expect_identical(conditionMessage(last$m[]), "no 4")
  expect_identical(file.size(last$file), 4)
  expect_identical(task_log()$attempts, c(4L, 4L))
  expect_identical(task_log()$state, c("done", "failed"))
})

test_that("without `error`, or with FALSE, an error is final", {
  local_test_daemons(1, retry = retry_config(error = 3, backoff = 0))
  expect_identical(attempts_until(3, function(i) stop("no"))$m[], 3)
  expect_match(attempts_until(3, function(i) stop("no"), .retry = FALSE)$m[], "no")
  expect_match(attempts_until(3, function(i) stop("no"), .retry = TRUE)$m[], "no")
})

test_that("`when` decides on the daemon, and not after it has failed itself", {
  local_test_daemons(1)
  pattern <- "busy"
  when <- function(cnd) inherits(cnd, "simpleError") && grepl(pattern, conditionMessage(cnd))
  again <- retry_config(error = 5, backoff = 0, when = when)
  fail <- function(i) if (i < 3) stop("busy") else stop("broken")
  busy <- attempts_until(9, fail, .retry = again)
  expect_match(busy$m[], "broken")
  expect_identical(file.size(busy$file), 3)

  broken <- retry_config(error = 5, backoff = 0, when = function(cnd) stop("oh"))
  failed <- attempts_until(9, function(i) stop("busy"), .retry = broken)
  expect_match(failed$m[], "busy")
  expect_identical(file.size(failed$file), 1)
  conditions <- mirai_conditions(failed$m)
  expect_match(conditionMessage(conditions[[1L]]), "'when' of retry_config.* oh")

  # The next task has no `when`, and that of the profile is asked otherwise.
  expect_identical(mirai(1)[], 1)
  local_test_daemons(1, retry = again)
  busy <- attempts_until(9, fail)
  expect_match(busy$m[], "broken")
  expect_identical(file.size(busy$file), 3)
})

test_that("an interrupt or an error value that is returned is not attempted again", {
  local_test_daemons(1)
  again <- retry_config(error = 5, backoff = 0)
  interrupted <- attempts_until(9, function(i) tools::pskill(Sys.getpid(), tools::SIGINT), .retry = again)
  expect_true(is_mirai_interrupt(interrupted$m[]) || identical(interrupted$m[], 1))
  m <- mirai(structure(7L, class = "errorValue"), .retry = again)
  expect_true(is_error_value(m[]))
  expect_identical(task_log(n = 1)$attempts, 1L)
})

test_that("crashes are limited, and counted apart from errors", {
  local_test_daemons(url = local_url())
  again <- retry_config(crash = 1, error = 1, backoff = 0)
  launch_local(n = 3)
  task <- attempts_until(9, function(i) if (i == 2) stop("no") else tools::pskill(Sys.getpid(), 9L), .retry = again)
  expect_reset(task$m[])
  expect_identical(file.size(task$file), 3)
  reason <- attr(task$m$data, "reason")
  expect_match(reason, "killed by signal 9")
  expect_identical(task_log()$attempts, 3L)
})

test_that("a task waits between attempts, and its daemon works meanwhile", {
  local_test_daemons(1)
  again <- retry_config(error = 2, backoff = c(first = 0.2, factor = 2, most = 1))
  start <- Sys.time()
  task <- attempts_until(3, function(i) stop("no"), .retry = again)
  others <- mirai_map(1:20, function(i) Sys.time())[]
  expect_identical(task$m[], 3)
  elapsed <- as.numeric(Sys.time() - start, units = "secs")
  # Half of 0.2 and of 0.4 seconds at least.
  expect_gt(elapsed, 0.29)
  expect_identical(task_log()$state[[1L]], "done")
})

test_that("a task that waits for its next attempt can be cancelled, and times out", {
  local_test_daemons(1)
  slow <- retry_config(error = 2, backoff = c(first = 600, most = 600))
  task <- attempts_until(3, function(i) stop("no"), .retry = slow)
  late <- attempts_until(3, function(i) stop("no"), .retry = slow, .timeout = 200)
  expect_true(wait_until(function() identical(task_log()$attempts, c(1L, 1L))))
  expect_identical(unclass(late$m[]), 5L)
  expect_true(stop_mirai(task$m))
  expect_identical(unclass(task$m[]), 20L)
  expect_identical(mirai(1)[], 1)
})

test_that("conditions and reports are those of the last attempt", {
  local_test_daemons(1)
  fail <- function(i) {
    warning("warned ", i)
    mirai::mirai_report(i)
    stop("no")
  }
  task <- attempts_until(9, fail, .retry = retry_config(error = 2, backoff = 0))
  expect_match(task$m[], "no")
  conditions <- mirai_conditions(task$m)
  expect_length(conditions, 1L)
  expect_identical(conditionMessage(conditions[[1L]]), "warned 3")
  expect_identical(mirai_reports(task$m), list(3))
})

test_that("with a seed, a task has the same random numbers in each attempt", {
  local_test_daemons(1, seed = 7L)
  expected <- mirai_map(1:3, function(i) rnorm(1))[]
  local_test_daemons(2, seed = 7L)
  # Only the second element writes: R writes a line in pieces, among which those of another process could come.
  file <- local_file()
  values <- mirai_map(
    1:3,
    function(i, file) {
      x <- rnorm(1)
      if (i == 2) {
        cat(x, "\n", file = file, append = TRUE)
        if (length(readLines(file)) < 3) {
          stop("no")
        }
      }
      x
    },
    .args = list(file = file),
    .retry = retry_config(error = 5, backoff = 0)
  )[]
  expect_identical(values, expected)
  seen <- readLines(file)
  expect_length(seen, 3L)
  expect_length(unique(seen), 1L)
})

test_that("elements of a map are attempted again each by itself", {
  local_test_daemons(2)
  dir <- local_file()
  dir.create(dir)
  map <- mirai_map(
    1:20,
    function(i, dir) {
      file <- file.path(dir, i)
      cat("x", file = file, append = TRUE)
      if (file.size(file) <= i %% 3) {
        stop("no")
      }
      i
    },
    .args = list(dir = dir),
    .retry = retry_config(error = 2, backoff = c(first = 0.01))
  )
  expect_identical(map[.flat], 1:20)
  expect_identical(task_log()$attempts, as.integer(1:20 %% 3 + 1))
})

test_that("retries work without dispatcher and across the network", {
  again <- retry_config(error = 3, backoff = c(first = 0.01))
  local_test_daemons(2, dispatcher = FALSE)
  expect_identical(attempts_until(4, function(i) stop("no"), .retry = again)$m[], 4)
  local_test_daemons(url = loopback("tcp"), retry = again)
  launch_local(1)
  expect_identical(attempts_until(4, function(i) stop("no"))$m[], 4)
})

test_that("what is no retry is refused", {
  expect_snapshot({
    show_errors({
      retry_config(crash = -1)
      retry_config(error = 1.5)
      retry_config(backoff = 3)
      retry_config(backoff = c(first = 1, second = 2))
      retry_config(backoff = c(factor = 0.5))
      retry_config(backoff = c(first = 60))
      retry_config(when = 1)
      mirai(1, .retry = 3)
    })
    retry_config()
    retry_config(crash = Inf, error = 1, backoff = 0, when = function(cnd) TRUE)
  })
})
