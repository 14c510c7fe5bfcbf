# The processes that daemons() and mirai() start: their number, their environment, and that none is left.

skip_if_not(dir.exists("/proc/self"), "there is no /proc")

# The processes that were started with this mark in their environment.
marked <- function(mark) {
  pids <- grep("^[0-9]+$", list.files("/proc"), value = TRUE)
  has_mark <- function(pid) {
    if (!is_alive(pid)) {
      return(FALSE)
    }
    file <- file.path("/proc", pid, "environ")
    env <- suppressWarnings(tryCatch(readBin(file, "raw", 1e6), error = function(e) raw()))
    any(grepl(mark, rawToChar(env[env != 0]), fixed = TRUE, useBytes = TRUE))
  }
  as.integer(Filter(has_mark, pids))
}

local_mark <- function(frame = parent.frame()) {
  mark <- paste0("mark-", Sys.getpid(), "-", sub(".*/", "", tempfile("")))
  local_envvar(MIRAI_TEST_MARK = mark, frame = frame)
  mark
}

parent_of <- function() as.integer(sub(".*\\) . ([0-9]+) .*", "\\1", readLines("/proc/self/stat")))

test_that("with a large environment, too, every daemon is forked once", {
  skip_on_os(c("mac", "windows", "solaris"))
  large <- strrep("x", 1e5)
  local_envvar(
    LARGE1 = large,
    LARGE2 = large,
    LARGE3 = large,
    LARGE4 = large,
    LARGE5 = large,
    LARGE6 = large,
    LARGE7 = large,
    LARGE8 = large,
    LARGE9 = large
  )
  local_test_daemons(40)
  said <- everywhere(list(parent(), Sys.getpid(), .Random.seed), parent = parent_of)[]
  parents <- vapply(said, `[[`, 0L, 1L)
  expect_length(unique(parents), 1L)
  expect_false(parents[[1L]] == Sys.getpid())
  expect_length(unique(vapply(said, `[[`, 0L, 2L)), 40L)
  expect_length(unique(lapply(said, `[[`, 3L)), 40L)
  expect_identical(info()[["cumulative"]], 40L)
})

test_that("after Ctrl-C in daemons() no process is left, nor a file", {
  for (forks in c(TRUE, FALSE)) {
    mark <- local_mark()
    file <- local_file()
    p <- r_process(c(
      sprintf("options(mirai.fork_server = %s)", forks),
      "library(mirai)",
      "cat('ready\\n')",
      "tryCatch(daemons(100, asyncdial = TRUE), interrupt = function(e) cat('interrupted\\n'))",
      "cat('in', Sys.getenv('TMPDIR'), daemons_set(), '\\n')",
      sprintf("while (!file.exists('%s')) Sys.sleep(0.01)", file),
      "cat(mirai('goes on')[], '\\n')"
    ))
    wait_for_line(p, "ready")
    expect_true(wait_until(function() length(marked(mark)) > 10L, 20))
    p$interrupt()
    # itself and the fork server
    left <- if (forks) 2L else 1L
    dir <- wait_for_match(p, "^in ([^ ]+) FALSE")
    expect_true(wait_until(function() length(marked(mark)) <= left, 5))
    # An R that is killed while it starts has not reported its directory.
    if (forks) {
      expect_true(wait_until(function() length(list.files(dir, "^Rtmp")) <= left))
    }
    file.create(file)
    expect_identical(words(p), "goes on ")
  }
})

test_that("processes that daemons() starts do not outlive the session", {
  mark <- local_mark()
  file <- local_file()
  p <- r_process(c(
    "library(mirai)",
    "d <- daemons(url = local_url(), autoexit = FALSE)",
    # no host listens there
    "launch_local(rep(local_url(), 30), asyncdial = TRUE)",
    "cat('launched\\n')",
    sprintf("while (!file.exists('%s')) Sys.sleep(0.01)", file)
  ))
  wait_for_line(p, "launched")
  expect_true(wait_until(function() length(marked(mark)) > 5L, 20))
  file.create(file)
  p$wait(20000)
  expect_false(p$is_alive())
  expect_true(wait_until(function() !length(marked(mark)), 5))
})

test_that("a daemon across the network that was launched here and is killed leaves no files", {
  for (forks in c(TRUE, FALSE)) {
    local_options(mirai.fork_server = forks)
    local_tmpdir()
    dir <- Sys.getenv("TMPDIR")
    local_test_daemons(url = "tcp://127.0.0.1:0")
    launch_local()
    said <- mirai(c(Sys.getpid(), tempdir()))[]
    expect_identical(dirname(said[[2L]]), dir)
    tools::pskill(as.integer(said[[1L]]), tools::SIGKILL)
    expect_true(wait_until(function() !dir.exists(said[[2L]])))
  }
})

test_that("the code that starts a daemon is not in its environment variables", {
  for (forks in c(TRUE, FALSE)) {
    local_options(mirai.fork_server = forks)
    local_test_daemons(1)
    expect_identical(mirai(grep("LINE", names(Sys.getenv()), value = TRUE))[], character())
  }
})

test_that("results arrive complete even if few descriptors are free", {
  code <- c(
    "library(mirai)",
    "d <- daemons(3)",
    "made <- mirai_map(1:12, function(i) lapply(1:40, function(j) rep(i + j / 100, 5e4)))[]",
    "right <- vapply(1:12, function(i) identical(made[[i]], lapply(1:40, function(j) rep(i + j / 100, 5e4))), NA)",
    "cat(all(right), '\\n')",
    "d <- daemons(0)",
    "cat(tryCatch(daemons(100), error = conditionMessage), '\\n')",
    "d <- daemons(1)",
    "cat(mirai('goes on')[], '\\n')"
  )
  dir <- local_file("tmp")
  dir.create(dir)
  script <- r_script(code, environment())
  run <- sprintf("ulimit -n 256; TMPDIR=%s exec %s %s 2>&1", dir, shQuote(file.path(R.home("bin"), "Rscript")), script)
  local_envvar(R_LIBS = paste(.libPaths(), collapse = ":"))
  out <- system2("sh", c("-c", shQuote(run)), stdout = TRUE)
  expect_identical(out[[1L]], "TRUE ")
  expect_match(paste(out, collapse = "\n"), "ulimit -n")
  expect_identical(out[[length(out)]], "goes on ")
})

test_that("daemon() is an error in a process that was forked from a session", {
  skip_on_os("windows")
  url <- local_url()
  said <- parallel::mclapply(1:2, function(i) tryCatch(daemon(url), error = conditionMessage), mc.cores = 2)
  expect_match(unlist(said), "forked from an R session")
  # also of a session that has not used the package
  code <- c(
    "loadNamespace('mirai')",
    "said <- parallel::mclapply(1:2, function(i) tryCatch(mirai::daemon('abstract://x'), error = conditionMessage))",
    "cat(said[[1L]], '\\n')"
  )
  expect_match(r_output(code), "forked from an R session", all = FALSE)
})
