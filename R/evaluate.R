# Evaluates a task in this process, for `sync = TRUE`.
evaluate <- function(.expr., .envir.) handling(eval(.expr., .envir.))

# Evaluates the tasks of a daemon: called from daemon/evaluate.rs, where the loop is, which sets
# `.expr.` and `.envir.` and then evaluates the same call as above. Returns when there are no more
# tasks, or with the error value of one.
serve <- function(session, .expr., .envir.) handling(.Call(rs_serve_tasks, session, environment()))

# An error or interrupt that a task does not handle itself becomes the value. The
# handlers are calling ones, established at less than half the price of tryCatch() and
# run with the stack still there to be recorded. `leave`, like every default, is a promise:
# to return from this very frame, so forcing it ends the evaluation.
handling <- function(expr, outcome = NULL, leave = return(outcome)) {
  depth <- sys.nframe()
  withCallingHandlers(
    expr,
    error = function(cnd) {
      calls <- sys.calls()
      outcome <<- new_mirai_error(cnd, task_calls(calls, depth, sys.nframe()))
      leave
    },
    interrupt = function(cnd) {
      outcome <<- new_mirai_interrupt()
      leave
    },
    warning = note_condition,
    message = note_condition
  )
}

# How an error names its call when that is the task's own expression.
evaluator_call <- quote(eval(.expr., .envir.))

# Takes our own frames off the calls on the stack: up to handling() at `depth` and the
# three that follow (withCallingHandlers, and eval twice); at the other end the handler
# at `last`, and what R calls it through for an error of its own.
task_calls <- function(calls, depth, last) {
  last <- last - 1L
  if (last > 0L && identical(calls[[last]][[1L]], quote(.handleSimpleError))) {
    last <- last - 1L
  }
  first <- depth + 4L
  if (last < first) list() else as.list(calls[first:last])
}

# What geterrmessage() gives afterwards is known to r/versions.rs, which calls this where R 4.5 has
# no other way to empty the text of its last error.
forget_error <- function() try(stop("none", call. = FALSE), silent = TRUE)

# For daemons, called from cleanup.rs when something has changed. Packages are detached
# but stay loaded.
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
  # By force, because a package that needs this one may be about to go as well.
  step <- quote(detach(pos = at, character.only = TRUE, force = TRUE))
  why <- failure(eval(step))
  if (is.null(why)) {
    return()
  }
  # A hook that a task has set may be what fails.
  setHook(packageEvent(sub("^package:", "", name), "detach"), list(), "replace")
  warn_of_cleanup(name, failure(eval(step)))
}

# Returns whether there are added options that stay: a package sets its own when it is loaded, once in a process, and
# would be broken without them for the next task, which finds it loaded. `namespaces` were loaded before.
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

# By the convention of `datatable.verbose` and package data.table.
is_package_option <- function(name, packages) {
  plain <- function(x) tolower(gsub("[^[:alnum:]]", "", x))
  any(startsWith(plain(name), plain(packages)))
}

# Tries one step of many. What there is to say if it fails; otherwise NULL.
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

# On this daemon's stderr, once for each thing; not if there is nothing to say.
warn_of_cleanup <- function(what, why) {
  if (is.null(why) || what %in% the$not_cleaned) {
    return()
  }
  the$not_cleaned <- c(the$not_cleaned, what)
  cat("mirai: the clean-up after a task could not restore ", what, ": ", why, "\n", sep = "", file = stderr())
}
