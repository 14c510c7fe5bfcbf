test_that("call_mirai() waits for one or several and returns them invisibly", {
  local_test_daemons(2)
  m <- mirai(1)
  called <- withVisible(call_mirai(m))
  expect_false(called$visible)
  expect_identical(called$value, m)
  expect_identical(m$data, 1)
  expect_identical(call_mirai_(m), m)
  ms <- list(
    a = mirai(1),
    b = mirai({
      Sys.sleep(0.1)
      2
    })
  )
  expect_identical(call_mirai(ms), ms)
  expect_false(unresolved(ms))
  expect_identical(call_mirai(list()), list())
  map <- everywhere(3)
  expect_identical(call_mirai(map), map)
})

test_that("race_mirai() waits for the first to resolve", {
  local_test_daemons(2)
  expect_identical(race_mirai(list()), 0L)
  slow <- mirai(Sys.sleep(60))
  quick <- mirai({
    Sys.sleep(0.2)
    "quick"
  })
  before <- proc.time()
  expect_identical(race_mirai(list(slow, quick)), 2L)
  waited <- proc.time() - before
  expect_lt(waited[["elapsed"]], 10)
  # asleep, without polling
  expect_lt(waited[["user.self"]] + waited[["sys.self"]], 0.1)
  expect_identical(race_mirai(list(quick, slow)), 1L)
  expect_identical(race_mirai(quick), 1L)
  failed <- mirai(stop("no"))
  expect_identical(race_mirai(list(slow, failed)), 2L)
  stop_mirai(slow)
})

test_that("stop_mirai() cancels queued and running tasks, and says which", {
  local_test_daemons(1)
  pid <- mirai(Sys.getpid())[]
  finished <- call_mirai(mirai("done"))
  file <- local_file()
  running <- mirai(
    {
      on.exit(cat("interrupted", file = file))
      file.create(file)
      Sys.sleep(60)
    },
    file = file
  )
  queued <- mirai(cat("never", file = file), file = file)
  last <- mirai("last")
  expect_true(wait_until(function() file.exists(file)))
  stopped <- withVisible(stop_mirai(queued))
  expect_false(stopped$visible)
  expect_identical(stopped$value, TRUE)
  expect_snapshot(queued$data)
  expect_true(unresolved(running))
  expect_identical(stop_mirai(list(finished, running)), c(FALSE, TRUE))
  expect_snapshot(running$data)
  expect_identical(finished$data, "done")
  expect_identical(stop_mirai(running), FALSE)
  # the daemon is healthy
  expect_identical(last[], "last")
  expect_identical(mirai(Sys.getpid())[], pid)
  expect_identical(readLines(file, warn = FALSE), "interrupted")
  expect_identical(stop_mirai(list()), logical())
})

test_that("an interrupt never hits a later task", {
  local_test_daemons(1)
  pid <- mirai(Sys.getpid())[]
  later <- lapply(1:1000, function(i) {
    m <- mirai(Sys.sleep(0.0005))
    if (i %% 3L) {
      unresolved(m)
    } else {
      mirai(0)[]
    }
    stop_mirai(m)
    mirai(i, i = i)
  })
  expect_identical(collect_mirai(later), as.list(1:1000))
  expect_identical(mirai(Sys.getpid())[], pid)
})

test_that("stop_mirai() reaches tasks in other profiles and those without daemons", {
  one <- test_profile()
  m1 <- mirai(Sys.sleep(60), .compute = one)
  local_test_daemons(1, dispatcher = FALSE)
  file <- local_file()
  m2 <- mirai(
    {
      file.create(file)
      Sys.sleep(60)
    },
    file = file
  )
  m3 <- mirai("next")
  expect_true(wait_until(function() file.exists(file)))
  expect_identical(stop_mirai(list(m1, m2)), c(TRUE, TRUE))
  expect_identical(m1$data, structure(20L, class = "errorValue"))
  expect_identical(m2$data, structure(20L, class = "errorValue"))
  expect_identical(m3[], "next")
})

test_that("unresolved() takes any object", {
  local_test_daemons(1)
  done <- call_mirai(mirai(1))
  m <- mirai(Sys.sleep(60))
  expect_true(unresolved(m))
  expect_true(unresolved(m$data))
  expect_true(unresolved(list(1, m)))
  expect_true(unresolved(list(done, m$data)))
  stop_mirai(m)
  expect_false(unresolved(m))
  expect_false(unresolved(m$data))
  expect_false(unresolved(list(m, done)))
  expect_false(unresolved(NA))
  expect_false(unresolved(list()))
})

test_that("waiting for something else is an error", {
  expect_snapshot(show_errors({
    call_mirai()
    collect_mirai(NULL)
    race_mirai(list(1))
    stop_mirai()
  }))
})

test_that("call_mirai() and stop_mirai() ignore objects that are not mirai", {
  env <- new.env()
  for (x in list(NULL, 1, "a", env, quote(a), list("a", 2), mirai_map)) {
    expect_identical(withVisible(call_mirai(x)), list(value = x, visible = FALSE))
    expect_identical(call_mirai_(x), x)
  }
  for (x in list(NULL, 1, "a", env, quote(a), mirai_map)) {
    expect_identical(withVisible(stop_mirai(x)), list(value = FALSE, visible = FALSE))
  }
  local_test_daemons(1)
  mixed <- list(a = mirai(Sys.sleep(60)), b = NULL, c = 3, d = mirai(4))
  expect_identical(stop_mirai(mixed), c(TRUE, FALSE, FALSE, TRUE))
  mixed$a <- mirai("called")
  expect_identical(call_mirai(mixed), mixed)
  expect_identical(mixed$a$data, "called")
  expect_identical(stop_mirai(mixed), logical(4))
  expect_identical(stop_mirai(list()), logical())
  expect_identical(call_mirai(list()), list())
})

test_that("a wait can be interrupted and the session goes on", {
  host <- r_process(c(
    "library(mirai)",
    "d <- daemons(1)",
    "m <- mirai({Sys.sleep(1.5); 'value'})",
    "cat('waiting\\n')",
    "r <- tryCatch(m[], interrupt = function(i) 'interrupted')",
    "cat(r, unresolved(m), '\\n')",
    "cat('again\\n')",
    "r <- tryCatch(race_mirai(list(m)), interrupt = function(i) 'interrupted')",
    "cat(r, m[], mirai('next')[], '\\n')"
  ))
  wait_for_line(host, "waiting")
  host$interrupt()
  wait_for_line(host, "interrupted TRUE")
  wait_for_line(host, "again")
  host$interrupt()
  wait_for_line(host, "interrupted value next")
  host$wait(10000)
  expect_identical(host$get_exit_status(), 0L)
})

# Evaluates `expr` under a time limit. Returns 0, or the error message if the limit ended it.
limited <- function(expr) {
  setTimeLimit(elapsed = 0.2)
  on.exit(setTimeLimit())
  tryCatch(
    {
      expr
      0
    },
    error = conditionMessage
  )
}

test_that("a limit of CPU time that is over ends a wait", {
  local_test_daemons(1)
  m <- mirai(Sys.sleep(1e6))
  x <- stats::runif(1e7)
  waited <- FALSE
  over <- function() {
    setTimeLimit(cpu = 0.02)
    on.exit(setTimeLimit())
    # R itself looks at the limit after 1,000 calls.
    for (i in 1:5) {
      sum(x)
    }
    waited <<- TRUE
    m[]
  }
  expect_error(over(), "reached CPU time limit")
  expect_true(waited)
  expect_true(stop_mirai(m))
})

test_that("time limits end every wait, and the session goes on", {
  local_test_daemons(1, memory = 1)
  file <- local_file()
  sleeper <- function() {
    mirai(
      while (!file.exists(file)) {
        Sys.sleep(0.01)
      },
      file = file
    )
  }
  m <- sleeper()
  ms <- list(m, sleeper())
  expect_match(limited(m[]), "reached elapsed time limit")
  expect_match(limited(call_mirai(m)), "reached elapsed time limit")
  expect_match(limited(collect_mirai(ms)), "reached elapsed time limit")
  expect_match(limited(race_mirai(ms)), "reached elapsed time limit")
  map <- mirai_map(1:2, function(i) i)
  expect_match(limited(map[]), "reached elapsed time limit")
  expect_match(limited(map[.stop]), "reached elapsed time limit")
  fill <- function() {
    repeat {
      mirai(0, x = x)
    }
  }
  x <- raw(1e5)
  expect_match(limited(fill()), "reached elapsed time limit")
  sleep <- remote_config("sh", c("-c", shQuote("exec sleep 60"), "."))
  profile <- test_profile()
  defer(function() daemons(0, .compute = profile), environment())
  expect_match(
    limited(daemons(url = local_url(), remote = sleep, .compute = profile)),
    "reached elapsed time limit"
  )
  expect_false(daemons_set(profile))
  # the tasks were not affected
  file.create(file)
  expect_identical(collect_mirai(ms), list(NULL, NULL))
  expect_identical(map[.flat], 1:2)
})

# Code for a host process with R's web server, whose handler is called by R's event loop, and with `get`, by which a
# daemon sends a request to that server.
web_host <- function(..., frame = parent.frame()) {
  r_output(
    c(
      "library(mirai)",
      "port <- suppressMessages(tools::startDynamicHelp(TRUE))",
      "get <- function(port) {",
      "  con <- socketConnection(port = port, open = 'r+b', blocking = TRUE, timeout = 20)",
      "  on.exit(close(con))",
      "  writeLines('GET /custom/handler HTTP/1.0\r\n\r\n', con, sep = '')",
      "  utils::tail(readLines(con, warn = FALSE), 1L)",
      "}",
      "handle <- function(f) {",
      "  answer <- function(...) list(payload = f())",
      "  assign('handler', answer, tools:::.httpd.handlers.env)",
      "}",
      ...
    ),
    frame
  )
}

test_that("R's input handlers are served in a wait, and may use what is waited for", {
  skip_on_os("windows")
  out <- web_host(
    "invisible(daemons(2))",
    "handle(function() 'served')",
    "ask <- function() mirai(get(port), get = get, port = port)",
    "cat(ask()[], ask()[], '\n')",
    "cat(call_mirai(list(ask()))[[1L]]$data, race_mirai(list(ask())), '\n')",
    "cat(mirai_map(1:2, function(i) get(port), get = get, port = port)[.flat], '\n')",
    # a handler waits for the same mirai and for others
    "handle(function() paste(unresolved(m), mirai(2)[], race_mirai(list(m, done))))",
    "done <- call_mirai(mirai('done'))",
    "m <- ask()",
    "cat(m[], '\n')",
    "m <- ask()",
    "cat(collect_mirai(list(m, mirai(3)))[[1L]], '\n')",
    # a handler waits for the next time limit
    "handle(function() tryCatch({ setTimeLimit(elapsed = 0.2, transient = TRUE); m[] }, error = function(e) 'limit'))",
    "m <- ask()",
    "cat(m[], '\n')",
    # a handler ends the daemons during the wait
    "handle(function() as.character(daemons(0)))",
    "m <- ask()",
    "print(m[])",
    "invisible(daemons(2))",
    "m <- ask()",
    "print(collect_mirai(list(m, mirai(Sys.sleep(60)))))"
  )
  expect_identical(
    out,
    c(
      "served served ",
      "served 1 ",
      "served served ",
      "TRUE 2 2 ",
      "TRUE 2 2 ",
      "limit ",
      "'errorValue' int 19 | Connection reset",
      "[[1]]",
      "'errorValue' int 19 | Connection reset",
      "",
      "[[2]]",
      "'errorValue' int 19 | Connection reset",
      ""
    )
  )
})

test_that("input handlers are served while a task waits for room", {
  skip_on_os("windows")
  out <- web_host(
    "invisible(daemons(1, memory = 1))",
    "handle(function() paste('asked', mirai('from the handler', .compute = 'other')[]))",
    "asking <- mirai(get(port), get = get, port = port)",
    "x <- list(raw(4e5), 1:3)",
    "ms <- lapply(1:5, function(i) mirai(list(i, x), i = i, x = x))",
    "cat(asking[], identical(collect_mirai(ms), lapply(1:5, list, x)), '\n')",
    "invisible(daemons(0))"
  )
  expect_identical(out, "asked from the handler TRUE ")
})

test_that("a wait uses no CPU time, even with a handler that waits itself", {
  skip_if_not_installed("later")
  out <- r_output(c(
    "library(mirai)",
    "invisible(daemons(1))",
    "invisible(mirai(1)[])",
    "cpu <- function(expr) { t <- system.time(expr); sum(t[1:2]) < t[[3L]] / 4 }",
    "cat(cpu(mirai(Sys.sleep(2))[]), '\n')",
    # Package later does nothing before the wait is over.
    "later::later(function() cat('later\n'))",
    "cat(cpu(mirai(Sys.sleep(2))[]), '\n')",
    "later::run_now()",
    "invisible(daemons(0))"
  ))
  expect_identical(out, c("TRUE ", "TRUE ", "later"))
})

test_that("a long wait in vain is told once, and ends when a daemon comes", {
  local_test_daemons(url = local_url())
  told <- character()
  m <- mirai(Sys.getpid())
  x <- mirai_map(1:2, identity)
  withCallingHandlers(
    x[],
    message = function(cnd) {
      told <<- c(told, conditionMessage(cnd))
      launch_local(1)
      invokeRestart("muffleMessage")
    }
  )
  expect_length(told, 1L)
  expect_match(told, "waiting for tasks of compute profile '.*', but no daemon is connected and none is being launched")
  expect_true(is.integer(m[]))
  # A daemon is there, and busy.
  expect_silent(mirai(Sys.sleep(4))[])
  # mirai() waits for room in the queue.
  local_test_daemons(url = local_url(), memory = 0.001)
  full <- mirai(length(x), x = numeric(1000))
  told <- character()
  m <- withCallingHandlers(
    mirai("room"),
    message = function(cnd) {
      told <<- c(told, conditionMessage(cnd))
      launch_local(1)
      invokeRestart("muffleMessage")
    }
  )
  expect_length(told, 1L)
  expect_identical(m[], "room")
})

test_that("maps in a list are waited for, and cancelled, as mirai in it are", {
  local_test_daemons(2)
  go <- local_file()
  map <- function() {
    wait <- function(i, go) {
      while (!file.exists(go)) {
        Sys.sleep(0.005)
      }
      i
    }
    mirai_map(1:2, wait, .args = list(go = go))
  }
  maps <- list(a = map(), b = 1, c = map())
  expect_true(unresolved(maps))
  expect_identical(stop_mirai(maps[2:3]), c(FALSE, TRUE))
  expect_false(unresolved(maps[2:3]))
  expect_true(unresolved(maps))
  file.create(go)
  expect_identical(call_mirai(maps), maps)
  expect_false(unresolved(maps))
  expect_identical(maps$a[.flat], 1:2)
  expect_identical(stop_mirai(maps), c(FALSE, FALSE, FALSE))
})
