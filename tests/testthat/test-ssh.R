test_that("daemons are launched by ssh, several over one connection, and end with the profile", {
  local_tmpdir()
  ssh <- local_ssh()
  profile <- local_test_daemons(
    n = 4,
    url = "ws://127.0.0.1:0",
    remote = ssh_config(ssh$remotes[[1L]], command = ssh$command)
  )
  expect_true(connected(4))
  expect_identical(unlist(mirai_map(1:8, function(i) i^2)[]), (1:8)^2)
  parents <- unlist(everywhere(Sys.getenv("SSH_CONNECTION"))[])
  expect_length(unique(parents), 1L)
  pids <- unlist(everywhere(Sys.getpid())[])
  expect_length(unique(pids), 4L)
  daemons(0, .compute = profile)
  for (pid in pids) {
    expect_true(ends(pid))
  }
})

test_that("each of several remotes gets its daemon, and the number launched is returned", {
  local_tmpdir()
  ssh <- local_ssh()
  profile <- test_profile()
  defer(function() daemons(NULL, .compute = profile), environment())
  n <- daemons(
    n = 2,
    url = "tcp://127.0.0.1:0",
    remote = ssh_config(ssh$remotes, command = ssh$command),
    .compute = profile
  )
  expect_identical(c(n), 2L)
  local_daemons(profile)
  expect_true(connected(2))
  at <- unlist(everywhere(strsplit(Sys.getenv("SSH_CONNECTION"), " ")[[1L]][[3L]])[])
  expect_setequal(at, c("127.0.0.1", "127.0.0.2"))
  # one more, at one of the two URLs
  expect_length(launch_remote(2, ssh_config(ssh$remotes[[2L]], command = ssh$command)), 1L)
  expect_true(connected(3))
})

test_that("a launch by ssh that fails is an error with the message of ssh, and sets nothing", {
  local_tmpdir()
  ssh <- local_ssh()
  attempt <- function(...) {
    profile <- test_profile()
    error <- expect_error(daemons(n = 2, url = local_url(), remote = ssh_config(...), .compute = profile))
    expect_false(daemons_set(profile))
    conditionMessage(error)
  }
  expect_match(attempt(ssh$remotes, command = ssh$refused), "ssh .exit status 255.*Permission denied")
  expect_match(attempt("ssh://nosuchhost.invalid", command = ssh$command), "Could not resolve hostname nosuchhost")
  closed <- paste0("ssh://127.0.0.1:", free_port())
  expect_match(attempt(closed, command = ssh$command), "Connection refused")
  expect_match(attempt(ssh$remotes, command = "nosuchssh"), "there is no command 'nosuchssh'", fixed = TRUE)
  # error messages of the other machine
  missing <- attempt(ssh$remotes[[1L]], command = ssh$command, rscript = "NoSuchRscript")
  expect_match(missing, "exit status 127.*NoSuchRscript.*not found")
})

test_that("commands survive ssh byte for byte", {
  local_tmpdir()
  ssh <- local_ssh()
  profile <- local_test_daemons(url = local_url())
  rscript <- local_rscript()
  for (remote in list(
    ssh_config(ssh$remotes[[1L]], command = ssh$command, rscript = rscript$path),
    ssh_config(rep(ssh$remotes[[1L]], 2), command = ssh$command, rscript = rscript$path),
    remote_config(ssh$words, c("-T", "."), rscript$path, quote = TRUE)
  )) {
    cmd <- launch_remote(nasty_urls[[1L]], remote)
    expect_setequal(rscript$code(length(cmd)), code_of(cmd, rscript$path))
  }
})

test_that("all daemons of a machine connect through one tunnel", {
  local_tmpdir()
  ssh <- local_ssh()
  skip_if(!nzchar(Sys.which("bash")), "there is no bash")
  # This machine is also the other one, so the tunnel needs another port than the host.
  there <- free_port()
  dial <- local_file()
  writeLines(
    c(
      "#!/bin/bash",
      sprintf("[[ $2 == 'mirai::daemon(\"tcp://localhost:%d\"'* ]] || exit 1", there),
      sprintf("exec 3<>/dev/tcp/localhost/%d", there),
      "echo $$ >&3",
      "read answer <&3"
    ),
    dial
  )
  Sys.chmod(dial, "0755")
  here <- free_port()
  server <- serverSocket(here)
  defer(function() close(server), environment())
  local_test_daemons(url = local_url())
  url <- paste0("tcp://127.0.0.1:", here)
  remote <- ssh_config(
    rep(ssh$remotes[[1L]], 2),
    tunnel = TRUE,
    command = ssh$command,
    rscript = dial,
    host = paste0("localhost:", there)
  )
  # No daemon has connected to the profile.
  remote$patience <- 0.01
  expect_length(launch_remote(url, remote), 2L)
  remote$patience <- 20
  cons <- lapply(1:2, function(i) socketAccept(server, blocking = TRUE, open = "r+"))
  pids <- vapply(cons, readLines, "", n = 1L)
  expect_length(unique(pids), 2L)
  # a port that is in use there, by this tunnel itself
  expect_error(launch_remote(url, remote), "remote port forwarding failed for listen port", fixed = TRUE)
  for (con in cons) {
    close(con)
  }
  for (pid in pids) {
    expect_true(ends(pid))
  }
})

test_that("daemons connect through a tunnel", {
  local_tmpdir()
  ssh <- local_ssh()
  here <- free_port()
  there <- free_port()
  profile <- test_profile()
  defer(function() daemons(NULL, .compute = profile), environment())
  launch <- function() {
    daemons(
      url = paste0("tcp://localhost:", here),
      remote = ssh_config(
        rep(ssh$remotes[[1L]], 2),
        tunnel = TRUE,
        command = ssh$command,
        host = paste0("localhost:", there)
      ),
      .compute = profile
    )
  }
  expect_identical(c(launch()), 2L)
  local_daemons(profile)
  expect_true(connected(2))
  expect_identical(unlist(mirai_map(1:8, function(i) i^2)[]), (1:8)^2)
})
