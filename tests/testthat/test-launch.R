test_that("launch_local() takes indices and URLs, and options", {
  profile <- local_test_daemons(url = c(local_url(), local_url()), cleanup = FALSE)
  expect_identical(launch_local(c(1, 2, 2)), 3L)
  expect_true(connected(3))
  expect_identical(unname(status()$daemons[, "online"]), c(1L, 2L))
  # they have the options that daemons() was given
  call_mirai(everywhere(x <<- 1))
  mirai(x <<- 2)[]
  daemons(url = local_url(), cleanup = FALSE, .compute = profile)
  expect_identical(launch_local(nextget("url"), maxtasks = 1), 1L)
  mirai(x <<- 2)[]
  expect_true(connected(0))
  launch_local()
  mirai(x <<- 2)[]
  expect_identical(mirai(x)[], 2)
})

test_that("output = TRUE lets a daemon's output through", {
  code <- c(
    "library(mirai)",
    "d <- daemons(1, output = %s)",
    "m <- mirai({cat('to stdout\\n'); message('to stderr'); 'value'})",
    "cat(m[], '\\n')",
    "d <- daemons(0)"
  )
  out <- r_output(sprintf(code, "TRUE"))
  expect_true(all(c("[task 1] to stdout", "[task 1] to stderr", "value ") %in% out))
  out <- r_output(sprintf(code, "FALSE"))
  expect_identical(out, "value ")
})

test_that("bad arguments are errors", {
  profile <- local_test_daemons(url = local_url())
  expect_snapshot(show_errors({
    launch_local(2)
    launch_local(0)
    launch_local(TRUE)
    launch_local(NA_integer_)
    launch_local(integer())
    launch_local("")
    launch_local(1, .compute = "not set")
    launch_local(1, .compute = 1)
    launch_local(n = 0)
    launch_local(n = 1:2)
    launch_local(2, n = 1)
    launch_local(1, tls = "a", tlscert = "b")
    launch_remote(n = "a")
  }))
  local_test_daemons(url = c(local_url(), local_url()))
  expect_error(launch_remote(1.5), "'url' must be URLs, or indices from 1 to 2", fixed = TRUE)
  for (launch in list(launch_local, launch_remote)) {
    expect_error(launch(c(local_url(), "nonsense")), "'nonsense' is not a valid URL", fixed = TRUE)
    expect_error(launch("tcp://no-port", .compute = "not set"), class = "mirai_error_connect")
  }
})

test_that("without daemons set, they can be launched for another host by its URL", {
  local_tmpdir()
  host <- local_test_daemons(url = local_url())
  url <- nextget("url")
  none <- test_profile()
  expect_identical(launch_local(url, .compute = none), 1L)
  expect_true(connected(1))
  expect_identical(launch_local(url, n = 2, maxtasks = 1, .compute = none), 2L)
  expect_true(connected(3))
  expect_false(daemons_set(none))
  cmd <- launch_remote(c(url, "tcp://10.75.32.70:5555"), .compute = none)
  expect_match(cmd, "^Rscript -e 'mirai::daemon\\(\"")
  expect_match(cmd, "rs=c(10407,", fixed = TRUE)
  expect_false(anyDuplicated(sub(".*rs=", "", cmd)) > 0L)
  launch_remote(url, remote_config("env", rscript = file.path(R.home("bin"), "Rscript")), .compute = none)
  expect_true(connected(4))
  expect_error(launch_remote(url, remote_config("false"), .compute = none), "false (exit status 1)", fixed = TRUE)
  expect_error(launch_local(1, .compute = none), "no daemons set for profile")
  expect_error(launch_local(n = 1, .compute = none), "no daemons set for profile")
  expect_error(launch_remote(1, .compute = none), "no daemons set for profile")
  # launched from a session that ends at once
  out <- r_output(c(paste0("mirai::launch_local(", encodeString(url, quote = "\""), ", n = 2)"), "cat('ended\\n')"))
  expect_identical(out, "ended")
  expect_true(connected(6))
  pids <- unlist(everywhere(Sys.getpid())[])
  daemons(0, .compute = host)
  for (pid in pids) {
    expect_true(ends(pid))
  }
})

test_that("launch_remote() returns commands that print as they are pasted", {
  profile <- local_test_daemons(url = c(local_url(), local_url()), cleanup = FALSE, maxtasks = 100)
  cmd <- launch_remote(1:2)
  expect_s3_class(cmd, "miraiLaunchCmd")
  mask <- function(lines) gsub("rs=c[(]10407(,-?[0-9]+){6}[)]", "rs=<random>", mask_urls(lines))
  expect_snapshot(transform = mask, {
    launch_remote(1:2)
    launch_remote(2, maxtasks = 5L)
    launch_remote(1, remote_config(rscript = "/opt/R/bin/Rscript"))
  })
  certificate <- "-----BEGIN CERTIFICATE-----\nMIIF\nAAAA==\n-----END CERTIFICATE-----\n"
  expect_snapshot(transform = mask, {
    launch_remote("wss://hostname:37955/1", tls = certificate)
    launch_remote("tls+tcp://hostname:5555", tls = c("chain", ""))
    launch_remote("tls+tcp://hostname:5555", tls = "/path/to/file")
    launch_remote("tcp://hostname:5555", tls = certificate)
  })
  # random number streams differ; with a seed, tasks have them
  expect_false(anyDuplicated(sub(".*rs=", "", cmd)) > 0L)
  daemons(url = local_url(), seed = 1L, .compute = profile)
  expect_no_match(launch_remote(1), "rs=", fixed = TRUE)
})

test_that("a command that is pasted launches a daemon", {
  skip_if_not_installed("processx")
  local_tmpdir()
  local_test_daemons(url = local_url())
  script <- local_file(fileext = ".sh")
  writeLines(c(launch_remote(1), ""), script)
  local_envvar(R_LIBS = paste(.libPaths(), collapse = ":"))
  p <- processx::process$new("sh", script)
  defer(function() p$kill_tree(), environment())
  # Without this, a command that launches nothing makes the next line wait for ever.
  stopifnot(connected(1))
  expect_identical(mirai("from there")[], "from there")
})

test_that("remote_config() without a command leaves launching to the user", {
  local_tmpdir()
  profile <- test_profile()
  defer(function() daemons(0, .compute = profile), environment())
  expect_identical(c(daemons(n = 2, url = "ws://127.0.0.1:0/a", remote = remote_config(), .compute = profile)), 2L)
  expect_length(launch_remote(1:2, .compute = profile), 2L)
  expect_identical(info(profile)[["cumulative"]], 0L)
  launch_local(n = 2, .compute = profile)
  expect_identical(mirai("deployed", .compute = profile)[], "deployed")
  url <- daemons(url = local_url(), remote = remote_config(), dispatcher = FALSE, .compute = profile)
  expect_identical(as.vector(url), nextget("url", .compute = profile))
})

test_that("a cluster's nodes are launched, and can be replaced", {
  cl <- make_cluster(url = c(local_url(), local_url()), remote = remote_config("env"))
  defer(function() stop_cluster(cl), environment())
  expect_identical(parallel::parLapply(cl, 1:4, sqrt), lapply(1:4, sqrt))
  urls <- rownames(status(cl)$daemons)
  url_of <- function(cmd) sub("^[^\"]*\"([^\"]*)\".*$", "\\1", unclass(cmd))
  expect_identical(url_of(launch_remote(cl)), urls)
  expect_identical(url_of(launch_remote(cl[[2L]])), urls[[2L]])
  expect_match(launch_remote(cl), "cleanup=FALSE", fixed = TRUE)
  expect_error(
    make_cluster(1, url = local_url(), remote = remote_config("false")),
    "false (exit status 1)",
    fixed = TRUE
  )
})

test_that("a launch that fails is an error, and leaves neither a profile nor a process", {
  pid <- local_file()
  expect_snapshot(show_errors({
    daemons(2, url = local_url(), remote = remote_config("nosuchcommand"), .compute = "f")
    daemons(2, url = local_url(), remote = remote_config("nosuchcommand -o", "."), .compute = "f")
    daemons(2, url = local_url(), remote = remote_config("false"), .compute = "f")
    daemons(
      1,
      url = local_url(),
      remote = remote_config("sh", c("-c 'echo oh; echo no >&2; exit 3'", ".")),
      .compute = "f"
    )
    daemons(1, url = local_url(), remote = remote_config("sh", c("-c 'kill -9 $$'", ".")), .compute = "f")
    daemons(1, url = local_url(), remote = cluster_config("sh", "echo wrong >&2; exit 4"), .compute = "f")
  }))
  expect_false(daemons_set("f"))
  # one command fails, the other would run on
  slow <- paste0("-c 'echo $$ >", pid, "; exec sleep 600'")
  fails <- paste0("-c 'while ! [ -s ", pid, " ]; do sleep 0.01; done; exit 5'")
  remote <- remote_config("sh", list(c(slow, "."), c(fails, ".")))
  expect_error(daemons(url = local_url(), remote = remote, .compute = "f"), "sh (exit status 5)", fixed = TRUE)
  expect_false(daemons_set("f"))
  expect_true(ends(as.integer(readLines(pid))))
  # a profile that existed before stays
  local_test_daemons(url = local_url())
  expect_error(launch_remote(1, remote_config("false")), "false (exit status 1)", fixed = TRUE)
  expect_true(daemons_set())
})

test_that("launching does not wait for long for a command that stays; status() tells of its failure", {
  fifo <- local_file()
  system2("mkfifo", fifo)
  remote <- remote_config("sh", c(paste0("-c 'read line <", fifo, "; echo $line >&2; exit 6'"), "."))
  remote$patience <- 0.1
  profile <- local_test_daemons(url = local_url(), remote = remote)
  expect_no_warning(status())
  con <- file(fifo, "w", raw = TRUE)
  writeLines("not today", con)
  close(con)
  expect_identical(launch_warning(), "a launch of daemons has failed: sh (exit status 6):\nnot today")
  expect_no_warning(status())
})

test_that("waiting for a launch can be interrupted", {
  pid <- local_file()
  p <- r_process(c(
    "library(mirai)",
    sprintf("remote <- cluster_config('sh', 'echo $$ >%s; exec sleep 600')", pid),
    "tryCatch(daemons(1, url = local_url(), remote = remote), interrupt = function(e) cat('interrupted\\n'))",
    "cat(daemons_set(), '\\n')"
  ))
  expect_true(wait_until(function() file.exists(pid) && length(readLines(pid)) == 1L))
  p$interrupt()
  wait_for_line(p, "interrupted")
  wait_for_line(p, "FALSE")
  expect_true(ends(as.integer(readLines(pid))))
})
