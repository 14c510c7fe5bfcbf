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
  if (!is.function(.f)) {
    stop_argument(".f", "a function", call)
  }
  if (!is.list(.args)) {
    stop_argument(".args", "a list", call)
  }
  handlers <- if (!is.null(.promise)) check_handlers(.promise, call)
  globals <- if (...length()) named_dots(list(...), call)
  elements <- map_elements(.x, call)
  if (!daemons_set(profile)) {
    if (edition() == 2L) {
      stop_no_daemons(profile, call)
    }
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
  if (!is.null(handlers)) {
    promise_each(map, handlers)
  }
  invisible(map)
}

new_mirai_map <- function(x) structure(x, class = "mirai_map")

# Elements as a list `x`, their names, and the calls by which `.f` gets at each in turn.
map_elements <- function(x, call) {
  if (length(dim(x)) == 2L) {
    rows <- lapply(
      seq_len(nrow(x)),
      if (is.data.frame(x)) {
        function(i) lapply(x, function(column) if (length(dim(column)) == 2L) column[i, ] else column[[i]])
      } else {
        function(i) as.list(x[i, ])
      }
    )
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
