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

resources <- function() {
  gc()
  status <- readLines("/proc/self/status")
  field <- function(name) as.numeric(gsub("[^0-9]", "", grep(paste0("^", name, ":"), status, value = TRUE)))
  c(
    rss_mb = field("VmRSS") / 1024,
    threads = field("Threads"),
    descriptors = length(list.files("/proc/self/fd")),
    mappings = length(readLines("/proc/self/maps")),
    files = length(list.files(mark, all.files = TRUE, no.. = TRUE)),
    processes = length(processes())
  )
}

# Names of what has grown by more than its slack.
grown <- function(before, after, slack) names(after)[after > before + slack[names(after)]]
