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

test_that("a job script has its options in front", {
  local_test_daemons(url = local_url())
  out <- local_file()
  cmd <- launch_remote(
    1,
    cluster_config(
      paste("tee", out),
      "#SBATCH --job-name=mirai
     #SBATCH --mem=512
     module load R"
    )
  )
  expect_identical(
    readLines(out),
    c("#!/bin/sh", "#SBATCH --job-name=mirai", "#SBATCH --mem=512", "     module load R", unclass(cmd))
  )
})

test_that("a service is sent the command", {
  need_command("curl")
  local_test_daemons(url = local_url(), maxtasks = 3)
  http <- local_http("200 OK")
  remote <- http_config(
    http$url,
    headers = c("X-Secret" = "a \"quoted\" secret"),
    data = "{\"run\": [\"%s\"], \"also\": \"%s\"}"
  )
  url <- "abstract://it's \"nasty\" \\ %d %s\nline"
  cmd <- launch_remote(url, remote)
  wait_for_line(http$process, "POST /jobs HTTP/1.1")
  wait_for_line(http$process, "X-Secret: a \"quoted\" secret")
  wait_for_line(http$process, "Content-Type: application/json")
  skip_if_not_installed("jsonlite")
  got <- jsonlite::fromJSON(http$body())
  expect_identical(got, list(run = unclass(cmd)[[1L]], also = unclass(cmd)[[1L]]))
  # with a body made by a function
  cmd <- launch_remote(1, http_config(http$url, "PUT", c("content-type" = "text/plain"), toupper))
  wait_for_line(http$process, "PUT /jobs HTTP/1.1")
  wait_for_line(http$process, "content-type: text/plain")
  expect_identical(http$body(), toupper(unclass(cmd)))
})

test_that("a service that refuses is an error with its answer", {
  need_command("curl")
  http <- local_http("500 Internal Server Error")
  mask <- function(lines) gsub("127.0.0.1(:| port )[0-9]+( after [0-9]+ ms)?", "<service>", lines)
  expect_snapshot(
    transform = mask,
    show_errors({
      daemons(2, url = local_url(), remote = http_config(http$url), .compute = "f")
    })
  )
  expect_false(daemons_set("f"))
  nobody <- sprintf("http://127.0.0.1:%d", free_port())
  expect_error(
    daemons(2, url = local_url(), remote = http_config(nobody), .compute = "f"),
    "curl .exit status 7.*connect"
  )
  expect_false(daemons_set("f"))
})

test_that("ssh gets the options for port, timeout and tunnel", {
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
