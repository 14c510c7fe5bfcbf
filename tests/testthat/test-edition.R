# Sets the option or the environment variable until the test ends.
local_edition <- function(n, frame = parent.frame()) {
  old <- options(mirai.edition = n)
  defer(function() options(old), frame)
}

# The text that R shows for an error that nothing catches.
geterrmessage_of <- function(expr) {
  try(expr, silent = TRUE)
  geterrmessage()
}

cli_free <- function(text) strsplit(gsub("\033\\[[0-9;]*m", "", paste(text, collapse = "\n")), "\n")[[1L]]

fails <- function(x) if (x == "b") stop("bad") else x

test_that("the option wins over the environment variable, and a bad value of either is an error", {
  expect_identical(edition(), 1L)
  local_envvar(MIRAI_EDITION = "2")
  expect_identical(edition(), 2L)
  local_edition(1)
  expect_identical(edition(), 1L)
  local_envvar(MIRAI_EDITION = "1")
  options(mirai.edition = 2L)
  expect_identical(edition(), 2L)
  profile <- local_test_daemons(1)
  local_envvar(MIRAI_EDITION = "second")
  expect_identical(status()$connections, 1L)
  options(mirai.edition = NULL)
  for (bad in list(3, "2", NA, c(1, 2))) {
    options(mirai.edition = bad)
    expect_error(status(), "option 'mirai.edition' must be 1 or 2, not ", fixed = TRUE)
  }
  options(mirai.edition = NULL)
  expect_error(host_url(), "environment variable MIRAI_EDITION must be 1 or 2, not \"second\"", fixed = TRUE)
  # The default edition.
  expect_error(daemons(0, .compute = profile), "MIRAI_EDITION")
  local_envvar(MIRAI_EDITION = "")
  expect_true(daemons_set(profile))
  expect_identical(mirai("still there")[], "still there")
})

test_that("in edition 2, status() has the number of daemons and the URL", {
  local_edition(2)
  for (dispatcher in c(TRUE, FALSE)) {
    local_test_daemons(3, dispatcher = dispatcher)
    expect_identical(status()$connections, 3L)
    expect_identical(status()$daemons, nextget("url"))
    expect_length(nextget("urls"), 1L)
    expect_identical(nextget("n"), 3L)
  }
  options(mirai.edition = 1)
  expect_identical(status()$connections, 3L)
  local_test_daemons(url = c(local_url(), local_url()))
  expect_identical(status()$connections, 1L)
  options(mirai.edition = 2)
  expect_identical(status()$connections, 0L)
  expect_identical(status()$daemons, nextget("urls"))
  expect_identical(status("nothing set"), list(connections = 0L, daemons = 0L))
  cl <- make_cluster(2)
  defer(function() stop_cluster(cl), environment())
  expect_length(cl, 2L)
  expect_identical(status(cl)$connections, 2L)
})

test_that("in edition 2, daemons() returns TRUE or FALSE, invisibly", {
  local_edition(2)
  profile <- test_profile()
  defer(function() daemons(0, .compute = profile), environment())
  set <- withVisible(daemons(1, .compute = profile))
  expect_false(set$visible)
  expect_s3_class(set$value, "miraiDaemons")
  expect_identical(as.vector(set$value), TRUE)
  expect_output(print(set$value), "^\\[1\\] TRUE$")
  expect_true(isTRUE(set$value))
  expect_true(isTRUE(daemons(url = local_url(), dispatcher = FALSE, .compute = profile)))
  expect_true(isTRUE(daemons(sync = TRUE, .compute = profile)))
  reset <- withVisible(daemons(0, .compute = profile))
  expect_identical(c(isFALSE(reset$value), reset$visible), c(TRUE, FALSE))
  expect_identical(with(daemons(1, .compute = profile), mirai(1 + 1)[]), 2)
  expect_false(daemons_set(profile))
  expect_s3_class(daemons(.compute = profile), NA)
})

test_that("the arguments of early releases still work, in both editions", {
  profile <- test_profile()
  defer(function() daemons(0, .compute = profile), environment())
  daemons(1, dispatcher = "none", force = FALSE, .compute = profile)
  url <- nextget("urls", .compute = profile)
  expect_identical(mirai(1 + 1, .compute = profile)[], 2)
  expect_identical(as.integer(daemons(2, force = FALSE, .compute = profile)), 1L)
  daemons(url = local_url(), force = FALSE, .compute = profile)
  daemons(sync = TRUE, force = FALSE, .compute = profile)
  expect_identical(nextget("urls", .compute = profile), url)
  daemons(1, dispatcher = "process", force = TRUE, .compute = profile)
  expect_true("awaiting" %in% names(status(profile)$mirai))
  daemons(0, force = FALSE, .compute = profile)
  expect_false(daemons_set(profile))
  expect_error(daemons(1, dispatcher = "all", .compute = profile), "'dispatcher' must be TRUE or FALSE")
})

test_that("in edition 2 a number is how many daemons to launch; `n` is so in both", {
  local_tmpdir()
  local_test_daemons(url = c(local_url(), local_url()))
  online <- function() unname(status()$daemons[, "online"])
  expect_identical(launch_local(2), 1L)
  expect_true(connected(1))
  expect_identical(online(), 0:1)
  # at the URL with the fewest daemons
  expect_identical(withVisible(launch_local(n = 3)), list(value = 3L, visible = FALSE))
  expect_true(connected(4))
  expect_identical(online(), c(2L, 2L))
  expect_identical(launch_local(2, n = 2), 2L)
  expect_true(connected(6))
  expect_identical(online(), c(2L, 4L))
  expect_length(launch_remote(n = 3), 3L)

  local_edition(2)
  expect_identical(launch_local(4), 4L)
  expect_true(connected(10))
  expect_identical(launch_local(nextget("urls")), 2L)
  expect_true(connected(12))
  expect_identical(launch_local(), 1L)
  expect_true(connected(13))
  options(mirai.edition = 1)
  expect_identical(online(), c(7L, 6L))
  options(mirai.edition = 2)
  urls <- sub("^[^\"]*\"([^\"]*)\".*$", "\\1", unclass(launch_remote(5)))
  expect_setequal(urls, nextget("urls"))
  expect_length(urls, 5L)
  expect_snapshot(show_errors({
    launch_local(2, n = 2)
    launch_local(0)
    launch_local(TRUE)
    launch_local(c(1, 2))
  }))
  # as many as `n`, for any number of machines
  places <- remote_config("true", list(c("1", "."), c("2", ".")))
  expect_length(launch_remote(remote = places), 2L)
  expect_length(launch_remote(1, remote = places), 1L)
  expect_length(launch_remote(n = 3, remote = places), 3L)
})

test_that("in edition 2, host_url() takes `tls` and `port`", {
  url <- function(scheme, port) paste0(scheme, "://", Sys.info()[["nodename"]], ":", port)
  expect_identical(host_url(TRUE), url("ws", 0))
  expect_identical(host_url(TRUE, TRUE, 5555), url("wss", 5555))
  local_edition(2)
  expect_identical(host_url(TRUE), url("tls+tcp", 0))
  expect_identical(host_url(TRUE, 5555), url("tls+tcp", 5555))
  expect_identical(host_url(port = 5555), url("tcp", 5555))
  expect_identical(host_url(ws = TRUE, port = 5555), url("ws", 5555))
  expect_identical(do.call(host_url, list(FALSE, 5555, ws = TRUE)), url("ws", 5555))
  wrapped <- function(...) host_url(...)
  port <- 5555
  expect_identical(wrapped(TRUE, port), url("tls+tcp", 5555))
  expect_snapshot(show_errors({
    host_url(5555)
    host_url(TRUE, TRUE)
    host_url(ws = 1)
  }))
})

test_that("in edition 2, a stack trace is a list of calls, whoever has made it", {
  g <- function(x) {
    stop("positive")
  }
  calls <- list(quote(stop("positive")), quote(g(1)))
  # daemons that were told the edition when they were set, daemons that were not told the change, and a process without
  # daemons
  local_edition(2)
  local_test_daemons(1)
  trace <- mirai(g(1), g = g)[]$stack.trace
  expect_identical(trace, calls)
  sync <- local_test_daemons(sync = TRUE)
  expect_identical(mirai(g(1), g = g, .compute = sync)[]$stack.trace, calls)
  alone <- test_profile()
  m <- mirai(g(1), g = g, .compute = alone)
  expect_identical(m[]$stack.trace, calls)
  options(mirai.edition = 1)
  expect_identical(m$data$stack.trace, list("stop(\"positive\")", "g(1)"))
  local_test_daemons(1)
  m <- mirai(g(1), g = g)
  expect_identical(vapply(m[]$stack.trace, class, ""), rep("character", 2L))
  options(mirai.edition = 2)
  expect_true(all(vapply(m$data$stack.trace, is.call, NA)))
  expect_identical(m$data$stack.trace[[2L]], quote(g(1)))
  # large arguments are not sent with each call of the stack
  local_test_daemons(1)
  f <- function(x) h(x)
  h <- function(x) stop("no")
  m <- mirai(do.call(f, list(x)), f = f, h = h, x = runif(1e5))
  expect_lt(object.size(m[]$stack.trace), 1e5)
  expect_true(all(vapply(m$data$stack.trace, is.call, NA)))
  options(mirai.edition = 1)
  expect_type(unlist(m$data$stack.trace), "character")
})

test_that("in edition 2, mirai_map() without daemons is an error", {
  local_edition(2)
  profile <- test_profile()
  expect_error(mirai_map(1:3, sqrt, .compute = profile), "no daemons set for profile")
  expect_false(daemons_set(profile))
})

test_that("in edition 2, a package can wait for its workers as with 2.x", {
  local_edition(2)
  profile <- test_profile()
  defer(function() daemons(0, .compute = profile), environment())
  stopifnot(daemons(n = 2L, dispatcher = TRUE, .compute = profile))
  expect_identical(status(.compute = profile)$connections, 2L)
  expect_identical(nextget("n", .compute = profile), 2L)
  expect_null(nextget("sock", .compute = profile))
  tasks <- list(
    mirai("fine", .compute = profile),
    mirai(stop("error"), .compute = profile),
    mirai(Sys.sleep(60), .timeout = 50, .compute = profile),
    mirai(Sys.sleep(60), .compute = profile)
  )
  stop_mirai(tasks[[4L]])
  call_mirai(tasks)
  expect_identical(status(.compute = profile)$mirai, c(awaiting = 0L, executing = 0L, completed = 4L))
  expect_identical(sum(info(profile)[c("awaiting", "executing", "completed")]), 4L)
  expect_false(stop_mirai(NULL))
})

test_that("the error of an element says where and what, with and without rlang", {
  local_test_daemons(1)
  map <- mirai_map(c(a = "a", b = "b"), function(x) fails(x), fails = fails)
  for (e in list(tryCatch(map[.stop], error = identity), tryCatch(map[.flat], error = identity))) {
    expect_s3_class(e, c("mirai_error_map", "mirai_error", "error", "condition"), exact = TRUE)
    expect_identical(conditionMessage(e), "In index: 2. With name: b.\nCaused by error in fails(x): bad")
    expect_identical(e$location, 2L)
    expect_identical(e$name, "b")
    expect_s3_class(e$parent, c("simpleError", "error", "condition"), exact = TRUE)
    expect_identical(conditionMessage(e$parent), "bad")
    expect_identical(conditionCall(e$parent), quote(fails(x)))
    expect_output(print(e), "In index: 2. With name: b.\nCaused by error in fails(x): bad", fixed = TRUE)
  }
  text <- geterrmessage_of(map[.stop])
  expect_match(text, "In index: 2. With name: b.\nCaused by error in fails(x): bad\n", fixed = TRUE)
  # without names, and without a call
  e <- tryCatch(mirai_map(1:3, function(x) if (x == 3) stop("third", call. = FALSE))[.stop], error = identity)
  expect_identical(conditionMessage(e), "In index: 3.\nCaused by error: third")
  expect_null(e$name)
  e <- tryCatch(mirai_map(list(a = 1, "b"), function(x) stop("no"))[.stop], error = identity)
  expect_identical(e$name, "a")
  e <- tryCatch(collect_mirai(list(mirai(1), mirai(stop("no"))), ".stop"), error = identity)
  expect_identical(conditionMessage(e), "In index: 2.\nCaused by error: no")
  e <- tryCatch(mirai_map(list(a = 1, b = "a", c = 2), identity)[.flat], error = identity)
  expect_identical(
    conditionMessage(e),
    "In index: 2. With name: b.\nCaused by error: cannot flatten values of different types: double, character"
  )
  # maps within maps
  nested <- mirai_map(c(x = 1), function(x) {
    mirai::daemons(sync = TRUE, .compute = "inner")
    mirai::mirai_map(c(y = 1), function(y) stop("deep", call. = FALSE), .compute = "inner")[.stop]
  })
  e <- tryCatch(nested[.stop], error = identity)
  expect_s3_class(e$parent, "mirai_error_map")
  expect_match(
    conditionMessage(e),
    "^In index: 1[.] With name: x[.]\nCaused by error in .*: In index: 1[.] With name: y[.]\nCaused by error: deep$"
  )

  skip_if_not_installed("rlang")
  e <- tryCatch(map[.stop], error = identity)
  lines <- cli_free(rlang::cnd_message(e))
  expect_identical(lines, c("In index: 2. With name: b.", "Caused by error in `fails()`:", "! bad"))
  outer <- tryCatch(rlang::abort("outer", parent = e), error = identity)
  expect_match(
    conditionMessage(outer),
    "In index: 2. With name: b.\nCaused by error in `fails()`:\n! bad",
    fixed = TRUE
  )
  e <- tryCatch(
    mirai_map(1, function(x) rlang::abort(c("first", i = "second"), class = "mine", data = 7))[.stop],
    error = identity
  )
  expect_s3_class(e$parent, "mine")
  expect_identical(e$parent$data, 7)
  expect_match(conditionMessage(e), "In index: 1.\nCaused by error in .*: first\n. second")
})
