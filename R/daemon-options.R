# The options in `...` of daemons(), and of the functions that launch daemons.

# Returns the options in `...`, sorted: `daemon` is a list of arguments for daemon(); the host uses `retry`,
# `respawn`, `max`, `token` and `force`. An option that is unknown or has the wrong type is dropped with a warning. NULL
# stands for the default. Call this from the function that the user called: the warning shows the caller's call.
daemons_settings <- function(..., .call = sys.call(-1L), .formals = names(formals(sys.function(-1L)))) {
  given <- list(...)
  names <- names(given)
  if (is.null(names)) {
    names <- character(length(given))
  }
  kept <- logical(length(given))
  for (i in seq_along(given)) {
    option <- daemon_options[[names[[i]]]]
    if (is.null(option)) {
      warn_option(unknown_option(names[[i]], .formals), .call)
    } else if (!is.null(given[[i]])) {
      kept[[i]] <- option$fits(given[[i]])
      if (!kept[[i]]) warn_option(paste0("'", names[[i]], "' is ignored: it must be ", option$expected), .call)
    }
  }
  given <- given[kept]
  dispatch <- names(given) %in% c("retry", "respawn", "max", "token", "force")
  list(
    daemon = given[!dispatch],
    retry = given$retry,
    respawn = given$respawn,
    # `$` would also find 'maxtasks'.
    max = given[["max"]],
    token = isTRUE(given$token),
    force = !isFALSE(given$force)
  )
}

warn_option <- function(text, call) {
  warning(warningCondition(text, class = "mirai_warning_option", call = call))
}

# The warning for an unknown option. It proposes the known name that is nearest.
unknown_option <- function(name, formals) {
  if (!nzchar(name)) {
    return("an argument without a name is ignored: options of daemons have names")
  }
  known <- setdiff(c(names(daemon_options), formals), "...")
  distance <- utils::adist(name, known, ignore.case = TRUE)[1L, ]
  # "idle" or "idletime_ms" should propose "idletime", although the edit distance is large.
  squeeze <- function(x) tolower(gsub("[._]", "", x))
  given <- squeeze(name)
  is_part <- function(a, b) nchar(a) > 2L && grepl(a, b, fixed = TRUE)
  part <- vapply(squeeze(known), function(x) is_part(x, given) || is_part(given, x), NA)
  distance[part] <- pmin(distance[part], 1)
  nearest <- which.min(distance)
  hint <- if (distance[[nearest]] <= max(1, nchar(name) / 2)) {
    paste0("; did you mean '", known[[nearest]], "'?")
  } else {
    paste0(", which are: ", toString(names(daemon_options)))
  }
  paste0("'", name, "' is ignored: it is none of the options of daemons", hint)
}

# Each option with its check, and the words for what it must be.
daemon_options <- list(
  asyncdial = list(fits = is_flag, expected = "TRUE or FALSE"),
  autoexit = list(fits = is_autoexit, expected = "TRUE, FALSE, NA or a signal number"),
  cleanup = list(fits = is_cleanup, expected = "TRUE, FALSE or a whole number from 0 to 15"),
  output = list(fits = is_output, expected = 'TRUE, FALSE or "task"'),
  maxtasks = list(fits = is_positive, expected = "a single positive number"),
  idletime = list(fits = is_positive, expected = "a single positive number"),
  walltime = list(fits = is_positive, expected = "a single positive number"),
  timerstart = list(fits = is_count, expected = "a single whole number, zero or greater"),
  dispatcher = list(fits = is_flag, expected = "TRUE or FALSE"),
  retry = list(fits = is_retry, expected = "TRUE, FALSE or a value of retry_config()"),
  respawn = list(fits = is_respawn, expected = "TRUE, FALSE or \"always\""),
  max = list(fits = is_positive_count, expected = "a single whole number, one or greater"),
  token = list(fits = is_flag, expected = "TRUE or FALSE"),
  force = list(fits = is_flag, expected = "TRUE or FALSE")
)
