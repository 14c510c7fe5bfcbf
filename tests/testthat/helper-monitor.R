# Sessions that are watched, and monitors that watch them, in processes of their own.

# The directory in which sessions and monitors of a test meet.
local_meeting <- function(frame = parent.frame()) {
  dir <- local_file("meet", frame = frame)
  dir.create(dir)
  dir
}

# Starts a session that sets daemons and then evaluates `code`, which may print "ready". Its output is that of
# r_process().
watched_session <- function(meeting, code, n = 2, frame = parent.frame()) {
  p <- r_process(c(meet_at(meeting), "library(mirai)", paste0("d <- daemons(", n, ")"), code), frame)
  p
}

# Starts a monitor. `arguments`: those of mirai_monitor(), as text.
monitor_process <- function(meeting, arguments = "", frame = parent.frame()) {
  r_process(c(meet_at(meeting), paste0("mirai::mirai_monitor(", arguments, ")")), frame)
}

meet_at <- function(meeting) paste0("Sys.setenv(TMPDIR = ", encodeString(meeting, quote = "'"), ")")

# The sockets of sessions in a meeting.
sockets <- function(meeting) list.files(list.files(meeting, "^mirai", full.names = TRUE))

# Snapshots that a monitor has printed as JSON.
snapshots_of <- function(lines) {
  lapply(lines[startsWith(lines, "{")], jsonlite::fromJSON, simplifyVector = FALSE)
}

# Shows an R script in a terminal of this size (tmux is one). Returns functions that read its screen and type.
local_terminal <- function(code, columns = 80, rows = 24, frame = parent.frame()) {
  skip_if(!nzchar(Sys.which("tmux")), "tmux is not installed")
  dir <- local_file("terminal", frame = frame)
  dir.create(dir)
  socket <- file.path(dir, "tmux")
  script <- file.path(dir, "script.R")
  writeLines(c(paste0(".libPaths(", paste(deparse(.libPaths()), collapse = ""), ")"), code), script)
  tmux <- function(...) {
    suppressWarnings(system2("tmux", c("-S", socket, "-f", "/dev/null", ...), stdout = TRUE, stderr = TRUE))
  }
  # The shell stays when the script has ended, so that the screen can be seen.
  tmux("new-session", "-d", "-x", columns, "-y", rows, "sh")
  defer(function() tmux("kill-server"), frame)
  tmux("send-keys", shQuote(paste("clear; Rscript", script)), "Enter")
  screen <- function() tmux("capture-pane", "-p")
  list(
    screen = screen,
    colours = function() tmux("capture-pane", "-p", "-e"),
    # Waits until the screen has a line that matches.
    wait_for = function(pattern, seconds = 20) {
      if (wait_until(function() any(grepl(pattern, screen())), seconds)) {
        return(TRUE)
      }
      stop("'", pattern, "' not seen on:\n", paste(screen(), collapse = "\n"))
    },
    type = function(key) tmux("send-keys", key),
    resize = function(columns, rows) tmux("resize-window", "-x", columns, "-y", rows),
    # Whether the alternate screen is on, and the cursor shown.
    state = function() tmux("display-message", "-p", shQuote("#{alternate_on} #{cursor_flag}"))
  )
}

# The process id of the first busy daemon on the monitor's page.
daemon_of <- function(browser) {
  as.integer(browser$script(paste(
    "const row = [...document.querySelectorAll('tr')].find((r) => r.querySelector('.mark.busy'));",
    "return row.cells[5].textContent"
  )))
}
