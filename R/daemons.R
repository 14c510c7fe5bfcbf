#' Set daemons
#'
#' Starts daemons, persistent R processes that evaluate [mirai()], or listens for daemons
#' that are started otherwise. New settings replace the old ones of the same compute profile.
#'
#' @param n number of daemons to start on this machine. `0` ends the daemons and returns to a
#'   fresh process for each mirai. `NULL` does so, too, and also ends daemons that were started
#'   with `autoexit = FALSE`. Without any argument, returns [status()].
#' @param url one or more URLs to listen at for daemons, instead of starting any: `tcp://host:port` or
#'   `ws://host:port/path` across the network, `tls+tcp://` or `wss://` for the same in TLS, and on this
#'   machine `abstract://name` (on Linux) or `ipc://path`. [host_url()] and [local_url()] make some. Port 0
#'   stands for any that is free. With dispatcher and `n`, a single URL is extended to as many: by `/1`, `/2`
#'   and so on, for TCP by consecutive ports (`-1`, `-2` for a path in the file system).
#' @param remote how to start daemons on other machines: a value of [ssh_config()], [cluster_config()],
#'   [http_config()] or [remote_config()]. They are launched at `url`, as by [launch_remote()]. `NULL`, or
#'   `remote_config()` without a command, to launch them by hand.
#' @param tls for secure URLs, what the host presents: `NULL` for a key and a certificate that are made for
#'   this one purpose; or `c(certificates, key)`, both texts in PEM format; or the name of a file with both.
#' @param pass the password of an encrypted key in `tls`.
#' @param dispatcher `TRUE`: tasks wait in one queue, first in first out, and go to a daemon when
#'   it can start them at once. `FALSE`: they are assigned right away, to the connected daemons in
#'   turn. Earlier releases wrote `"process"` or `"thread"` for `TRUE`, and `"none"` for `FALSE`.
#' @param ... options for the daemons, see [daemon()]: `autoexit`, `cleanup`, `output`,
#'   `maxtasks`, `idletime`, `walltime`, `timerstart`, `asyncdial`. And for the dispatch: `retry`,
#'   `TRUE` to run a task again, on the next free daemon, when its daemon has ended in the middle of it
#'   (so a task that ends every daemon does end all of them, and then waits for the next);
#'   `token`, `TRUE` to add a random path to `url`; `force`, `FALSE` to leave daemons that are set already as they are,
#'   instead of replacing them. Anything else, and a value of the wrong type, is ignored with
#'   a warning.
#' @param sync `TRUE` to evaluate in this process, at the call of `mirai()`: for debugging with
#'   [browser()], and for tests.
#' @param seed an integer for random numbers that do not depend on how many daemons there are or
#'   which of them evaluates what: each task has an L'Ecuyer-CMRG stream of its own, in the order
#'   of submission. `NULL`: each daemon has one.
#' @param memory megabytes (10^6 bytes) of serialized data that may wait in the queue. When they are
#'   used up, `mirai()` waits and [try_mirai()] returns `NULL`.
#' @param serial a value of [serial_config()], for objects that need functions of their own to be sent.
#' @param .compute name of the compute profile to set, or `NULL` for the current one.
#' @param tlscert another name of `tls`.
#'
#' @returns The number of daemons set, or with `url` the number of URLs: an integer of class
#'   `"miraiDaemons"`. With `url` and without dispatcher, the URL: a character string of that class.
#'   In [edition 2][mirai-edition], `TRUE` of that class, or `FALSE` if there are none now, invisibly.
#'   For `daemons()` without arguments, the value of [status()]; for `with()`, that of `expr`.
#'
#' @details
#' Local daemons are connected when this returns. If one cannot start, that is an error which shows
#' what it has said.
#'
#' On Linux, R processes are forked from one that the session starts when it first needs some, and
#' that is as R is after its start (`.Rprofile` included). So a daemon, or the process for a single
#' mirai, is ready within milliseconds. It has the session's present environment variables, working
#' directory and library paths. `options(mirai.fork_server = FALSE)` has every process started
#' afresh, as on other systems.
#'
#' `with(daemons(...), expr)` evaluates `expr` with daemons set for just that long, and
#' with their profile current.
#'
#' Local daemons end with this session, however it ends.
#' @seealso [mirai()], [mirai_map()]; [status()] and [info()]; [everywhere()] to prepare daemons;
#'   [launch_remote()], [remote_config()]; [with_daemons()].
#' @examples
#' daemons(2)
#' status()
#' m <- mirai(Sys.getpid())
#' m[] != Sys.getpid()
#' daemons(0)
#'
#' # Separate daemons for a separate purpose
#' daemons(1, .compute = "database")
#' m <- mirai("from the other profile", .compute = "database")
#' m[]
#' daemons(0, .compute = "database")
#'
#' with(daemons(2), mirai(1 + 1)[])
#' @export
daemons <- function(
  n,
  url = NULL,
  remote = NULL,
  dispatcher = TRUE,
  ...,
  sync = FALSE,
  seed = NULL,
  memory = NULL,
  serial = NULL,
  tls = NULL,
  pass = NULL,
  .compute = NULL,
  tlscert = NULL
) {
  profile <- check_profile(.compute)
  check_flag(sync, "sync")
  if (missing(n) && is.null(url) && !sync) {
    return(status(profile))
  }
  call <- sys.call()
  if (!missing(n) && !is.null(n)) {
    check_count(n, "n")
  }
  if (!is.null(url)) {
    check_urls(url)
  }
  if (!is.null(seed) && !(is_number(seed) && seed == trunc(seed))) {
    stop_argument("seed", "a single whole number, or NULL", call)
  }
  if (!is.null(memory)) {
    check_positive(memory, "memory", "a single positive number of megabytes")
  }
  dispatcher <- as_dispatcher(dispatcher, call)
  check_serial(serial, call)
  if (!is.null(remote)) {
    check_remote(remote, call)
  }
  if (!is.null(remote) && is.null(url)) {
    stop_argument("url", "given with 'remote': it is where daemons connect", call)
  }
  tls <- either_tls(tls, tlscert, call)
  check_identity(tls, pass, call)
  settings <- daemons_settings(...)
  edition()
  resets <- is.null(url) && !sync && (is.null(n) || n == 0L)
  if (!resets && !settings$force && daemons_set(profile)) {
    return(new_daemons(the$numbers[[profile]], profile))
  }

  the$globals[[profile]] <- NULL
  the$setup_streams[[profile]] <- NULL
  the$launches[[profile]] <- NULL
  if (!is.null(serial) || !is.null(the$serial[[profile]])) {
    the$serial[[profile]] <- serial
    update_hooks()
  }
  if (sync) {
    .Call(rs_open_sync, profile, as_seed(seed))
    start_setup_streams(profile, seed)
    stream <- .Call(rs_daemon_stream, profile)
    the$globals[[profile]] <- if (!is.null(stream)) list(.Random.seed = stream)
    return(new_daemons(1L, profile))
  }
  if (resets) {
    .Call(rs_close_profile, profile, is.null(n))
    return(new_daemons(0L, profile))
  }
  if (.Call(rs_daemon_state) == 2L && is.null(url)) {
    stop_error("local daemons cannot be set on a daemon from within mirai_map()", call)
  }
  if (is.null(url)) {
    return(set_local(profile, as.integer(n), dispatcher, settings, seed, memory, call))
  }
  if (!dispatcher && length(url) != 1L) {
    stop_argument("url", "a single URL without dispatcher", call)
  }
  n <- if (!missing(n)) n
  if (dispatcher) {
    url <- extend_urls(url, n, call)
  }
  url <- open_profile(profile, url, dispatcher, settings, seed, memory, call, tls, pass)
  if (launches(remote)) {
    ready <- FALSE
    on.exit(if (!ready) .Call(rs_close_profile, profile, TRUE))
    if (!dispatcher && !is.null(n)) {
      url <- rep_len(url, max(n, 1L))
    }
    launched <- launch_remotes(profile, url, remote, settings, NULL, call)
    ready <- TRUE
    return(new_daemons(launched, profile))
  }
  if (dispatcher) new_daemons(length(url), profile) else new_daemons(max(n, 1L), profile, url)
}

# One URL becomes as many as there shall be daemons.
extend_urls <- function(url, n, call) {
  if (is.null(n) || n == length(url)) {
    return(url)
  }
  if (length(url) > 1L) {
    stop_argument("url", "a single URL, or one for each of 'n' daemons", call)
  }
  with_call(.Call(rs_extend_url, url, as.integer(n)), call, "mirai_error_argument")
}

# The value of daemons(), where `n` are set.
new_daemons <- function(n, profile, value = n) {
  the$numbers[[profile]] <- as.integer(n)
  if (edition() == 1L) {
    return(structure(value, class = c("miraiDaemons", profile)))
  }
  invisible(structure(n > 0L, class = c("miraiDaemons", profile)))
}

as_seed <- function(seed) if (!is.null(seed)) as.integer(seed)

# "process", "thread" and "none" are how early releases said it, and packages of that time still do.
as_dispatcher <- function(x, call) {
  if (is_flag(x)) {
    return(x)
  }
  if (!is.character(x) || length(x) != 1L || !x %in% c("process", "thread", "none")) {
    stop_argument("dispatcher", "TRUE or FALSE", call)
  }
  x != "none"
}

# Starts local daemons, all or none. Each has a URL of its own, or all have the same.
set_local <- function(profile, n, dispatcher, settings, seed, memory, call, own_urls = dispatcher && edition() == 1L) {
  urls <- replicate(if (own_urls) n else 1L, local_url())
  urls <- open_profile(profile, urls, dispatcher, settings, seed, memory, call)
  ready <- FALSE
  on.exit(if (!ready) .Call(rs_close_profile, profile, TRUE))
  for (url in rep_len(urls, n)) {
    launch_daemon(profile, url, settings, call, awaited = TRUE)
  }
  ready <- wait_connected(profile, n, call)
  new_daemons(n, profile)
}

open_profile <- function(profile, urls, dispatcher, settings, seed, memory, call, tls = NULL, pass = NULL) {
  memory <- as_double(memory)
  urls <- with_call(
    {
      if (settings$token) {
        urls <- .Call(rs_with_tokens, urls)
      }
      .Call(rs_open_profile, profile, urls, !dispatcher, settings$retry, memory, as_seed(seed), patience(), tls, pass)
    },
    call,
    "mirai_error_connect"
  )
  the$settings[[profile]] <- settings
  start_setup_streams(profile, seed)
  tell_edition()
  urls
}

# Milliseconds without a sign of life after which a peer across the network is given up.
patience <- function() {
  given <- getOption("mirai.keepalive", 30000)
  if (!is_number(given) || given < 100) {
    stop_error(
      "option 'mirai.keepalive' must be a single number of milliseconds, 100 or more",
      class = "mirai_error_argument"
    )
  }
  min(as.double(given), 1e9)
}

as_double <- function(x) if (!is.null(x)) as.double(x)

wait_connected <- function(profile, n, call) {
  repeat {
    ended <- .Call(rs_wait_connected, profile, n)
    if (isTRUE(ended)) {
      return(TRUE)
    }
    if (is.character(ended)) {
      stop_error(ended, call, "mirai_error_launch")
    }
    .Call(rs_serve_events)
  }
}

# Shows errors of native code as those of the function that the user called.
with_call <- function(expr, call, class = NULL) {
  tryCatch(expr, error = function(e) {
    if (!inherits(e, "mirai_error")) {
      stop_error(conditionMessage(e), call, class)
    }
    e["call"] <- list(call)
    stop(e)
  })
}

#' @export
print.miraiDaemons <- function(x, ...) {
  print(unclass(x))
  invisible(x)
}

#' @rdname daemons
#' @param data a value of `daemons()`.
#' @param expr an expression to evaluate.
#' @export
with.miraiDaemons <- function(data, expr, ...) {
  profile <- class(data)[[2L]]
  before <- .Call(rs_set_current_profile, profile)
  on.exit({
    .Call(rs_set_current_profile, before)
    daemons(0L, .compute = profile)
  })
  expr
}

#' Make a compute profile current
#'
#' `with_daemons()` evaluates an expression, and `local_daemons()` has the rest of the calling
#' function evaluated, with an existing compute profile as the one that `.compute = NULL` stands
#' for.
#'
#' @param .compute name of a compute profile that has been set by [daemons()]; a value of
#'   `daemons()` will do, too.
#' @param expr an expression.
#' @param frame the environment of the function until whose end the profile shall be current.
#' @returns The value of `expr`; for `local_daemons()`, the name of the profile that was current
#'   before, invisibly.
#' @seealso [daemons()].
#' @examples
#' daemons(1, .compute = "cpu")
#' with_daemons("cpu", mirai(1 + 1)[])
#'
#' f <- function() {
#'   local_daemons("cpu")
#'   mirai(2 + 2)[]
#' }
#' f()
#' daemons(0, .compute = "cpu")
#' @export
with_daemons <- function(.compute, expr) {
  before <- .Call(rs_set_current_profile, existing_profile(.compute))
  on.exit(.Call(rs_set_current_profile, before))
  expr
}

#' @rdname with_daemons
#' @export
local_daemons <- function(.compute, frame = parent.frame()) {
  before <- .Call(rs_set_current_profile, existing_profile(.compute))
  restore <- as.call(list(function() .Call(rs_set_current_profile, before)))
  do.call(on.exit, list(restore, add = TRUE, after = FALSE), envir = frame)
  invisible(before)
}

existing_profile <- function(x, call = sys.call(-1L)) {
  if (inherits(x, "miraiDaemons")) {
    x <- class(x)[[2L]]
  }
  check_string(x, ".compute", call)
  if (!daemons_set(x)) {
    stop_error(paste0("no daemons set for profile '", x, "'"), call, "mirai_error_no_daemons")
  }
  x
}

#' Are daemons set?
#'
#' @inheritParams status
#' @param call the call to show in the error.
#' @returns `daemons_set()`: `TRUE` or `FALSE`. `require_daemons()`: `TRUE`, invisibly, or an
#'   error.
#' @seealso [daemons()], [status()]; [mirai-errors].
#' @examples
#' daemons_set()
#' daemons(1)
#' daemons_set()
#' daemons(0)
#' @export
daemons_set <- function(.compute = NULL) {
  !is.null(.Call(rs_profile_status, check_profile(.compute)))
}

#' @rdname daemons_set
#' @export
require_daemons <- function(.compute = NULL, call = sys.call(-1L)) {
  profile <- check_profile(.compute)
  if (!daemons_set(profile)) {
    stop_no_daemons(profile, call)
  }
  invisible(TRUE)
}

stop_no_daemons <- function(profile, call = sys.call(-1L)) {
  message <- if (profile == "default") {
    "no daemons set: use for example daemons(6) to set 6 local ones"
  } else {
    paste0("no daemons set for profile '", profile, "': use for example daemons(6, .compute = \"", profile, "\")")
  }
  stop_error(message, call, "mirai_error_no_daemons")
}
