# The fork server, and processes that are forked from a host or a daemon by other means.

skip_if_not(dir.exists("/proc/self"), "there is no /proc")

test_that("an interrupt does not end the fork server, and without the server Rscript starts daemons", {
  said <- r_output(c(
    "library(mirai)",
    paste(c("process_stat <-", deparse(process_stat)), collapse = "\n"),
    paste(c("children <-", deparse(children)), collapse = "\n"),
    "d <- daemons(2)",
    "server <- children()",
    "stopifnot(length(server) == 1L, mirai(1)[] == 1)",
    "tools::pskill(server, tools::SIGINT)",
    "d <- daemons(2, .compute = 'second')",
    "stopifnot(mirai(2, .compute = 'second')[] == 2, identical(children(), server))",
    "tools::pskill(server, tools::SIGKILL)",
    "d <- daemons(2, .compute = 'third')",
    "stopifnot(mirai(3, .compute = 'third')[] == 3, mirai(4, .compute = 'none')[] == 4)",
    "d <- daemons(1, .compute = 'third')",
    "stopifnot(mirai(5, .compute = 'third')[] == 5, mirai(6)[] == 6)",
    "cat('fine\\n')"
  ))
  expect_identical(said[length(said)], "fine")
})

test_that("children of parallel::mclapply() do not disturb daemons", {
  local_test_daemons(2)
  pids <- daemon_pids()
  m <- sleeper()
  resolved <- call_mirai(mirai("resolved"))
  dropped <- lapply(1:100, function(i) mirai(i, i = i))
  said <- parallel::mclapply(
    1:4,
    function(i) {
      dropped <<- NULL
      gc()
      text <- function(expr) tryCatch(expr, error = conditionMessage)
      list(
        text(mirai(1)),
        text(daemons(1)),
        text(daemons(0)),
        text(mirai(1, .compute = "none set")),
        text(m[]),
        text(race_mirai(list(m))),
        stop_mirai(m),
        unresolved(m),
        resolved[]
      )
    },
    mc.cores = 2
  )
  for (x in said) {
    expect_match(unlist(x[1:6]), "forked")
    expect_identical(x[7:9], list(FALSE, TRUE, "resolved"))
  }
  expect_true(unresolved(m))
  expect_identical(collect_mirai(dropped), as.list(1:100))
  expect_true(stop_mirai(m))
  expect_healthy(pids)
})

test_that("mclapply() works in a task, and its children keep no connection open", {
  local_test_daemons(2, respawn = FALSE)
  pids <- daemon_pids()
  m <- mirai(unlist(parallel::mclapply(1:4, function(i) i^2, mc.cores = 2)))
  expect_identical(m[], c(1, 4, 9, 16))
  expect_healthy(pids)

  # A daemon that is killed is lost at once, although its children have its sockets.
  file <- local_file()
  m <- mirai(
    {
      parallel::mcparallel({
        writeLines(as.character(Sys.getpid()), file)
        Sys.sleep(1e6)
      })
      while (!length(readLines(file))) {
        Sys.sleep(0.01)
      }
      tools::pskill(Sys.getpid(), tools::SIGKILL)
    },
    file = {
      file.create(file)
      file
    }
  )
  expect_reset(m[])
  child <- as.integer(readLines(file))
  expect_true(is_alive(child))
  tools::pskill(child, tools::SIGKILL)
  expect_true(connected(1))
})

test_that("daemons end with a host that is killed, even if a fork of the host lives on", {
  files <- vapply(1:2, function(i) local_file(), "")
  host <- r_process(c(
    "library(mirai)",
    "d <- daemons(2)",
    put(all_pids, files[1L]),
    "m <- mirai(Sys.sleep(1e6))",
    paste0("fork <- parallel::mcparallel({", put("Sys.getpid()", files[2L]), "; Sys.sleep(1e6)})"),
    "m[]"
  ))
  pids <- read_ints(files[1L])
  fork <- read_ints(files[2L])
  defer(function() tools::pskill(fork, tools::SIGKILL), environment())
  host$signal(tools::SIGKILL)
  expect_true(all_end(pids))
  expect_true(is_alive(fork))
})

test_that("a task that reads its standard input finds its end, as in Rscript, and its daemon stays healthy", {
  local_test_daemons(1)
  ask <- function(expr) mirai(eval(expr), expr = expr, .timeout = 10000)[]
  expect_false(is_error_value(ask(quote(readLines(stdin(), n = 1L)))))
  expect_identical(ask(quote(scan(quiet = TRUE))), numeric())
  # R 4.6 has it an error where nobody can answer.
  expect_match(
    ask(quote({
      browser()
      "on"
    })),
    "^on$|non-interactive browser()",
    perl = TRUE
  )
  expect_identical(mirai(1, .timeout = 10000)[], 1)
})

test_that("files that the user's profile opens are those that tasks write to, and the session's own stay its own", {
  skip_if_not_installed("callr")
  dir <- local_file()
  dir.create(dir)
  logs <- file.path(dir, paste0("log", 1:8))
  profile <- file.path(dir, "profile")
  code <- "logs <- lapply(%s, function(log) {\n  con <- file(log, 'w')\n  writeLines('begun', con)\n  con\n})"
  writeLines(sprintf(code, paste(deparse(logs), collapse = "")), profile)
  host <- r_process(
    c(
      "library(mirai)",
      "Sys.unsetenv(c('R_ENVIRON', 'R_ENVIRON_USER'))", # callr's
      sprintf("Sys.setenv(R_PROFILE_USER = '%s')", profile),
      sprintf("own <- file('%s/own', 'w')", dir),
      "d <- daemons(2)",
      "for (i in 1:8) {",
      "  mirai({cat('hello', i, '\\n', file = logs[[i]]); flush(logs[[i]])}, i = i)[]",
      "}",
      "open <- mirai(basename(Sys.readlink(list.files('/proc/self/fd', full.names = TRUE))))[]",
      "cat('own', 'own' %in% open, 'pid', mirai(Sys.getpid())[], '\n')"
    )
  )
  said <- words(host)
  expect_match(said, "^own FALSE pid [0-9]+ $")
  expect_identical(lapply(logs, readLines), lapply(1:8, function(i) c("begun", paste("hello", i, ""))))
})

test_that("variables that are read just once, when a process starts, hold for the next daemons", {
  skip_if_not_installed("callr")
  host <- r_process(
    c(
      "library(mirai)",
      "about <- function() {",
      "  d <- daemons(1)",
      "  is_fork <- any(grepl('fork_server', mirai(commandArgs())[]))",
      "  cat(is_fork, mirai(Sys.getenv(c('OMP_NUM_THREADS', 'OTHER')))[], '\\n')",
      "}",
      "Sys.setenv(OMP_NUM_THREADS = 2, OTHER = 1)",
      "about()",
      "Sys.setenv(OTHER = 2)",
      "about()",
      "Sys.setenv(OMP_NUM_THREADS = 1)",
      "about()"
    )
  )
  said <- words(host)
  expect_identical(said, c("TRUE 2 1 ", "TRUE 2 2 ", "FALSE 1 2 "))
})
