#' Relay between a host and daemons
#'
#' Connects to a host as one daemon and passes its tasks on to daemons of its own, by a queue of its own: for
#' a machine that stands between the host and its daemons, such as the head node of a cluster. It evaluates
#' nothing itself, and ends when the host goes. Usually run as `Rscript -e 'mirai::dispatcher(...)'`.
#'
#' @param host the URL at which the host listens, set by `daemons(url = , dispatcher = FALSE)`.
#' @param url one or more URLs at which to listen for daemons. `NULL` to start `n` of them on this machine.
#' @param n number of daemons. Not needed if `url` has a URL for each, or takes any number.
#' @param ... options for the daemons and the dispatch, see [daemons()].
#' @param remote how to start daemons on other machines, see [daemons()].
#' @param tls,pass,tlscert for secure URLs in `url`: see [daemons()].
#' @param tls_host how to know a host at a secure URL: see argument `tls` of [daemon()].
#' @param asyncdial `FALSE`: an error if the host cannot be connected to. `TRUE`: try again until it can.
#'
#' @returns `NULL`, invisibly, when the host has gone.
#' @details
#' To the host, it is one daemon that takes any number of tasks at once. So the host should be set with
#' `dispatcher = FALSE`: tasks then are sent on immediately, and wait here for a daemon that is free. A daemon that
#' is lost takes its task with it, error value 19, unless `retry = TRUE` is given here. [everywhere()] is evaluated on
#' all daemons that are connected, and its value is that of the first of them.
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
  ended <- with_call(.Call(rs_relay, profile, host, tls_host[1L], asyncdial), sys.call(), "mirai_error_connect")
  if (!ended) {
    .Call(rs_serve_events)
  }
  invisible()
}
