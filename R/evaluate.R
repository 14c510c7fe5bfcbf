# Evaluates the expression of one task, for `sync = TRUE`.
evaluate <- function(.expr., .envir.) {
  note <- noting_here()
  handling(eval(.expr., .envir.), warning = note, message = note)
}

# Evaluates the tasks of a daemon. The daemon's loop in the glue calls this. rs_serve_tasks takes one task after
# another: it sets `.expr.`, `.envir.` and `.when.`, and evaluates the same call as evaluate(). Returns when there are
# no more tasks, or with the error value of a task.
serve <- function(session, .expr., .envir., .when.) {
  handling(.Call(rs_serve_tasks, session, environment()), .when.)
}

# Evaluates `expr`. An error or interrupt that it does not handle becomes the value. Calling handlers cost less than
# half of tryCatch(), and see the stack, which they record. `when` is a promise of the function of retry_config(), or
# NULL. `leave` is a promise to return from this frame: forcing it ends the evaluation.
handling <- function(
  expr,
  when = NULL,
  warning = note_warning,
  message = note_condition,
  outcome = NULL,
  leave = return(outcome)
) {
  depth <- sys.nframe()
  withCallingHandlers(
    expr,
    error = function(cnd) {
      calls <- sys.calls()
      outcome <<- new_mirai_error(cnd, task_calls(calls, depth, sys.nframe()))
      if (!is.null(when)) {
        ask_for_retry(when, cnd)
      }
      leave
    },
    interrupt = function(cnd) {
      outcome <<- new_mirai_interrupt()
      leave
    },
    warning = warning,
    message = message
  )
}

# The call of an error that the task's own expression raised outside of any function.
evaluator_call <- quote(eval(.expr., .envir.))

# The calls of the task itself, out of all calls on the stack. Our own frames are removed. At the outer end: up to
# handling() at `depth`, and three more (withCallingHandlers, and eval twice). At the inner end: the handler at `last`,
# and `.handleSimpleError`, through which R calls it for its own errors.
task_calls <- function(calls, depth, last) {
  last <- last - 1L
  if (last > 0L && identical(calls[[last]][[1L]], quote(.handleSimpleError))) {
    last <- last - 1L
  }
  first <- depth + 4L
  if (!is.null(the$tracer)) {
    # There are more of our frames, and otel's, if the task is traced.
    ours <- which(vapply(calls, identical, NA, evaluator_call))
    first <- ours[ours > depth][2L] + 1L
  }
  if (last < first) list() else as.list(calls[first:last])
}

# Replaces the text of R's last error, which geterrmessage() returns. r/versions.rs calls this on R 4.5 and later, which
# have no other way.
forget_error <- function() try(stop("none", call. = FALSE), silent = TRUE)

# Makes the search path that of `known`, the environments that were attached. cleanup.rs calls this if it has changed.
# Returns the environments that are attached now in place of `known`, without those that cannot be attached again.
restore_search <- function(known) {
  detach_others(known)
  at <- 2L
  for (i in seq_along(known)) {
    is_there <- at < length(search()) && identical(as.environment(at), known[[i]])
    if (!is_there && !attach_at(known[[i]], at)) {
      known[i] <- list(NULL)
      next
    }
    known[[i]] <- as.environment(at)
    at <- at + 1L
  }
  Filter(Negate(is.null), known)
}

# Attaches anew what a task has detached. Returns whether it could.
attach_at <- function(env, at) {
  name <- attr(env, "name")
  if (is.null(name)) {
    name <- "(unknown)"
  }
  why <- failure(suppressWarnings(suppressMessages(
    if (startsWith(name, "package:")) {
      attach_package(sub("^package:", "", name), env, at)
    } else {
      do.call("attach", list(env, pos = at, name = name, warn.conflicts = FALSE))
    }
  )))
  warn_of_cleanup(name, why)
  is.null(why)
}

# With the exports that `env` has, where it was attached before.
attach_package <- function(name, env, at) {
  without <- setdiff(getNamespaceExports(name), names(env))
  if (length(without)) {
    attachNamespace(name, pos = at, exclude = without)
  } else {
    attachNamespace(name, pos = at)
  }
}

# Detaches what is not among `known`. Packages stay loaded.
detach_others <- function(known) {
  at <- 2L
  while (at < length(search())) {
    env <- as.environment(at)
    if (!any(vapply(known, identical, NA, env))) {
      detach_at(at)
    }
    if (at < length(search()) && identical(as.environment(at), env)) at <- at + 1L
  }
}

detach_at <- function(at) {
  name <- search()[[at]]
  # `force` is needed if an attached package depends on this one. That package may be detached next.
  step <- quote(detach(pos = at, character.only = TRUE, force = TRUE))
  why <- failure(eval(step))
  if (is.null(why)) {
    return()
  }
  # The failure may come from a hook that a task has set.
  setHook(packageEvent(sub("^package:", "", name), "detach"), list(), "replace")
  warn_of_cleanup(name, failure(eval(step)))
}

# Restores the options. Those that a package has added when it was loaded stay: the package is loaded once in a process,
# and would not work without them for the next task. `namespaces` were loaded before. Returns whether such options
# exist.
reset_options <- function(names, values, namespaces) {
  now <- options()
  reset <- function(name, value) warn_of_cleanup(name, failure(options(structure(list(value), names = name))))
  for (i in seq_along(names)) {
    if (!identical(now[[names[[i]]]], values[[i]])) reset(names[[i]], values[[i]])
  }
  added <- setdiff(names(now), names)
  own <- vapply(added, is_package_option, NA, setdiff(loadedNamespaces(), namespaces))
  for (name in added[!own]) {
    reset(name, NULL)
  }
  any(own)
}

# Whether an option belongs to one of these packages: by convention its name begins with that of the package, as
# `datatable.verbose` of data.table does.
is_package_option <- function(name, packages) {
  plain <- function(x) tolower(gsub("[^[:alnum:]]", "", x))
  any(startsWith(plain(name), plain(packages)))
}

# Evaluates `step`. Returns the error message if it fails, otherwise NULL.
failure <- function(step) {
  withRestarts(
    tryCatch(
      {
        step
        NULL
      },
      error = conditionMessage
    ),
    abort = function() "it was aborted"
  )
}

warn_of_locked_globals <- function() warn_of_cleanup("the global environment", "a task has locked it")

# Reports a failure of the clean-up on this daemon's stderr, once for each `what`. Does nothing if `why` is NULL.
warn_of_cleanup <- function(what, why) {
  if (is.null(why) || what %in% the$not_cleaned) {
    return()
  }
  the$not_cleaned <- c(the$not_cleaned, what)
  cat("mirai: the clean-up after a task could not restore ", what, ": ", why, "\n", sep = "", file = stderr())
}
