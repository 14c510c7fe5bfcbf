#' Custom serialization
#'
#' Some objects do not survive being sent to another process: those behind an external pointer, for
#' example. `serialization()` registers functions that make raw vectors of objects of a class and objects
#' of the raw vectors. They are used for every object of the class, wherever it is in what is sent: in
#' lists, attributes and environments; both ways; and by all daemons, also those that connect later.
#'
#' @param fns a list of two functions: the first takes an object and returns a raw vector, the second takes
#'   the raw vector and returns the object. `NULL` cancels the registration.
#' @param class the class, as a character string.
#' @param vec whether the functions are vectorized: then the first takes a list of objects and returns a single
#'   raw vector, and the second returns a list of objects.
#' @param refhook an older name of `fns`.
#' @returns The registration, invisibly: a list of `fns`, `class` and `vec`. Without arguments the current one,
#'   or `NULL`.
#' @details
#' A new registration takes the place of the one before. If several classes are needed at a time, see
#' [serial_config()] for compute profiles and [register_serial()] for packages.
#'
#' If one of the functions fails, or the first returns anything else than a raw vector, the mirai resolves to a
#' `"miraiError"` that says so.
#'
#' Objects of basic type with a class attribute can be registered as well as reference objects. There is one
#' exception: within an unevaluated promise, only environments, external pointers and weak references are
#' recognised.
#' @seealso [serial_config()], [register_serial()]; `vignette("serialization", "mirai")`.
#' @examples
#' # A counter whose state would be lost in another process
#' counter <- structure(new.env(), class = "counter")
#' counter$n <- 5L
#' serialization(
#'   list(
#'     function(x) serialize(x$n, NULL),
#'     function(x) structure(list2env(list(n = unserialize(x))), class = "counter")
#'   ),
#'   class = "counter"
#' )
#' m <- mirai(class(counter), counter = counter)
#' m[]
#' serialization(NULL)
#' @export
serialization <- function(fns, class, vec = FALSE, refhook) {
  call <- sys.call()
  if (missing(fns)) {
    if (missing(refhook)) {
      return(as_registration(the$serialization))
    }
    fns <- refhook
  }
  if (is.null(fns)) {
    the$serialization <- NULL
    update_hooks()
    return(invisible(NULL))
  }
  if (!is.list(fns) || length(fns) != 2L || !all(vapply(fns, is.function, NA))) {
    stop_argument("fns", "a list of two functions, or NULL", call)
  }
  if (missing(class)) {
    stop_argument("class", "given, as a character string", call)
  }
  check_string(class, "class", call)
  check_flag(vec, "vec", call)
  the$serialization <- list(new_hook(class, fns[[1L]], fns[[2L]], vec, references_only = FALSE))
  update_hooks()
  invisible(as_registration(the$serialization))
}

as_registration <- function(hooks) {
  if (is.null(hooks)) {
    return(NULL)
  }
  hook <- hooks[[1L]]
  list(fns = list(hook$sfunc, hook$ufunc), class = hook$class, vec = hook$vec)
}

#' Custom serialization for a compute profile, or by a package
#'
#' `serial_config()` makes a value for the `serial` argument of [daemons()], to be in force until these are
#' reset; meanwhile other profiles use it, too. `register_serial()` registers functions for the rest of the
#' session, as a package does for its classes when it is loaded. See [serialization()].
#'
#' They apply to reference objects only: environments, external pointers and weak references of the class, and
#' objects of reference classes. A data frame or another vector that has the class is sent as it is.
#'
#' For a class that is registered more than once, the functions of [serialization()] are used, or else those
#' of a profile, or else those of a package.
#'
#' @param class a character vector of classes.
#' @param sfunc a function, or a list of one for each class, that takes an object and returns a raw vector.
#' @param ufunc a function, or a list of one for each class, that takes the raw vector and returns the object.
#' @returns `serial_config()`: a list. `register_serial()`: `NULL`, invisibly.
#' @seealso [serialization()], [daemons()]; `vignette("serialization", "mirai")`.
#' @examples
#' config <- serial_config(
#'   "counter",
#'   function(x) serialize(x$n, NULL),
#'   function(x) structure(list2env(list(n = unserialize(x))), class = "counter")
#' )
#' daemons(1, serial = config)
#' counter <- structure(list2env(list(n = 5L)), class = "counter")
#' mirai(counter$n, counter = counter)[]
#' daemons(0)
#' @export
serial_config <- function(class, sfunc, ufunc) {
  call <- sys.call()
  if (!is.character(class) || !length(class) || anyNA(class) || !all(nzchar(class))) {
    stop_argument("class", "a character vector of classes", call)
  }
  sfunc <- hook_functions(sfunc, "sfunc", length(class), call)
  ufunc <- hook_functions(ufunc, "ufunc", length(class), call)
  hooks <- lapply(seq_along(class), function(i) {
    new_hook(class[[i]], sfunc[[i]], ufunc[[i]], vec = FALSE, references_only = TRUE)
  })
  structure(hooks, class = "miraiSerial")
}

#' @rdname serial_config
#' @export
register_serial <- function(class, sfunc, ufunc) {
  added <- serial_config(class, sfunc, ufunc)
  kept <- Filter(function(hook) !hook$class %in% class, the$registered)
  the$registered <- c(kept, unclass(added))
  update_hooks()
  invisible(NULL)
}

hook_functions <- function(x, name, n, call) {
  if (is.function(x)) {
    x <- list(x)
  }
  if (!is.list(x) || length(x) != n || !all(vapply(x, is.function, NA))) {
    stop_argument(name, "a function for each class, in a list if there are several", call)
  }
  x
}

check_serial <- function(x, call) {
  if (!is.null(x) && !inherits(x, "miraiSerial")) {
    stop_argument("serial", "a value of serial_config(), or NULL", call)
  }
}

# The first two are read by hooks.rs.
new_hook <- function(class, sfunc, ufunc, vec, references_only) {
  list(class = class, references_only = references_only, sfunc = sfunc, ufunc = ufunc, vec = vec)
}

# Makes what is registered known, here and to all daemons. What was said last for a class
# counts: serialization(), then profiles, then packages. Daemons are told the edition, too.
update_hooks <- function() {
  hooks <- c(the$serialization, unlist(lapply(the$serial, unclass), recursive = FALSE), the$registered)
  classes <- vapply(hooks, `[[`, "", "class")
  registry <- as.list(unname(hooks[!duplicated(classes)]))
  .Call(rs_set_hooks, structure(registry, edition = the$told_edition))
}

# Makes raw vectors of objects: called from hooks.rs with, for each registration, the list of
# objects of its class. Returns, for each, its class and the raw vector or vectors.
write_hooked <- function(objects, registry) {
  lapply(seq_along(objects), function(i) {
    hook <- registry[[i]]
    made <- if (length(objects[[i]])) {
      run_hook(hook, "serialize", {
        if (hook$vec) list(hook$sfunc(objects[[i]])) else lapply(objects[[i]], hook$sfunc)
      })
    }
    if (!all(vapply(made, is.raw, NA))) {
      hook_error(
        hook,
        "serialize",
        paste0("it returned ", class(Find(Negate(is.raw), made))[[1L]], " instead of a raw vector")
      )
    }
    list(hook$class, made)
  })
}

# The other way round.
read_hooked <- function(made, registry) {
  classes <- vapply(registry, `[[`, "", "class")
  lapply(made, function(x) {
    if (!length(x[[2L]])) {
      return(list())
    }
    i <- match(x[[1L]], classes)
    if (is.na(i)) {
      stop_error(paste0("there is no function to unserialize class '", x[[1L]], "' here"))
    }
    hook <- registry[[i]]
    run_hook(hook, "unserialize", {
      if (hook$vec) as.list(hook$ufunc(x[[2L]][[1L]])) else lapply(x[[2L]], hook$ufunc)
    })
  })
}

run_hook <- function(hook, what, expr) {
  tryCatch(expr, error = function(e) hook_error(hook, what, conditionMessage(e)))
}

hook_error <- function(hook, what, why) {
  stop_error(paste0("the function to ", what, " class '", hook$class, "' failed: ", why))
}
