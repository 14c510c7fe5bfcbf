#' Launch daemons by SSH, Slurm or HTTP
#'
#' Say how to launch daemons on other machines, for the argument `remote` of [daemons()],
#' [make_cluster()] and [launch_remote()]. `ssh_config()` is for machines with an SSH server,
#' `cluster_config()` for the job scripts of a resource manager such as Slurm, `http_config()` for a service
#' that runs commands, and `remote_config()` for any other command.
#'
#' @param command the command that launches daemons. For `remote_config()`, `NULL` to launch nothing: the user does that
#'   by hand, with the shell commands that [launch_remote()] returns. It may have options of its own, as in `"ssh -F
#'   config"`.
#' @param args what follows `command` on its command line, in pieces of shell code. The one that is `"."`
#'   stands for the daemon's own shell command, `Rscript -e 'mirai::daemon(...)'`. A list of such
#'   vectors launches one daemon for each.
#' @param rscript how the other machine calls `Rscript`: a name, a path, or shell code such as
#'   `"nice Rscript"`.
#' @param quote `FALSE` puts the daemon's command where `"."` is as it is, and so hands its words to
#'   `command` as arguments: right for commands that take a program with its arguments, such as `srun`. `TRUE`
#'   hands it over as one argument: right for those that pass it to a shell, as `ssh` does.
#'
#' @returns A list of class `"miraiRemote"`.
#' @details
#' A configuration launches one daemon for each URL, or for each of its `remotes` (or elements of
#' a list `args`) if these are more. The fewer of the two are used in turn.
#'
#' A launch that fails is an error that shows what the command has said, and [daemons()] sets nothing
#' then. So launching waits for commands to end: `sbatch` and its like do so once they have
#' submitted a job, `curl` when it has got an answer. Others stay for as long as the daemon does. With
#' `remote_config()`, launching waits for these for up to 3 seconds or until the daemons have connected; a
#' job that is in the queue longer than that goes on waiting there in the background. With
#' `ssh_config()` this time is `timeout` and 5 seconds more.
#'
#' Commands run in the background and cannot ask for a password.
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
#' @param tunnel `TRUE` to have the daemons connect back through the SSH connection, by which this machine
#'   need not be reachable from the other. The host then has to listen at `127.0.0.1` or `localhost`, for
#'   example at `tcp://localhost:5555`, and that port must be free on the other machine. It is
#'   also there that the daemons connect to.
#' @param timeout seconds for an SSH connection to be made.
#' @param host the address by which the daemons reach the host, if that is not what it is in the URL at
#'   which it listens: a name, or `"name:port"`. With `tunnel`, the end of the tunnel on the
#'   other machine, such as `"localhost:6666"` if 5555 is not free there; the host may listen
#'   at any address then.
#' @section SSH:
#' The other machine has to accept a key without a password, and `ssh` has to know the machine already. All
#' daemons for a machine share one connection, which stays for as long as they do.
#' @examples
#'
#' # One daemon on each of two machines, which connect to this one
#' \dontrun{
#' daemons(
#'   n = 2,
#'   url = host_url(ws = TRUE, port = 5555),
#'   remote = ssh_config(c("ssh://10.75.32.90:222", "ssh://10.75.32.91:222"))
#' )
#'
#' # Two daemons on a machine, over a tunnel
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

#' @param options lines for the job script, in front of the daemon's command: the resource manager's own,
#'   such as `"#SBATCH --mem=512"`, and shell code such as `"module load R"`.
#' @section Job scripts:
#' `cluster_config()` gives a script to `command` on its stdin: `#!/bin/sh`, `options`, and the command of one
#' daemon. That is how Slurm's `sbatch`, Grid Engine's or PBS's `qsub` and LSF's `bsub` take it.
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
#' @param data the body of the request: a character string in which `%s` stands for the daemon's
#'   shell command, escaped for a JSON string (without its quotes). Or a function that takes the command and
#'   returns the body.
#' @param ... options of the `curl` command line tool, by their long names, such as
#'   `"max-time" = 30` or `cacert = "ca.pem"`; `TRUE` for those without a value.
#' @section HTTP:
#' `http_config()` has the `curl` command line tool make one request for each daemon. The headers and the body
#' are not visible in its command line. An answer of status 400 or above is an error that shows
#' its body.
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

# `patience`: the seconds for which to wait for its commands, NULL until they end.
new_remote <- function(type, ...) structure(list(type = type, ...), class = "miraiRemote")

check_remote <- function(remote, call) {
  if (!inherits(remote, "miraiRemote")) {
    stop_argument("remote", "a value of remote_config(), ssh_config(), cluster_config() or http_config()", call)
  }
}

# How many daemons a configuration launches at least.
remote_places <- function(remote) {
  switch(remote$type, command = length(remote$args), ssh = length(remote$remotes), 1L)
}

# The URLs to be dialled by daemons so that they reach the host at `urls`.
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
