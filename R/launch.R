#' Launch daemons
#'
#' Starts more daemons for a compute profile that has been set by [daemons()]: `launch_local()` on this machine,
#' `launch_remote()` on other machines. Without `remote`, `launch_remote()` starts nothing: it returns shell commands,
#' which you run on the other machines.
#'
#' @param url one or more of the profile's URLs, or their indices, which are the rows of `status()$daemons`. One daemon
#'   is launched for each. `launch_remote()` also takes a cluster, or a node of one, see [make_cluster()]. In
#'   [edition 2][mirai-edition], a number is not an index but `n`. If no daemons are set, give the complete URL at which
#'   another host listens.
#' @param n number of daemons to launch. They are spread over `url`, or if that is not given over all URLs of the
#'   profile; URLs with the fewest daemons come first. By default, one for each of `url`.
#' @param ... options for the daemons, see [daemon()]. They replace those that were given to `daemons()`.
#' @param tls,tlscert for `tls+tcp://` and `wss://` URLs, the certificates by which the daemons verify the host: see the
#'   argument `tls` of [daemon()]. `NULL` for the certificate of the profile itself.
#' @param remote how to launch: a value of [remote_config()], [ssh_config()], [cluster_config()] or [http_config()].
#' @inheritParams status
#' @returns `launch_local()`: the number of daemons launched, invisibly. `launch_remote()`: a character vector of class
#'   `"miraiLaunchCmd"`, with the shell command of each daemon, whether or not it was run.
#' @details
#' These functions do not wait until the daemons are connected: `info()` shows how many are.
#'
#' A launch that fails is an error, which shows what the launching command (`ssh`, `sbatch`, `srun`, `curl`) wrote. So
#' `launch_remote()` and `daemons(remote = )` wait until the commands have ended or the daemons have connected. For
#' commands that run as long as the daemon, such as `srun` and `ssh`, they wait a few seconds: see [remote_config()]. If
#' one command fails, the others of the same call are ended. If one fails later, [status()] shows it as a warning.
#'
#' You can paste the returned commands into a POSIX shell. Each has its own random number stream. The other machine
#' needs `Rscript` on its path, and the same version of this package. What remote daemons write, with `output = TRUE`,
#' is not sent back.
#' @seealso [daemons()], [daemon()]; [ssh_config()], [cluster_config()], [http_config()], [remote_config()];
#'   `vignette("distributed", "mirai")`.
#' @examples
#' daemons(url = local_url())
#' launch_local(1)
#' m <- mirai("evaluated by the daemon launched")
#' m[]
#'
#' # The command that would launch another
#' launch_remote(1)
#' daemons(0)
#' @export
launch_local <- function(url = 1L, ..., n = NULL, tls = NULL, .compute = NULL, tlscert = NULL) {
  profile <- check_profile(.compute)
  call <- sys.call()
  check_not_in_map(call)
  urls <- launch_urls(url, n, !missing(url), profile, call)
  tls <- either_tls(tls, tlscert, call)
  check_tls(tls, call)
  settings <- daemons_settings(...)
  settings <- launch_settings(profile, settings)
  for (url in urls) {
    launch_daemon(profile, url, settings, call, tls)
  }
  invisible(length(urls))
}

#' @rdname launch_local
#' @export
launch_remote <- function(
  url = 1L,
  remote = remote_config(),
  ...,
  n = NULL,
  tls = NULL,
  .compute = NULL,
  tlscert = NULL
) {
  call <- sys.call()
  check_remote(remote, call)
  if (inherits(url, c("miraiCluster", "miraiNode"))) {
    nodes <- if (inherits(url, "miraiNode")) list(url) else unclass(url)
    if (!length(nodes)) {
      stop_argument("url", "a cluster with nodes", call)
    }
    profile <- nodes[[1L]]$cluster$profile
    if (!all(vapply(nodes, is_active, NA))) {
      stop_argument("url", "a cluster, or node, that has not been stopped", call)
    }
    if (!is.null(n)) {
      stop_argument("n", "left out where 'url' is a cluster or a node", call)
    }
    urls <- vapply(nodes, function(node) node$url, "")
  } else {
    profile <- check_profile(.compute)
    urls <- launch_urls(url, n, !missing(url), profile, call)
  }
  tls <- either_tls(tls, tlscert, call)
  check_tls(tls, call)
  settings <- daemons_settings(...)
  settings <- launch_settings(profile, settings)
  # At least one for each machine of `remote`, unless the user has given a number.
  counted <- !is.null(n) || edition() == 2L && is.numeric(url) && !missing(url)
  if (!counted) {
    urls <- rep_len(urls, max(length(urls), remote_places(remote)))
  }
  launch_commands(profile, urls, remote, settings, tls, call)
}

#' @export
print.miraiLaunchCmd <- function(x, ...) {
  cat(paste0("[", seq_along(x), "]\n", x, collapse = "\n\n"), "\n", sep = "")
  invisible(x)
}

# For daemons() and make_cluster(): launches daemons for the URLs of a profile that has just been set. Returns their
# number. `tls` is the daemons' argument, NULL for the profile's own certificate.
launch_remotes <- function(profile, urls, remote, settings, tls, call) {
  urls <- rep_len(urls, max(length(urls), remote_places(remote)))
  length(launch_commands(profile, urls, remote, settings, tls, call))
}

# Whether `remote` launches anything. remote_config() without a command leaves that to the user.
launches <- function(remote) !is.null(remote) && !(remote$type == "command" && is.null(remote$command))

# Launches one daemon for each URL, on the machines of `remote` in turn. Returns their shell commands.
launch_commands <- function(profile, urls, remote, settings, tls, call) {
  dialled <- remote_urls(remote, urls, call)
  commands <- vapply(
    dialled,
    function(url) daemon_command(url, remote, settings, launch_stream(profile), daemon_tls(url, tls, profile)),
    "",
    USE.NAMES = FALSE
  )
  jobs <- with_call(remote_jobs(remote, commands, urls, dialled), call)
  if (length(jobs)) {
    run <- function(i) .Call(rs_run_command, jobs[[i]])
    running <- run_jobs(profile, length(jobs), run, length(commands), remote$patience, call)
    the$launches[[profile]] <- c(the$launches[[profile]], running)
  }
  structure(commands, class = "miraiLaunchCmd")
}

# The shell command of a daemon that dials `url`.
daemon_command <- function(url, remote, settings, rs, tls) {
  paste(remote$rscript, "-e", sh_quote(daemon_call(url, settings$daemon, rs, tls)))
}

# Runs `jobs` launch commands: `run` starts the one with the index that it is given. Waits until all have ended, until
# `n` more daemons have connected, or for `seconds` (NULL for no limit). It is an error if a command fails. Returns
# those that still run.
run_jobs <- function(profile, jobs, run, n, seconds, call) {
  before <- .Call(rs_profile_status, profile)$cumulative
  # NULL: the daemons are for another host, so this session does not see them connect.
  enough <- if (is.null(before)) Inf else as.double(before + n)
  running <- list()
  settled <- FALSE
  on.exit(if (!settled) end_commands(running))
  for (i in seq_len(jobs)) {
    running <- c(running, list(with_call(run(i), call)))
  }
  now <- function() proc.time()[["elapsed"]]
  start <- now()
  repeat {
    left <- if (!is.null(seconds)) max(0, start + seconds - now())
    if (.Call(rs_wait_commands, profile, running, enough, left)) {
      break
    }
    .Call(rs_serve_events)
  }
  states <- lapply(running, function(command) .Call(rs_command_state, command))
  for (state in states) {
    if (!is.null(state$failure)) {
      stop_error(paste0("the launch of daemons has failed: ", state$failure), call, "mirai_error_launch")
    }
  }
  settled <- TRUE
  running[vapply(states, function(state) state$running, NA)]
}

end_commands <- function(commands) {
  for (command in commands) {
    state <- .Call(rs_command_state, command)
    if (state$running) tools::pskill(state$pid)
  }
}

# Called from waiting.rs if a wait lasts and no daemon is there: tells the user, unless a launch command is still
# running. Returns whether that was told.
tell_deserted <- function(profile) {
  for (command in the$launches[[profile]]) {
    if (.Call(rs_command_state, command)$running) {
      return(FALSE)
    }
  }
  place <- if (profile != "default") paste0(" of compute profile '", profile, "'")
  why <- .Call(rs_why_none_is_left, profile)
  message(
    "waiting for tasks",
    place,
    ", but no daemon is connected and none is being launched: see ?launch_local, ",
    "?launch_remote, status()",
    if (!is.null(why)) paste0("\n", why)
  )
  TRUE
}

# For status(): warns of launches that have failed since the last call, and forgets commands that have ended.
warn_failed_launches <- function(profile, call) {
  waiting <- list()
  failed <- character()
  for (command in the$launches[[profile]]) {
    state <- .Call(rs_command_state, command)
    if (state$running) {
      waiting <- c(waiting, list(command))
    }
    if (!is.null(state$failure)) {
      failed <- c(failed, paste0("a launch of daemons has failed: ", state$failure))
    }
  }
  the$launches[[profile]] <- waiting
  for (text in c(failed, .Call(rs_launch_reports, profile))) {
    warning(simpleWarning(text, call))
  }
}

check_tls <- function(tls, call) {
  if (!is.null(tls) && (!is.character(tls) || !length(tls) %in% 1:2 || anyNA(tls))) {
    stop_argument("tls", "a file name, or a certificate chain and an empty string", call)
  }
  if (any(grepl("PRIVATE KEY", tls, fixed = TRUE)) || length(tls) == 2L && nzchar(tls[[2L]])) {
    stop_argument("tls", "certificates only: a private key does not belong into a command", call)
  }
}

# The argument `tls` of daemon() for a URL. NULL if the URL is not secure.
daemon_tls <- function(url, tls, profile) {
  if (!is_secure(url)) {
    return(NULL)
  }
  if (is.null(tls)) {
    tls <- nextget("tls", profile)
  }
  if (length(tls) == 1L && grepl("-----BEGIN", tls, fixed = TRUE)) c(tls, "") else tls
}

is_secure <- function(url) grepl("^(tls\\+tcp|wss)://", url)

# The URL for each daemon to launch. `given` is whether the user gave `url`.
launch_urls <- function(url, n, given, profile, call) {
  if (is.character(url)) {
    check_urls(url, call)
    if (is.null(n)) return(url)
  } else if (!daemons_set(profile)) {
    stop_no_daemons(profile, call)
  }
  urls <- .Call(rs_profile_status, profile)$urls
  if (is.character(url)) {
    urls <- url
  } else if (!length(urls)) {
    stop_error(paste0("profile '", profile, "' is synchronous: it has no daemons"), call, "mirai_error_no_daemons")
  } else if (edition() == 2L && (given || is.null(n))) {
    if (!is.null(n)) {
      stop_argument("url", "URLs, where there is 'n'", call)
    }
    if (!is_positive_count(url)) {
      stop_argument("url", "URLs, or the number of daemons to launch", call)
    }
    n <- url
  } else if (is.null(n) || given) {
    urls <- indexed_urls(url, urls, call)
    if (is.null(n)) return(urls)
  }
  if (!is_positive_count(n)) {
    stop_argument("n", "a single whole number, one or greater", call)
  }
  spread(urls, n, profile)
}

# Spreads `n` daemons over these URLs: each goes to the URL that has the fewest.
spread <- function(urls, n, profile) {
  x <- .Call(rs_profile_status, profile)
  at <- match(urls, x$urls, 0L)
  load <- integer(length(urls))
  load[at > 0L] <- x$online[at]
  chosen <- integer(n)
  for (k in seq_len(n)) {
    chosen[[k]] <- which.min(load)
    load[chosen[[k]]] <- load[chosen[[k]]] + 1L
  }
  urls[chosen]
}

# The options for a daemon: those in `given`, and for the rest those that daemons() was given.
launch_settings <- function(profile, given) {
  if (!daemons_set(profile)) {
    return(given)
  }
  own <- c(given["daemon"], if (!is.null(given$respawn)) given["respawn"])
  utils::modifyList(the$settings[[profile]], own)
}

# The random number stream for a daemon. A daemon for another host gets a stream of this session.
launch_stream <- function(profile) {
  if (daemons_set(profile)) .Call(rs_daemon_stream, profile) else .Call(rs_next_stream, profile)
}

indexed_urls <- function(i, urls, call) {
  if (!is.numeric(i) || !length(i) || anyNA(i) || any(i < 1 | i > length(urls) | i != trunc(i))) {
    stop_argument("url", paste0("URLs, or indices from 1 to ", length(urls)), call)
  }
  urls[i]
}

# Starts a daemon on this machine. `awaited` says that wait_connected() follows, which reports a failure. With
# `in_reserve`, the host starts it when the queue asks for it.
launch_daemon <- function(profile, url, settings, call, tls = NULL, awaited = FALSE, in_reserve = FALSE) {
  rs <- launch_stream(profile)
  args <- rscript_args(daemon_call(url, settings$daemon, rs, daemon_tls(url, tls, profile)))
  output <- isTRUE(settings$daemon$output)
  # A daemon for another host must be able to outlive this session. What the fork server forks does not.
  code <- if (daemons_set(profile)) fork_code(args)
  again <- if (in_reserve) 3L else respawn_code(settings$respawn)
  with_call(.Call(rs_launch, profile, rscript(), args, output, code, awaited, again), call)
}

# For the glue: which daemons are started again. 0 none, 1 those that have crashed, 2 those that have left, too. NULL
# stands for TRUE.
respawn_code <- function(respawn) {
  if (identical(respawn, "always")) {
    return(2L)
  }
  if (isFALSE(respawn)) 0L else 1L
}
