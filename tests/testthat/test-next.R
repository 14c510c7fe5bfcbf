test_that("nextstream() hands out the streams of package parallel", {
  profile <- local_test_daemons(sync = TRUE, seed = 99L)
  first <- nextstream()
  expected <- local({
    old <- RNGkind()
    on.exit(do.call(RNGkind, as.list(old)))
    set.seed(99L, "L'Ecuyer-CMRG", "Inversion", "Rejection")
    .Random.seed
  })
  expect_identical(first, expected)
  expect_identical(nextget("stream"), parallel::nextRNGStream(first))
  expect_identical(nextstream(), parallel::nextRNGStream(first))
  expect_identical(nextstream(), parallel::nextRNGStream(parallel::nextRNGStream(first)))
  # also without daemons
  a <- nextstream(test_profile())
  expect_length(a, 7)
  expect_identical(nextstream(test_profile()), parallel::nextRNGStream(a))
})

test_that("nextget() looks up a profile", {
  profile <- local_test_daemons(2)
  expect_identical(nextget("urls"), rownames(status()$daemons))
  expect_identical(nextget("url"), nextget("urls")[1L])
  expect_identical(nextget("pid"), Sys.getpid())
  expect_null(nextget("tls"))
  expect_length(nextget("stream"), 7)
  expect_null(nextget("urls", .compute = test_profile()))
  expect_null(nextget("pid", .compute = test_profile()))
  expect_snapshot(show_errors({
    nextget("unknown")
    nextget(1)
    nextget(c("url", "urls"))
    nextget("url", .compute = 1)
    nextstream(1)
  }))
})
