#' Map a function in parallel
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
#'   elements has resolved. `x[.progress = "Fitting"]` labels it; a list, such as
#'   `x[.progress = list(name = "Fitting", type = "iterator")]`, has arguments of [cli::cli_progress_bar()].
#' * `x[.stop]` stops at the first failure: the rest is cancelled, and the failure becomes an error here.
#'
#' They need no package attached. [collect_mirai()] takes them as strings, or as a list by name.
#'
#' An error by `.stop` or `.flat` has class `"mirai_error_map"`. Its message says which element it is, and
#' why: `In index: 2. With name: b.` and, on another line, `Caused by error in f(): bad`. The index is in
#' `$location`, the name in `$name` (`NULL` if it has none), and the condition of the element itself, of its
#' own class and with all of its fields, in `$parent`.
#'
#' @details
#' There is no chunking: a daemon that is done takes the next element, so uneven work is spread evenly.
#' What all elements share (`.f`, `.args` and `...`) is sent to each daemon once.
#'
#' If no daemons are set, one is launched, with a warning. In [edition 2][mirai-edition], that is an error.
#' @seealso [mirai()], [daemons()]; [collection-options]; [mirai-errors].
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
    if (edition() == 2L) stop_no_daemons(profile, call)
    warning("launching one local daemon as none previously set")
    daemons(1L, dispatcher = FALSE, .compute = profile)
  }
  expr <- map_call(elements$arguments, .args)
  args <- list(.f = .f, .args = .args)
  ms <- .Call(rs_submit_map, expr, globals, args, elements$x, elements$names, profile)
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
  failed <- .Call(rs_failures, unclass(x))
  failed <- if (failed > 0L) paste0(", ", failed, " failed")
  cat(paste0("< mirai map [", n - .Call(rs_pending, unclass(x)), "/", n, failed, "] >\n"))
  invisible(x)
}

#' @export
`[.mirai_map` <- function(x, ...) {
  collect_list(x, collection_arguments(substitute(list(...)), parent.frame()), sys.call())
}

#' Collection options: .stop, .flat, .progress, .relay
#'
#' For use within the brackets of a mirai map: see [mirai_map()]. `.relay` is for a mirai, too: see [mirai_conditions()].
#'
#' @format Character strings, each of its own name.
#' @seealso [mirai_map()], [collect_mirai()].
#' @name collection-options
#' @aliases .flat .progress .progress_cli .relay .stop
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

collection_options <- c(".flat", ".progress", ".progress_cli", ".relay", ".stop")

# The arguments within the brackets, or within c() there, as a list: of what is given by name, and of
# strings. The options' own names need no package attached; anything else is evaluated.
collection_arguments <- function(call, envir) {
  args <- as.list(call)[-1L]
  named <- if (is.null(names(args))) logical(length(args)) else nzchar(names(args))
  out <- lapply(seq_along(args), function(i) {
    if (named[[i]]) structure(list(eval(args[[i]], envir)), names = names(args)[[i]]) else collection_argument(args[[i]], envir)
  })
  unlist(out, recursive = FALSE)
}

collection_argument <- function(expr, envir) {
  if (identical(expr, quote(expr = ))) return(NULL)
  if (is.symbol(expr) && as.character(expr) %in% collection_options) return(list(as.character(expr)))
  if (is.call(expr) && identical(expr[[1L]], quote(c))) return(collection_arguments(expr, envir))
  value <- eval(expr, envir)
  if (is.character(value) || is.list(value)) as.list(value) else if (!is.null(value)) list(value)
}

# Collection options as a list by their names: TRUE, or what configures the progress. Those that are
# FALSE are left out.
check_options <- function(options, call) {
  unknown <- function() stop_argument("options", paste("any of", toString(dQuote(collection_options, FALSE))), call)
  if (!is.null(options) && !is.character(options) && !is.list(options)) unknown()
  options <- as.list(options)
  names <- names(options)
  if (is.null(names)) names <- character(length(options))
  out <- list()
  for (i in seq_along(options)) {
    value <- options[[i]]
    name <- names[[i]]
    if (!nzchar(name)) {
      if (!is.character(value)) unknown()
      name <- value
      value <- TRUE
    }
    if (!all(name %in% collection_options)) unknown()
    if (!is_flag(value)) check_progress(name, value, call)
    for (one in name) out[[one]] <- value
  }
  out[!vapply(out, isFALSE, NA)]
}

check_progress <- function(name, value, call) {
  if (name %in% c(".flat", ".relay", ".stop")) stop_argument(name, "TRUE or FALSE", call)
  label <- is.character(value) && length(value) == 1L && !is.na(value)
  if (!label && !(is.list(value) && all_named(value))) {
    stop_argument(name, "TRUE, FALSE, a label, or a list of arguments for cli::cli_progress_bar()", call)
  }
}

# Waits for a list of mirai and returns their values, as `options` say.
collect_list <- function(x, options, call = sys.call(-1L)) {
  options <- check_options(options, call)
  x <- unclass(x)
  stop_early <- !is.null(options$.stop)
  if (any(c(".progress", ".progress_cli") %in% names(options))) {
    wait_with_progress(x, stop_early, progress_bar(length(x), options, call))
  } else {
    .Call(rs_wait_some, x, stop_early)
  }
  if (!is.null(options$.relay) || relays()) relay(x)
  if (stop_early && (i <- .Call(rs_first_failure, x)) > 0L) {
    .Call(rs_cancel, x)
    stop(map_error(x, i, value_condition(x[[i]]$data), call))
  }
  values <- .Call(rs_collect_list, x)
  if (is.null(options$.flat)) values else flatten(values, call)
}

wait_with_progress <- function(x, stop_early, bar) {
  on.exit(bar$done())
  .Call(rs_wait_showing, x, stop_early, bar$set, bar$step)
}

# `set` is called with the number that have resolved: when `step` more have than at its last call.
progress_bar <- function(n, options, call) {
  # A label, or arguments for cli.
  settings <- Find(Negate(is.logical), options[grepl("progress", names(options))])
  if (is.character(settings)) settings <- list(name = settings, type = "iterator")
  if (progress_uses_cli()) {
    fixed <- list(total = n, .auto_close = FALSE)
    arguments <- utils::modifyList(utils::modifyList(list(type = "tasks"), as.list(settings)), fixed)
    # purrr's documentation has all that cli takes in C, and purrr adds its caller: the bar in R has no arguments of these names.
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
  if (!is.null(options$.progress_cli)) stop_error("'.progress_cli' needs package cli, which is not installed", call)
  label <- if (!is.null(settings$name)) paste0(settings$name, " ")
  line <- function(i) paste0(label, paste("[", i, "/", n, "....", "]"))
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

# The error of the `i`th element of a map, of which `parent` is the element's own condition. The field `message`
# says where, and the method of conditionMessage() also what: rlang, which prints parents by itself, takes
# the former, and R the latter.
map_error <- function(x, i, parent, call) {
  name <- names(x)[i]
  if (!is.null(name) && (is.na(name) || !nzchar(name))) name <- NULL
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

# The error that an error value was.
value_condition <- function(value, call = NULL) {
  if (is_mirai_error(value)) {
    fields <- attributes(value)
    class <- fields$condition.class
    own <- fields$condition.message
    fields <- fields[setdiff(names(fields), c("class", "condition.class", "condition.message", "stack.trace"))]
    cnd <- structure(c(fields, list(stack.trace = value$stack.trace)), class = class)
    if (is.null(own)) return(cnd)
    # If the class has its method of conditionMessage() here, too, that would add again what it has added.
    bare <- cnd
    bare$message <- own
    return(if (identical(condition_text(bare), own)) cnd else bare)
  }
  text <- if (is_mirai_interrupt(value)) "the evaluation was interrupted" else error_reason(value)
  simpleError(text, call)
}

flatten <- function(values, call) {
  failed <- which(vapply(values, is_error_value, NA))
  if (length(failed)) {
    stop(map_error(values, failed[[1L]], value_condition(values[[failed[[1L]]]]), call))
  }
  types <- vapply(values, typeof, "", USE.NAMES = FALSE)
  odd <- which(types != types[1L])
  if (length(odd)) {
    text <- paste0("cannot flatten values of different types: ", toString(unique(types)))
    stop(map_error(values, odd[[1L]], simpleError(text), call))
  }
  unlist(values, recursive = FALSE)
}
