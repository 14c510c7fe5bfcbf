relay_process <- function(host, args, frame = parent.frame()) {
  r_process(
    paste0("mirai::dispatcher(", encodeString(host, quote = "\""), ", ", args, "); cat('ended\\n')"),
    frame = frame
  )
}

test_that("a relay passes tasks between a host and daemons", {
  local_test_daemons(url = loopback("tcp"), dispatcher = FALSE)
  p <- relay_process(nextget("url"), "n = 2")
  expect_true(connected(1))
  pids <- unlist(mirai_map(1:40, function(x) {
    Sys.sleep(0.01)
    Sys.getpid()
  })[])
  expect_length(unique(pids), 2L)
  expect_false(p$get_pid() %in% pids)
  expect_identical(conditionMessage(mirai(stop("below"))[]), "below")
  constant <- runif(1e5)
  expect_identical(mirai_map(1:10, function(x, y) sum(y), .args = list(y = constant))[.flat], rep(sum(constant), 10))
  # Set-up reaches all of them.
  everywhere(there <<- TRUE)
  expect_true(all(unlist(mirai_map(1:20, function(x) {
    Sys.sleep(0.01)
    there
  })[])))
  daemons(0)
  said <- words(p)
  expect_match(said, "ended", all = FALSE)
  expect_true(all(vapply(unique(pids), ends, NA)))
})

test_that("cancellation and loss pass through a relay", {
  local_test_daemons(url = loopback("ws"), dispatcher = FALSE)
  p <- relay_process(nextget("url"), "n = 1")
  expect_true(connected(1))
  file <- local_file()
  m <- mirai(
    {
      file.create(file)
      Sys.sleep(60)
    },
    file = file
  )
  expect_true(wait_until(function() file.exists(file)))
  queued <- mirai("queued")
  unwanted <- mirai("unwanted")
  expect_true(stop_mirai(unwanted))
  expect_true(stop_mirai(m))
  expect_identical(queued[], "queued")
  m <- mirai(tools::pskill(Sys.getpid(), tools::SIGKILL))
  expect_reset(m[])
  expect_match(attr(m$data, "reason"), "^behind a relay, daemon 1 \\(pid [0-9]+ on .*\\) was killed by signal 9")
})

test_that("conditions, reports and the texts of errors pass through a relay", {
  local_test_daemons(url = loopback("tcp"), dispatcher = FALSE)
  p <- relay_process(nextget("url"), "n = 1")
  expect_true(connected(1))
  m <- mirai({
    warning("careful")
    for (i in 1:2) {
      mirai::mirai_report(i)
    }
    "value"
  })
  expect_identical(m[], "value")
  expect_identical(conditionMessage(mirai_conditions(m)[[1L]]), "careful")
  expect_identical(mirai_reports(m), list(1L, 2L))
  expect_identical(mirai(stop("no luck"))[]$message, "no luck")
  expect_identical(task_log()$error, c(NA, "no luck"))
})

test_that("a relay listens for daemons, in TLS on both sides", {
  local_test_daemons(url = loopback("tls+tcp"), dispatcher = FALSE)
  port <- free_port()
  tls <- sub("tls = ", "tls_host = ", sub("^, ", "", tls_argument()))
  p <- relay_process(nextget("url"), paste0("url = '", loopback("tcp", port), "', ", tls))
  expect_true(connected(1))
  m <- mirai("waits for a daemon")
  d <- daemon_process(loopback("tcp", port))
  expect_identical(m[], "waits for a daemon")
  daemons(0)
  expect_identical(end_code(d), 0L)
  p$wait(20000)
  expect_false(p$is_alive())
})

test_that("a relay without a host, or without daemons, is an error", {
  p <- relay_process(loopback("tcp", free_port()), "n = 1")
  said <- words(p)
  expect_match(said, "nobody listens there", all = FALSE)
  expect_snapshot(show_errors({
    dispatcher("tcp://127.0.0.1:1")
  }))
})

test_that("a report passes through a relay at once, while its task runs", {
  local_test_daemons(url = loopback("tcp"), dispatcher = FALSE)
  p <- relay_process(nextget("url"), "n = 1, output = \"task\"")
  expect_true(connected(1))
  go <- local_file()
  m <- mirai(
    {
      for (i in 1:3) {
        mirai::mirai_report(i)
      }
      cat("printed")
      while (!file.exists(go)) {
        Sys.sleep(0.01)
      }
      mirai::mirai_report("last")
    },
    go = go
  )
  expect_true(wait_until(function() length(mirai_reports(m)) == 3L))
  expect_true(unresolved(m))
  file.create(go)
  m[]
  expect_identical(mirai_reports(m), list(1L, 2L, 3L, "last"))
  expect_identical(mirai_output(m), "printed")
})
