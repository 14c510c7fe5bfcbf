# Runs the chunks of the vignette "Distributed computing" that need other machines, with addresses of this machine. Also
# runs all code of "Coming from 2.x".

vignette_lines <- function(name) {
  file <- paste0(name, ".Rmd")
  path <- c(test_path("../../vignettes", file), system.file("doc", file, package = "mirai"))
  path <- path[file.exists(path)]
  if (!length(path)) {
    skip("The vignette's source is not here")
  }
  readLines(path[[1L]])
}

# The code of all chunks of a vignette.
all_chunks <- function(name) {
  lines <- vignette_lines(name)
  from <- grep("^```\\{r", lines)
  to <- grep("^```$", lines)
  unlist(lapply(from, function(i) lines[i + seq_len(min(to[to > i]) - i - 1L)]))
}

chunk <- function(label) {
  lines <- vignette_lines("distributed")
  from <- grep(paste0("^```\\{r ", label, "[,}]"), lines)
  to <- grep("^```$", lines)
  lines[(from + 1L):(min(to[to > from]) - 1L)]
}

follow <- function(label, env, ...) {
  code <- paste(chunk(label), collapse = "\n")
  swaps <- c(...)
  for (old in names(swaps)) {
    expect_match(code, old, fixed = TRUE)
    code <- gsub(old, swaps[[old]], code, fixed = TRUE)
  }
  printed(code, env)
}

test_that("SSH", {
  local_tmpdir()
  ssh <- local_ssh()
  env <- session()
  env$ssh_config <- function(...) mirai::ssh_config(..., command = ssh$command)
  out <- follow("ssh", env, "ssh://me@10.75.32.90" = ssh$remotes[[1L]], "ssh://me@10.75.32.91:222" = ssh$remotes[[2L]])
  expect_identical(out, "[1] 2")
  expect_true(connected(2))
  expect_identical(mirai("by ssh, in TLS")[], "by ssh, in TLS")

  there <- paste0("localhost:", free_port())
  env$ssh_config <- function(...) mirai::ssh_config(..., command = ssh$command, host = there)
  out <- follow("tunnel", env, "ssh://me@10.75.32.90" = ssh$remotes[[1L]], "5555" = as.character(free_port()))
  expect_identical(out, "[1] 2")
  expect_true(connected(2))
  expect_identical(mirai("through a tunnel")[], "through a tunnel")
})

test_that("Slurm", {
  local_tmpdir()
  slurm <- local_slurm()
  env <- session()
  env$cluster_config <- function(command, options) mirai::cluster_config(command, c(options, slurm$options))
  for (label in c("sbatch", "srun")) {
    expect_identical(follow(label, env), "[1] 2")
    expect_true(connected(2))
    expect_identical(mirai(nzchar(Sys.getenv("SLURM_JOB_ID")))[], TRUE)
    daemons(0)
    expect_true(wait_until(function() !length(slurm$jobs()), 20))
  }
})

test_that("TLS with the user's own certificates", {
  local_tmpdir()
  pem <- local_certificates()
  writeLines(c(pem$read("server.pem", "intermediate.pem"), pem$read("server.key")), pem$file("host.pem"))
  env <- session()
  env$launch_remote <- function(i, tls) {
    local_envvar(R_LIBS = paste(.libPaths(), collapse = ":"))
    system(paste(mirai::launch_remote(i, tls = tls), "&"), ignore.stdout = TRUE, ignore.stderr = TRUE)
    invisible()
  }
  follow(
    "certificates",
    env,
    "host.example.org:5555" = "127.0.0.1:0",
    "\"host.pem\"" = encodeString(pem$file("host.pem"), quote = "\""),
    "\"authority.pem\"" = encodeString(pem$file("root.pem"), quote = "\"")
  )
  expect_identical(mirai("signed")[], "signed")
  pid <- mirai(Sys.getpid())[]
  daemons(0)
  expect_true(ends(pid))
})

test_that("a relay", {
  env <- session()
  here <- free_port()
  there <- free_port()
  env$dispatcher <- function(...) {
    call <- as.call(c(quote(mirai::dispatcher), list(...)))
    env$process <- r_process(deparse(call), frame = env$frame)
  }
  env$frame <- environment()
  follow("relay", env, "10.75.32.70:5555" = paste0("127.0.0.1:", here), "head:5556" = paste0("127.0.0.1:", there))
  expect_true(connected(1))
  m <- mirai("relayed")
  p <- daemon_process(paste0("tcp://127.0.0.1:", there))
  expect_identical(m[], "relayed")
  daemons(0)
  expect_identical(end_code(p), 0L)
})

test_that("coming from 2.x", {
  old <- options(mirai.edition = NULL)
  defer(function() options(old), environment())
  env <- session()
  code <- all_chunks("coming-from-2x")
  out <- printed(code, env)
  shown <- function(...) expect_match(paste(out, collapse = "\n"), paste(..., sep = "\n"), fixed = TRUE)
  shown("[1] 2", "[1] \"abstract://")
  shown("[[1]]", "stop(\"positive\")", "", "[[2]]", "f(1)")
  shown("[1] \"tls+tcp:\"", "[1] \"no daemons set: use for example")
  shown("[1] 1", "[1] 2 5", "[1] \"ws:\"")
  shown("[[2]]", "[1] \"f(1)\"")
  shown("        0         0         3 ")
  shown(
    "In index: 2. With name: b.",
    "Caused by error in .f(.x): bad",
    "[1] 2",
    "[1] \"b\"",
    "<simpleError in .f(.x): bad>"
  )
  shown("did you mean 'maxtasks'?")
  shown("[1] 2", "[1] 2", "[1] 1")
  expect_false(daemons_set("default"))
})

test_that("resilience", {
  local_tmpdir()
  env <- session()
  out <- paste(printed(all_chunks("resilience"), env), collapse = "\n")
  shown <- function(...) expect_match(out, paste(..., sep = "\n"), fixed = TRUE)
  shown("[1] \"the answer\"", "[1] 3")
  shown("'miraiError' chr Error: no such table", "[1] 1")
  shown("'errorValue' int 19 | Connection reset", "[1] \"daemon ")
  shown("was killed by signal 9\"", "[1] \"a daemon is there\"", "[1] 3")
  shown("[1] \"finished by the second daemon\"")
  shown("[1] \"urgent some work \"")
  shown("[1] 3", "[1] 3")
  shown("[[3]]", "'errorValue' int 5 | Timed out")
  shown("[1] 73", "'miraiError' chr Error: an argument could not be computed: cannot open c.csv")
  shown("computed: cannot open c.csv", "'miraiError' chr Error in .f(.x): cannot open c.csv")
  shown(
    "[1] TRUE",
    "[1] \"It is not started again after 5 crashes without a finished task between them: it exited with status 3\""
  )
  expect_false(daemons_set("default"))
})
