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

test_that("commands survive a shell byte for byte", {
  profile <- local_test_daemons(url = local_url())
  rscript <- local_rscript()
  urls <- nasty_urls
  check <- function(cmd) {
    code <- rscript$code(length(cmd))
    expect_setequal(code, code_of(cmd, rscript$path))
    found <- vapply(code, function(x) as.list(parse(text = x, encoding = "UTF-8")[[1L]])[[2L]], "")
    expect_setequal(enc2utf8(unname(found)), enc2utf8(rep_len(urls, length(cmd))))
  }
  # pasted
  cmd <- launch_remote(urls, remote_config(rscript = rscript$path))
  script <- local_file(fileext = ".sh")
  writeLines(enc2utf8(cmd), script, useBytes = TRUE)
  system2("sh", script)
  check(cmd)
  # by each kind of command
  check(launch_remote(urls, remote_config("env", c("-u NOTHING", "."), rscript$path)))
  check(launch_remote(urls, remote_config("sh", c("-c", "."), rscript$path, quote = TRUE)))
  check(launch_remote(urls, cluster_config("sh", "set -e", rscript$path)))
  # and by its name alone, as it is by default
  local_envvar(PATH = paste0(rscript$dir, ":", Sys.getenv("PATH")))
  cmd <- launch_remote(urls, remote_config("env"))
  expect_setequal(rscript$code(length(cmd)), code_of(cmd))
})

test_that("R itself reads a command as it is meant", {
  local_test_daemons(url = local_url())
  cmd <- launch_remote("ipc:///tmp/it's \"a\" $HOME `b`\nand \\ more")
  script <- local_file(fileext = ".sh")
  # What Rscript evaluates, shown rather than done.
  lines <- sub("mirai::daemon", "dput((function(x, ...) x)", sub("rs=.*'", "1))'", cmd), fixed = TRUE)
  writeLines(lines, script)
  expect_identical(eval(parse(text = system2("sh", script, stdout = TRUE))), "ipc:///tmp/it's \"a\" $HOME `b`\nand \\ more")
})

test_that("args are pieces of shell code, and a list of them launches one daemon for each", {
  profile <- local_test_daemons(
    url = local_url(),
    remote = remote_config("env", list(c("A=1 B='two words'", "."), c("A=2", "B=", ".")))
  )
  expect_true(connected(2))
  seen <- everywhere(Sys.getenv(c("A", "B"), names = FALSE))[]
  expect_setequal(seen, list(c("1", "two words"), c("2", "")))
  # without dispatcher, `n` of them at the one URL
  n <- daemons(n = 3, url = local_url(), remote = remote_config("env"), dispatcher = FALSE, .compute = profile)
  expect_identical(c(n), 3L)
  expect_true(connected(3))
})

test_that("without a command the user deploys by hand", {
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

test_that("a cluster's nodes are launched, and others in their place", {
  cl <- make_cluster(url = c(local_url(), local_url()), remote = remote_config("env"))
  defer(function() stop_cluster(cl), environment())
  expect_identical(parallel::parLapply(cl, 1:4, sqrt), lapply(1:4, sqrt))
  urls <- rownames(status(cl)$daemons)
  url_of <- function(cmd) sub("^[^\"]*\"([^\"]*)\".*$", "\\1", unclass(cmd))
  expect_identical(url_of(launch_remote(cl)), urls)
  expect_identical(url_of(launch_remote(cl[[2L]])), urls[[2L]])
  expect_match(launch_remote(cl), "cleanup=FALSE", fixed = TRUE)
  expect_error(make_cluster(1, url = local_url(), remote = remote_config("false")), "false (exit status 1)", fixed = TRUE)
})

test_that("a job script has its options in front", {
  local_test_daemons(url = local_url())
  out <- local_file()
  cmd <- launch_remote(1, cluster_config(
    paste("tee", out),
    "#SBATCH --job-name=mirai
     #SBATCH --mem=512
     module load R"
  ))
  expect_identical(
    readLines(out),
    c("#!/bin/sh", "#SBATCH --job-name=mirai", "#SBATCH --mem=512", "     module load R", unclass(cmd))
  )
})

test_that("a launch that fails is an error, and leaves neither a profile nor a process", {
  pid <- local_file()
  expect_snapshot(show_errors({
    daemons(2, url = local_url(), remote = remote_config("nosuchcommand"), .compute = "f")
    daemons(2, url = local_url(), remote = remote_config("nosuchcommand -o", "."), .compute = "f")
    daemons(2, url = local_url(), remote = remote_config("false"), .compute = "f")
    daemons(1, url = local_url(), remote = remote_config("sh", c("-c 'echo oh; echo no >&2; exit 3'", ".")), .compute = "f")
    daemons(1, url = local_url(), remote = remote_config("sh", c("-c 'kill -9 $$'", ".")), .compute = "f")
    daemons(1, url = local_url(), remote = cluster_config("sh", "echo wrong >&2; exit 4"), .compute = "f")
  }))
  expect_false(daemons_set("f"))
  # one fails, the other would stay
  slow <- paste0("-c 'echo $$ >", pid, "; exec sleep 600'")
  fails <- paste0("-c 'while ! [ -s ", pid, " ]; do sleep 0.01; done; exit 5'")
  remote <- remote_config("sh", list(c(slow, "."), c(fails, ".")))
  expect_error(daemons(url = local_url(), remote = remote, .compute = "f"), "sh (exit status 5)", fixed = TRUE)
  expect_false(daemons_set("f"))
  expect_true(ends(as.integer(readLines(pid))))
  # a profile that was there before is left
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

test_that("a service is sent the command", {
  need_command("curl")
  local_test_daemons(url = local_url(), maxtasks = 3)
  http <- local_http("200 OK")
  remote <- http_config(http$url, headers = c("X-Secret" = "a \"quoted\" secret"), data = "{\"run\": [\"%s\"], \"also\": \"%s\"}")
  url <- "tcp://it's \"nasty\" \\ %d %s\nline"
  cmd <- launch_remote(url, remote)
  wait_for_line(http$process, "POST /jobs HTTP/1.1")
  wait_for_line(http$process, "X-Secret: a \"quoted\" secret")
  wait_for_line(http$process, "Content-Type: application/json")
  skip_if_not_installed("jsonlite")
  got <- jsonlite::fromJSON(http$body())
  expect_identical(got, list(run = unclass(cmd)[[1L]], also = unclass(cmd)[[1L]]))
  # as it is made by a function
  cmd <- launch_remote(1, http_config(http$url, "PUT", c("content-type" = "text/plain"), toupper))
  wait_for_line(http$process, "PUT /jobs HTTP/1.1")
  wait_for_line(http$process, "content-type: text/plain")
  expect_identical(http$body(), toupper(unclass(cmd)))
})

test_that("a service that refuses is an error with its words", {
  need_command("curl")
  http <- local_http("500 Internal Server Error")
  mask <- function(lines) gsub("127.0.0.1(:| port )[0-9]+( after [0-9]+ ms)?", "<service>", lines)
  expect_snapshot(transform = mask, show_errors({
    daemons(2, url = local_url(), remote = http_config(http$url), .compute = "f")
  }))
  expect_false(daemons_set("f"))
  nobody <- sprintf("http://127.0.0.1:%d", free_port())
  expect_error(daemons(2, url = local_url(), remote = http_config(nobody), .compute = "f"), "curl .exit status 7.*connect")
  expect_false(daemons_set("f"))
})

test_that("bad configurations are errors", {
  profile <- local_test_daemons(url = local_url())
  expect_snapshot(show_errors({
    remote_config(1)
    remote_config("a", args = 1)
    remote_config("a", args = "no dot")
    remote_config("a", args = list())
    remote_config("a", rscript = NULL)
    remote_config("a", quote = NA)
    ssh_config()
    ssh_config(character())
    ssh_config("ssh://-oProxyCommand=id")
    ssh_config("ssh://-l@host")
    ssh_config("ssh://host:port")
    ssh_config("http://host")
    ssh_config("host", tunnel = "yes")
    ssh_config("host", timeout = 0)
    ssh_config("host", host = "a b:c")
    cluster_config(NULL)
    cluster_config(options = NULL)
    http_config()
    http_config("ftp://host")
    http_config("http://host", method = 1)
    http_config("http://host", headers = "no name")
    http_config("http://host", data = NULL)
    http_config("http://host", "GET", NULL, "", 5)
    launch_remote(1, remote = "ssh")
    launch_remote(2)
    launch_remote(1, tls = 1)
    launch_remote("wss://hostname:1", tls = c("certificate", "key"))
    launch_remote("wss://hostname:1", tls = "-----BEGIN PRIVATE KEY-----")
    launch_remote(1, .compute = "not set")
    launch_remote("ipc:///tmp/x", ssh_config("host", tunnel = TRUE))
    launch_remote("tcp://10.0.0.1:5555", ssh_config("host", tunnel = TRUE))
    launch_remote("ipc:///tmp/x", ssh_config("host", host = "name"))
    daemons(1, url = local_url(), remote = "ssh", .compute = "f")
    make_cluster(1, remote = remote_config("env"))
  }))
})

test_that("a URL is changed for how the other machine reaches the host", {
  dialled <- function(url, ...) get("remote_urls", asNamespace("mirai"))(ssh_config("other", ...), url, NULL)
  expect_identical(dialled("tcp://localhost:5555", tunnel = TRUE), "tcp://localhost:5555")
  expect_identical(dialled("ws://10.0.0.1:5555/a/b", host = "name"), "ws://name:5555/a/b")
  expect_identical(dialled("ws://[::1]:5555/1", host = "tcp://name:6666"), "ws://name:6666/1")
  expect_identical(dialled("wss://10.0.0.1:5555", tunnel = TRUE, host = "localhost:6666"), "wss://localhost:6666")
})

test_that("ssh is told what to do", {
  ssh <- local_file()
  writeLines(c("#!/bin/sh", "printf '<%s>' \"$@\"", "exit 1"), ssh)
  Sys.chmod(ssh, "0755")
  local_test_daemons(url = local_url())
  args <- function(url, ...) {
    error <- tryCatch(launch_remote(url, ssh_config(..., command = ssh, rscript = "R")), error = conditionMessage)
    gsub("'mirai[^>]*?[)][)]'", "'code'", sub("^[^\n]*\n", "", error), perl = TRUE)
  }
  expect_snapshot({
    cat(args("tcp://10.75.32.70:5555", "ssh://10.75.32.90"))
    cat(args("tcp://10.75.32.70:5555", "ssh://user@10.75.32.90:222", timeout = 2.5))
    cat(args("tcp://10.75.32.70:5555", "ssh://user@[2001:db8::1]:222"))
    cat(args("tcp://localhost:5555", rep("ssh://10.75.32.90", 3), tunnel = TRUE))
    cat(args(c("tcp://127.0.0.1:5555", "tcp://[::1]:5556"), "a", tunnel = TRUE))
    cat(args("ws://10.0.0.1:5555/1", "a", tunnel = TRUE, host = "localhost:6666"))
  })
})
