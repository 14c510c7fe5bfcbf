# Tasks that run until the file is there.
hold <- function(n, go) {
  lapply(seq_len(n), function(i) {
    mirai(
      {
        while (!file.exists(go)) {
          Sys.sleep(0.005)
        }
        Sys.getpid()
      },
      go = go
    )
  })
}

test_that("daemons come as the queue asks, up to `max`, and leave when they are idle", {
  for (edition in 1:2) {
    local_options(mirai.edition = edition)
    profile <- local_test_daemons(1, max = 3, idletime = 200)
    base <- mirai(Sys.getpid())[]
    expect_identical(info()[["cumulative"]], 1L)
    go <- local_file()
    two <- hold(2, go)
    expect_true(connected(2))
    more <- hold(8, go)
    expect_true(connected(3))
    expect_identical(info()[["executing"]], 3L)
    file.create(go)
    pids <- unique(unlist(c(collect_mirai(two), collect_mirai(more))))
    expect_lte(length(pids), 3L)
    # The first one stays.
    expect_true(connected(1))
    expect_identical(mirai(Sys.getpid())[], base)
    others <- setdiff(pids, base)
    expect_true(all(vapply(others, ends, NA)))
    # They come again.
    go <- local_file()
    again <- hold(3, go)
    expect_true(connected(3))
    file.create(go)
    expect_length(unique(unlist(collect_mirai(again))), 3L)
    # Each of them ended between two tasks.
    expect_identical(sum(daemon_log()$state == "lost"), 0L)
  }
})

test_that("a daemon that is added is prepared as the others, and has random numbers of its own", {
  local_test_daemons(1, max = 2)
  everywhere(prepared <<- 7)
  go <- local_file()
  busy <- hold(1, go)
  expect_identical(mirai(prepared)[], 7)
  other <- mirai(rnorm(1))[]
  file.create(go)
  collect_mirai(busy)
  expect_false(identical(mirai(rnorm(1))[], other))
})

test_that("a task that waits for its next attempt asks for no daemon", {
  local_test_daemons(1, max = 2)
  m <- mirai(stop("no"), .retry = retry_config(error = 1, backoff = c(first = 600, most = 600)))
  expect_true(wait_until(function() task_log()$attempts == 1L && task_log()$state == "queued"))
  expect_identical(mirai(1)[], 1)
  expect_identical(info()[["cumulative"]], 1L)
  stop_mirai(m)
})

test_that("`max` is for local daemons with dispatcher, and not below `n`", {
  expect_snapshot(show_errors({
    daemons(2, max = 1)
    daemons(2, max = 3, dispatcher = FALSE)
    daemons(url = local_url(), max = 3)
  }))
  expect_warning(daemons(0, max = "many"), "'max' is ignored")
})
