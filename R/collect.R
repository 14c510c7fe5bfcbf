#' Wait for mirai and collect their values
#'
#' Waits until a mirai, or each of a list of mirai, has resolved, and returns the values.
#'
#' @param x a mirai, or a list of mirai (such as a mirai map).
#' @param options collection options: a character vector of any of `".done"`, `".flat"`, `".progress"`,
#'   `".progress_cli"`, `".relay"` and `".stop"`; or a named list, such as
#'   `list(.stop = TRUE, .progress = "Fitting")`. See [collection-options] for what they do.
#' @returns For a mirai, its value. For a list, a list of the values, with the names of `x`.
#' @seealso [call_mirai()] to wait without collecting; [mirai_map()]; [collection-options].
#' @examples
#' collect_mirai(mirai(1 + 1))
#' collect_mirai(list(a = mirai("a"), b = mirai("b")))
#' @export
collect_mirai <- function(x, options = NULL) {
  check_waitable(x)
  if (is.environment(x)) {
    return(collect_one(x, options, sys.call()))
  }
  collect_list(x, options)
}

#' @export
`[.mirai_map` <- function(x, ...) {
  given <- collection_arguments(substitute(list(...)), parent.frame())
  if (!length(given) && ...length() == 1L && !missing(..1) && is.character(..1)) {
    # No names choose no elements.
    given <- list(character())
  }
  if (is_index(given, names(x))) {
    return(subset_map(x, unlist(given), sys.call()))
  }
  collect_list(x, given, sys.call())
}

# Whether what is in the brackets of a map chooses elements: numbers, logical values, or names that are no options.
# Other strings that begin with a dot are misspelt options.
is_index <- function(given, names) {
  if (!length(given) || !is.null(names(given))) {
    return(FALSE)
  }
  is_name <- function(i) i %in% names & !i %in% collection_options | !startsWith(i, ".")
  all(vapply(given, function(i) is.numeric(i) || is.logical(i), NA)) ||
    all(vapply(given, function(i) is.character(i) && all(is_name(i)), NA))
}

# The map of some elements.
subset_map <- function(x, index, call) {
  x <- unclass(x)
  at <- structure(seq_along(x), names = names(x))[index]
  if (anyNA(at)) {
    stop_argument("x", paste0("indexed by numbers from 1 to ", length(x), ", logical values or names"), call)
  }
  new_mirai_map(x[at])
}

#' Collection options: .stop, .flat, .done, .progress, .relay
#'
#' Options for the brackets of a mirai map: `x[.flat]` returns a vector, `x[.progress]` shows progress, `x[.stop]`
#' stops at the first failure, and `x[.done]` does not wait. [mirai_map()] describes them.
#'
#' @details `.relay` signals the warnings and messages of the evaluations again: see [mirai_conditions()].
#'
#' Three of them also work in the brackets of a single mirai: `m[.relay]`, `m[.done]`, which is `NULL` while `m` is
#' unresolved, and `m[.stop]`, which raises the error if the value is an error value. The others have no effect there.
#' @format Each is a character string: its own name.
#' @seealso [mirai_map()], [collect_mirai()].
#' @name collection-options
#' @aliases .done .flat .progress .progress_cli .relay .stop
#' @examples
#' with(daemons(2), mirai_map(1:4, sqrt)[.flat, .progress])
NULL

#' @rdname collection-options
#' @export
.done <- ".done"

#' @rdname collection-options
#' @export
.flat <- ".flat"

#' @rdname collection-options
#' @export
.progress <- ".progress"

#' @rdname collection-options
#' @export
.progress_cli <- ".progress_cli"

#' @rdname collection-options
#' @export
.stop <- ".stop"

collection_options <- c(".done", ".flat", ".progress", ".progress_cli", ".relay", ".stop")

# The arguments in the brackets, or in c() within them, as a list of strings and named values. The symbols `.flat`,
# `.stop` and so on are not evaluated, so they work without the package attached. Everything else is evaluated.
collection_arguments <- function(call, envir) {
  args <- as.list(call)[-1L]
  named <- if (is.null(names(args))) logical(length(args)) else nzchar(names(args))
  out <- lapply(seq_along(args), function(i) {
    if (named[[i]]) {
      structure(list(eval(args[[i]], envir)), names = names(args)[[i]])
    } else {
      collection_argument(args[[i]], envir)
    }
  })
  unlist(out, recursive = FALSE)
}

collection_argument <- function(expr, envir) {
  if (identical(expr, quote(expr = ))) {
    return(NULL)
  }
  if (is.symbol(expr) && as.character(expr) %in% collection_options) {
    return(list(as.character(expr)))
  }
  if (is.call(expr) && identical(expr[[1L]], quote(c))) {
    return(collection_arguments(expr, envir))
  }
  value <- eval(expr, envir)
  if (is.character(value) || is.list(value)) {
    as.list(value)
  } else if (!is.null(value)) {
    list(value)
  }
}

# The collection options as a named list. Values are TRUE, or what configures the progress bar. Options that are FALSE
# are left out.
check_options <- function(options, call) {
  unknown <- function() stop_argument("options", paste("any of", toString(dQuote(collection_options, FALSE))), call)
  if (!is.null(options) && !is.character(options) && !is.list(options)) {
    unknown()
  }
  options <- as.list(options)
  names <- names(options)
  if (is.null(names)) {
    names <- character(length(options))
  }
  out <- list()
  for (i in seq_along(options)) {
    value <- options[[i]]
    name <- names[[i]]
    if (!nzchar(name)) {
      if (!is.character(value)) {
        unknown()
      }
      name <- value
      value <- TRUE
    }
    if (!all(name %in% collection_options)) {
      unknown()
    }
    if (!is_flag(value)) {
      check_progress(name, value, call)
    }
    for (one in name) {
      out[[one]] <- value
    }
  }
  out[!vapply(out, isFALSE, NA)]
}

check_progress <- function(name, value, call) {
  if (name %in% c(".done", ".flat", ".relay", ".stop")) {
    stop_argument(name, "TRUE or FALSE", call)
  }
  label <- is.character(value) && length(value) == 1L && !is.na(value)
  if (!label && !(is.list(value) && all_named(value))) {
    stop_argument(name, "TRUE, FALSE, a label, or a list of arguments for cli::cli_progress_bar()", call)
  }
}

# Waits for a mirai and returns its value, as `options` ask. Those for several values have no effect.
collect_one <- function(x, options = NULL, call = NULL) {
  if (is.null(options)) {
    value <- .Call(rs_collect, x)
    # Looked for first: most mirai have no notes, and this takes less time than an option.
    if (!is.null(.subset2(x, ".notes")) && relays()) {
      relay(x)
    }
    return(value)
  }
  options <- check_options(options, call)
  if (!is.null(options$.done) && .Call(rs_pending, x)) {
    return(NULL)
  }
  value <- .Call(rs_collect, x)
  if (!is.null(options$.relay) || relays()) {
    relay(x)
  }
  if (!is.null(options$.stop) && is_error_value(value)) {
    stop(value_condition(value, call))
  }
  value
}

# Waits for a list of mirai and returns their values, as `options` ask.
collect_list <- function(x, options, call = sys.call(-1L)) {
  options <- check_options(options, call)
  x <- unclass(x)
  checkpoint <- attr(x, "checkpoint")
  attr(x, "checkpoint") <- NULL
  stop_early <- !is.null(options$.stop)
  done <- if (!is.null(options$.done)) .Call(rs_done, x)
  if (!is.null(done)) {
    # Nothing to wait for.
  } else if (any(c(".progress", ".progress_cli") %in% names(options))) {
    wait_with_progress(x, stop_early, progress_bar(length(x), options, call))
  } else {
    .Call(rs_wait_some, x, stop_early)
  }
  if (!is.null(options$.relay) || relays()) {
    relay(if (is.null(done)) x else x[done])
  }
  if (stop_early && (i <- .Call(rs_first_failure, x)) > 0L) {
    .Call(rs_cancel, x)
    stop(map_error(x, i, value_condition(.Call(rs_collect, x[[i]])), call))
  }
  if (is.null(done)) {
    values <- .Call(rs_collect_list, x)
  } else {
    values <- structure(vector("list", length(x)), names = names(x))
    values[done] <- .Call(rs_collect_list, x[done])
  }
  tell_checkpoint(checkpoint, TRUE)
  if (is.null(options$.flat)) values else flatten(values, call, done)
}

wait_with_progress <- function(x, stop_early, bar) {
  # First, so that an interrupt while cli is loaded leaves no bar to end.
  force(bar)
  on.exit(bar$done())
  .Call(rs_wait_showing, x, stop_early, bar$set, bar$step)
}

# A progress bar for `n` mirai: `set(i)` shows that `i` have resolved. It is called when `step` more have resolved than
# at the last call. `done()` ends the bar.
progress_bar <- function(n, options, call) {
  # A label, or a list of arguments for cli::cli_progress_bar().
  settings <- Find(Negate(is.logical), options[grepl("progress", names(options))])
  if (is.character(settings)) {
    settings <- list(name = settings, type = "iterator")
  }
  if (progress_uses_cli()) {
    fixed <- list(total = n, .auto_close = FALSE)
    arguments <- utils::modifyList(utils::modifyList(list(type = "tasks"), as.list(settings)), fixed)
    # purrr users pass `show_after` and `caller`, which cli knows in C but not in cli_progress_bar().
    after <- arguments$show_after
    if (!is.null(after)) {
      old <- options(cli.progress_show_after = after)
      on.exit(options(old))
    }
    id <- do.call(cli::cli_progress_bar, arguments[setdiff(names(arguments), c("show_after", "caller"))])
    return(list(
      set = function(i) cli::cli_progress_update(set = i, id = id),
      done = function() cli::cli_progress_done(id = id),
      step = 1
    ))
  }
  if (!is.null(options$.progress_cli)) {
    stop_error("'.progress_cli' needs package cli, which is not installed", call)
  }
  label <- if (!is.null(settings$name)) paste0(settings$name, " ")
  line <- function(i) paste0(label, paste("[", i, "/", n, "....", "]"))
  if (progress_redraws()) {
    return(list(
      set = function(i) cat("\r", line(i), sep = "", file = stderr()),
      done = function() cat("\n", file = stderr()),
      step = 1
    ))
  }
  # stderr is a log file: about ten lines in all.
  list(set = function(i) cat(line(i), "\n", sep = "", file = stderr()), done = function() NULL, step = ceiling(n / 10))
}

progress_uses_cli <- function() requireNamespace("cli", quietly = TRUE)

progress_redraws <- function() isatty(stderr())

# The error for the `i`th element of a map. `parent` is the condition of the element itself. The field `message` says
# only which element it is: rlang reads the field and prints the parent itself. R reads conditionMessage(), whose method
# adds the parent's message.
map_error <- function(x, i, parent, call) {
  name <- names(x)[i]
  if (!is.null(name) && (is.na(name) || !nzchar(name))) {
    name <- NULL
  }
  where <- paste0("In index: ", i, ".", if (!is.null(name)) paste0(" With name: ", name, "."))
  fields <- list(message = where, call = call, location = i, name = name, parent = parent)
  structure(fields, class = c("mirai_error_map", "mirai_error", "error", "condition"))
}

#' @export
conditionMessage.mirai_error_map <- function(c) {
  call <- tryCatch(conditionCall(c$parent), error = function(e) NULL)
  place <- if (!is.null(call)) paste0(" in ", deparse(call, nlines = 1L)[1L])
  paste0(c$message, "\nCaused by error", place, ": ", condition_text(c$parent))
}

# `done`: which of the values are there; NULL if all are.
flatten <- function(values, call, done = NULL) {
  failed <- which(vapply(values, is_error_value, NA))
  if (length(failed)) {
    stop(map_error(values, failed[[1L]], value_condition(values[[failed[[1L]]]]), call))
  }
  at <- if (is.null(done)) seq_along(values) else which(done)
  # Of a factor among integers, unlist() would take the codes.
  types <- vapply(values[at], function(x) if (is.factor(x)) "factor" else typeof(x), "", USE.NAMES = FALSE)
  odd <- at[types != types[1L]]
  if (length(odd)) {
    text <- paste0("cannot flatten values of different types: ", toString(unique(types)))
    stop(map_error(values, odd[[1L]], simpleError(text), call))
  }
  unlist(values, recursive = FALSE)
}
