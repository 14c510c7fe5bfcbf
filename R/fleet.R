# Daemons elsewhere that are launched as the queue asks: daemons(n, max = m, url = , remote = ). The host launches them
# itself, also while R is busy, by commands that are prepared here: one for each URL.

# Launches `n` daemons on the machines of `remote`, and has the host launch others as its queue asks: in all, at most
# one for each of `urls`.
launch_fleet <- function(profile, urls, n, remote, settings, call) {
  check_own_ports(remote, urls, call)
  fleet <- list(remote = remote, settings = settings_in_reserve(settings))
  the$fleets[[profile]] <- fleet
  job <- function(i, fleet) with_call(fleet_job(profile, urls, i, fleet, call), call)
  jobs <- lapply(seq_along(urls), job, fleet)
  .Call(rs_launch_as_asked, profile, jobs, launch_timeout())
  fleet$settings <- settings_to_stay(settings)
  first <- lapply(seq_len(n), job, fleet)
  run <- function(i) .Call(rs_launch_now, profile, i, first[[i]])
  if (n > 0L) run_jobs(profile, n, run, n, remote$patience, call)
}

# Daemons that come as the queue asks leave when they are idle.
settings_in_reserve <- function(settings) {
  if (is.null(settings$daemon$idletime)) {
    settings$daemon$idletime <- 30000
  }
  settings
}

# The first ones stay.
settings_to_stay <- function(settings) {
  settings$daemon$idletime <- NULL
  settings
}

# The job, as of remote_jobs(), that launches a daemon for the `i`th of `urls`.
fleet_job <- function(profile, urls, i, fleet, call) {
  remote <- nth_remote(fleet$remote, i)
  dialled <- remote_urls(remote, urls[[i]], call)
  make <- function(rs) {
    command <- daemon_command(dialled, remote, fleet$settings, rs, daemon_tls(dialled, NULL, profile))
    remote_jobs(remote, command, urls[[i]], dialled)[[1L]]
  }
  rs <- launch_stream(profile)
  job <- make(rs)
  # The host gives the next daemon another part of the stream. If it cannot find it, as in an encoded request of
  # http_config(), each daemon makes a random start of its own.
  hidden <- !is.null(rs) && !any(grepl("rs=c(", c(job$args, job$input), fixed = TRUE))
  if (hidden) make(NULL) else job
}

# The configuration for the machine at which the `i`th daemon is launched.
nth_remote <- function(remote, i) {
  nth <- function(x) x[(i - 1L) %% length(x) + 1L]
  if (remote$type == "command") {
    remote$args <- nth(remote$args)
  } else if (remote$type == "ssh") {
    remote$remotes <- nth(remote$remotes)
  }
  remote
}

# Each daemon is launched by an SSH connection of its own, so each tunnel needs a port of its own at its machine.
check_own_ports <- function(remote, urls, call) {
  if (remote$type != "ssh" || !remote$tunnel) {
    return()
  }
  machines <- rep_len(remote$remotes, length(urls))
  if (anyDuplicated(paste(machines, url_parts(remote_urls(remote, urls, call))$port))) {
    stop_argument("url", "a tcp URL without 'host', where there are 'max' and a tunnel: each daemon needs a port", call)
  }
}

# Seconds after which a launch is given up whose daemon has not connected.
launch_timeout <- function() {
  given <- getOption("mirai.launch_timeout", 3600)
  if (!is_number(given) || given <= 0) {
    stop_error(
      "option 'mirai.launch_timeout' must be a single positive number of seconds",
      class = "mirai_error_argument"
    )
  }
  min(as.double(given), 1e9)
}

# For saisei(): the `i`th URL has changed.
renew_fleet_job <- function(profile, i, call) {
  fleet <- the$fleets[[profile]]
  if (!is.null(fleet)) {
    urls <- .Call(rs_profile_status, profile)$urls
    .Call(rs_change_command, profile, i, fleet_job(profile, urls, i, fleet, call))
  }
}
