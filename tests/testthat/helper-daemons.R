# Each test has a compute profile of its own, so that tests do not share the default one. Its daemons end with the test,
# even if that fails.

# Pasted commands call `Rscript` by its name, which must find the R that runs the tests. R CMD check puts another
# `Rscript` first on the path, which always fails.
Sys.setenv(PATH = paste(R.home("bin"), Sys.getenv("PATH"), sep = .Platform$path.sep))

# Calls `action` when `frame` ends. In a test, do not call `on.exit()` without `add = TRUE`: it would drop what is
# deferred, and so leave daemons and a current profile to other tests. `.ci/run` looks for that.
defer <- function(action, frame) {
  do.call(on.exit, list(as.call(list(action)), add = TRUE, after = FALSE), envir = frame)
}

test_profile <- local({
  count <- 0L
  function() {
    count <<- count + 1L
    paste0("test-", count)
  }
})

# Sets daemons in a new profile, and makes it current until `frame` ends.
local_test_daemons <- function(..., frame = parent.frame()) {
  profile <- test_profile()
  defer(function() daemons(NULL, .compute = profile), frame)
  daemons(..., .compute = profile)
  local_daemons(profile, frame)
  profile
}

local_envvar <- function(..., frame = parent.frame()) {
  new <- c(...)
  old <- Sys.getenv(names(new), NA, names = TRUE)
  defer(
    function() {
      Sys.unsetenv(names(old)[is.na(old)])
      if (!all(is.na(old))) do.call(Sys.setenv, as.list(old[!is.na(old)]))
    },
    frame
  )
  do.call(Sys.setenv, as.list(new))
}

local_options <- function(..., frame = parent.frame()) {
  old <- options(...)
  defer(function() options(old), frame)
}

local_file <- function(..., frame = parent.frame()) {
  path <- tempfile(...)
  defer(function() unlink(path, recursive = TRUE), frame)
  path
}

# Polls a condition. For things without an event to wait for, such as the end of a process that is not our child.
wait_until <- function(condition, seconds = 10) {
  deadline <- Sys.time() + seconds
  while (!condition()) {
    if (Sys.time() > deadline) {
      return(FALSE)
    }
    Sys.sleep(0.005)
  }
  TRUE
}

is_alive <- function(pid) {
  # Windows has no signal 0. Package ps comes with testthat.
  if (.Platform$OS.type == "windows") {
    return(pid %in% ps::ps_pids())
  }
  if (!dir.exists("/proc/self")) {
    return(tools::pskill(pid, 0L))
  }
  state <- suppressWarnings(
    tryCatch(readLines(file.path("/proc", pid, "stat")), error = function(e) NULL)
  )
  length(state) && !grepl(") Z ", state[1L], fixed = TRUE)
}

ends <- function(pid, seconds = 10) wait_until(function() !is_alive(pid), seconds)

connected <- function(n, .compute = NULL) {
  wait_until(function() info(.compute)[["connections"]] == n)
}

# Gives new processes a temporary directory that is deleted with the test. Processes that are killed cannot delete
# theirs.
local_tmpdir <- function(frame = parent.frame()) {
  dir <- local_file("tmp", frame = frame)
  dir.create(dir)
  local_envvar(TMPDIR = dir, frame = frame)
}

# Starts an R process that evaluates code. It ends with the test at the latest. `p$read_all_output_lines()` returns its
# output, `p$wait()` waits for its end.
r_process <- function(code, frame = parent.frame(), stderr = "2>&1") {
  skip_if_not_installed("callr")
  dir <- local_file("tmp", frame = frame)
  dir.create(dir)
  p <- callr::rscript_process$new(callr::rscript_process_options(
    script = r_script(code, frame),
    libpath = .libPaths(),
    env = c(callr::rcmd_safe_env(), TMPDIR = dir),
    stdout = "|",
    stderr = stderr
  ))
  defer(
    function() {
      p$kill()
      p$wait(5000)
    },
    frame
  )
  p
}

r_script <- function(code, frame) {
  path <- local_file(fileext = ".R", frame = frame)
  writeLines(code, path)
  path
}

# Evaluates R code in a new process, waits for its end, and returns its output.
r_output <- function(code, frame = parent.frame()) {
  p <- r_process(code, frame)
  p$wait(30000)
  p$read_all_output_lines()
}

# Starts a daemon process that prints the value of daemon() when it ends.
daemon_process <- function(url, args = "", before = "", frame = parent.frame()) {
  url <- encodeString(url, quote = "\"")
  r_process(paste0(before, "\ncat('code', mirai::daemon(", url, args, "), '\\n')"), frame = frame)
}

# Waits for the end of a process and returns its output. Keep the value: output can be read only once, and expectations
# may evaluate their argument twice.
words <- function(p) {
  p$wait(20000)
  p$read_all_output_lines()
}

end_code <- function(p) {
  as.integer(sub("code ", "", grep("^code", words(p), value = TRUE)))
}

# For snapshots: replaces the random parts of URLs, ids and numbers.
mask_urls <- function(lines) {
  lines <- gsub("abstract://[0-9a-f]+", "abstract://<random>", lines)
  gsub("ipc:///[^ \"']+", "ipc://<random>", lines)
}

# For snapshots: prints each expression in braces and the error that it raises, in the same way with all versions of
# testthat.
show_errors <- function(block) {
  frame <- parent.frame()
  for (expr in as.list(substitute(block))[-1L]) {
    result <- tryCatch(
      {
        eval(expr, frame)
        "no error"
      },
      error = function(e) {
        call <- conditionCall(e)
        call <- if (is.symbol(call[[1L]])) paste0(" in ", call[[1L]], "()")
        paste0("Error", call, ": ", conditionMessage(e))
      }
    )
    cat("> ", deparse(expr, nlines = 1L), "\n", result, "\n", sep = "")
  }
}


# Waits until a process writes a line. Lines that earlier calls have read are not read again.
wait_for_line <- function(p, line, seconds = 20) {
  deadline <- Sys.time() + seconds
  key <- as.character(p$get_pid())
  repeat {
    seen <- unread[[key]]
    at <- match(line, trimws(seen))
    if (!is.na(at)) {
      unread[[key]] <- seen[-seq_len(at)]
      return(succeed())
    }
    if (Sys.time() > deadline || !p$is_alive() && !p$is_incomplete_output()) {
      return(fail(paste0("'", line, "' not seen in: ", paste(seen, collapse = "\n"))))
    }
    p$poll_io(200)
    unread[[key]] <- c(seen, p$read_output_lines())
  }
}

unread <- new.env()

# Replaces an object of the package until the test ends.
local_binding <- function(name, value, frame = parent.frame()) {
  ns <- asNamespace("mirai")
  put <- function(value) {
    unlockBinding(name, ns)
    assign(name, value, ns)
    lockBinding(name, ns)
  }
  old <- get(name, ns)
  defer(function() put(old), frame)
  put(value)
}

# That a task was lost with its daemon, for whatever reason.
expect_reset <- function(value) expect_identical(without_reason(value), structure(19L, class = "errorValue"))

without_reason <- function(value) {
  attr(value, "reason") <- NULL
  value
}

# Waits until a session's checkpoint is closed: nobody has it locked.
local_closed <- function(file) {
  skip_if(!nzchar(Sys.which("flock")), "flock")
  system2("flock", c("--timeout", "20", shQuote(file), "true"))
}
