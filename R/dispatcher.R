#' Relay between a host and daemons
#'
#' Connects to a host as one daemon, and passes the host's tasks on to daemons of its own. For a machine between the
#' host and its daemons, such as the head node of a cluster. The relay has a queue but evaluates nothing itself. It ends
#' when the host goes away. Usually run as `Rscript -e 'mirai::dispatcher(...)'`.
#'
#' @param host the URL at which the host listens, set by `daemons(url = , dispatcher = FALSE)`.
#' @param url one or more URLs at which to listen for daemons. `NULL` to start `n` daemons on this machine.
#' @param n number of daemons. Not needed with `url`.
#' @param ... options, see [daemons()].
#' @param remote how to start daemons on other machines, see [daemons()].
#' @param tls,pass,tlscert for secure URLs in `url`: see [daemons()].
#' @param tls_host the certificates by which to verify a host at a secure URL: see argument `tls` of [daemon()].
#' @param asyncdial what to do if the connection to the host fails. `FALSE`: raise an error. `TRUE`: try again until it
#'   succeeds.
#'
#' @returns `NULL`, invisibly, when the host has gone away.
#' @details
#' To the host, the relay is one daemon that takes any number of tasks at once. So set the host with
#' `dispatcher = FALSE`: it then sends tasks on immediately, and they wait in the relay for a free daemon.
#'
#' If a daemon is lost, its task resolves to error value 19, unless it is attempted again: by the relay if that is given
#' `retry = TRUE`, or by the host, as its `retry` or `.retry` says: see [retry_config()]. [everywhere()]
#' is evaluated on all connected daemons of the relay. Its value is that of the first of them.
#' @seealso [daemons()], [daemon()]; `vignette("distributed", "mirai")`.
#' @examples
#' \dontrun{
#' # At the host
#' daemons(url = "tcp://10.75.32.70:5555", dispatcher = FALSE)
#' # On the head node, which its nodes reach as 'head'
#' # Rscript -e 'mirai::dispatcher("tcp://10.75.32.70:5555", url = "tcp://head:5555")'
#' # On the nodes
#' # Rscript -e 'mirai::daemon("tcp://head:5555")'
#' }
#' @export
dispatcher <- function(
  host,
  url = NULL,
  n = NULL,
  ...,
  remote = NULL,
  tls = NULL,
  pass = NULL,
  tls_host = NULL,
  asyncdial = FALSE,
  tlscert = NULL
) {
  check_string(host, "host")
  check_flag(asyncdial, "asyncdial")
  check_tls(tls_host, sys.call())
  if (is.null(url) && is.null(n)) {
    stop_argument("n", "the number of daemons, unless there is 'url'", sys.call())
  }
  profile <- paste0("dispatcher-", Sys.getpid())
  on.exit(daemons(0L, .compute = profile))
  daemons(n, url, remote, ..., tls = tls, tlscert = tlscert, pass = pass, .compute = profile)
  ended <- with_call(.Call(rs_relay, profile, host, tls_host[1L], asyncdial), sys.call())
  if (!ended) {
    .Call(rs_serve_events)
  }
  invisible()
}
