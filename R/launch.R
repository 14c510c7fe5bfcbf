#' Launch daemons on this machine
#'
#' Starts more daemons that connect to a compute profile that has been set by [daemons()].
#'
#' @param url one or more of the profile's URLs, or their indices: the rows of `status()$daemons`.
#'   One daemon is started for each.
#' @param ... options for the daemons, see [daemon()], in place of those that were given to
#'   `daemons()`.
#' @param tls reserved for connections across the network.
#' @inheritParams status
#' @returns The number of daemons launched, invisibly. It does not wait until they are connected.
#' @examples
#' daemons(url = local_url())
#' launch_local(1)
#' m <- mirai("evaluated by the daemon launched")
#' m[]
#' daemons(0)
#' @export
launch_local <- function(url = 1L, ..., tls = NULL, .compute = NULL) {
  profile <- check_profile(.compute)
  call <- sys.call()
  if (!daemons_set(profile)) stop_no_daemons(profile, call)
  urls <- profile_urls(url, profile, call)
  settings <- utils::modifyList(the$settings[[profile]], daemons_settings(...)["daemon"])
  for (url in urls) launch_daemon(profile, url, settings, call)
  invisible(length(urls))
}

profile_urls <- function(url, profile, call) {
  if (is.character(url)) {
    check_urls(url, call)
    return(url)
  }
  urls <- .Call(rs_profile_status, profile)$urls
  if (!is.numeric(url) || !length(url) || anyNA(url) || any(url < 1 | url > length(urls))) {
    stop_argument("url", paste0("URLs, or indices from 1 to ", length(urls)), call)
  }
  urls[url]
}

# Sorts out the `...` of daemons(): `daemon`, a list of arguments for daemon(); and
# options of the dispatch. What is unknown or of the wrong type is dropped.
daemons_settings <- function(...) {
  given <- list(...)
  valid <- list(
    asyncdial = is.logical,
    autoexit = is_autoexit,
    cleanup = is_cleanup,
    output = is.logical,
    maxtasks = is_positive,
    idletime = is_positive,
    walltime = is_positive,
    timerstart = is_count
  )
  known <- given[names(given) %in% names(valid)]
  fits <- vapply(names(known), function(name) valid[[name]](known[[name]]), NA)
  list(daemon = known[fits], retry = isTRUE(given$retry), token = isTRUE(given$token))
}

is_positive <- function(x) is_number(x) && x > 0

launch_daemon <- function(profile, url, settings, call) {
  rs <- .Call(rs_daemon_stream, profile)
  args <- rscript_args(daemon_call(url, settings$daemon, rs))
  output <- isTRUE(settings$daemon$output)
  with_call(.Call(rs_launch, profile, rscript(), args, output, fork_code(args)), call)
}

# The call of daemon() that a process has to evaluate, as text.
daemon_call <- function(url, args = list(), rs = NULL) {
  args <- vapply(args, deparse, "")
  parts <- c(encodeString(url, quote = "\""), if (length(args)) paste0(names(args), "=", args))
  if (!is.null(rs)) parts <- c(parts, paste0("rs=c(", paste(rs, collapse = ","), ")"))
  paste0("mirai::daemon(", paste(parts, collapse = ","), ")")
}

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
  url <- local_url()
  args <- rscript_args(daemon_call(url, list(cleanup = FALSE, maxtasks = 1L)))
  list(rscript(), args, url, fork_code(args))
}

# On Linux, processes are forked by a server (see process/fork.rs), which is started when
# the first one is needed: the code that a fork has to evaluate to become what Rscript with
# these arguments would be. NULL if it could differ from that, by what R reads when it
# starts, or if the user does not want forks.
fork_code <- function(args) {
  if (Sys.info()[["sysname"]] != "Linux" || !isTRUE(getOption("mirai.fork_server", TRUE))) return(NULL)
  startup <- startup_settings()
  if (!.Call(rs_has_fork_server)) {
    # One that has failed would do so again.
    if (!is.null(the$fork_server)) return(NULL)
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
  code <- .Call(rs_serve_forks)
  if (is.null(code)) return(invisible())
  eval(parse(text = code, keep.source = FALSE), globalenv())
  quit("no")
}
