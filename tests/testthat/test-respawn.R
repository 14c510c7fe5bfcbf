kill <- quote(tools::pskill(Sys.getpid(), tools::SIGKILL))

pids <- function() sort(unlist(everywhere(Sys.getpid())[]))

test_that("a local daemon that crashes is replaced, with the options and the surroundings of the first", {
  local_tmpdir()
  local_envvar(MIRAI_TEST_RESPAWN = "first")
  local_test_daemons(2, cleanup = FALSE)
  before <- pids()
  Sys.setenv(MIRAI_TEST_RESPAWN = "later")
  expect_reset(mirai(eval(kill), kill = kill)[])
  expect_true(wait_until(function() info()[["cumulative"]] == 3L && info()[["connections"]] == 2L))
  after <- pids()
  expect_length(intersect(before, after), 1L)
  expect_identical(unname(status()$daemons[, "online"]), c(1L, 1L))
  expect_identical(unlist(everywhere(Sys.getenv("MIRAI_TEST_RESPAWN"))[]), c("first", "first"))
  everywhere(x <<- 1)
  expect_identical(mirai(x)[], 1)
  expect_identical(sum(daemon_log()$state == "lost"), 1L)
  daemons(0)
  expect_true(all(vapply(after, ends, NA)))
})

test_that("without the fork server, too", {
  local_options(mirai.fork_server = FALSE)
  local_test_daemons(1)
  m <- mirai(eval(kill), kill = kill)
  expect_identical(mirai("from the next")[], "from the next")
  expect_reset(m[])
})

test_that("FALSE leaves it at that, \"always\" also replaces daemons that have reached their limits", {
  local_test_daemons(1, respawn = FALSE)
  expect_reset(mirai(eval(kill), kill = kill)[])
  expect_true(connected(0))
  expect_identical(launch_local(1, respawn = TRUE), 1L)
  expect_reset(mirai(eval(kill), kill = kill)[])
  expect_identical(mirai(1)[], 1)

  local_test_daemons(1, maxtasks = 2)
  expect_identical(mirai_map(1:2, identity)[.flat], 1:2)
  expect_true(connected(0))

  local_test_daemons(1, maxtasks = 2, respawn = "always")
  expect_identical(mirai_map(1:9, identity)[.flat], 1:9)
  expect_gte(info()[["cumulative"]], 5L)
})

test_that("a daemon that replaces another is prepared as that was", {
  local_test_daemons(1)
  everywhere({
    library(stats4)
    prepared <<- 7
  })
  everywhere(eval(kill), kill = kill)[]
  expect_identical(mirai(c(prepared, "package:stats4" %in% search()))[], c(7, 1))
  expect_reset(mirai(eval(kill), kill = kill)[])
  expect_identical(mirai(prepared)[], 7)
})

test_that("it draws other random numbers than the first", {
  local_test_daemons(1)
  first <- mirai(rnorm(2))[]
  mirai(eval(kill), kill = kill)[]
  second <- mirai(rnorm(2))[]
  mirai(eval(kill), kill = kill)[]
  third <- mirai(rnorm(2))[]
  expect_identical(anyDuplicated(c(first, second, third)), 0L)
  # With a seed, numbers are those of the task.
  draw <- function() {
    local_test_daemons(1, seed = 4L)
    mirai(eval(kill), kill = kill)[]
    mirai(rnorm(1))[]
  }
  expect_identical(draw(), draw())
})

test_that("crashes without a finished task between them have an end, and say why", {
  local_test_daemons(2)
  doomed <- mirai_map(1:30, function(i, kill) eval(kill), .args = list(kill = kill))
  values <- doomed[]
  expect_true(all(vapply(values, is_error_value, NA)))
  last <- attr(values[[30L]], "reason")
  expect_match(last, "after 5 crashes without a finished task between them: it was killed by signal 9")
  expect_lte(info()[["cumulative"]], 10L)
  # A poisoned task ends, in spite of retry.
  local_test_daemons(1, retry = TRUE)
  m <- mirai(eval(kill), kill = kill)
  expect_reset(m[])
  expect_match(conditionMessage(m$data), "after 5 crashes")
  expect_identical(task_log()$attempts, 5L)
  # What comes later waits, and is told why. The user starts another.
  later <- mirai("again")
  told <- character()
  withCallingHandlers(
    later[],
    message = function(cnd) {
      told <<- conditionMessage(cnd)
      launch_local(1)
      invokeRestart("muffleMessage")
    }
  )
  expect_match(told, "no daemon is connected and none is being launched")
  expect_match(told, attr(m$data, "reason"), fixed = TRUE)
  expect_identical(later$data, "again")
})

test_that("error value 19 says that daemons were reset", {
  profile <- local_test_daemons(1)
  for (n in 1:0) {
    running <- mirai(Sys.sleep(60))
    queued <- mirai(1)
    daemons(n, .compute = profile)
    for (m in list(running, queued)) {
      expect_reset(m[])
      expect_identical(attr(m$data, "reason"), "the daemons were reset")
      expect_match(conditionMessage(m$data), "the daemons were reset")
    }
  }
})

test_that("a daemon whose successors cannot start says what they wrote", {
  broken <- local_file()
  local_envvar(R_PROFILE_USER = broken)
  writeLines("", broken)
  local_options(mirai.fork_server = FALSE)
  local_test_daemons(1)
  writeLines("stop('a broken profile')", broken)
  expect_reset(mirai(eval(kill), kill = kill)[])
  waiting <- mirai(1)
  expect_reset(waiting[])
  expect_match(attr(waiting$data, "reason"), "a broken profile")
})

test_that("a node of a cluster, and a daemon sent away by saisei(), are not replaced", {
  cl <- make_cluster(1)
  profile <- paste0("cluster-", attr(cl, "id"))
  expect_error(parallel::clusterEvalQ(cl, tools::pskill(Sys.getpid(), 9L)))
  expect_true(connected(0, profile))
  stop_cluster(cl)
  local_test_daemons(1)
  pid <- pids()
  saisei(1, force = TRUE)
  expect_true(ends(pid))
  expect_identical(info()[["cumulative"]], 1L)
  launch_local(1)
  expect_identical(mirai(1)[], 1)
  expect_identical(info()[["cumulative"]], 2L)
})

test_that("`respawn` works across the network and for a relay's daemons", {
  local_test_daemons(url = loopback("tcp"))
  launch_local(1)
  expect_reset(mirai(eval(kill), kill = kill)[])
  expect_identical(mirai(1)[], 1)
  expect_identical(info()[["cumulative"]], 2L)
})
