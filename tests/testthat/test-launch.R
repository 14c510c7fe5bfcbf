test_that("launch_local() takes indices and URLs, and options", {
  profile <- local_test_daemons(url = c(local_url(), local_url()), cleanup = FALSE)
  expect_identical(launch_local(c(1, 2, 2)), 3L)
  expect_true(connected(3))
  expect_identical(unname(status()$daemons[, "online"]), c(1L, 2L))
  # they have the options given to daemons()
  call_mirai(everywhere(x <<- 1))
  mirai(x <<- 2)[]
  daemons(url = local_url(), cleanup = FALSE, .compute = profile)
  expect_identical(launch_local(nextget("url"), maxtasks = 1), 1L)
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
    launch_local(n = 0)
    launch_local(n = 1:2)
    launch_local(2, n = 1)
    launch_local(1, tls = "a", tlscert = "b")
    launch_remote(n = "a")
  }))
})

test_that("without daemons set, they can be launched for another host by its URL", {
  local_tmpdir()
  host <- local_test_daemons(url = local_url())
  url <- nextget("url")
  none <- test_profile()
  expect_identical(launch_local(url, .compute = none), 1L)
  expect_true(connected(1))
  expect_identical(launch_local(url, n = 2, maxtasks = 1, .compute = none), 2L)
  expect_true(connected(3))
  expect_false(daemons_set(none))
  cmd <- launch_remote(c(url, "tcp://10.75.32.70:5555"), .compute = none)
  expect_match(cmd, "^Rscript -e 'mirai::daemon\\(\"")
  expect_match(cmd, "rs=c(10407,", fixed = TRUE)
  expect_false(anyDuplicated(sub(".*rs=", "", cmd)) > 0L)
  launch_remote(url, remote_config("env", rscript = file.path(R.home("bin"), "Rscript")), .compute = none)
  expect_true(connected(4))
  expect_error(launch_remote(url, remote_config("false"), .compute = none), "false (exit status 1)", fixed = TRUE)
  expect_error(launch_local(1, .compute = none), "no daemons set for profile")
  expect_error(launch_local(n = 1, .compute = none), "no daemons set for profile")
  expect_error(launch_remote(1, .compute = none), "no daemons set for profile")
  # from a session that ends at once
  out <- r_output(c(paste0("mirai::launch_local(", encodeString(url, quote = "\""), ", n = 2)"), "cat('ended\\n')"))
  expect_identical(out, "ended")
  expect_true(connected(6))
  pids <- unlist(everywhere(Sys.getpid())[])
  daemons(0, .compute = host)
  for (pid in pids) expect_true(ends(pid))
})
