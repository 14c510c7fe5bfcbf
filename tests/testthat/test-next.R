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

test_that("any seed begins the streams that R begins with it", {
  first_stream <- function(seed) {
    old <- RNGkind()
    on.exit(do.call(RNGkind, as.list(old)))
    set.seed(seed, "L'Ecuyer-CMRG", "Inversion", "Rejection")
    .Random.seed
  }
  for (seed in c(0L, 1L, -1L, 123456789L, .Machine$integer.max, -.Machine$integer.max)) {
    local_test_daemons(sync = TRUE, seed = seed)
    first <- first_stream(seed)
    expect_identical(nextstream(), first)
    expect_identical(nextstream(), parallel::nextRNGStream(first))
  }
})

test_that("nextget() looks up a profile", {
  profile <- local_test_daemons(2)
  expect_identical(nextget("urls"), rownames(status()$daemons))
  expect_identical(nextget("url"), nextget("urls")[1L])
  expect_identical(nextget("pid"), Sys.getpid())
  expect_identical(nextget("n"), 2L)
  expect_null(nextget("unknown"))
  expect_null(nextget("tls"))
  expect_length(nextget("stream"), 7)
  expect_null(nextget("urls", .compute = test_profile()))
  expect_null(nextget("pid", .compute = test_profile()))
  expect_snapshot(show_errors({
    nextget(1)
    nextget(c("url", "urls"))
    nextget("url", .compute = 1)
    nextstream(1)
  }))
})

test_that("nextget(\"n\") is the number of daemons set", {
  expect_null(nextget("n", .compute = test_profile()))
  profile <- local_test_daemons(2, dispatcher = FALSE)
  expect_identical(nextget("n"), 2L)
  daemons(n = 3, url = "ws://127.0.0.1:0/a", .compute = profile)
  expect_identical(nextget("n"), 3L)
  daemons(n = 3, url = local_url(), dispatcher = FALSE, .compute = profile)
  expect_identical(nextget("n"), 3L)
  daemons(url = local_url(), .compute = profile)
  expect_identical(nextget("n"), 1L)
  places <- list(c("first", "."), c("second", "."))
  daemons(url = local_url(), remote = remote_config("true", places), .compute = profile)
  expect_identical(nextget("n"), 2L)
  daemons(sync = TRUE, .compute = profile)
  expect_identical(nextget("n"), 1L)
  daemons(0, .compute = profile)
  expect_null(nextget("n"))
  cl <- make_cluster(2)
  expect_identical(nextget("n", .compute = cl), 2L)
  stop_cluster(cl)
  expect_null(nextget("n", .compute = cl))
})
