reset <- structure(19L, class = "errorValue")
canceled <- structure(20L, class = "errorValue")

all_end <- function(pids, seconds = 3) {
  wait_until(function() !any(vapply(pids, is_alive, NA)), seconds)
}

daemon_pids <- function() unlist(collect_mirai(everywhere(Sys.getpid())))

# Submits a task that creates a file and then sleeps for ever. Returns its mirai when it sleeps.
sleeper <- function(file = tempfile()) {
  m <- mirai(
    {
      file.create(file)
      Sys.sleep(1e6)
    },
    file = file
  )
  expect_true(wait_until(function() file.exists(file)))
  unlink(file)
  m
}

# All these daemons are connected, and evaluate tasks without being interrupted.
expect_healthy <- function(pids) {
  expect_setequal(daemon_pids(), pids)
  expect_identical(collect_mirai(lapply(1:20, function(i) mirai(i, i = i))), as.list(1:20))
  expect_identical(status()$mirai[c("awaiting", "executing")], c(awaiting = 0L, executing = 0L))
}

# The numbers of descriptors and threads of this process.
resources <- function() {
  c(length(list.files("/proc/self/fd")), length(list.files("/proc/self/task")))
}

# The fields of /proc/<pid>/stat after the name: 1 is the state, 2 the parent, 12 and 13 are the CPU time in ticks.
process_stat <- function(pid) {
  stat <- suppressWarnings(tryCatch(readLines(file.path("/proc", pid, "stat")), error = function(e) ") Z 0"))
  strsplit(sub("^.*\\) ", "", stat[1L]), " ")[[1L]]
}

cpu_ticks <- function(pids) vapply(pids, function(pid) sum(as.numeric(process_stat(pid)[12:13])), 0)

# The living child processes of this process.
children <- function() {
  pids <- grep("^[0-9]+$", list.files("/proc"), value = TRUE)
  ours <- vapply(
    pids,
    function(pid) {
      stat <- process_stat(pid)
      stat[2L] == Sys.getpid() && stat[1L] != "Z"
    },
    NA
  )
  as.integer(pids[ours])
}

# Waits until a process has written a file of integers, and returns them.
read_ints <- function(file) {
  expect_true(wait_until(function() file.exists(file), 30))
  scan(file, 0L, quiet = TRUE)
}

# Code that writes integers to a file in one step, for read_ints().
put <- function(what, file) {
  sprintf("{x <- %s; cat(x, '\\n', file = '%s-'); invisible(file.rename('%s-', '%s'))}", what, file, file, file)
}

all_pids <- "unlist(collect_mirai(everywhere(Sys.getpid())))"

# Compiles a library of C code, to be preloaded. Returns its path.
local_library <- function(code, frame) {
  skip_if_not_installed("callr")
  dir <- local_file(frame = frame)
  dir.create(dir)
  source <- file.path(dir, "preloaded.c")
  library <- file.path(dir, paste0("preloaded", .Platform$dynlib.ext))
  writeLines(code, source)
  callr::rcmd("SHLIB", c("-o", library, source, "-ldl"), fail_on_status = TRUE)
  library
}
