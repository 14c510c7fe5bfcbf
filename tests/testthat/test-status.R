test_that("status() has a matrix with dispatcher", {
  profile <- local_test_daemons(2, memory = 10)
  call_mirai(lapply(1:5, function(i) mirai(i, i = i)))
  x <- status()
  expect_identical(names(x), c("connections", "daemons", "mirai", "memory"))
  expect_identical(x$connections, 1L)
  expect_type(x$daemons, "integer")
  expect_identical(dimnames(x$daemons), list(nextget("urls"), c("i", "online", "instance", "assigned", "complete")))
  expect_identical(unname(x$daemons[, c("i", "online", "instance")]), cbind(1:2, 1L, 1L))
  expect_identical(sum(x$daemons[, "assigned"]), 5L)
  expect_identical(sum(x$daemons[, "complete"]), 5L)
  expect_identical(x$mirai, c(awaiting = 0L, executing = 0L, completed = 5L))
  expect_identical(names(x$memory), c("used", "peak", "capacity"))
  expect_identical(x$memory[["capacity"]], 10)
  expect_identical(status(profile), x)
  expect_identical(names(unclass(x)), names(x))
})

test_that("status() shows tasks that wait and run", {
  local_test_daemons(1)
  ms <- lapply(1:3, function(i) mirai(Sys.sleep(60)))
  expect_identical(status()$mirai, c(awaiting = 2L, executing = 1L, completed = 0L))
  expect_identical(unname(status()$daemons[1, c("assigned", "complete")]), c(1L, 0L))
  expect_identical(
    c(unclass(info())[1:5]),
    c(connections = 1L, cumulative = 1L, awaiting = 2L, executing = 1L, completed = 0L)
  )
  expect_identical(status()$memory[["capacity"]], Inf)
  expect_gt(status()$memory[["used"]], 0)
  stop_mirai(ms)
  expect_identical(status()$memory[["used"]], 0)
})

test_that("every mirai that has resolved counts as completed, however it ended", {
  local_tmpdir()
  for (dispatcher in c(TRUE, FALSE)) {
    profile <- local_test_daemons(2, dispatcher = dispatcher)
    go <- local_file()
    # Without dispatcher, a task that has timed out runs on, and the last one waits behind it.
    until_go <- quote(
      while (!file.exists(go)) {
        Sys.sleep(0.01)
      }
    )
    ms <- list(
      mirai("value"),
      mirai(stop("error")),
      mirai(until_go, go = go, .timeout = 50),
      mirai(Sys.sleep(60)),
      mirai(tools::pskill(Sys.getpid(), tools::SIGKILL))
    )
    stop_mirai(ms[[4L]])
    call_mirai(ms[1:4])
    file.create(go)
    call_mirai(ms)
    expect_identical(info()[c("awaiting", "executing", "completed")], c(awaiting = 0L, executing = 0L, completed = 5L))
    expect_identical(unname(status()$mirai), c(0L, 0L, 5L))
    # a task that cannot be sent also counts as submitted
    serialization(list(function(x) stop("no"), identity), class = "never")
    on.exit(mirai::serialization(NULL), add = TRUE)
    never <- structure(new.env(), class = "never")
    expect_true(is_mirai_error(mirai(never, never = never)[]))
    mirai_map(list(1, never), identity)[]
    n <- length(everywhere(never, never = never)[])
    expect_identical(status()$mirai[["completed"]], 8L + n)
    serialization(NULL)
  }
})

test_that("status() counts connections", {
  local_tmpdir()
  profile <- local_test_daemons(2, respawn = FALSE)
  expect_reset(mirai(quit())[])
  expect_true(connected(1))
  x <- status()$daemons
  expect_identical(sum(x[, "online"]), 1L)
  expect_identical(unname(x[, "instance"]), c(1L, 1L))
  gone <- which(x[, "online"] == 0L)
  expect_identical(launch_local(gone), 1L)
  expect_true(connected(2))
  expect_identical(unname(status()$daemons[, "online"]), c(1L, 1L))
  expect_identical(status()$daemons[[gone, "instance"]], 2L)
  expect_identical(info()[["cumulative"]], 3L)
})

test_that("status() prints its first two elements", {
  local_test_daemons(2)
  expect_snapshot(status(), transform = mask_urls)
  local_test_daemons(2, dispatcher = FALSE)
  expect_snapshot(status(), transform = mask_urls)
  expect_snapshot(status("nothing set"))
})

test_that("without daemons, status() returns zeros and info() NULL", {
  profile <- test_profile()
  expect_identical(status(profile), list(connections = 0L, daemons = 0L))
  expect_null(info(profile))
  expect_snapshot(show_errors({
    status(1)
    info(c("a", "b"))
  }))
})

test_that("without dispatcher, status() has the number of connections and the URL", {
  local_test_daemons(2, dispatcher = FALSE)
  x <- status()
  expect_identical(x$connections, 2L)
  expect_identical(x$daemons, nextget("url"))
  expect_identical(info()[["connections"]], 2L)
})

test_that("info() computes as the integers that it is", {
  local_test_daemons(1)
  mirai(stop("no"))[]
  plain <- c(connections = 1L, cumulative = 1L, awaiting = 0L, executing = 0L, completed = 1L)
  expect_identical(-info(), -plain)
  expect_identical(info() + 1L, plain + 1L)
  expect_identical(1L < info(), 1L < plain)
  expect_identical(sqrt(info()), sqrt(plain))
  expect_identical(data.frame(n = info()), data.frame(n = plain))
  x <- info()
  expect_named(as.data.frame(x), "x")
  x <- info()
  x[["awaiting"]] <- 9L
  expect_identical(x, replace(plain, 3L, 9L))
  x <- info()
  x["awaiting"] <- 9L
  expect_identical(x, replace(plain, 3L, 9L))
})
