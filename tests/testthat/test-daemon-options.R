# The messages of the warnings of class mirai_warning_option.
option_warnings <- function(expr) {
  messages <- character()
  withCallingHandlers(expr, mirai_warning_option = function(w) {
    messages <<- c(messages, conditionMessage(w))
    invokeRestart("muffleWarning")
  })
  messages
}

test_that("unknown or wrongly typed options are dropped, with a warning that names the nearest", {
  profile <- test_profile()
  defer(function() daemons(NULL, .compute = profile), environment())
  messages <- option_warnings(daemons(
    1,
    NULL,
    NULL,
    TRUE,
    5,
    unknown = 1,
    autoexit = "a",
    cleanup = 99,
    output = "yes",
    maxtasks = "many",
    idletime = NULL,
    walltime = -1,
    timerstart = TRUE,
    asyncdial = 1,
    retry = "a",
    token = 1,
    autoexti = TRUE,
    max_tasks = 1,
    idle = 100,
    OUTPUT = TRUE,
    dispather = FALSE,
    .seed = 1,
    .compute = profile
  ))
  expect_snapshot(cat(messages, sep = "\n"))
  expect_identical(mirai(1, .compute = profile)[], 1)
  # All functions that take options check them.
  expect_warning(
    daemons(0, outptu = TRUE, .compute = profile),
    "did you mean 'output'?",
    class = "mirai_warning_option"
  )
  daemons(url = local_url(), .compute = profile)
  expect_warning(launch_local(1, maxtask = 1, .compute = profile), "did you mean 'maxtasks'?", fixed = TRUE)
  expect_warning(launch_remote(1, walltim = 1, .compute = profile), "did you mean 'walltime'?", fixed = TRUE)
  w <- tryCatch(daemons(0, outptu = TRUE, .compute = profile), warning = identity)
  expect_identical(conditionCall(w)[[1L]], quote(daemons))
  w <- tryCatch(launch_local(1, outptu = TRUE, .compute = profile), warning = identity)
  expect_identical(conditionCall(w)[[1L]], quote(launch_local))
})

test_that("every option that is documented passes without a word", {
  profile <- test_profile()
  defer(function() daemons(NULL, .compute = profile), environment())
  expect_silent(
    d <- daemons(
      1,
      autoexit = NA,
      cleanup = 7L,
      output = FALSE,
      maxtasks = 100,
      idletime = 1e6,
      walltime = Inf,
      timerstart = 0L,
      asyncdial = TRUE,
      retry = TRUE,
      respawn = "always",
      max = 2,
      token = TRUE,
      .compute = profile
    )
  )
  expect_silent(launch_local(1, autoexit = tools::SIGTERM, dispatcher = TRUE, maxtasks = NULL, .compute = profile))
  expect_identical(mirai(1, .compute = profile)[], 1)
  local_test_daemons(1, cleanup = FALSE, autoexit = NA)
  mirai(left <<- 1)[]
  expect_identical(mirai(left)[], 1)
})

test_that("waits go without looking again if option mirai.spin is FALSE", {
  old <- options(mirai.spin = FALSE)
  defer(function() options(old), environment())
  profile <- local_test_daemons(1)
  expect_identical(vapply(1:20, function(i) mirai(i + 1L, i = i)[], 0L), 2:21)
  options(mirai.spin = NA)
  expect_error(
    daemons(1, .compute = test_profile()),
    "option 'mirai.spin' must be TRUE or FALSE",
    class = "mirai_error_argument"
  )
})
