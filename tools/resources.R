# What this process holds, by what /proc tells: for tools/chaos and tools/soak, whose processes all have the name of their
# temporary directory in the environment variable MIRAI_CHAOS.

mark <- Sys.getenv("MIRAI_CHAOS")
stopifnot(nzchar(mark))

# The process ids of this run, other than this one's.
processes <- function() {
  entry <- charToRaw(paste0("MIRAI_CHAOS=", mark))
  pids <- grep("^[0-9]+$", list.files("/proc"), value = TRUE)
  mine <- vapply(pids, function(pid) length(grepRaw(entry, proc_file(pid, "environ"), fixed = TRUE)) > 0L, NA)
  setdiff(as.integer(pids[mine]), Sys.getpid())
}

# The fork server, which stays for the session. Its forks have the same command line but other parents.
fork_server <- function() {
  Find(function(pid) {
    line <- proc_file(pid, "cmdline")
    line[line == as.raw(0L)] <- as.raw(32L)
    parent <- sub(".*\\) [A-Z] ([0-9]+) .*", "\\1", rawToChar(proc_file(pid, "stat")))
    grepl("fork_server", rawToChar(line), fixed = TRUE) && identical(parent, as.character(Sys.getpid()))
  }, processes())
}

# Empty if the process has gone.
proc_file <- function(pid, name) {
  tryCatch(suppressWarnings(readBin(file.path("/proc", pid, name), "raw", 1e5)), error = function(e) raw())
}

# Free pieces between those in use are no leak, but their number depends on what was in use at once: 90 of the 175 MB that a
# host has after two cycles of chaos. So they are given back before the process is measured, where the allocator is glibc's.
heap <- local({
  library <- file.path(mark, paste0("heap", .Platform$dynlib.ext))
  source <- file.path(mark, "heap.c")
  built <- file.copy("tools/heap.c", source) &&
    system2(file.path(R.home("bin"), "R"), c("CMD", "SHLIB", "-o", library, source), stdout = FALSE, stderr = FALSE) == 0L
  if (built) dyn.load(library)
  unlink(file.path(mark, c("heap.c", "heap.o", basename(library))))
  function() {
    if (!built) return(NULL)
    sizes <- .Call("heap_sizes") / 2^20
    .Call("heap_trim")
    c(used_mb = sizes[[1L]], free_mb = sizes[[2L]])
  }
})

# rss_mb: of the process; used_mb: all that the allocator has given out, also to R; free_mb: what it had kept; r_mb: what of
# used_mb R's objects take.
resources <- function() {
  r <- sum(gc()[, 2L])
  heap <- heap()
  status <- readLines("/proc/self/status")
  field <- function(name) as.numeric(gsub("[^0-9]", "", grep(paste0("^", name, ":"), status, value = TRUE)))
  c(
    rss_mb = field("VmRSS") / 1024,
    heap,
    r_mb = r,
    threads = field("Threads"),
    descriptors = length(list.files("/proc/self/fd")),
    mappings = length(readLines("/proc/self/maps")),
    files = length(list.files(mark, all.files = TRUE, no.. = TRUE)),
    processes = length(processes())
  )
}

# Names of what has grown by more than its slack.
grown <- function(before, after, slack) {
  known <- intersect(names(after), names(slack))
  known[after[known] > before[known] + slack[known]]
}
