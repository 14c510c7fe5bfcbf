skip_if_not_installed("promises")
skip_if_not_installed("later")

# Before version 1.3.0, promises decided by class alone what a promise is.
is_promising <- function(x) {
  if (utils::isS3stdGeneric(promises::is.promising)) {
    return(promises::is.promising(x))
  }
  utils::getFromNamespace(paste0("is.promising.", class(x)), "mirai")(x)
}

# The number of promises for which the package still holds functions.
promises_kept <- function() .Call(mirai:::rs_promises_kept)

test_that("the promise of a mirai is fulfilled with its value", {
  local_test_daemons(1)
  expect_true(is_promising(mirai(1)))
  p <- promises::as.promise(mirai(1 + 1))
  expect_s3_class(p, "promise")
  expect_identical(settled(p), list(fulfilled = 2))
  expect_identical(settled(mirai(NULL)), list(fulfilled = NULL))
  expect_identical(settled(mirai(list(a = NA))), list(fulfilled = list(a = NA)))
  `%...>%` <- promises::`%...>%`
  expect_identical(settled(mirai(3) %...>% sqrt() %...>% round(2)), list(fulfilled = 1.73))
  # one that has resolved before, read or unread, and one without a daemon
  expect_identical(settled(call_mirai(mirai("unread"))), list(fulfilled = "unread"))
  m <- mirai("read")
  m[]
  expect_identical(settled(m), list(fulfilled = "read"))
  expect_identical(settled(m), list(fulfilled = "read"))
  expect_identical(settled(mirai("own", .compute = test_profile())), list(fulfilled = "own"))
  expect_identical(m$data, "read")
})

test_that("an error of the evaluation rejects with the original condition", {
  local_test_daemons(1)
  error <- settled(mirai(stop("no")))$rejected
  expect_s3_class(error, c("simpleError", "error", "condition"), exact = TRUE)
  expect_identical(conditionMessage(error), "no")
  expect_null(conditionCall(error))
  f <- function(x) stop("not this")
  error <- settled(mirai(f(1), f = f))$rejected
  expect_identical(conditionCall(error), quote(f(1)))
  expect_match(unlist(error$stack.trace), "stop(\"not this\")", fixed = TRUE, all = FALSE)
  error <- settled(mirai(stop(structure(
    class = c("mine", "error", "condition"),
    list(message = "own", call = NULL, data = 1:3)
  ))))$rejected
  expect_s3_class(error, c("mine", "error", "condition"), exact = TRUE)
  expect_identical(error$data, 1:3)
  # so that handlers can test its class, also further down the chain
  handled <- promises::catch(
    promises::then(mirai(stop("early")), function(value) "not reached"),
    function(cnd) paste("handled", conditionMessage(cnd))
  )
  expect_identical(settled(handled), list(fulfilled = "handled early"))
})

test_that("rlang's errors keep their metadata", {
  skip_if_not_installed("rlang")
  local_test_daemons(1)
  error <- settled(mirai(rlang::abort("typed", class = "typed", detail = "more")))$rejected
  expect_s3_class(error, c("typed", "rlang_error", "error", "condition"), exact = TRUE)
  expect_identical(error$detail, "more")
  expect_s3_class(error$trace, "rlang_trace")
})

test_that("other error values reject with their text", {
  local_test_daemons(1)
  text <- function(x) {
    error <- settled(x)$rejected
    expect_s3_class(error, "simpleError")
    conditionMessage(error)
  }
  expect_identical(text(mirai(Sys.sleep(60), .timeout = 20)), "Timed out")
  m <- mirai(Sys.sleep(60))
  p <- promises::as.promise(m)
  expect_true(stop_mirai(m))
  expect_identical(text(p), "Operation canceled")
  lost <- text(mirai(tools::pskill(Sys.getpid(), 9L)))
  expect_match(lost, "^Connection reset: daemon .* was killed by signal 9$")
  local_test_daemons(1)
  p <- promises::as.promise(mirai(Sys.sleep(60)))
  daemons(0)
  expect_identical(text(p), "Connection reset: the daemons were reset")
})

test_that("an interrupt of the evaluation fulfils", {
  local_test_daemons(1)
  interrupt <- mirai(rlang::interrupt())
  expect_true(is_mirai_interrupt(settled(interrupt)$fulfilled))
  map <- mirai_map(1:2, function(x) if (x == 1) rlang::interrupt() else x)
  values <- settled(map)$fulfilled
  expect_true(is_mirai_interrupt(values[[1L]]))
  expect_identical(values[[2L]], 2L)
})

test_that("the promise of a map is fulfilled with the named list of values", {
  local_test_daemons(2)
  map <- mirai_map(c(a = 1, b = 4, c = 9), sqrt)
  expect_true(is_promising(map))
  expect_identical(settled(map), list(fulfilled = list(a = 1, b = 2, c = 3)))
  expect_identical(settled(map), list(fulfilled = list(a = 1, b = 2, c = 3)))
  expect_identical(settled(mirai_map(1:2, function(x) NULL)), list(fulfilled = list(NULL, NULL)))
  expect_identical(settled(mirai_map(list(), identity)), list(fulfilled = list()))
  expect_identical(settled(everywhere("set up")), list(fulfilled = list("set up", "set up")))
})

test_that("the promise of a map is rejected by the failure that comes first in time", {
  local_test_daemons(2)
  file <- local_file()
  map <- mirai_map(
    1:3,
    function(i) {
      if (i == 1L) {
        while (!file.exists(file)) {
          Sys.sleep(0.01)
        }
      }
      stop("element ", i)
    },
    file = file
  )
  error <- settled(map)$rejected
  expect_identical(conditionMessage(error), "element 2")
  expect_true(unresolved(map[[1L]]))
  file.create(file)
  # elements that fail later change nothing
  call_mirai(map)
  later::run_now()
  expect_identical(promises_kept(), 0L)
})

test_that("synchronous profiles make promises, too", {
  profile <- test_profile()
  daemons(sync = TRUE, .compute = profile)
  defer(function() daemons(0, .compute = profile), environment())
  expect_identical(settled(mirai(2, .compute = profile)), list(fulfilled = 2))
  expect_identical(
    conditionMessage(settled(mirai(stop("no"), .compute = profile))$rejected),
    "no"
  )
  map <- mirai_map(1:2, function(x) x, .compute = profile)
  expect_identical(settled(map), list(fulfilled = list(1L, 2L)))
})

test_that("an error while the value is read rejects the promise", {
  local_test_daemons(1)
  reject <- NULL
  mirai:::when_resolved(mirai(1), function(i) stop("at home"), function(cnd) reject <<- cnd)
  run_until(function() !is.null(reject))
  expect_identical(conditionMessage(reject), "at home")
  expect_identical(promises_kept(), 0L)
})

test_that("a promise settles although nothing else refers to the mirai", {
  local_test_daemons(1)
  before <- promises_kept()
  values <- list()
  file <- local_file()
  for (i in 1:3) {
    promises::then(
      mirai(
        {
          while (!file.exists(file)) {
            Sys.sleep(0.01)
          }
          i
        },
        file = file,
        i = i
      ),
      function(value) values <<- c(values, value)
    )
  }
  invisible(gc())
  expect_identical(promises_kept() - before, 3L)
  file.create(file)
  run_until(function() length(values) == 3L)
  expect_identical(values, list(1L, 2L, 3L))
  expect_identical(promises_kept(), before)
})

test_that("a promise settles on the event loop that was current when it was made", {
  local_test_daemons(1)
  loop <- later::create_loop(parent = NULL)
  defer(function() later::destroy_loop(loop), environment())
  value <- NULL
  m <- mirai("there")
  later::with_loop(loop, promises::then(m, function(x) value <<- x))
  m[]
  while (later::run_now()) {
    NULL
  }
  expect_null(value)
  later::with_loop(loop, run_until(function() !is.null(value), loop))
  expect_identical(value, "there")
})

test_that("a loop that has been destroyed takes its promises with it", {
  local_test_daemons(1)
  loop <- later::create_loop(parent = NULL)
  m <- mirai("there")
  later::with_loop(loop, promises::then(m, function(x) fail("it has settled")))
  later::destroy_loop(loop)
  expect_identical(m[], "there")
  expect_identical(settled(mirai("next")), list(fulfilled = "next"))
})

test_that("ten thousand pending promises cost nothing while pending", {
  local_test_daemons(1)
  kept <- promises_kept()
  n <- 10000L
  file <- local_file()
  holding <- mirai(
    while (!file.exists(file)) {
      Sys.sleep(0.01)
    },
    file = file
  )
  map <- mirai_map(seq_len(n), function(x) x)
  all <- promises::as.promise(map)
  ps <- lapply(unclass(map)[seq_len(2000L)], promises::as.promise)
  invisible(gc())
  # callbacks that earlier tests have left
  while (later::run_now()) {
    NULL
  }
  expect_true(later::loop_empty())
  before <- proc.time()
  later::run_now(1)
  used <- proc.time() - before
  expect_gte(used[["elapsed"]], 0.9)
  expect_lt(used[["user.self"]] + used[["sys.self"]], 0.1)
  file.create(file)
  expect_identical(settled(all), list(fulfilled = as.list(seq_len(n))))
  expect_identical(settled(ps[[2000L]]), list(fulfilled = 2000L))
  expect_identical(promises_kept(), kept)
})

test_that("promises leave nothing behind once they have settled", {
  local_test_daemons(1)
  kept <- promises_kept()
  # R's cells in use: a leaked symbol would be three
  cells <- function(n) {
    map <- mirai_map(seq_len(n), identity)
    left <- n
    for (m in map) {
      promises::then(m, function(value) left <<- left - 1L)
    }
    run_until(function() left == 0L)
    rm(map, m)
    gc(full = TRUE)
    gc(full = TRUE)["Ncells", "used"]
  }
  first <- cells(3000L)
  for (i in 1:3) {
    last <- cells(3000L)
  }
  expect_lt(last - first, 3000)
  expect_identical(promises_kept(), kept)
})

test_that("settling is woken by the result itself", {
  local_test_daemons(1)
  mirai(0)[]
  # shorter than any polling interval would allow
  took <- vapply(1:50, function(i) system.time(settled(mirai(i, i = i)))[["elapsed"]], 0)
  expect_lt(median(took), 0.1)
})

test_that("'.promise' is called for each element", {
  local_test_daemons(2)
  seen <- NULL
  map <- mirai_map(1:3, function(x) x * 10, .promise = function(value) seen <<- c(seen, value))
  expect_s3_class(map, "mirai_map")
  run_until(function() length(seen) == 3L)
  expect_setequal(seen, c(10, 20, 30))
  expect_identical(map[], list(10, 20, 30))

  ok <- failed <- NULL
  map <- mirai_map(
    list(1, "a"),
    log,
    .promise = list(
      function(value) ok <<- value,
      function(cnd) failed <<- conditionMessage(cnd)
    )
  )
  run_until(function() !is.null(ok) && !is.null(failed))
  expect_identical(ok, 0)
  expect_match(failed, "non-numeric argument")
  expect_true(is_mirai_error(map[][[2L]]))

  seen <- NULL
  mirai_map(1, identity, .promise = list(function(value) seen <<- value))
  run_until(function() !is.null(seen))
  expect_identical(seen, 1)
})

test_that("a bad '.promise' is an error before anything is sent", {
  profile <- local_test_daemons(1)
  expect_snapshot(show_errors({
    mirai_map(1, identity, .promise = "no")
    mirai_map(1, identity, .promise = list())
    mirai_map(1, identity, .promise = list(identity, identity, identity))
    mirai_map(1, identity, .promise = list(identity, 1))
  }))
  expect_identical(info()[["completed"]] + info()[["executing"]] + info()[["awaiting"]], 0L)
})

test_that("package promises is needed for '.promise' only", {
  out <- r_output(c(
    "invisible(loadNamespace('mirai'))",
    "cat(any(c('promises', 'later') %in% loadedNamespaces()), '\\n')",
    "invisible(loadNamespace('promises'))",
    "cat(class(promises::as.promise(mirai::mirai(1))), '\\n')"
  ))
  expect_match(out, "FALSE", all = FALSE)
  expect_match(out, "^promise", all = FALSE)
})

test_that("an interrupt while the loop runs leaves promises as they are", {
  host <- r_process(c(
    "library(mirai)",
    "d <- daemons(1)",
    "value <- NULL",
    "promises::then(mirai({Sys.sleep(1.5); 'value'}), function(x) value <<- x)",
    # When interrupts are caught, the loop reports it.
    "later::later(function() cat('waiting\\n'))",
    "r <- tryCatch(while (is.null(value)) later::run_now(Inf), interrupt = function(i) 'interrupted')",
    "cat(r, '\\n')",
    "while (is.null(value)) later::run_now(Inf)",
    "cat(value, '\\n')"
  ))
  wait_for_line(host, "waiting")
  host$interrupt()
  wait_for_line(host, "interrupted")
  wait_for_line(host, "value")
  host$wait(10000)
  expect_identical(host$get_exit_status(), 0L)
})

test_that("a forked child leaves the promises to the session", {
  skip_on_os("windows")
  local_test_daemons(1)
  values <- character()
  m <- mirai("value")
  p <- promises::then(m, function(x) values <<- c(values, x))
  call_mirai(m)
  # callbacks that are already scheduled exist in the child, too
  child <- parallel::mcparallel({
    later::run_now()
    later::run_now()
    # An error, not a rejected promise: that needs a lock that a thread of later's may have held during the fork.
    said <- list(
      tryCatch(promises::as.promise(m), error = conditionMessage),
      tryCatch(promises::then(m, identity), error = conditionMessage),
      tryCatch(promises::as.promise(structure(list(m), class = "mirai_map")), error = conditionMessage)
    )
    list(values, said)
  })
  theirs <- parallel::mccollect(child)[[1L]]
  expect_identical(theirs[[1L]], character())
  for (text in theirs[[2L]]) {
    expect_match(text, "forked")
  }
  expect_identical(settled(p)$fulfilled, "value")
  expect_identical(values, "value")
})

test_that("a child that is forked while promises settle can use later", {
  skip_on_os("windows")
  local_test_daemons(2)
  for (i in 1:50) {
    promises <- lapply(1:20, function(j) promises::then(mirai(j, j = j), identity))
    child <- parallel::mcparallel(later::run_now())
    done <- parallel::mccollect(child, wait = FALSE, timeout = 20)
    if (is.null(done)) {
      tools::pskill(child$pid, tools::SIGKILL)
    }
    expect_false(is.null(done))
    for (p in promises) {
      settled(p)
    }
  }
})

test_that("a session can end while promises are pending or about to settle", {
  for (i in 1:3) {
    host <- r_process(c(
      "library(mirai)",
      "d <- daemons(2)",
      "p <- promises::as.promise(mirai(Sys.sleep(60)))",
      "p2 <- promises::as.promise(mirai_map(1:3000, function(x) x))",
      "invisible(mirai(1)[])",
      if (i == 2L) "quit('no', runLast = FALSE)",
      if (i == 3L) "stop('on purpose')"
    ))
    host$wait(20000)
    expect_false(host$is_alive())
    expect_identical(host$get_exit_status(), if (i == 3L) 1L else 0L)
  }
})
