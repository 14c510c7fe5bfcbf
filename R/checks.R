# Argument checks. Each raises an error that names the argument and what it must be. `call` is the call of the
# function that the user called: the error shows it.

stop_argument <- function(name, expected, call) {
  stop_error(paste0("'", name, "' must be ", expected), call, "mirai_error_argument")
}

check_string <- function(x, name, call = sys.call(-1L)) {
  if (missing(x) || !is.character(x) || length(x) != 1L || is.na(x) || !nzchar(x)) {
    stop_argument(name, "a single non-empty character string", call)
  }
}

check_flag <- function(x, name, call = sys.call(-1L)) {
  if (!is.logical(x) || length(x) != 1L || is.na(x)) stop_argument(name, "TRUE or FALSE", call)
}

is_number <- function(x) is.numeric(x) && length(x) == 1L && !is.na(x)

is_count <- function(x) is_number(x) && x >= 0 && x == trunc(x) && x <= .Machine$integer.max

is_positive_count <- function(x) is_count(x) && x > 0

check_count <- function(x, name, call = sys.call(-1L)) {
  if (!is_count(x)) stop_argument(name, "a single whole number, zero or greater", call)
}

check_positive <- function(x, name, what = "a single positive number", call = sys.call(-1L)) {
  if (!is_number(x) || x <= 0) stop_argument(name, what, call)
}

check_profile <- function(x, call = sys.call(-1L)) {
  if (is.null(x)) {
    return(.Call(rs_current_profile))
  }
  x <- profile_of(x)
  check_string(x, ".compute", call)
  x
}

# The name of the compute profile of a cluster, or of a value of daemons(). Anything else as it is.
profile_of <- function(x) {
  if (inherits(x, "miraiCluster")) {
    cluster_profile(x)
  } else if (inherits(x, "miraiDaemons")) {
    class(x)[[2L]]
  } else {
    x
  }
}

# An error on a daemon that evaluates an element of a map: each element could start daemons.
check_not_in_map <- function(call) {
  if (.Call(rs_daemon_state) == 2L) {
    stop_error("local daemons cannot be set on a daemon from within mirai_map()", call)
  }
}

check_urls <- function(x, call = sys.call(-1L)) {
  if (!is.character(x) || !length(x) || anyNA(x) || !all(nzchar(x))) {
    stop_argument("url", "a character vector of one or more URLs", call)
  }
  with_call(.Call(rs_check_urls, x), call)
}

# For the host's side of TLS: its certificate and key. check_tls() is for the daemon's side.
check_identity <- function(tls, pass, call) {
  if (!is.null(tls) && !(is.character(tls) && length(tls) %in% 1:2 && !anyNA(tls) && all(nzchar(tls)))) {
    stop_argument("tls", "the name of a file, or a character vector of a certificate chain and a key", call)
  }
  if (!is.null(pass)) check_string(pass, "pass", call)
}

# `tls`, or `tlscert`, an older name for it. An error if both are given.
either_tls <- function(tls, tlscert, call) {
  if (is.null(tlscert)) {
    return(tls)
  }
  if (!is.null(tls)) {
    stop_argument("tlscert", "left out where there is 'tls', which is the same", call)
  }
  tlscert
}

# Checks the `...` of mirai(), everywhere() and mirai_map(): named objects, or a single environment. Returns a named
# list.
named_dots <- function(dots, call = sys.call(-1L)) {
  if (length(dots) == 1L && is.null(names(dots)) && is.environment(dots[[1L]])) {
    return(environment_objects(dots[[1L]]))
  }
  if (!all_named(dots)) {
    stop_argument("...", "named arguments, or a single environment", call)
  }
  dots
}

# Checks the `.args` of mirai() and everywhere(): a named list, or an environment. Returns a named list.
named_args <- function(args, call = sys.call(-1L)) {
  if (is.environment(args)) {
    return(environment_objects(args))
  }
  # A pairlist is a list to R, but not to the glue.
  if (!is.vector(args, "list")) {
    args <- as.list(args)
  }
  if (!all_named(args)) {
    stop_argument(".args", "a named list, or an environment", call)
  }
  args
}

all_named <- function(x) {
  if (!length(x)) {
    return(TRUE)
  }
  nms <- names(x)
  !is.null(nms) && !anyNA(nms) && all(nzchar(nms))
}

# The objects of an environment as a list, except two: `.Random.seed` is the random number state of this process, and
# `...` is not an object.
environment_objects <- function(env) {
  objects <- as.list.environment(env, all.names = TRUE)
  objects[setdiff(names(objects), c(".Random.seed", "..."))]
}

is_positive <- function(x) is_number(x) && x > 0

is_flag <- function(x) is.logical(x) && length(x) == 1L && !is.na(x)

is_autoexit <- function(x) length(x) == 1L && (is.logical(x) || is_count(x) && x > 0)

is_cleanup <- function(x) {
  is.logical(x) && length(x) == 1L && !is.na(x) || is_count(x) && x <= 15
}

is_output <- function(x) is_flag(x) || identical(x, "task")

is_retry <- function(x) is_flag(x) || inherits(x, "miraiRetry")

is_respawn <- function(x) is_flag(x) || identical(x, "always")
