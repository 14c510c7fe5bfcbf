#' Set daemons
#'
#' Starts daemons: persistent R processes that evaluate [mirai()]. Or listens for daemons that you start by other means.
#' New settings replace the earlier ones of the same compute profile.
#'
#' @param n number of daemons to start on this machine. `0` ends the daemons; after that, each mirai starts its own
#'   process. `NULL` also ends daemons that were started with `autoexit = FALSE`. Without any argument, `daemons()`
#'   returns [status()].
#' @param url one or more URLs at which to listen for daemons, instead of starting any. Across the network:
#'   `tcp://host:port` or `ws://host:port/path`; with TLS, `tls+tcp://` or `wss://`. On this machine:
#'   `abstract://name` (Linux only) or `ipc://path`. [host_url()] and [local_url()] make URLs. Port 0 stands for any
#'   free port. With dispatcher and `n`, a single URL is extended to `n` URLs: by `/1`, `/2` and so on; for TCP by
#'   consecutive ports; for a path in the file system by `-1`, `-2`.
#' @param remote how to start daemons on other machines: a value of [ssh_config()], [cluster_config()],
#'   [http_config()] or [remote_config()]. The daemons connect to `url`. `NULL`, or `remote_config()` without a
#'   command, launches nothing: run the commands that [launch_remote()] returns.
#' @param tls for secure URLs, the certificate and key of the host: `NULL` to make them now; `c(certificates, key)`,
#'   both as text in PEM format; or the name of a file with both.
#' @param pass the password of an encrypted key in `tls`.
#' @param dispatcher `TRUE`: tasks wait in one queue, first in first out, unless they have a `.priority`: see [mirai()].
#'   A daemon gets a task when it can start it. `FALSE`: each task is assigned to a connected daemon at once, in turn.
#'   Earlier releases wrote `"process"` or `"thread"` for `TRUE`, and `"none"` for `FALSE`.
#' @param ... options, by name. For the daemons, see [daemon()]: `autoexit`, `cleanup`, `output`, `maxtasks`,
#'   `idletime`, `walltime`, `timerstart`, `asyncdial`. For the host:
#'
#'   * `retry = TRUE` runs a task again, on the next free daemon, if its daemon ended during it. [retry_config()] limits
#'     the number of attempts, waits between them, and attempts tasks again that have raised an error.
#'   * `respawn = TRUE`, the default, replaces a daemon on this machine that has crashed. `"always"` also replaces one
#'     that has left by its limits, `FALSE` none. See section *Crashes*.
#'   * `max`, the greatest number of daemons: see section *Scaling*.
#'   * `token = TRUE` adds a random path to `url`.
#'   * `force = FALSE` does nothing if daemons are set already, instead of replacing them.
#'
#'   An unknown option, or a value of the wrong type, is ignored with a warning.
#' @param sync `TRUE` to evaluate each task in this process, when `mirai()` is called. For debugging with [browser()],
#'   and for tests. Timeouts, retries and priorities have no effect then.
#' @param seed an integer that makes random numbers reproducible. Each task has its own L'Ecuyer-CMRG stream, in the
#'   order of submission. So results do not depend on the number of daemons, nor on which daemon evaluates what.
#'   `NULL`: each daemon has its own stream, from a random start.
#' @param memory megabytes (10^6 bytes) of serialized data that may wait in the queue. When the queue is full, `mirai()`
#'   waits for room and [try_mirai()] returns `NULL`.
#' @param serial a value of [serial_config()], for objects that R cannot serialize by itself.
#' @param .compute name of the compute profile to set, or `NULL` for the current one.
#' @param tlscert another name of `tls`.
#'
#' @returns An integer of class `"miraiDaemons"`: the number of daemons set, or with `url` the number of URLs. With
#'   `url` and without dispatcher: the URL, a character string of this class. In [edition 2][mirai-edition]: `TRUE` of
#'   this class, or `FALSE` if no daemons are set now, invisibly. `daemons()` without arguments returns the value of
#'   [status()], and `with()` that of `expr`.
#'
#' @section Crashes: A daemon that was started on this machine, by `daemons()` or [launch_local()], and ends without
#' having left by its limits, has crashed. Its task resolves to error value 19, unless `retry` says otherwise. A new
#' daemon takes its place at once. It has the options of the first, and the variables, working directory and library
#' paths with which that was started. Its random numbers are another part of the same stream. If it connects at a URL of
#' this machine, as those of `daemons(n)` do, it evaluates the calls of [everywhere()] again that have succeeded: the
#' last 100 that differ, except those that send more than 16 MB.
#'
#' After five crashes of one daemon without a finished task between them, it is not started again, and [daemon_log()]
#' says so. If no daemon is left then, the tasks that wait resolve to error value 19, whose attribute `"reason"` says
#' how the last one ended, with the last lines that it wrote if it could not start. Tasks that come later wait until a
#' daemon is launched or connects. Whoever waits for them is told so after three seconds, with that reason.
#'
#' A daemon that ends because of [saisei()] is not replaced, and neither is a node of [make_cluster()].
#'
#' @section Scaling: With `daemons(n, max = m)`, there are between `n`, which may be 0, and `m` daemons on this machine.
#' When a task waits that no daemon can take, another daemon is started: one for each such task, up to `m`. It is
#' prepared as [everywhere()] has prepared the others. It leaves when it has had no task for `idletime` milliseconds, 30
#' seconds by default, and is started again when the queue asks for it. The first `n` daemons stay, whatever `idletime`
#' is.
#'
#' With `url` and `remote`, daemons are launched elsewhere in the same way, by that configuration: `n` at first, which
#' may be 0, and others as the queue asks. There are never more than `m` daemons and launches under way, together. A
#' daemon that is gone, such as by `scancel`, is replaced when the queue asks for it. The host launches by itself, also
#' while R is busy, with the environment variables and the working directory of the call of `daemons()`. A single URL is
#' extended to `m` URLs, one for each daemon.
#'
#' A launch is given up if its daemon has not connected within an hour, or within the number of seconds that
#' `options(mirai.launch_timeout = )` had when `daemons()` was called. If its daemon comes later, and others have taken
#' its place, it is sent away. [status()] shows failed launches as warnings.
#'
#' A failure is a launch that fails or is given up, or a daemon that crashes before it has finished a task; those that
#' happen together count once. After a failure there is a pause, of half a second at first. After five failures one
#' after another, nothing is launched any more. If no daemon is left then, the tasks that wait resolve to error value
#' 19, whose attribute `"reason"` says why, and tasks that come later wait. Launching begins anew when a daemon leaves
#' in good order, when one is lost that has finished a task, or when you launch one by [launch_remote()].
#'
#' @details
#' `daemons()` returns when all local daemons are connected. If one cannot start, that is an error, which shows what the
#' process wrote to stderr.
#'
#' On Linux, the session starts a *fork server* when it first needs a process: an R process that has only run R's own
#' start (`.Rprofile` included). Daemons, and the processes of single mirai, are forked from it, which takes
#' milliseconds. They have the session's present environment variables, working directory and library paths. If a
#' variable has changed meanwhile that is read just once, such as `OMP_NUM_THREADS`, or with
#' `options(mirai.fork_server = FALSE)`, a process is started by `Rscript`, as on other systems.
#'
#' `with(daemons(...), expr)` sets daemons, makes their profile current, evaluates `expr`, and ends the daemons.
#'
#' Local daemons end when this session ends, even if it crashes.
#' @seealso [mirai()], [mirai_map()] to use daemons; [status()] and [info()]; [everywhere()] to prepare daemons;
#'   [launch_remote()] and [remote_config()] for other machines; [with_daemons()]; `vignette("mirai", "mirai")`.
#' @examples
#' daemons(2)
#' status()
#' m <- mirai(Sys.getpid())
#' m[] != Sys.getpid()
#' daemons(0)
#'
#' # A second compute profile, with its own daemons
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
  call <- sys.call()
  if (missing(n) && is.null(url) && !sync) {
    check_alone(names(match.call()), call)
    return(status(profile))
  }
  n <- if (!missing(n)) n
  check_daemons(n, url, remote, seed, memory, serial, call)
  dispatcher <- as_dispatcher(dispatcher, call)
  tls <- either_tls(tls, tlscert, call)
  check_identity(tls, pass, call)
  settings <- daemons_settings(...)
  edition()
  resets <- is.null(url) && !sync && (is.null(n) || n == 0L) && is.null(settings$max)
  if (!resets && !settings$force && daemons_set(profile)) {
    return(new_daemons(the$numbers[[profile]], profile))
  }
  if (!resets && !sync) {
    check_max(settings$max, n, dispatcher && (is.null(url) || launches(remote)), call)
    url <- urls_to_open(url, n, settings$max, dispatcher, call)
  }

  # From here on, the earlier settings are replaced.
  forget_settings(profile)
  find_tracer()
  attributes <- list(n = n, url = url, dispatcher = dispatcher)
  the$daemons_spans[[profile]] <- local_span("daemons", "internal", attributes, NULL)
  if (!is.null(serial) || !is.null(the$serial[[profile]])) {
    the$serial[[profile]] <- serial
    update_hooks()
  }
  if (resets) {
    .Call(rs_close_profile, profile, is.null(n))
    return(new_daemons(0L, profile))
  }
  if (sync) {
    return(set_sync(profile, seed))
  }
  if (is.null(url)) {
    return(set_local(profile, as.integer(n), dispatcher, settings, seed, memory, call))
  }
  url <- open_profile(profile, url, dispatcher, settings, seed, memory, call, tls, pass)
  if (launches(remote)) {
    return(set_remote(profile, url, n, remote, dispatcher, settings, call))
  }
  if (dispatcher) new_daemons(length(url), profile) else new_daemons(max(n, 1L), profile, url)
}

# An error if daemons() was given something that is of no use without daemons to set. `names`: of its arguments.
check_alone <- function(names, call) {
  others <- setdiff(names, c("", "n", "url", "sync", ".compute"))
  if (length(others)) {
    stop_argument("n", paste0("given, or 'url', where there is '", others[[1L]], "'"), call)
  }
}

# An error if an argument of daemons() is not what it may be, whatever the others are.
check_daemons <- function(n, url, remote, seed, memory, serial, call) {
  if (!is.null(n)) {
    check_count(n, "n", call)
  }
  if (!is.null(url)) {
    check_urls(url, call)
  }
  if (!is.null(seed) && !(is_number(seed) && is_count(abs(seed)))) {
    stop_argument("seed", "a single whole number, or NULL", call)
  }
  if (!is.null(memory)) {
    check_positive(memory, "memory", "a single positive number of megabytes", call)
  }
  check_serial(serial, call)
  if (!is.null(remote)) {
    check_remote(remote, call)
    if (is.null(url)) {
      stop_argument("url", "given with 'remote': it is where daemons connect", call)
    }
  }
}

# Forgets what earlier calls for this profile have left to later ones.
forget_settings <- function(profile) {
  for (kept in c("globals", "setup_streams", "launches", "fleets")) {
    the[[kept]][[profile]] <- NULL
  }
}

# daemons(sync = TRUE)
set_sync <- function(profile, seed) {
  .Call(rs_open_sync, profile, as_seed(seed))
  start_setup_streams(profile, seed)
  stream <- .Call(rs_daemon_stream, profile)
  the$globals[[profile]] <- if (!is.null(stream)) list(.Random.seed = stream)
  new_daemons(1L, profile)
}

# daemons(url = , remote = ), where the profile listens at `url` already. Closes it if the launch fails.
set_remote <- function(profile, url, n, remote, dispatcher, settings, call) {
  ready <- FALSE
  on.exit(if (!ready) .Call(rs_close_profile, profile, TRUE))
  if (!is.null(settings$max)) {
    launch_fleet(profile, url, as.integer(n), remote, settings, call)
    ready <- TRUE
    return(new_daemons(n, profile, are_set = TRUE))
  }
  if (!dispatcher && !is.null(n)) {
    url <- rep_len(url, n)
  }
  launched <- launch_remotes(profile, url, remote, settings, NULL, call)
  ready <- TRUE
  new_daemons(launched, profile)
}

# The URLs at which daemons(n, url = , max = most) listens. NULL for local daemons. An error if the arguments do not
# fit.
urls_to_open <- function(url, n, most, dispatcher, call) {
  if (is.null(url)) {
    check_not_in_map(call)
    return(NULL)
  }
  if (!dispatcher && length(url) != 1L) {
    stop_argument("url", "a single URL without dispatcher", call)
  }
  if (is.null(most) && !is.null(n) && n == 0L) {
    stop_argument("n", "one or greater where there is 'url', unless there is 'max'", call)
  }
  if (!dispatcher) {
    return(url)
  }
  if (is.null(most)) extend_urls(url, n, call) else extend_urls(url, most, call, "max")
}

# The URLs for `n` daemons: `url` itself, or a single URL extended to `n`, which is the argument `name`.
extend_urls <- function(url, n, call, name = "n") {
  if (is.null(n) || n == length(url)) {
    return(url)
  }
  if (length(url) > 1L) {
    stop_argument("url", paste0("a single URL, or one for each of '", name, "' daemons"), call)
  }
  with_call(.Call(rs_extend_url, url, as.integer(n)), call)
}

# Notes that `n` daemons are set, and returns the value of daemons().
new_daemons <- function(n, profile, value = n, are_set = n > 0L) {
  the$numbers[[profile]] <- as.integer(n)
  if (edition() == 1L) {
    return(structure(value, class = c("miraiDaemons", profile)))
  }
  invisible(structure(are_set, class = c("miraiDaemons", profile)))
}

as_seed <- function(seed) if (!is.null(seed)) as.integer(seed)

# TRUE or FALSE, for the argument `dispatcher`. Packages written for early releases give "process", "thread" or "none".
as_dispatcher <- function(x, call) {
  if (is_flag(x)) {
    return(x)
  }
  if (!is.character(x) || length(x) != 1L || !x %in% c("process", "thread", "none")) {
    stop_argument("dispatcher", "TRUE or FALSE", call)
  }
  x != "none"
}

# Checks the option `max`: daemons are added where the host can launch some, and for the queue of the dispatcher.
check_max <- function(max, n, possible, call) {
  if (is.null(max)) {
    return()
  }
  if (!possible) {
    stop_argument("max", "left out without dispatcher, and with 'url' unless 'remote' launches daemons", call)
  }
  if (is.null(n)) {
    stop_argument("n", "the number of daemons to begin with, where there is 'max'", call)
  }
  if (max < n) stop_argument("max", "'n' or greater", call)
}

# Starts local daemons: all of them, or an error and none. With `own_urls` each has a URL of its own. Up to `max` are in
# reserve.
set_local <- function(profile, n, dispatcher, settings, seed, memory, call, own_urls = dispatcher && edition() == 1L) {
  most <- max(n, as.integer(settings$max))
  urls <- replicate(if (own_urls) most else 1L, local_url())
  urls <- open_profile(profile, urls, dispatcher, settings, seed, memory, call)
  ready <- FALSE
  on.exit(if (!ready) .Call(rs_close_profile, profile, TRUE))
  urls <- rep_len(urls, most)
  base <- if (most > n) settings_to_stay(settings) else settings
  for (url in urls[seq_len(n)]) {
    launch_daemon(profile, url, base, call, awaited = TRUE)
  }
  ready <- wait_connected(profile, n, call)
  for (url in urls[seq_along(urls) > n]) {
    launch_daemon(profile, url, settings_in_reserve(settings), call, in_reserve = TRUE)
  }
  new_daemons(n, profile, are_set = TRUE)
}

open_profile <- function(profile, urls, dispatcher, settings, seed, memory, call, tls = NULL, pass = NULL) {
  memory <- as_limit(memory)
  urls <- with_call(
    {
      if (settings$token) {
        urls <- .Call(rs_with_tokens, urls)
      }
      retry <- retry_rules(settings$retry)
      .Call(rs_allow_spinning, may_spin())
      .Call(rs_open_profile, profile, urls, !dispatcher, retry, memory, as_seed(seed), patience(), tls, pass)
    },
    call
  )
  the$settings[[profile]] <- settings
  start_setup_streams(profile, seed)
  tell_edition()
  urls
}

# The keep-alive time in milliseconds: a peer across the network that is silent for this long is given up.
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

# Whether this session and its daemons look again for a moment before they sleep.
may_spin <- function() {
  given <- getOption("mirai.spin", TRUE)
  if (!is_flag(given)) {
    stop_error("option 'mirai.spin' must be TRUE or FALSE", class = "mirai_error_argument")
  }
  given
}

as_limit <- function(x) if (!is.null(x) && is.finite(x)) as.double(x)

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

# Evaluates `expr`. Its errors become mirai_errors whose call is that of the function that the user called.
with_call <- function(expr, call) {
  tryCatch(expr, error = function(e) {
    if (!inherits(e, "mirai_error")) {
      stop_error(conditionMessage(e), call)
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
#' The *current* compute profile is the one that `.compute = NULL` stands for. `with_daemons()` changes it while an
#' expression is evaluated, `local_daemons()` until the calling function returns.
#'
#' @param .compute name of a compute profile that has been set by [daemons()], or the value of that call.
#' @param expr an expression.
#' @param frame the environment of a function: the profile is current until that function returns.
#' @returns `with_daemons()`: the value of `expr`. `local_daemons()`: the name of the profile that was current before,
#'   invisibly.
#' @seealso [daemons()] to set a profile; [mirai()] and its argument `.compute`.
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
  x <- profile_of(x)
  check_string(x, ".compute", call)
  if (!daemons_set(x)) {
    stop_error(paste0("no daemons set for profile '", x, "'"), call, "mirai_error_no_daemons")
  }
  x
}

#' Are daemons set?
#'
#' `daemons_set()` asks. `require_daemons()` is an error if no daemons are set: for functions that need them.
#'
#' @inheritParams status
#' @param call the call to show in the error.
#' @returns `daemons_set()`: `TRUE` or `FALSE`. `require_daemons()`: `TRUE`, invisibly, or an error of class
#'   `"mirai_error_no_daemons"`.
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
