#' Map asynchronously
#'
#' Applies a function to each element of a vector or list, or to each row of a matrix or data frame,
#' one task for each, evaluated by daemons. Returns at once.
#'
#' @param .x a vector or list; or a matrix or data frame, over whose rows to map: `.f` is then given
#'   the columns' values as arguments, by name if the columns have names.
#' @param .f a function.
#' @param ... named objects that `.f` refers to but that are not defined in it; or a single environment
#'   of such objects. They are assigned to the daemons' global environments.
#' @param .args a list of further arguments for `.f`, the same for all elements.
#' @param .promise a function, or a list of one or two functions, to be called with the value when an
#'   element resolves, and with the condition if it fails: as `onFulfilled` and `onRejected` of
#'   [promises::then()]. See [as.promise()][as.promise.mirai].
#' @inheritParams mirai
#'
#' @returns A list of mirai of class `"mirai_map"`, with the names of `.x` (row names, for a matrix or data
#'   frame), invisibly. It prints how many have resolved.
#'
#' @section Collecting:
#' `x[]` waits for all elements and returns a list of their values. An element that failed is an error
#' value (see [is_error_value()]) in its place. Options go into the brackets, several separated by commas
#' or within `c()`:
#'
#' * `x[.flat]` returns a vector rather than a list. It is an error if the values are not all of one type.
#' * `x[.progress]` shows how far it has come: a bar if package cli is installed (`x[.progress_cli]`
#'   insists on that), otherwise a line on stderr. Both change when elements resolve, at most ten times a
#'   second. If stderr is not a terminal, a new line is written instead, each time a further tenth of the
#'   elements has resolved.
#' * `x[.stop]` stops at the first failure: the rest is cancelled, and the failure becomes an error here.
#'
#' They need no package attached. [collect_mirai()] takes them as strings.
#'
#' @details
#' There is no chunking: a daemon that is done takes the next element, so uneven work is spread evenly.
#' What all elements share (`.f`, `.args` and `...`) is sent to each daemon once.
#'
#' If no daemons are set, one is launched, with a warning.
#' @examples
#' with(daemons(2), {
#'   mirai_map(c(a = 1, b = 4, c = 9), sqrt)[]
#' })
#'
#' daemons(1)
#' mirai_map(1:3, rnorm, .args = list(mean = 20, sd = 2))[]
#' mirai_map(data.frame(x = 1:3, y = 4:6), function(x, y) x * y)[.flat]
#'
#' # What the function refers to goes into `...`
#' offset <- 100
#' mirai_map(1:3, function(x) x + offset, offset = offset)[.flat]
#'
#' # Failures stay in place
#' mirai_map(list(a = 1, b = "a"), log)[]
#' daemons(0)
#' @export
mirai_map <- function(.x, .f, ..., .args = list(), .promise = NULL, .compute = NULL) {
  call <- sys.call()
  profile <- check_profile(.compute)
  if (!is.function(.f)) stop_argument(".f", "a function", call)
  if (!is.list(.args)) stop_argument(".args", "a list", call)
  handlers <- if (!is.null(.promise)) check_handlers(.promise, call)
  globals <- if (...length()) named_dots(list(...), call)
  elements <- map_elements(.x, call)
  if (!daemons_set(profile)) {
    warning("launching one local daemon as none previously set")
    daemons(1L, dispatcher = FALSE, .compute = profile)
  }
  expr <- map_call(elements$arguments, .args)
  args <- list(.f = .f, .args = .args)
  ms <- .Call(rs_submit_map, expr, globals, args, elements$x, profile)
  if (is.logical(ms)) {
    ms <- lapply(elements$x, function(x) {
      evaluate_sync(expr, globals, c(args, list(.x = x)), profile)
    })
  }
  names(ms) <- elements$names
  map <- new_mirai_map(ms)
  if (!is.null(handlers)) promise_each(map, handlers)
  invisible(map)
}

new_mirai_map <- function(x) structure(x, class = "mirai_map")

# Elements as a list `x`, their names, and the calls by which `.f` gets at each in turn.
map_elements <- function(x, call) {
  if (length(dim(x)) == 2L) {
    rows <- lapply(seq_len(nrow(x)), if (is.data.frame(x)) {
      function(i) lapply(x, function(column) if (length(dim(column)) == 2L) column[i, ] else column[[i]])
    } else {
      function(i) as.list(x[i, ])
    })
    arguments <- lapply(seq_len(ncol(x)), function(j) call("[[", quote(.x), j))
    names(arguments) <- colnames(x)
    named <- if (is.data.frame(x)) .row_names_info(x) > 0L else !is.null(rownames(x))
    return(list(x = rows, names = if (named) rownames(x), arguments = arguments))
  }
  if (!is.vector(x) && !is.list(x) && !is.atomic(x) && !is.null(x) && !is.object(x)) {
    stop_argument(".x", "a vector, list, matrix or data frame", call)
  }
  # By lapply's rules: as.list() knows what the elements of a factor or a date are.
  x <- as.list(x)
  list(x = x, names = names(x), arguments = list(quote(.x)))
}

# The call that a daemon evaluates: `.f(.x, mean = .args[["mean"]])`.
map_call <- function(arguments, constants) {
  more <- lapply(seq_along(constants), function(i) call("[[", quote(.args), i))
  names(more) <- names(constants)
  as.call(c(list(quote(.f)), arguments, more))
}

#' @export
print.mirai_map <- function(x, ...) {
  n <- length(x)
  cat(paste0("< mirai map [", n - .Call(rs_pending, unclass(x)), "/", n, "] >\n"))
  invisible(x)
}

#' @export
`[.mirai_map` <- function(x, ...) {
  options <- unlist(lapply(as.list(substitute(list(...)))[-1L], collection_option, parent.frame()))
  collect_list(x, options, sys.call())
}

#' Collection options
#'
#' For use within the brackets of a mirai map: see [mirai_map()].
#'
#' @format Character strings, each of its own name.
#' @name collection-options
#' @aliases .flat .progress .progress_cli .stop
#' @examples
#' with(daemons(2), mirai_map(1:4, sqrt)[.flat, .progress])
NULL

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

collection_options <- c(".flat", ".progress", ".progress_cli", ".stop")

# An argument within the brackets, quoted, as strings. The options' own names need no
# package attached; anything else is evaluated.
collection_option <- function(expr, envir) {
  if (identical(expr, quote(expr = ))) return(NULL)
  if (is.symbol(expr) && as.character(expr) %in% collection_options) return(as.character(expr))
  if (is.call(expr) && identical(expr[[1L]], quote(c))) {
    return(unlist(lapply(as.list(expr)[-1L], collection_option, envir)))
  }
  eval(expr, envir)
}

# Waits for a list of mirai and returns their values, as `options` say.
collect_list <- function(x, options, call = sys.call(-1L)) {
  if (!is.null(options) && !(is.character(options) && all(options %in% collection_options))) {
    stop_argument("options", paste("any of", toString(dQuote(collection_options, FALSE))), call)
  }
  x <- unclass(x)
  stop_early <- ".stop" %in% options
  if (any(c(".progress", ".progress_cli") %in% options)) {
    wait_with_progress(x, stop_early, progress_bar(length(x), ".progress_cli" %in% options, call))
  } else {
    .Call(rs_wait_some, x, stop_early)
  }
  if (stop_early && (i <- .Call(rs_first_failure, x)) > 0L) {
    .Call(rs_cancel, x)
    stop_for_value(x[[i]]$data, call)
  }
  values <- .Call(rs_collect_list, x)
  if (".flat" %in% options) flatten(values, call) else values
}

wait_with_progress <- function(x, stop_early, bar) {
  on.exit(bar$done())
  .Call(rs_wait_showing, x, stop_early, bar$set, bar$step)
}

# `set` is called with the number that have resolved: when `step` more have than at its last call.
progress_bar <- function(n, insist_on_cli, call) {
  if (progress_uses_cli()) {
    id <- cli::cli_progress_bar(type = "tasks", total = n, .auto_close = FALSE)
    return(list(
      set = function(i) cli::cli_progress_update(set = i, id = id),
      done = function() cli::cli_progress_done(id = id),
      step = 1
    ))
  }
  if (insist_on_cli) stop(simpleError("'.progress_cli' needs package cli, which is not installed", call))
  line <- function(i) paste("[", i, "/", n, "....", "]")
  if (progress_redraws()) {
    return(list(
      set = function(i) cat("\r", line(i), sep = "", file = stderr()),
      done = function() cat("\n", file = stderr()),
      step = 1
    ))
  }
  # A log keeps every line: no more than ten of them, and the last.
  list(set = function(i) cat(line(i), "\n", sep = "", file = stderr()), done = function() NULL, step = ceiling(n / 10))
}

progress_uses_cli <- function() requireNamespace("cli", quietly = TRUE)

progress_redraws <- function() isatty(stderr())

# Raises an error value as the error that it was.
stop_for_value <- function(value, call) {
  stop(value_condition(value, call))
}

value_condition <- function(value, call = NULL) {
  if (is_mirai_error(value)) {
    fields <- attributes(value)
    class <- fields$condition.class
    fields <- fields[setdiff(names(fields), c("class", "condition.class", "stack.trace"))]
    return(structure(c(fields, list(stack.trace = attr(value, "stack.trace"))), class = class))
  }
  text <- if (is_mirai_interrupt(value)) "the evaluation was interrupted" else error_text(value)
  simpleError(text, call)
}

flatten <- function(values, call) {
  failed <- which(vapply(values, is_error_value, NA))
  if (length(failed)) {
    stop(simpleError(paste0("cannot flatten: the value of element ", failed[1L], " is an error value"), call))
  }
  types <- unique(vapply(values, typeof, ""))
  if (length(types) > 1L) {
    text <- paste0("cannot flatten values of different types: ", paste(types, collapse = ", "))
    stop(simpleError(text, call))
  }
  unlist(values, recursive = FALSE)
}
