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

test_that("`max` needs a dispatcher, daemons that can be launched, and `n`, which is not greater", {
  remote <- remote_config("sh", c("-c", "."), quote = TRUE)
  expect_snapshot(show_errors({
    daemons(2, max = 1)
    daemons(2, max = 3, dispatcher = FALSE)
    daemons(url = local_url(), max = 3)
    daemons(1, url = local_url(), remote = remote_config(), max = 3)
    daemons(1, url = local_url(), remote = remote, max = 3, dispatcher = FALSE)
    daemons(url = local_url(), remote = remote, max = 3)
    daemons(4, url = local_url(), remote = remote, max = 3)
    daemons(1, url = c(local_url(), local_url()), remote = remote, max = 3)
    daemons(1, url = "ws://127.0.0.1:5555", remote = ssh_config("ssh://a", tunnel = TRUE), max = 3)
    daemons(1, remote = remote, max = 3)
    daemons(1, url = local_url(), remote = remote_config("no-such-command"), max = 3)
  }))
  expect_false(daemons_set())
  expect_warning(daemons(0, max = "many"), "'max' is ignored")
  local_options(mirai.launch_timeout = 0)
  expect_error(daemons(1, url = local_url(), remote = remote, max = 2), "mirai.launch_timeout")
  expect_false(daemons_set())
})

# A configuration that launches a daemon in the background, as sbatch does, and notes each launch in a file.
local_launcher <- function(before = "", frame = parent.frame()) {
  skip_on_os("windows")
  local_envvar(launch_env(), frame = frame)
  log <- local_file("launches", frame = frame)
  code <- paste0("echo launched >>", log, "; ", before)
  remote <- remote_config("sh", c("-c", shQuote(paste0(code, "eval \"$0\" >/dev/null 2>&1 &")), "."), quote = TRUE)
  list(remote = remote, launches = function() if (file.exists(log)) length(readLines(log)) else 0L)
}

test_that("with `remote`, daemons are launched as the queue asks, up to `max`, and leave when they are idle", {
  launcher <- local_launcher()
  for (url in c("tcp://127.0.0.1:0", "wss://127.0.0.1:0/path")) {
    already <- launcher$launches()
    local_test_daemons(1, url = url, remote = launcher$remote, max = 3, idletime = 300)
    expect_true(connected(1))
    expect_identical(nrow(status()$daemons), 3L)
    # A task that waited for that would ask for a daemon.
    everywhere(prepared <<- 7)[]
    base <- mirai(Sys.getpid())[]
    expect_identical(mirai(prepared)[], 7)
    expect_identical(launcher$launches() - already, 1L)
    go <- local_file()
    tasks <- hold(10, go)
    expect_true(connected(3))
    numbers <- lapply(1:9, function(i) mirai(c(prepared, rnorm(1))))
    file.create(go)
    pids <- unique(unlist(collect_mirai(tasks)))
    expect_lte(length(pids), 3L)
    expect_identical(launcher$launches() - already, 3L)
    numbers <- do.call(rbind, collect_mirai(numbers))
    expect_setequal(numbers[, 1L], 7)
    expect_identical(anyDuplicated(numbers[, 2L]), 0L)
    # The first one stays.
    expect_true(connected(1))
    expect_identical(mirai(Sys.getpid())[], base)
    expect_true(all(vapply(setdiff(pids, base), ends, NA)))
    # They come again, with other random numbers.
    go <- local_file()
    again <- hold(3, go)
    expect_true(connected(3))
    more <- lapply(1:9, function(i) mirai(rnorm(1)))
    file.create(go)
    collect_mirai(again)
    expect_identical(anyDuplicated(c(numbers[, 2L], unlist(collect_mirai(more)))), 0L)
    expect_silent(status())
    daemons(0)
  }
})

test_that("with `remote`, none may be there at first, and R may be busy while they are launched", {
  launcher <- local_launcher()
  local_options(mirai.edition = 2)
  local_test_daemons(0, url = "tcp://127.0.0.1:0", remote = launcher$remote, max = 2, idletime = 300)
  expect_true(daemons_set())
  expect_identical(launcher$launches(), 0L)
  done <- local_file()
  m <- mirai(file.create(done), done = done)
  # R does nothing else, and nothing of this package.
  busy <- Sys.time() + 30
  while (!file.exists(done) && Sys.time() < busy) {
    NULL
  }
  expect_true(file.exists(done))
  expect_true(m[])
  expect_true(connected(0))
  expect_identical(launcher$launches(), 1L)
})

test_that("launches that fail have an end, and status() and the tasks say why", {
  local_launcher()
  remote <- remote_config("sh", c("-c", shQuote("echo the cluster is down >&2; exit 3"), "."), quote = TRUE)
  expect_error(
    daemons(1, url = local_url(), remote = remote, max = 2, .compute = "fails"),
    "the launch of daemons has failed: sh .exit status 3.:\nthe cluster is down"
  )
  expect_false(daemons_set("fails"))
  local_test_daemons(0, url = local_url(), remote = remote, max = 2)
  m <- mirai(1)
  expect_reset(m[])
  expect_match(attr(m$data, "reason"), "the last launch of a daemon has failed, and no other follows after 5 failures")
  expect_match(attr(m$data, "reason"), "sh (exit status 3):\nthe cluster is down", fixed = TRUE)
  warned <- capture_warnings(status())
  expect_match(warned[[1L]], "a launch of daemons has failed: sh .exit status 3.")
  expect_match(warned[[length(warned)]], "no more daemons are launched")
  expect_silent(status())
})

test_that("a launch whose daemon does not connect is given up after an option's seconds", {
  local_options(mirai.launch_timeout = 2)
  first <- local_file()
  launcher <- local_launcher(paste0("if mkdir ", first, " 2>/dev/null; then exit; fi; "))
  local_test_daemons(0, url = "tcp://127.0.0.1:0", remote = launcher$remote, max = 1)
  expect_identical(mirai(1)[], 1)
  # If this machine is busy, so is the second one.
  expect_gte(launcher$launches(), 2L)
  warned <- capture_warnings(status())
  expect_match(warned[[1L]], "sh: its daemon has not connected within 2 s", fixed = TRUE)
})

test_that("after saisei(), daemons are launched for the new URL", {
  launcher <- local_launcher()
  local_test_daemons(0, url = local_url(), remote = launcher$remote, max = 1, idletime = 300)
  expect_identical(mirai(1)[], 1)
  expect_true(connected(0))
  url <- saisei(1)
  expect_identical(mirai(2)[], 2)
  expect_identical(rownames(status()$daemons), url)
  expect_identical(launcher$launches(), 2L)
})

test_that("there may be no daemon at first", {
  local_test_daemons(0, max = 2, idletime = 200)
  expect_true(daemons_set())
  expect_identical(info()[["cumulative"]], 0L)
  expect_identical(mirai_map(1:4, function(i) i)[.flat], 1:4)
  expect_true(info()[["cumulative"]] %in% 1:2)
  expect_true(wait_until(function() info()[["connections"]] == 0L))
  expect_identical(mirai(1)[], 1)
})
