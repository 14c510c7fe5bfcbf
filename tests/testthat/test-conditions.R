test_that("errors have classes by which they can be caught, and the call of the user's function", {
  class_of <- function(expr) {
    e <- tryCatch(expr, error = identity)
    expect_s3_class(e, c("mirai_error", "error"))
    expect_true(is.null(conditionCall(e)) || is.name(conditionCall(e)[[1L]]))
    setdiff(class(e), c("mirai_error", "error", "condition"))
  }
  profile <- test_profile()
  expect_identical(class_of(daemons(-1)), "mirai_error_argument")
  expect_identical(class_of(mirai()), "mirai_error_argument")
  expect_identical(class_of(everywhere()), "mirai_error_argument")
  expect_identical(class_of(require_daemons(profile)), "mirai_error_no_daemons")
  expect_identical(class_of(launch_local(.compute = profile)), "mirai_error_no_daemons")
  expect_identical(class_of(with_daemons(profile, 1)), "mirai_error_no_daemons")
  expect_identical(class_of(daemons(url = "ipc:///not/there/at/all", .compute = profile)), "mirai_error_connect")
  expect_identical(class_of(mirai_map(1, stop, .compute = local_test_daemons(1))[.stop]), "mirai_error_map")
  e <- tryCatch(require_daemons(profile, call = quote(f(x))), error = identity)
  expect_identical(conditionCall(e), quote(f(x)))
})

test_that("a daemon that cannot be launched is an error of class mirai_error_launch", {
  skip_on_os("windows")
  profile <- test_profile()
  defer(function() daemons(0, .compute = profile), environment())
  remote <- remote_config(command = "/not/there/at/all", args = ".")
  e <- tryCatch(daemons(url = local_url(), remote = remote, .compute = profile), error = identity)
  expect_s3_class(e, c("mirai_error_launch", "mirai_error", "error", "condition"), exact = TRUE)
})
