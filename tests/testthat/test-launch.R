test_that("launch_local() takes indices and URLs, and options", {
  profile <- local_test_daemons(url = c(local_url(), local_url()), cleanup = FALSE)
  expect_identical(launch_local(c(1, 2, 2)), 3L)
  expect_true(connected(3))
  expect_identical(unname(status()$daemons[, "online"]), c(1L, 2L))
  # they have the options given to daemons()
  call_mirai(everywhere(x <<- 1))
  mirai(x <<- 2)[]
  daemons(url = local_url(), cleanup = FALSE, .compute = profile)
  expect_identical(launch_local(nextget("url"), maxtasks = 1, unknown = 2), 1L)
  mirai(x <<- 2)[]
  expect_true(connected(0))
  launch_local()
  mirai(x <<- 2)[]
  expect_identical(mirai(x)[], 2)
})

test_that("output = TRUE lets a daemon's output through", {
  code <- c(
    "library(mirai)",
    "d <- daemons(1, output = %s)",
    "m <- mirai({cat('to stdout\\n'); message('to stderr'); 'value'})",
    "cat(m[], '\\n')",
    "d <- daemons(0)"
  )
  out <- r_output(sprintf(code, "TRUE"))
  expect_true(all(c("to stdout", "to stderr", "value ") %in% out))
  out <- r_output(sprintf(code, "FALSE"))
  expect_identical(out, "value ")
})

test_that("bad arguments are errors", {
  profile <- local_test_daemons(url = local_url())
  expect_snapshot(show_errors({
    launch_local(2)
    launch_local(0)
    launch_local(TRUE)
    launch_local(NA_integer_)
    launch_local(integer())
    launch_local("")
    launch_local(1, .compute = "not set")
    launch_local(1, .compute = 1)
  }))
})
