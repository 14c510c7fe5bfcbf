test_that("daemons work by every scheme", {
  for (scheme in schemes) {
    profile <- local_test_daemons(url = loopback(scheme))
    launch_local(1)
    m <- mirai(list(x, Sys.getpid()), x = 1:10)
    expect_identical(m[][[1L]], 1:10, info = scheme)
    expect_false(m$data[[2L]] == Sys.getpid())
    large <- runif(1e6)
    expect_identical(mirai(x, x = large)[], large)
    expect_identical(unlist(mirai_map(1:50, function(x) x^2)[]), (1:50)^2)
    everywhere(there <<- TRUE)
    expect_true(mirai(there)[])
    expect_identical(status()$daemons[, c("online", "instance")], c(online = 1L, instance = 1L))
    daemons(0)
  }
})

test_that("errors, interrupts, timeouts and cancellation cross the network", {
  local_test_daemons(url = loopback("tls+tcp"))
  launch_local(1)
  expect_identical(conditionMessage(mirai(stop("there"))[]), "there")
  m <- mirai(Sys.sleep(60), .timeout = 100)
  expect_equal(unclass(m[]), 5L)
  m <- mirai(Sys.sleep(60))
  expect_true(wait_until(function() status()$mirai[["executing"]] == 1L))
  expect_true(stop_mirai(m))
  expect_equal(unclass(m$data), 20L)
  # the daemon has survived both
  expect_identical(mirai("next")[], "next")
  expect_identical(info()[["cumulative"]], 1L)
})

test_that("a daemon that is killed gives error value 19, or its task to the next", {
  local_tmpdir()
  local_test_daemons(url = loopback("tcp"))
  launch_local(1)
  pid <- mirai(Sys.getpid())[]
  m <- mirai(Sys.sleep(60))
  expect_true(wait_until(function() status()$mirai[["executing"]] == 1L))
  tools::pskill(pid, tools::SIGKILL)
  lost <- m[]
  expect_reset(lost)
  # It was started here, so it is known how it ended.
  expect_match(attr(lost, "reason"), "was killed by signal 9$")

  local_test_daemons(url = loopback("wss"), retry = TRUE)
  launch_local(c(1, 1))
  pids <- everywhere(Sys.getpid(), .min = 2L)
  expect_true(connected(2))
  file <- local_file()
  m <- mirai(
    if (file.exists(file)) {
      "again"
    } else {
      file.create(file)
      tools::pskill(Sys.getpid(), 9L)
      Sys.sleep(60)
    },
    file = file
  )
  expect_identical(m[], "again")
})

test_that("daemons come and go, and autoexit ends them with the host", {
  local_test_daemons(url = loopback("ws"))
  launch_local(c(1, 1))
  expect_true(connected(2))
  pids <- unlist(everywhere(Sys.getpid())[])
  launch_local(1, maxtasks = 1)
  expect_true(connected(3))
  daemons(0)
  expect_true(all(vapply(pids, ends, NA)))
})

test_that("a daemon with autoexit = FALSE outlives its host and serves the next", {
  url <- loopback("tcp", free_port())
  profile <- local_test_daemons(url = url)
  launch_local(1, autoexit = FALSE)
  pid <- mirai(Sys.getpid())[]
  daemons(0)
  expect_true(is_alive(pid))
  daemons(url = url)
  expect_identical(mirai(Sys.getpid())[], pid)
  daemons(NULL)
  expect_true(ends(pid))
})

test_that("asyncdial waits for a host", {
  port <- free_port()
  p <- daemon_process(loopback("tcp", port), ", asyncdial = TRUE", before = "cat('dialling\\n')")
  wait_for_line(p, "dialling")
  local_test_daemons(url = loopback("tcp", port))
  expect_true(connected(1))
  daemons(0)
  expect_identical(end_code(p), 0L)
})

test_that("without dispatcher, tasks go to the daemons in turn", {
  url <- local_test_daemons(url = loopback("tcp"), dispatcher = FALSE)
  expect_match(status()$daemons, "^tcp://127.0.0.1:[1-9]")
  launch_local(c(1, 1))
  expect_true(connected(2))
  pids <- unlist(mirai_map(1:10, function(x) Sys.getpid())[])
  expect_identical(as.vector(table(pids)), c(5L, 5L))
})

test_that("a map's constants and random streams cross the network", {
  local_test_daemons(url = loopback("tls+tcp"), seed = 1L)
  launch_local(c(1, 1))
  constant <- runif(1e5)
  expect_identical(
    mirai_map(1:20, function(x, y) sum(y) + x, .args = list(y = constant))[],
    lapply(1:20, function(x) sum(constant) + x)
  )
  first <- mirai_map(1:5, function(x) rnorm(1))[.flat]
  local_test_daemons(n = 1, seed = 1L)
  mirai_map(1:20, function(x, y) sum(y) + x, .args = list(y = constant))[]
  expect_identical(mirai_map(1:5, function(x) rnorm(1))[.flat], first)
})

test_that("ports and paths follow from one URL", {
  urls <- function(...) {
    local_test_daemons(...)
    nextget("urls")
  }
  port <- free_port()
  expect_identical(urls(n = 2, url = loopback("tcp", port)), paste0("tcp://127.0.0.1:", port + 0:1))
  both <- urls(n = 2, url = loopback("tcp"))
  expect_match(both, "^tcp://127.0.0.1:[1-9][0-9]+$")
  expect_false(both[[1L]] == both[[2L]])
  both <- urls(n = 2, url = loopback("ws", path = ""))
  expect_match(both, "^ws://127.0.0.1:[1-9][0-9]+/[12]$")
  expect_length(unique(sub("/.$", "", both)), 1L)
  expect_match(urls(n = 2, url = loopback("wss", path = "/x")), "/x/[12]$")
  expect_match(urls(url = loopback("ws"), token = TRUE), "/a/[0-9a-f]{24}$")
  expect_match(urls(url = loopback("tcp"), token = TRUE), "[0-9]$")
  expect_identical(urls(url = loopback("ws", port, c("/cpu", "/gpu"))), loopback("ws", port, c("/cpu", "/gpu")))
})

test_that("IPv6 addresses are in brackets", {
  has_v6 <- file.exists("/proc/net/if_inet6") && length(readLines("/proc/net/if_inet6")) > 0L
  skip_if_not(has_v6, "This machine has no IPv6")
  local_test_daemons(url = "tcp://[::1]:0")
  expect_match(nextget("url"), "^tcp://\\[::1\\]:[1-9]")
  launch_local(1)
  expect_identical(mirai("v6")[], "v6")
})

test_that("a URL that cannot be listened at is an error that names it", {
  port <- free_port()
  local_test_daemons(url = loopback("tcp", port))
  masked <- function(x) gsub("[0-9]{5}", "<port>", x)
  expect_snapshot(
    transform = masked,
    show_errors({
      daemons(url = loopback("tcp", port), .compute = "another")
      daemons(url = "tcp://127.0.0.1", .compute = "another")
      daemons(url = "tcp://::1:5555", .compute = "another")
      daemons(url = "tcp://127.0.0.1:70000", .compute = "another")
      daemons(url = "tcp://127.0.0.1:5555/path", .compute = "another")
      daemons(url = "tcp://192.0.2.1:5555", .compute = "another")
      daemons(n = 3, url = "tcp://127.0.0.1:65534", .compute = "another")
      daemons(n = 3, url = c("tcp://127.0.0.1:0", "tcp://127.0.0.1:0"), .compute = "another")
      daemons(url = "tls+tcp://127.0.0.1:0", tls = c("not", "PEM"), .compute = "another")
      daemons(url = "tls+tcp://127.0.0.1:0", tls = "/no/such/file", .compute = "another")
      daemons(url = "tls+tcp://127.0.0.1:0", tls = 1, .compute = "another")
      daemons(url = "tls+tcp://127.0.0.1:0", pass = 1, .compute = "another")
    })
  )
  expect_false(daemons_set("another"))
})

test_that("a URL that cannot be dialled is an error of the daemon", {
  said <- function(url, args = "") {
    words(daemon_process(url, args))
  }
  nobody <- said(loopback("tcp", free_port()))
  expect_match(nobody, "nobody listens there", all = FALSE)
  insecure <- said(loopback("wss", free_port()))
  expect_match(insecure, "give the host's certificate as 'tls'", all = FALSE)
  local_test_daemons(url = loopback("ws"))
  elsewhere <- said(paste0(nextget("url"), "/other"))
  expect_match(elsewhere, "cannot connect", all = FALSE)
})

test_that("saisei() replaces a URL by one with a new path", {
  local_test_daemons(n = 2, url = loopback("wss"))
  before <- nextget("urls")
  expect_null(saisei(0))
  expect_null(saisei(3))
  url <- saisei(1)
  expect_match(url, paste0("^", before[[1L]], "/[0-9a-f]{24}$"))
  expect_identical(nextget("urls"), c(url, before[[2L]]))
  # no daemon has connected yet
  expect_identical(status()$daemons[[1L, "instance"]], 0L)
  launch_local(1)
  expect_true(connected(1))
  expect_null(saisei(1))
  m <- mirai(Sys.sleep(60))
  expect_true(wait_until(function() status()$mirai[["executing"]] == 1L))
  again <- saisei(1, force = TRUE)
  expect_equal(unclass(m[]), 7L)
  expect_match(again, paste0("^", before[[1L]], "/[0-9a-f]{24}$"))
  expect_false(again == url)
  expect_identical(unname(status()$daemons[1L, c("online", "instance")]), c(0L, -1L))
  launch_local(1)
  expect_identical(mirai("back")[], "back")
  expect_identical(unname(status()$daemons[1L, c("online", "instance")]), c(1L, 2L))

  local_test_daemons(url = loopback("tcp"))
  expect_null(saisei(1))
  local_test_daemons(url = local_url())
  expect_match(saisei(1), "^(abstract|ipc)://")
  launch_local(1)
  expect_identical(mirai("local")[], "local")
})

test_that("a silent peer is given up, a busy one is not", {
  local_tmpdir()
  old <- options(mirai.keepalive = 1000)
  defer(function() options(old), environment())
  local_test_daemons(url = loopback("tcp"))
  launch_local(1)
  pid <- mirai(Sys.getpid())[]
  # A daemon whose R is busy sends signs of life.
  expect_identical(
    mirai({
      Sys.sleep(2.5)
      "busy"
    })[],
    "busy"
  )
  # A process that is stopped does not.
  m <- mirai(Sys.sleep(60))
  expect_true(wait_until(function() status()$mirai[["executing"]] == 1L))
  tools::pskill(pid, tools::SIGSTOP)
  defer(function() tools::pskill(pid, tools::SIGKILL), environment())
  expect_reset(m[])
  options(mirai.keepalive = "never")
  expect_snapshot(show_errors({
    daemons(url = "tcp://127.0.0.1:0", .compute = "another")
  }))
})
