# Sessions that are killed while they write to a checkpoint: see tools/resume, which runs this with a temporary directory of
# its own.

# ---- Arguments

args <- commandArgs(TRUE)
read_number <- function(name, default) {
  at <- match(name, args)
  if (is.na(at)) {
    return(default)
  }
  value <- suppressWarnings(as.integer(args[at + 1L]))
  if (is.na(value)) stop(name, " needs a whole number", call. = FALSE)
  value
}
kills <- read_number("--kills", 100L)
seed <- read_number("--seed", sample.int(1e9L, 1L))
set.seed(seed)
cat("seed ", seed, "\n", sep = "")

# ---- The session

# The elements of a map, and the results: most are small, some lie in shared memory, and some are written on their own.
n <- 600L
value_of <- function(i) if (i %% 50L == 0L) i + seq_len(4e5) else if (i %% 10L == 0L) i + seq_len(4e4) else i^2

# Notes in a file when it starts and ends.
work <- function(i, marks, value_of) {
  note <- function(what) {
    line <- sprintf("%s %d %d %.6f\n", what, i, Sys.getpid(), as.numeric(Sys.time()))
    cat(line, file = marks, append = TRUE)
  }
  note("start")
  Sys.sleep(if (i %% 7L == 0L) 0.05 else 0.005)
  value <- value_of(i)
  note("end")
  value
}

session <- function(file, marks) {
  dump <- function(name) paste(c(paste(name, "<-"), deparse(get(name))), collapse = "\n")
  c(
    "library(mirai)",
    dump("n"),
    dump("value_of"),
    dump("work"),
    sprintf("file <- '%s'; marks <- '%s'", file, marks),
    "is_right <- function(x, i) identical(x, value_of(i))",
    "invisible(daemons(2, retry = TRUE))",
    "map <- mirai_map(seq_len(n), work, .args = list(marks = marks, value_of = value_of), .checkpoint = file)",
    # Those that the file has, and perhaps a few more
    "early <- Filter(function(i) !unresolved(map[[i]]), seq_len(n))",
    "cat('begun', early, '\\n')",
    "for (i in early) if (!is_right(map[[i]]$data, i)) cat('wrong', i, '\\n')",
    "x <- map[]",
    "for (i in seq_len(n)) if (!is_right(x[[i]], i)) cat('wrong', i, '\\n')",
    "cat('done\\n')"
  )
}

# ---- Kills

# What has been noted in a file since the last call with it.
new_marks <- local({
  seen <- list()
  function(marks) {
    lines <- if (file.exists(marks)) readLines(marks, warn = FALSE) else character()
    known <- if (is.null(seen[[marks]])) 0L else seen[[marks]]
    seen[[marks]] <<- length(lines)
    fields <- strsplit(lines[seq_along(lines) > known], " ", fixed = TRUE)
    # A daemon may have been killed within a line.
    fields <- fields[lengths(fields) == 4L]
    column <- function(i) vapply(fields, `[[`, "", i)
    data.frame(what = column(1L), id = as.integer(column(2L)), pid = as.integer(column(3L)), time = as.numeric(column(4L)))
  }
})

# Results that are older than this when their session is killed must not be lost: one second is promised, the rest is for a
# value that is slow to arrive.
old <- 1.5

failures <- character()
fail <- function(...) {
  text <- paste0(...)
  cat("FAILED: ", text, "\n", sep = "")
  failures <<- c(failures, text)
}

killed <- killed_daemons <- files <- again <- 0L

# Starts the session and kills it: mostly some time after its map was made, now and then earlier. Kills daemons meanwhile.
# Without `kill`, it may end. Returns what it has said, what was noted meanwhile, when it had begun and was killed, and which
# daemons were.
run_session <- function(script, marks, kill) {
  p <- callr::rscript_process$new(callr::rscript_process_options(script = script, stdout = "|", stderr = "2>&1"))
  on.exit(p$kill())
  before_map <- runif(1L) < 0.1
  pause <- function() runif(1L) * if (runif(1L) < 0.2) 4 else 0.4
  end <- if (kill && before_map) Sys.time() + pause() else Inf
  lines <- character()
  noted <- NULL
  victims <- integer()
  begun_at <- Inf
  repeat {
    left <- as.numeric(end) - as.numeric(Sys.time())
    if (left <= 0 || "done" %in% lines) {
      break
    }
    begun <- any(startsWith(lines, "begun"))
    # In parts, between which a daemon may be killed.
    ms <- if (begun) min(1000 * left, 100) else if (is.finite(left)) 1000 * left else 60000
    p$poll_io(max(1L, as.integer(ms)))
    lines <- c(lines, p$read_output_lines())
    if (!begun && any(startsWith(lines, "begun"))) {
      begun_at <- as.numeric(Sys.time())
      if (kill && is.infinite(end)) end <- Sys.time() + pause()
    }
    if (!p$is_alive()) {
      break
    }
    if (begun && runif(1L) < 0.2) {
      noted <- rbind(noted, new_marks(marks))
      pid <- tail(noted$pid, 1L)
      if (length(pid) && tools::pskill(pid, tools::SIGKILL)) {
        victims <- c(victims, pid)
      }
    }
  }
  at <- as.numeric(Sys.time())
  if (!"done" %in% lines) p$kill(close_connections = FALSE)
  p$wait()
  list(
    lines = c(lines, p$read_all_output_lines()),
    noted = rbind(noted, new_marks(marks)),
    begun = begun_at,
    at = at,
    victims = victims
  )
}

while (killed < kills) {
  files <- files + 1L
  file <- tempfile("checkpoint")
  marks <- tempfile("marks")
  script <- tempfile(fileext = ".R")
  writeLines(session(file, marks), script)
  # How often each element was started, and whether its result must be in the file.
  starts <- integer(n)
  is_safe <- logical(n)
  repeat {
    ran <- run_session(script, marks, kill = killed < kills)
    killed_daemons <- killed_daemons + length(ran$victims)
    odd <- grep("^(begun|done)", ran$lines, value = TRUE, invert = TRUE)
    if (length(odd)) fail("the session said: ", paste(odd, collapse = " | "))
    started <- unique(ran$noted$id[ran$noted$what == "start"])
    lost <- started[is_safe[started]]
    if (length(lost)) fail("lost, and ran again: ", toString(lost))
    again <- again + sum(starts[started] > 0L)
    starts[started] <- starts[started] + 1L
    # What the session has found in the file, and what it has had for long enough. What ended before it had begun may have
    # been the work of a daemon of the session before. A value may have been lost with its daemon.
    found <- as.integer(strsplit(c(grep("^begun", ran$lines, value = TRUE), "begun")[[1L]], " ")[[1L]][-1L])
    is_safe[setdiff(found, started)] <- TRUE
    ends <- ran$noted[ran$noted$what == "end" & ran$noted$time > ran$begun & ran$noted$time < ran$at - old, ]
    is_safe[ends$id[!ends$pid %in% ran$victims]] <- TRUE
    if ("done" %in% ran$lines) {
      if (any(starts == 0L)) fail("have a value but never ran: ", toString(which(starts == 0L)))
      break
    }
    killed <- killed + 1L
    if (killed %% 50L == 0L) cat(killed, "kills,", files, "files,", again, "elements ran again\n")
    if (length(failures) > 20L) stop("too many failures")
  }
  unlink(c(file, marks, script))
}
cat(killed, "sessions and", killed_daemons, "daemons killed,", files, "files,", again, "elements ran again\n")
cat(as.integer(!length(failures)), "passed,", as.integer(length(failures) > 0L), "failed, 0 skipped\n")
quit(status = as.integer(length(failures) > 0L))
