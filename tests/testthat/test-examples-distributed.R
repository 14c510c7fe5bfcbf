# The examples of the documents (see test-examples.R) from "Remote Daemons" to "CA Signed Certificates". Addresses of
# the loopback interface and free ports replace theirs.

# Runs code of the documents, with host names and ports replaced.
printed_here <- function(code, env, ...) mask_network(printed(sprintf(code, ...), env))

squeezed <- function(lines) trimws(gsub(" +", " ", lines))

test_that("Connecting to Remote Daemons Through Dispatcher", {
  env <- session()
  ports <- c(free_port(), free_port())
  code <- "daemons(url = c('ws://127.0.0.1:%1$d/cpu', 'ws://127.0.0.1:%1$d/gpu', 'ws://127.0.0.1:%2$d/1'))"
  expect_identical(printed_here(code, env, ports[[1L]], ports[[2L]]), "[1] 3")
  expect_identical(nextget("urls"), paste0("ws://127.0.0.1:", ports[c(1, 1, 2)], c("/cpu", "/gpu", "/1")))

  port <- free_port()
  out <- printed(sprintf("daemons(n = 4, url = host_url(port = %d))\nstatus()\ndaemons(0)", port), env)
  name <- Sys.info()[["nodename"]]
  expect_identical(
    squeezed(out),
    c(
      "[1] 4",
      "$connections",
      "[1] 1",
      "",
      "$daemons",
      "i online instance assigned complete",
      paste0("tcp://", name, ":", port + 0:3, " ", 1:4, " 0 0 0 0"),
      "",
      "[1] 0"
    )
  )
})

test_that("Connecting to Remote Daemons Directly", {
  env <- session()
  out <- printed_here(
    "
    daemons(url = host_url(), dispatcher = FALSE)
    status()
    daemons(0)
  ",
    env
  )
  url <- "[1] \"tcp://hostname:<port>\""
  expect_identical(out, c(url, "$connections", "[1] 0", "", "$daemons", url, "", "[1] 0"))
})

test_that("a remote address, in brackets if it is of IPv6, is understood", {
  local_test_daemons(url = local_url())
  for (url in c("tcp://10.75.32.70:5555", "tcp://[::ffff:a6f:50d]:5555")) {
    expect_match(launch_remote(url), paste0("daemon(\"", url, "\""), fixed = TRUE)
  }
})

test_that("SSH Direct Connection", {
  local_tmpdir()
  ssh <- local_ssh()
  env <- session()
  env$remotes <- ssh$remotes
  env$client <- ssh$command
  expect_identical(
    printed_here(
      "
      daemons(
        n = 4,
        url = host_url(ws = TRUE, port = %d),
        remote = ssh_config(remotes = remotes[[1L]], command = client)
      )
    ",
      env,
      free_port()
    ),
    "[1] 4"
  )
  expect_true(connected(4))
  expect_identical(mirai("by ssh")[], "by ssh")
  expect_identical(
    printed_here(
      "
      daemons(
        n = 2,
        url = host_url(ws = TRUE, port = %d),
        remote = ssh_config(remotes, command = client)
      )
    ",
      env,
      free_port()
    ),
    "[1] 2"
  )
  expect_true(connected(2))
})

test_that("SSH Tunnelling", {
  local_tmpdir()
  ssh <- local_ssh()
  env <- session()
  env$remote <- ssh$remotes[[1L]]
  env$client <- ssh$command
  # The document has two machines, the test has one, where a port can be used only once.
  env$there <- paste0("127.0.0.1:", free_port())
  expect_identical(
    printed_here(
      "
      daemons(
        url = 'tcp://localhost:%d',
        remote = ssh_config(
          remotes = c(remote, remote),
          tunnel = TRUE,
          command = client,
          host = there
        )
      )
    ",
      env,
      free_port()
    ),
    "[1] 2"
  )
  expect_true(connected(2))
  expect_identical(sort(unlist(mirai_map(1:4, function(x) x)[])), 1:4)
})

test_that("Cluster Resource Managers", {
  local_tmpdir()
  slurm <- local_slurm()
  env <- session()
  expect_identical(
    printed_here(
      "
      daemons(
        n = 2,
        url = host_url(ws = TRUE),
        remote = remote_config(
          command = 'srun',
          args = c('--mem 512', '-n 1', '.'),
          rscript = file.path(R.home('bin'), 'Rscript')
        )
      )
    ",
      env
    ),
    "[1] 2"
  )
  expect_true(connected(2))
  expect_identical(mirai(nzchar(Sys.getenv("SLURM_JOB_ID")))[], TRUE)
  daemons(0)
  expect_true(wait_until(function() !length(slurm$jobs()), 20))
})

test_that("Manual Deployment", {
  env <- session()
  out <- printed_here(
    "
    daemons(n = 2, url = host_url())
    launch_remote(1:2)
    daemons(0)
  ",
    env
  )
  out <- gsub("rs=c\\(10407(,-?[0-9]+){6}\\)", "rs=<stream>", out)
  command <- "Rscript -e 'mirai::daemon(\"tcp://hostname:<port>\",rs=<stream>)'"
  expect_identical(out, c("[1] 2", "[1]", command, "", "[2]", command, "[1] 0"))
})

test_that("TLS Secure Connections: Zero-configuration", {
  local_tmpdir()
  env <- session()
  expect_identical(printed("daemons(n = 4, url = host_url(ws = TRUE, tls = TRUE))", env), "[1] 4")
  out <- mask_network(printed("launch_remote(1)", env))
  expect_identical(out[[1L]], "[1]")
  expect_identical(
    out[[2L]],
    "Rscript -e 'mirai::daemon(\"wss://hostname:<port>/1\",tls=c(\"-----BEGIN CERTIFICATE-----"
  )
  expect_match(out, "^-----END CERTIFICATE-----$", all = FALSE)
  expect_match(out[[length(out)]], "^\",\"\"\\),rs=c\\(10407(,-?[0-9]+){6}\\)\\)'$")
  # It can be pasted.
  local_envvar(R_LIBS = paste(.libPaths(), collapse = ":"))
  system(paste(launch_remote(1), "&"), ignore.stdout = TRUE, ignore.stderr = TRUE)
  expect_identical(mirai("pasted")[], "pasted")
  pid <- mirai(Sys.getpid())[]
  daemons(0)
  expect_true(ends(pid))
})

test_that("TLS Secure Connections: CA Signed Certificates", {
  pem <- local_certificates()
  env <- session()
  env$cert <- pem$read("server.pem")
  env$key <- pem$read("server.key")
  env$certchain <- pem$read("server.pem", "intermediate.pem", "root.pem")
  env$file <- pem$file("both.pem")
  writeLines(c(env$cert, env$key), env$file)
  env$chainfile <- pem$file("chain.pem")
  writeLines(env$certchain, env$chainfile)
  for (ours in c("c(cert, key)", "file")) {
    expect_identical(printed(sprintf("daemons(url = 'wss://127.0.0.1:0', tls = %s)", ours), env), "[1] 1")
    for (theirs in c("c(certchain, '')", "chainfile")) {
      printed(sprintf("launch_local(1, tls = %s)", theirs), env)
    }
    expect_true(connected(2))
    expect_identical(mirai("signed")[], "signed")
    command <- printed("launch_remote(1, tls = c(certchain, ''))", env)
    expect_match(paste(command, collapse = "\n"), env$certchain, fixed = TRUE)
    daemons(0)
  }
})
