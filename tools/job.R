# A long job on machines that fail: see tools/job, which runs this with a temporary directory of its own.

# ---- Arguments

args <- commandArgs(TRUE)
read_number <- function(name, default) {
  at <- match(name, args)
  if (is.na(at)) {
    return(default)
  }
  value <- suppressWarnings(as.integer(args[at + 1L]))
  if (is.na(value)) {
    stop(name, " needs a whole number", call. = FALSE)
  }
  value
}
n <- read_number("--tasks", 10000L)
seed <- read_number("--seed", sample.int(1e9L, 1L))
set.seed(seed)
cat("seed ", seed, "\n", sep = "")
host_kills <- 3L

library(testthat)
for (helper in c("daemons", "network", "launch")) {
  source(file.path("tests/testthat", paste0("helper-", helper, ".R")))
}

# ---- The host's script

# Notes in a file who starts it, and for which session: daemons may begin another task after their host was killed. It
# waits until that session has said what it has found in the checkpoint: else it could seem to be among that.
work <- function(i, marks) {
  while (!file.exists(paste0(marks, "-go-", Sys.getenv("JOB_SESSION")))) {
    Sys.sleep(0.005)
  }
  job <- Sys.getenv("SLURM_JOB_ID", "-")
  line <- sprintf("%s %d %d %s\n", Sys.getenv("JOB_SESSION"), i, Sys.getpid(), job)
  cat(line, file = marks, append = TRUE)
  Sys.sleep(0.02)
  i^2
}

# Two daemons by Slurm at first, and four here. Slurm has room for two at a time. If one is gone, another is launched
# when the queue asks for it.
script <- function(file, marks, options) {
  c(
    "library(mirai)",
    paste(c("work <-", deparse(work)), collapse = "\n"),
    sprintf("slurm <- cluster_config('sbatch', %s)", deparse1(c("#SBATCH --cpus-per-task=2", options))),
    "invisible(daemons(2, max = 6, url = 'tcp://127.0.0.1:0', remote = slurm, retry = TRUE))",
    "invisible(launch_local(n = 4))",
    sprintf("map <- mirai_map(seq_len(%d), work, .args = list(marks = '%s'), .checkpoint = '%s')", n, marks, file),
    "cat('found', which(!vapply(map, unresolved, NA)), '\\n')",
    sprintf("invisible(file.create(paste0('%s-go-', Sys.getenv('JOB_SESSION'))))", marks),
    "x <- map[]",
    sprintf("stopifnot(identical(x, as.list(seq_len(%d)^2)))", n),
    "cat('done\\n')"
  )
}

# ---- Sessions, and who is killed in them

failures <- character()
fail <- function(...) {
  text <- paste0(...)
  cat("FAILED: ", text, "\n", sep = "")
  failures <<- c(failures, text)
}

# What the daemons of a session have noted.
read_marks <- function(marks, session) {
  lines <- if (file.exists(marks)) readLines(marks, warn = FALSE) else character()
  # A daemon may have been killed within a line.
  fields <- regmatches(lines, regexec(sprintf("^%d ([0-9]+) ([0-9]+) ([0-9]+|-)$", session), lines))
  fields <- fields[lengths(fields) == 4L]
  column <- function(i) vapply(fields, `[[`, "", i)
  data.frame(id = as.integer(column(2L)), pid = as.integer(column(3L)), job = column(4L))
}

# Kills the daemon of one of the last tasks. Returns its process id.
kill_one <- function(noted) {
  victim <- tail(noted, 12L)
  victim <- victim[sample.int(nrow(victim), 1L), ]
  if (victim$job != "-" && runif(1L) < 0.5) {
    system2("scancel", victim$job)
  } else if (!tools::pskill(victim$pid, tools::SIGKILL)) {
    return(integer())
  }
  victim$pid
}

# Runs the script to its end, or until so many tasks of this session have started.
run_session <- function(session, code, marks, most) {
  path <- tempfile(fileext = ".R")
  writeLines(code, path)
  options <- callr::rscript_process_options(
    script = path,
    stdout = "|",
    stderr = "2>&1",
    env = c(callr::rcmd_safe_env(), JOB_SESSION = session)
  )
  p <- callr::rscript_process$new(options)
  on.exit(p$kill())
  lines <- character()
  victims <- integer()
  next_kill <- Sys.time() + 1
  while (p$is_alive()) {
    p$poll_io(max(1L, as.integer(1000 * as.numeric(next_kill - Sys.time(), units = "secs"))))
    lines <- c(lines, p$read_output_lines())
    if (Sys.time() < next_kill) {
      next
    }
    next_kill <- Sys.time() + 1
    noted <- read_marks(marks, session)
    if (nrow(noted) >= most) {
      p$kill(close_connections = FALSE)
      break
    }
    if (nrow(noted)) victims <- c(victims, kill_one(noted))
  }
  p$wait()
  list(
    lines = c(lines, p$read_all_output_lines()),
    started = read_marks(marks, session),
    victims = victims
  )
}

# ---- The job

run_job <- function() {
  slurm <- local_slurm()
  file <- local_file("checkpoint")
  marks <- local_file("marks")
  begun <- Sys.time()
  killed <- c(host = 0L, daemons = 0L)
  by_slurm <- again <- 0L
  starts <- integer(n)
  found <- logical(n)
  repeat {
    most <- if (killed[["host"]] < host_kills) round(runif(1L, 0.1, 0.25) * n) else Inf
    ran <- run_session(killed[["host"]], script(file, marks, slurm$options), marks, most)
    odd <- grep("^(found|done)", ran$lines, value = TRUE, invert = TRUE)
    if (length(odd)) {
      fail("the session said: ", paste(odd, collapse = " | "))
    }
    line <- grep("^found", ran$lines, value = TRUE)
    if (length(line)) {
      found[as.integer(strsplit(trimws(line), " ")[[1L]][-1L])] <- TRUE
    }
    both <- intersect(which(found), ran$started$id)
    if (length(both)) {
      fail("found in the file, and ran again: ", toString(both))
    }
    # Of each task all starts but the last were on a daemon that was killed.
    lost <- ran$started[duplicated(ran$started$id, fromLast = TRUE), ]
    odd <- lost[!lost$pid %in% ran$victims, ]
    if (nrow(odd)) {
      fail("ran again although their daemons lived: ", toString(odd$id))
    }
    again <- again + sum(starts[unique(ran$started$id)] > 0L) + nrow(lost)
    starts <- starts + tabulate(ran$started$id, n)
    by_slurm <- by_slurm + sum(ran$started$job != "-")
    killed[["daemons"]] <- killed[["daemons"]] + length(ran$victims)
    if ("done" %in% ran$lines || length(failures)) {
      break
    }
    killed[["host"]] <- killed[["host"]] + 1L
    if (killed[["host"]] > host_kills) {
      fail("the session ended by itself")
      break
    }
  }
  if (any(starts == 0L)) {
    fail("never ran: ", toString(which(starts == 0L)))
  }
  seconds <- as.numeric(Sys.time() - begun, units = "secs")
  cat(sprintf(
    "%d tasks in %.0f s: %d starts by Slurm's daemons, %d again; the host killed %d times, daemons %d times\n",
    n,
    seconds,
    by_slurm,
    again,
    killed[["host"]],
    killed[["daemons"]]
  ))
}

run_job()
cat(as.integer(!length(failures)), "passed,", as.integer(length(failures) > 0L), "failed, 0 skipped\n")
quit(status = as.integer(length(failures) > 0L))
