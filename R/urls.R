#' URLs of this machine
#'
#' `host_url()` makes a URL at which this machine can be reached across the network, by the name that it has
#' given itself. In [edition 2][mirai-edition] its first arguments are `tls` and `port`, and `ws` goes by name.
#' `local_url()` makes one for connections on this machine: an abstract socket on Linux, whose name is not
#' in the file system, and a socket in the temporary directory elsewhere. Only processes of the
#' same user can connect to such a one.
#'
#' @param ws `TRUE` for a WebSocket URL, `FALSE` for TCP.
#' @param tls `TRUE` for a secure one.
#' @param port a port number. 0 stands for any that is free: which it is, [status()] shows.
#' @param tcp `TRUE` for a TCP URL on the loopback interface, which other users of this machine can connect to, too.
#'
#' @returns A character string. Of `local_url()`, without arguments, it is different each time.
#' @details
#' Whoever can reach a URL without TLS can be a daemon of its host: use these in networks that you trust.
#'
#' If the name of this machine stands for a loopback address in its own files, as it does on many, a host
#' listens at all of its addresses.
#' @seealso [daemons()], [launch_remote()]; `vignette("distributed", "mirai")`.
#' @examples
#' host_url()
#' host_url(ws = TRUE, tls = TRUE, port = 5555)
#' local_url()
#' local_url(tcp = TRUE)
#' @export
host_url <- function(ws = FALSE, tls = FALSE, port = 0) {
  if (edition() == 2L) {
    # The same arguments, matched in another order.
    again <- call <- sys.call()
    again[[1L]] <- function(tls = FALSE, port = 0, ws = FALSE) make_host_url(ws, tls, port, call)
    return(eval(again, parent.frame()))
  }
  make_host_url(ws, tls, port, sys.call())
}

make_host_url <- function(ws, tls, port, call) {
  check_flag(ws, "ws", call)
  check_flag(tls, "tls", call)
  check_port(port, call)
  scheme <- if (ws) {
    if (tls) "wss" else "ws"
  } else if (tls) {
    "tls+tcp"
  } else {
    "tcp"
  }
  paste0(scheme, "://", .Call(rs_node_name), ":", as.integer(port))
}

#' @rdname host_url
#' @export
local_url <- function(tcp = FALSE, port = 0) {
  check_flag(tcp, "tcp")
  check_port(port)
  if (tcp) paste0("tcp://127.0.0.1:", as.integer(port)) else .Call(rs_fresh_local_url)
}

check_port <- function(port, call = sys.call(-1L)) {
  if (!is_count(port) || port > 65535) stop_argument("port", "a whole number from 0 to 65535", call)
}

#' Listen at a fresh URL
#'
#' Closes one of the URLs of a compute profile and listens at another in its place, with a random path that nobody
#' can guess. For a daemon that does not answer any more, or a URL that has become known.
#'
#' @param i index of the URL: its row in `status()$daemons`.
#' @param force `TRUE` to do so also if a daemon is connected there. What it runs resolves to an error value 7,
#'   object closed.
#' @inheritParams status
#' @returns The new URL. `NULL` if there is no `i`th, if it is a TCP URL, which has no path, or if a daemon is
#'   connected there and `force` is `FALSE`. In the status, `instance` is negative until a daemon connects.
#' @seealso [daemons()], [status()], [launch_remote()].
#' @examples
#' daemons(url = local_url())
#' saisei(1)
#' status()
#' daemons(0)
#' @export
saisei <- function(i, force = FALSE, .compute = NULL) {
  profile <- check_profile(.compute)
  if (!is_number(i) || i != trunc(i)) {
    stop_argument("i", "a single whole number", sys.call())
  }
  check_flag(force, "force")
  if (!daemons_set(profile)) {
    return(NULL)
  }
  if (i < 1 || i > .Machine$integer.max) {
    return(NULL)
  }
  with_call(.Call(rs_renew_url, profile, as.integer(i), force), sys.call())
}
