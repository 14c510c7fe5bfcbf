test_that("errors have classes, and the call of the function that the user called", {
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

test_that("errors of native code have classes and the call of the user's function, too", {
  error_of <- function(expr) tryCatch(expr, error = identity)
  class_of <- function(e) setdiff(class(e), c("mirai_error", "error", "condition"))
  e <- error_of(daemon("ipc:///not/there/at/all"))
  expect_identical(class(e), c("mirai_error_connect", "mirai_error", "error", "condition"))
  expect_identical(conditionCall(e), quote(daemon("ipc:///not/there/at/all")))
  e <- error_of(dispatcher("ipc:///not/there/at/all", n = 1))
  expect_identical(class_of(e), "mirai_error_connect")
  expect_identical(conditionCall(e)[[1L]], quote(dispatcher))
  e <- error_of(daemons(3, url = "ipc:///a/b?c"))
  expect_identical(conditionCall(e)[[1L]], quote(daemons))
  expect_s3_class(e, "mirai_error")

  # What R finds out before, unless daemons are reset meanwhile.
  profile <- test_profile()
  map <- function() .Call(mirai:::rs_submit_map, quote(.x), NULL, NULL, list(1), NULL, NULL, profile, NULL, NULL, NULL)
  e <- error_of(map())
  expect_identical(class(e), c("mirai_error_no_daemons", "mirai_error", "error", "condition"))
  expect_identical(conditionCall(e), quote(map()))
  expect_identical(conditionMessage(e), "no daemons set")
  peek <- function() .Call(mirai:::rs_peek_stream, profile)
  e <- error_of(peek())
  expect_identical(class_of(e), "mirai_error_no_daemons")
  expect_identical(conditionCall(e), quote(peek()))
})

test_that("a forked process gets an error of class mirai_error", {
  skip_on_os("windows")
  profile <- local_test_daemons(1)
  out <- parallel::mclapply(
    1:2,
    function(i) {
      lapply(
        list(
          submission = tryCatch(mirai(1), error = identity),
          status = tryCatch(status(), error = identity)
        ),
        function(e) list(class = class(e), call = conditionCall(e)[[1L]])
      )
    },
    mc.cores = 2
  )[[1L]]
  expect_identical(out$submission, list(class = c("mirai_error", "error", "condition"), call = quote(mirai)))
  expect_identical(out$status$class, c("mirai_error", "error", "condition"))
})

test_that("nothing in a message is taken for a format", {
  skip_on_os("windows")
  url <- "ipc:///not/there/%s%n%d 100% %%"
  e <- tryCatch(daemons(url = url, .compute = test_profile()), error = identity)
  expect_match(conditionMessage(e), paste0("cannot listen at '", url, "'"), fixed = TRUE)
  e <- tryCatch(daemon(url), error = identity)
  expect_match(conditionMessage(e), url, fixed = TRUE)
})

test_that("a panic is an error with its message", {
  retry <- retry_rules(FALSE)
  # A negative time: R checks for it before.
  open <- function(patience) {
    .Call(mirai:::rs_open_profile, "x", local_url(), FALSE, retry, NULL, NULL, patience, NULL, NULL)
  }
  e <- tryCatch(open(-1), error = identity)
  expect_identical(class(e), c("mirai_error", "error", "condition"))
  expect_match(conditionMessage(e), "negative", fixed = TRUE)
  expect_identical(conditionCall(e), quote(open(-1)))
})

test_that("a message that is too long is counted with its own task", {
  local_test_daemons(1)
  long <- mirai(message(strrep("x", 1e5)))
  long[]
  expect_identical(mirai_conditions(long), structure(list(), dropped = 1L))
  short <- mirai(message("short"))
  short[]
  expect_null(attr(mirai_conditions(short), "dropped"))
})
