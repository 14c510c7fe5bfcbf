#' URLs of this machine
#'
#' `host_url()` makes a URL for connections across the network, with the name of this machine. `local_url()` makes a URL
#' for connections on this machine. On Linux it is an abstract socket, which has no file; on other systems it is a
#' socket in the temporary directory. Only processes of the same user can connect to it.
#'
#' @param ws `TRUE` for a WebSocket URL, `FALSE` for TCP. In [edition 2][mirai-edition] the order of the arguments is
#'   `tls`, `port`, `ws`.
#' @param tls `TRUE` for a secure URL.
#' @param port a port number. 0 stands for any free port; [status()] shows which one it is.
#' @param tcp `TRUE` for a TCP URL on the loopback interface. Other users of this machine can connect to it, too.
#'
#' @returns A character string. `local_url()` returns a different one each time, `local_url(tcp = TRUE)` does not.
#' @details
#' Anyone who can reach a URL without TLS can connect as a daemon. Use such URLs only in networks that you trust.
#'
#' On many machines, the machine's own name stands for a loopback address. Then a host that listens at this name listens
#' at all addresses of the machine.
#' @seealso [daemons()], [launch_remote()]; `vignette("distributed", "mirai")`.
#' @examples
#' host_url()
#' host_url(ws = TRUE, tls = TRUE, port = 5555)
#' local_url()
#' local_url(tcp = TRUE)
#' @export
host_url <- function(ws = FALSE, tls = FALSE, port = 0) {
  if (edition() == 2L) {
    # Matches the user's arguments in the order of edition 2.
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

#' Replace a URL by a new one
#'
#' Closes one URL of a compute profile, and listens at a new URL instead, which has a random path. Use it if a daemon
#' does not answer any more, or if others have learnt the URL.
#'
#' @param i index of the URL: its row in `status()$daemons`.
#' @param force `TRUE` to replace the URL even if a daemon is connected there. Its task then resolves to error value 7
#'   (object closed).
#' @inheritParams status
#' @returns The new URL. `NULL` if nothing was done: there is no `i`th URL, or it is a TCP URL (which has no path), or a
#'   daemon is connected there and `force` is `FALSE`. Until a daemon connects, [status()] shows a negative `instance`.
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
  url <- with_call(.Call(rs_renew_url, profile, as.integer(i), force), sys.call())
  if (!is.null(url)) {
    renew_fleet_job(profile, as.integer(i), sys.call())
  }
  url
}
