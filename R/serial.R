#' Custom serialization
#'
#' R cannot serialize some objects, for example those that contain an external pointer. `serialization()` registers two
#' functions for a class: one turns an object into a raw vector, the other turns the raw vector into an object. They are
#' used for every object of the class that is sent, in both directions, also within lists, attributes and environments.
#' All daemons use them, including those that connect later.
#'
#' @param fns a list of two functions. The first takes an object and returns a raw vector. The second takes the raw
#'   vector and returns the object. `NULL` removes the registration.
#' @param class the class, a character string.
#' @param vec `TRUE` if the functions are vectorized: the first takes a list of objects and returns a single raw vector,
#'   and the second returns a list of objects.
#' @param refhook an older name of `fns`.
#' @returns The registration, invisibly: a list of `fns`, `class` and `vec`. Without arguments, the current
#'   registration, or `NULL`.
#' @details
#' A new registration replaces the one before. To register several classes, use [serial_config()] for a compute profile,
#' or [register_serial()] in a package.
#'
#' If one of the functions fails, or the first does not return a raw vector, the mirai resolves to a `"miraiError"` that
#' says so.
#'
#' The class may be that of reference objects or of vectors and other basic types. There is one exception: within an
#' unevaluated promise, only environments, external pointers and weak references are recognised.
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
#' `serial_config()` makes a value for the argument `serial` of [daemons()]. It applies until these daemons are reset,
#' in all compute profiles. `register_serial()` registers functions for the rest of the session: a package calls it for
#' its classes when it is loaded. See [serialization()] for what the functions do.
#'
#' They apply to reference objects only: environments, external pointers and weak references of the class, and objects
#' of reference classes. A data frame or another vector of the class is sent as usual.
#'
#' If a class is registered more than once, [serialization()] comes first, then a profile, then a package.
#'
#' @param class a character vector of classes.
#' @param sfunc a function that takes an object and returns a raw vector. With several classes, a list of functions.
#' @param ufunc a function that takes the raw vector and returns the object. With several classes, a list of functions.
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

# A hook: the functions for one class. hooks.rs reads the first two fields, by position.
new_hook <- function(class, sfunc, ufunc, vec, references_only) {
  list(class = class, references_only = references_only, sfunc = sfunc, ufunc = ufunc, vec = vec)
}

# Gives the registered hooks to the glue, which sends them to all daemons, along with the edition. If a class has
# several hooks, the first counts: that of serialization(), then of profiles, then of packages.
update_hooks <- function() {
  hooks <- c(the$serialization, unlist(lapply(the$serial, unclass), recursive = FALSE), the$registered)
  classes <- vapply(hooks, `[[`, "", "class")
  registry <- as.list(unname(hooks[!duplicated(classes)]))
  .Call(rs_set_hooks, structure(registry, edition = the$told_edition))
}

# Turns objects into raw vectors. hooks.rs calls this with a list for each hook: the objects of its class. Returns a
# list for each hook: the class, and the list of raw vectors.
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

# Turns the lists that write_hooked() returned into lists of objects.
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
