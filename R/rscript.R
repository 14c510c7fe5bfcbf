# Rscript processes that run daemons: their command lines, and the fork server, which forks processes on Linux instead.

# The text of the call of daemon() that a process evaluates.
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

# Strings as R code. Line breaks stay line breaks, so that certificates can be read.
r_string <- function(x) paste0("\"", gsub("([\"\\\\])", "\\\\\\1", x), "\"")

# Quotes strings for a POSIX shell. Single quotes also protect "!" in an interactive shell; double quotes do not.
sh_quote <- function(x) paste0("'", gsub("'", "'\\''", x, fixed = TRUE), "'")

rscript <- function() {
  file.path(R.home("bin"), if (.Platform$OS.type == "windows") "Rscript.exe" else "Rscript")
}

# Arguments for Rscript. The process gets the library paths of this one, and the library from which this package was
# loaded.
rscript_args <- function(text) {
  libs <- unique(c(.libPaths(), dirname(getNamespaceInfo("mirai", "path"))))
  libs <- paste(encodeString(libs, quote = "\""), collapse = ",")
  c("-e", paste0(".libPaths(c(", libs, "));", text))
}

# The process for a task without daemons, as a list: the program, its arguments, the URL at which it asks for its one
# task, and the code for a fork (see fork_code()). submit.rs calls this.
single_use <- function() {
  tell_edition()
  url <- local_url()
  args <- rscript_args(daemon_call(url, list(cleanup = FALSE, maxtasks = 1L)))
  list(rscript(), args, url, fork_code(args))
}

# The code that a fork of the fork server evaluates, to do what Rscript with these arguments would do. NULL if the
# process must be started by Rscript: on other systems than Linux, with `options(mirai.fork_server = FALSE)`, if the
# server does not start, or if what R reads at its start has changed since. Starts the server when the first process is
# needed: see process/fork.rs.
fork_code <- function(args) {
  if (Sys.info()[["sysname"]] != "Linux" || !isTRUE(getOption("mirai.fork_server", TRUE))) {
    return(NULL)
  }
  startup <- startup_settings()
  if (!.Call(rs_has_fork_server)) {
    # The server was started before and has ended. It is not started twice.
    if (!is.null(the$fork_server)) {
      return(NULL)
    }
    the$fork_server <- startup
    server <- server_command(rscript_args("mirai:::fork_server()"))
    started <- .Call(rs_start_fork_server, server[[1L]], server[-1L])
    if (!started) return(NULL)
  }
  if (identical(startup, the$fork_server)) args[[2L]]
}

# Program and arguments that do what Rscript with these arguments would do. Rscript runs the shell script R, which sets
# environment variables and runs R itself, after half as long as R's own start takes. This process, an R too, has these
# variables.
server_command <- function(args) {
  binary <- file.path(R.home("bin"), paste0("exec", Sys.getenv("R_ARCH")), "R")
  set <- nzchar(Sys.getenv(c("R_HOME", "R_SHARE_DIR", "R_INCLUDE_DIR", "R_DOC_DIR")))
  if (!all(set) || file.access(binary, 1L) != 0L) {
    return(c(rscript(), args))
  }
  # The script hands over spaces so.
  c(binary, "--no-echo", "--no-restore", gsub(" ", "~+~", args, fixed = TRUE))
}

# What R reads at its start: environment variables, and when its startup files were changed. The dynamic linker, malloc
# and libraries for linear algebra and threads, too, read variables just once, when they are loaded. (LD_LIBRARY_PATH is
# not among them: packages change it when they are loaded.)
startup_settings <- function() {
  env <- Sys.getenv()
  own <- "^(R_|LC_|LANG|HOME$|LD_PRELOAD$|MALLOC_|OMP_|GOMP_|KMP_|OPENBLAS_|GOTO_|MKL_|BLIS_|NVBLAS_)"
  files <- c(".Rprofile", ".Renviron", "~/.Rprofile", "~/.Renviron")
  list(env[grepl(own, names(env))], file.mtime(files))
}

# The fork server calls this once it is idle. R reads a function of a package when it is first used: what the server has
# read, the processes that it forks need not read.
read_functions <- function() {
  namespace <- topenv()
  for (name in names(namespace)) {
    namespace[[name]]
  }
}

# The fork server evaluates this. In each process that it forks, rs_serve_forks returns the code to evaluate.
fork_server <- function() {
  code <- .Call(rs_serve_forks, tempdir())
  if (is.null(code)) {
    return(invisible())
  }
  # Makes a session directory for this process.
  tempdir(check = TRUE)
  eval(parse(text = code, keep.source = FALSE), globalenv())
  quit("no")
}
