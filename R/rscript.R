# Rscript processes that run daemons: their command lines, and the fork server that takes their place on Linux.

# The call of daemon() that a process has to evaluate, as text.
daemon_call <- function(url, args = list(), rs = NULL, tls = NULL) {
  args <- vapply(args, deparse, "")
  parts <- c(r_string(url), if (length(args)) paste0(names(args), "=", args))
  if (length(tls) > 1L) {
    parts <- c(parts, paste0("tls=c(", paste(r_string(tls), collapse = ","), ")"))
  } else if (length(tls)) {
    parts <- c(parts, paste0("tls=", r_string(tls)))
  }
  if (!is.null(rs)) {
    parts <- c(parts, paste0("rs=c(", paste(rs, collapse = ","), ")"))
  }
  paste0("mirai::daemon(", paste(parts, collapse = ","), ")")
}

# Strings as they are written in R code. Line breaks are left as they are, so that
# certificates look like themselves.
r_string <- function(x) paste0("\"", gsub("([\"\\\\])", "\\\\\\1", x), "\"")

# For a POSIX shell, also an interactive one, to which "!" means something even in double quotes.
sh_quote <- function(x) paste0("'", gsub("'", "'\\''", x, fixed = TRUE), "'")

rscript <- function() {
  file.path(R.home("bin"), if (.Platform$OS.type == "windows") "Rscript.exe" else "Rscript")
}

# Arguments for Rscript. The process shall find packages where this one does, and this one
# wherever it was loaded from.
rscript_args <- function(text) {
  libs <- unique(c(.libPaths(), dirname(getNamespaceInfo("mirai", "path"))))
  libs <- paste(encodeString(libs, quote = "\""), collapse = ",")
  c("-e", paste0(".libPaths(c(", libs, "));", text))
}

# For a task without daemons, called from tasks.rs: the program to start, its arguments,
# the URL at which it will ask for its one task, and the code for a fork.
single_use <- function() {
  tell_edition()
  url <- local_url()
  args <- rscript_args(daemon_call(url, list(cleanup = FALSE, maxtasks = 1L)))
  list(rscript(), args, url, fork_code(args))
}

# On Linux, processes are forked by a server (see process/fork.rs), which is started when
# the first one is needed: the code that a fork has to evaluate to become what Rscript with
# these arguments would be. NULL if it could differ from that, by what R reads when it
# starts, or if the user does not want forks.
fork_code <- function(args) {
  if (Sys.info()[["sysname"]] != "Linux" || !isTRUE(getOption("mirai.fork_server", TRUE))) {
    return(NULL)
  }
  startup <- startup_settings()
  if (!.Call(rs_has_fork_server)) {
    # One that has failed would do so again.
    if (!is.null(the$fork_server)) {
      return(NULL)
    }
    the$fork_server <- startup
    started <- .Call(rs_start_fork_server, rscript(), rscript_args("mirai:::fork_server()"))
    if (!started) return(NULL)
  }
  if (identical(startup, the$fork_server)) args[[2L]]
}

# What makes a difference to R when it starts.
startup_settings <- function() {
  env <- Sys.getenv()
  files <- c(".Rprofile", ".Renviron", "~/.Rprofile", "~/.Renviron")
  list(env[grepl("^(R_|LC_|LANG|HOME$)", names(env))], file.mtime(files))
}

# Run by the server, and by each process that it forks.
fork_server <- function() {
  code <- .Call(rs_serve_forks, tempdir())
  if (is.null(code)) {
    return(invisible())
  }
  # a session directory of its own
  tempdir(check = TRUE)
  eval(parse(text = code, keep.source = FALSE), globalenv())
  quit("no")
}
