#' Launch daemons by SSH, Slurm or HTTP
#'
#' These functions describe how to launch daemons on other machines. Use their value as argument `remote` of
#' [daemons()], [make_cluster()] and [launch_remote()]. `ssh_config()` is for machines with an SSH server.
#' `cluster_config()` is for job scripts of a resource manager such as Slurm. `http_config()` is for a web service that
#' runs commands. `remote_config()` is for any other command.
#'
#' @param command the command that launches daemons. It may include options, as in `"ssh -F config"`. For
#'   `remote_config()`, `NULL` launches nothing: run the shell commands that [launch_remote()] returns.
#' @param args the arguments of `command`, a character vector of pieces of shell code. The element `"."` stands for the
#'   daemon's own shell command, `Rscript -e 'mirai::daemon(...)'`. A list of such vectors launches one daemon for each.
#' @param rscript how to call `Rscript` on the other machine: a name, a path, or shell code such as `"nice Rscript"`.
#' @param quote how to pass the daemon's command to `command`. `FALSE`: as several arguments, for a command that runs a
#'   program with arguments, such as `srun`. `TRUE`: as a single argument, for a command that passes it to a shell, such
#'   as `ssh`.
#'
#' @returns A list of class `"miraiRemote"`.
#' @details
#' A configuration launches one daemon for each URL. If it has more `remotes` (or elements of a list `args`) than there
#' are URLs, it launches one daemon for each of those. The shorter of the two is used in turn.
#'
#' A launch that fails is an error, which shows what the command wrote. [daemons()] then sets nothing. To notice
#' failures, launching waits until the commands end: `sbatch` and similar commands end when they have submitted a job,
#' `curl` when it has an answer. Other commands run as long as the daemon. Launching waits for them until the daemons
#' have connected, but at most 3 seconds with `remote_config()`, and `timeout` plus 5 seconds with `ssh_config()`. After
#' that, a job that still waits in a queue goes on waiting in the background.
#'
#' Commands run in the background and cannot ask for a password.
#'
#' With the option `max` of [daemons()], a configuration also launches daemons as the queue asks: see section *Scaling*
#' there.
#' @seealso [launch_remote()], [daemons()]; `vignette("distributed", "mirai")`.
#' @examples
#' # Slurm: two daemons, started by srun
#' \dontrun{
#' daemons(
#'   n = 2,
#'   url = host_url(ws = TRUE),
#'   remote = remote_config(
#'     command = "srun",
#'     args = c("--mem 512", "-n 1", "."),
#'     rscript = file.path(R.home("bin"), "Rscript")
#'   )
#' )
#' }
#' @export
remote_config <- function(command = NULL, args = c("", "."), rscript = "Rscript", quote = FALSE) {
  call <- sys.call()
  if (!is.null(command)) {
    check_string(command, "command")
  }
  args <- if (is.list(args)) args else list(args)
  fits <- function(x) is.character(x) && !anyNA(x) && "." %in% x
  if (!length(args) || !all(vapply(args, fits, NA))) {
    stop_argument("args", "a character vector with an element \".\", or a list of such", call)
  }
  check_string(rscript, "rscript")
  check_flag(quote, "quote")
  new_remote("command", command = command, args = args, rscript = rscript, quote = quote, patience = 3)
}

#' @param remotes one or more machines, as `"ssh://host"`, `"ssh://user@host"` or
#'   `"ssh://user@host:port"`, an IPv6 address in brackets. A machine given twice has two daemons.
#' @param tunnel `TRUE` to make the daemons connect back through the SSH connection. Then the other machine need not be
#'   able to reach this one. The host must listen at `127.0.0.1` or `localhost`, for example at `tcp://localhost:5555`.
#'   The daemons connect to the same port of their own machine, which must be free there.
#' @param timeout seconds for an SSH connection to be made.
#' @param host the address at which the daemons reach the host, if it differs from that in the URL: a name, or
#'   `"name:port"`. With `tunnel`, the end of the tunnel on the other machine, such as `"localhost:6666"` if port 5555
#'   is not free there. The host may then listen at any address.
#' @section SSH:
#' The other machine must accept a key without a password, and must be among the known hosts of `ssh`. All daemons on a
#' machine share one connection, which lasts as long as they do.
#' @examples
#'
#' # One daemon on each of two machines
#' \dontrun{
#' daemons(
#'   n = 2,
#'   url = host_url(ws = TRUE, port = 5555),
#'   remote = ssh_config(c("ssh://10.75.32.90:222", "ssh://10.75.32.91:222"))
#' )
#'
#' # Two daemons on one machine, through an SSH tunnel
#' daemons(
#'   url = "tcp://localhost:5555",
#'   remote = ssh_config(
#'     remotes = c("ssh://10.75.32.90", "ssh://10.75.32.90"),
#'     tunnel = TRUE
#'   )
#' )
#' }
#' @rdname remote_config
#' @export
ssh_config <- function(remotes, tunnel = FALSE, timeout = 10, command = "ssh", rscript = "Rscript", host) {
  call <- sys.call()
  if (
    missing(remotes) || !is.character(remotes) || !length(remotes) || !all(grepl(ssh_pattern, remotes, perl = TRUE))
  ) {
    stop_argument("remotes", "one or more of the form \"ssh://host\" or \"ssh://user@host:port\"", call)
  }
  check_flag(tunnel, "tunnel")
  check_positive(timeout, "timeout", "a single positive number of seconds")
  check_string(command, "command")
  check_string(rscript, "rscript")
  if (missing(host)) {
    host <- NULL
  } else {
    check_string(host, "host")
    host <- sub("/.*$", "", sub("^[a-z+]+://", "", host))
    if (!grepl("^(\\[[^]]+\\]|[^]:/[]+)(:[0-9]+)?$", host)) {
      stop_argument("host", "a host name or address, with or without a port", call)
    }
  }
  new_remote(
    "ssh",
    remotes = remotes,
    tunnel = tunnel,
    timeout = ceiling(timeout),
    command = command,
    rscript = rscript,
    host = host,
    patience = timeout + 5
  )
}

#' @param options lines of the job script before the daemon's command: options of the resource manager, such as
#'   `"#SBATCH --mem=512"`, and shell code, such as `"module load R"`.
#' @section Job scripts:
#' `cluster_config()` runs `command` once for each daemon, with a script on its stdin: `#!/bin/sh`, `options`, and the
#' daemon's command. Slurm's `sbatch`, the `qsub` of Grid Engine and PBS, and LSF's `bsub` take scripts in this way.
#' @examples
#'
#' # Slurm: a job for each of two daemons
#' \dontrun{
#' daemons(
#'   n = 2,
#'   url = host_url(ws = TRUE),
#'   remote = cluster_config(
#'     command = "sbatch",
#'     options = "#SBATCH --job-name=mirai
#'                #SBATCH --mem=512"
#'   )
#' )
#'
#' # No job at first, and up to 20 as the queue asks. A job ends when it has been idle for a minute
#' daemons(
#'   n = 0,
#'   max = 20,
#'   idletime = 60000,
#'   url = host_url(ws = TRUE),
#'   remote = cluster_config()
#' )
#' }
#' @rdname remote_config
#' @export
cluster_config <- function(command = "sbatch", options = "", rscript = "Rscript") {
  check_string(command, "command")
  if (!is.character(options) || anyNA(options)) {
    stop_argument("options", "a character vector", sys.call())
  }
  check_string(rscript, "rscript")
  new_remote("job", command = command, options = options, rscript = rscript)
}

#' @param url the address of the service that shall run the command.
#' @param method the HTTP method.
#' @param headers a named character vector of HTTP headers, or `NULL`. `Content-Type` is
#'   `application/json` unless given here.
#' @param data the body of the request: a character string in which `%s` stands for the daemon's shell command, escaped
#'   as in a JSON string, without quotes around it. Or a function that takes the command and returns the body.
#' @param ... options of the `curl` command line tool, by their long names, such as
#'   `"max-time" = 30` or `cacert = "ca.pem"`; `TRUE` for those without a value.
#' @section HTTP:
#' `http_config()` makes one request for each daemon, with the command line tool `curl`. The headers and the body do not
#' appear on its command line, where other users could see them. An answer with status 400 or above is an error, which
#' shows the body of the answer.
#' @examples
#'
#' # A service that runs a container for each daemon
#' \dontrun{
#' daemons(
#'   n = 2,
#'   url = host_url(tls = TRUE),
#'   remote = http_config(
#'     url = "https://example.com/api/jobs",
#'     headers = c(Authorization = paste("Bearer", Sys.getenv("TOKEN"))),
#'     data = '{"image": "r-mirai", "command": "%s"}'
#'   )
#' )
#' }
#' @rdname remote_config
#' @export
http_config <- function(
  url,
  method = "POST",
  headers = NULL,
  data = "{\"command\": \"%s\"}",
  ...,
  rscript = "Rscript"
) {
  call <- sys.call()
  check_string(url, "url")
  if (!grepl("^https?://", url)) {
    stop_argument("url", "an address that starts with http:// or https://", call)
  }
  check_string(method, "method")
  if (!is.null(headers) && !(is.character(headers) && !anyNA(headers) && all_named(headers))) {
    stop_argument("headers", "a named character vector, or NULL", call)
  }
  if (!is.function(data)) {
    check_string(data, "data")
  }
  options <- list(...)
  if (!all_named(options)) {
    stop_argument("...", "named options of curl", call)
  }
  check_string(rscript, "rscript")
  new_remote(
    "http",
    url = url,
    method = method,
    headers = headers,
    data = data,
    options = options,
    rscript = rscript
  )
}

# A configuration. `patience` is the time in seconds to wait for its commands. NULL waits until they end.
new_remote <- function(type, ...) structure(list(type = type, ...), class = "miraiRemote")

check_remote <- function(remote, call) {
  if (!inherits(remote, "miraiRemote")) {
    stop_argument("remote", "a value of remote_config(), ssh_config(), cluster_config() or http_config()", call)
  }
}

# The least number of daemons that a configuration launches.
remote_places <- function(remote) {
  switch(remote$type, command = length(remote$args), ssh = length(remote$remotes), 1L)
}

# The URLs that daemons dial to reach a host that listens at `urls`. They differ with `tunnel` or `host`.
remote_urls <- function(remote, urls, call) {
  if (remote$type != "ssh" || !remote$tunnel && is.null(remote$host)) {
    return(urls)
  }
  parts <- url_parts(urls)
  if (remote$tunnel) {
    check_tunnel(parts, remote, call)
  }
  if (is.null(remote$host)) {
    return(urls)
  }
  if (anyNA(parts$port)) {
    stop_argument("url", "a tcp or ws URL, with a port, where there is 'host'", call)
  }
  host <- remote$host
  if (!grepl(":[0-9]+$", host)) {
    host <- paste0(host, ":", parts$port)
  }
  paste0(parts$scheme, "://", host, parts$path)
}

check_tunnel <- function(parts, remote, call) {
  if (anyNA(parts$port)) {
    stop_argument("url", "a tcp or ws URL, with a port, for a tunnel", call)
  }
  local <- c("127.0.0.1", "localhost", "[::1]")
  if (is.null(remote$host) && !all(parts$host %in% local)) {
    stop_argument("url", "one whose host is 127.0.0.1 or localhost, for a tunnel", call)
  }
}

url_parts <- function(urls) {
  pattern <- "^([a-z0-9+]+)://(\\[[^]]*\\]|[^:/]*):([0-9]+)(/.*)?$"
  part <- function(i) ifelse(grepl(pattern, urls), sub(pattern, paste0("\\", i), urls), NA_character_)
  list(scheme = part(1L), host = part(2L), port = part(3L), path = part(4L))
}
