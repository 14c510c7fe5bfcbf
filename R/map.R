#' Map a function in parallel
#'
#' Applies a function to each element of a vector or list, or to each row of a matrix or data frame. Each element is a
#' task for a daemon. Returns at once; `[]` collects the values.
#'
#' @param .x a vector or list. Or a matrix or data frame: then `.f` is called for each row, with the values of the
#'   columns as arguments, by name if the columns have names. An element that is a mirai stands for its value, so `.x`
#'   may be another map: each element runs once the element that it needs has resolved.
#' @param .f a function.
#' @param ... named objects that `.f` uses but does not define, or a single environment of such objects. They are
#'   assigned to the daemons' global environments.
#' @param .args a list of further arguments for `.f`, the same for all elements. Here and in `...`, a mirai, or a list
#'   of mirai, stands for its value: see section *Pipelines* of [mirai()].
#' @param .promise a function, or a list of one or two functions. The first is called with the value when an element
#'   resolves, the second with the condition if it fails: as `onFulfilled` and `onRejected` of [promises::then()]. See
#'   [as.promise()][as.promise.mirai].
#' @param .timeout milliseconds for each element, after which it resolves to error value 5 (timed out). They count from
#'   its submission, as for [mirai()], so the time in the queue is part of them. `NULL` for no limit.
#' @param .checkpoint the name of a file that keeps the results. The same call with the same file takes those that are
#'   there, also in a later session. See section *Checkpoint*.
#' @inheritParams mirai
#'
#' @returns A list of mirai of class `"mirai_map"`, invisibly. Its names are those of `.x`: the row names, for a matrix
#'   or data frame. It prints how many have resolved.
#'
#' @section Collecting: `x[]` waits for all elements and returns a list of their values. If an element failed, an error
#'   value is in its place: see [is_error_value()]. Options go into the brackets, separated by commas or within `c()`:
#'
#' * `x[.flat]` returns a vector instead of a list, as [unlist()] makes it: factors stay factors, and of others such as
#'   dates the numbers remain. It is an error if the values have different types.
#' * `x[.progress]` shows progress: a bar if package cli is installed, otherwise a line on stderr. The display changes
#'   when elements resolve, at most ten times a second. If stderr is not a terminal, a new line is written after each
#'   tenth of the elements. `x[.progress = "Fitting"]` adds a label. A list has arguments of
#'   [cli::cli_progress_bar()]: `x[.progress = list(name = "Fitting", type = "iterator")]`.
#' * `x[.progress_cli]` is the same, but an error if cli is not installed.
#' * `x[.stop]` stops at the first failure: it cancels the other elements and raises an error.
#' * `x[.done]` does not wait: it returns the values of the elements that have resolved, and `NULL` in place of the
#'   others. `x[.done, .flat]` leaves the others out.
#'
#' These names work without the package attached. [collect_mirai()] takes the options as strings, or as a named list.
#'
#' With numbers, logical values or names in the brackets, `x[1:3]` is the map of these elements. So are `head(x)` and
#' the like.
#'
#' The errors of `.stop` and `.flat` have class `"mirai_error_map"`. The message names the element, `In index: 2. With
#' name: b.`, and on the next line the reason, `Caused by error in f(): bad`. `$location` is the index, `$name` the name
#' (`NULL` if there is none), and `$parent` the original condition with its own class and fields.
#'
#' @section Checkpoint: With `.checkpoint = "file"`, each result is written to a file when it arrives, also while R is
#' busy, and is on disk within a second. If the session ends, by a crash, `kill -9` or a loss of power, call
#' [mirai_map()] again with the same file. What is there is not evaluated again: these elements have resolved at once,
#' and their values are read from the file when they are asked for. The other elements run, and so do those that have
#' failed, because error values are not stored. What the file has depends on the elements, not on their order: elements
#' can be added.
#'
#' A result counts for an element if `.f`, `.args`, `...` and the element are the same. They are compared by a hash.
#' Source references, comments and byte code do not matter. If there are equal elements, each has its own result. With
#' `daemons(seed = )`, a result also depends on the random number stream of the element, that is on the seed and on the
#' number of tasks before it.
#'
#' * A function stands for its arguments, its body and its environment. The global environment and packages are
#'   compared by name: what `.f` uses from there and may change belongs into `...`. A function that was made in another
#'   function has the variables there as its environment, and runs again if one of them changes. So does a function
#'   from a package of another version.
#' * Mirai among the elements and arguments count by their values, for which the call waits.
#' * An external pointer, such as that of a connection, cannot be compared: an error names the argument. Objects with
#'   hooks (see [serialization()]) are compared by what the hooks make of them.
#' * Only one session at a time can write to a file. Another one gets an error. Maps of the same session may share a
#'   file.
#' * The file grows. To begin anew, delete it. Damage at its end, as after a loss of power, loses the last results
#'   only.
#' * If the file cannot be written any more, as on a full disk, results arrive all the same. The checkpoint stops, and
#'   a warning says so when the map is collected or printed.
#'
#' @details
#' There is no chunking: a daemon takes the next element when it has finished one, so uneven work is spread evenly.
#' `.f`, `.args` and `...` are sent to each daemon once.
#'
#' If no daemons are set, one is launched, with a warning. In [edition 2][mirai-edition], that is an error.
#' @seealso [mirai()], [daemons()]; [collect_mirai()] and [collection-options]; [mirai-errors].
#' @examples
#' with(daemons(2), {
#'   mirai_map(c(a = 1, b = 4, c = 9), sqrt)[]
#' })
#'
#' daemons(1)
#' mirai_map(1:3, rnorm, .args = list(mean = 20, sd = 2))[]
#' mirai_map(data.frame(x = 1:3, y = 4:6), function(x, y) x * y)[.flat]
#'
#' # Objects that the function uses go into `...`
#' offset <- 100
#' mirai_map(1:3, function(x) x + offset, offset = offset)[.flat]
#'
#' # A map of the results of a map, which waits for nothing in between
#' squares <- mirai_map(1:3, function(x) x^2)
#' mirai_map(squares, sqrt)[.flat]
#'
#' # An element that fails is an error value
#' mirai_map(list(a = 1, b = "a"), log)[]
#'
#' # The second call has nothing to evaluate
#' file <- tempfile()
#' mirai_map(1:3, sqrt, .checkpoint = file)[.flat]
#' mirai_map(1:3, sqrt, .checkpoint = file)[.flat]
#' daemons(0)
#' @export
mirai_map <- function(
  .x,
  .f,
  ...,
  .args = list(),
  .promise = NULL,
  .compute = NULL,
  .retry = NULL,
  .priority = 0,
  .timeout = NULL,
  .on_report = NULL,
  .checkpoint = NULL
) {
  call <- sys.call()
  profile <- check_profile(.compute)
  if (!is.function(.f)) {
    stop_argument(".f", "a function", call)
  }
  if (!is.list(.args)) {
    stop_argument(".args", "a list", call)
  }
  handlers <- if (!is.null(.promise)) check_handlers(.promise, call)
  if (!is.null(.on_report)) {
    .on_report <- report_handler(.on_report, call)
  }
  dots <- if (...length()) list(...)
  globals <- if (length(dots)) named_dots(dots, call)
  elements <- map_elements(.x, call)
  rules <- task_rules(.retry, .priority, call)
  if (!is.null(.timeout)) {
    check_positive(.timeout, ".timeout", call = call)
  }
  expr <- map_call(elements$arguments, .args)
  checkpoint <- NULL
  if (!is.null(.checkpoint)) {
    check_string(.checkpoint, ".checkpoint", call)
    # A result depends on the values.
    lapply(list(if (!is.null(names(dots))) globals, .args, elements$x), read_arguments)
    common <- list(.f = .f, .args = .args, ... = globals, .x = expr)
    checkpoint <- .Call(rs_open_checkpoint, path.expand(.checkpoint), common, elements$x)
    on.exit(.Call(rs_close_checkpoint, checkpoint))
  }
  if (!daemons_set(profile)) {
    if (edition() == 2L) {
      stop_no_daemons(profile, call)
    }
    warning("launching one local daemon as none previously set")
    with_call(daemons(1L, dispatcher = FALSE, .compute = profile), call)
  }
  args <- list(.f = .f, .args = .args)
  sent <- expr
  if (!is.null(the$tracer)) {
    local_span("mirai_map", "producer", list(mirai.elements = length(elements$x)), profile)
    sent <- with_context(expr)
  }
  ms <- .Call(
    rs_submit_map,
    sent,
    globals,
    args,
    elements$x,
    elements$names,
    .timeout,
    profile,
    rules,
    checkpoint,
    names(dots)
  )
  if (is.logical(ms)) {
    ms <- map_sync(expr, awaited(globals, !is.null(names(dots))), .f, awaited(.args), elements$x, profile)
  }
  names(ms) <- elements$names
  map <- new_mirai_map(ms)
  attr(map, "checkpoint") <- checkpoint
  if (!is.null(handlers)) {
    promise_each(map, handlers)
  }
  if (!is.null(.on_report)) {
    on_reports(map, .on_report)
  }
  invisible(map)
}

# The mirai of a map, for `sync = TRUE`.
map_sync <- function(expr, globals, f, args, elements, profile) {
  lapply(elements, function(x) {
    x <- if (is_mirai(x)) awaited(list(x)) else list(x)
    failed <- Find(is_error_value, list(args, x))
    args <- if (is.null(failed)) list(.f = f, .args = args, .x = x[[1L]]) else failed
    evaluate_sync(expr, globals, args, profile)
  })
}

new_mirai_map <- function(x) structure(x, class = "mirai_map")

# The elements as a list `x`, their names, and `arguments`: the expressions for the arguments of `.f`, in terms of `.x`,
# which is one element.
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
  # As lapply() does it: as.list() has methods for factors and dates.
  x <- as.list(x)
  list(x = x, names = names(x), arguments = list(quote(.x)))
}

# The call that a daemon evaluates, for example `.f(.x, mean = .args[[1L]])`.
map_call <- function(arguments, constants) {
  more <- lapply(seq_along(constants), function(i) call("[[", quote(.args), i))
  names(more) <- names(constants)
  as.call(c(list(quote(.f)), arguments, more))
}

# Warns, once for a map, if its results are no longer stored. `wait`: after those that are there have been written.
tell_checkpoint <- function(checkpoint, wait) {
  failure <- if (!is.null(checkpoint)) .Call(rs_checkpoint_failure, checkpoint, wait)
  if (!is.null(failure)) {
    warning("the checkpoint has stopped, later results are not in the file: ", failure, call. = FALSE)
  }
}

#' @export
print.mirai_map <- function(x, ...) {
  n <- length(x)
  failed <- .Call(rs_failures, unclass(x))
  failed <- if (failed > 0L) paste0(", ", failed, " failed")
  cat(paste0("< mirai map [", n - .Call(rs_pending, unclass(x)), "/", n, failed, "] >\n"))
  tell_checkpoint(attr(x, "checkpoint"), FALSE)
  invisible(x)
}
