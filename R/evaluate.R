# Evaluates a task in this process, for `sync = TRUE`.
evaluate <- function(.expr., .envir.) handling(eval(.expr., .envir.))

# Evaluates the tasks of a daemon: called from daemon.rs, where the loop is, which sets
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
    }
  )
}

# How an error names its call when that is the task's own expression.
evaluator_call <- quote(eval(.expr., .envir.))

# Takes our own frames off the calls on the stack: up to handling() at `depth` and the
# three that follow (withCallingHandlers, and eval twice); at the other end the handler
# at `last`, and what R calls it through for an error of its own.
task_calls <- function(calls, depth, last) {
  last <- last - 1L
  if (last > 0L && identical(calls[[last]][[1L]], quote(.handleSimpleError))) last <- last - 1L
  first <- depth + 4L
  if (last < first) list() else as.list(calls[first:last])
}

# What geterrmessage() gives afterwards is known to r/versions.rs, which calls this where R 4.5 has
# no other way to empty the text of its last error.
forget_error <- function() try(stop("none", call. = FALSE), silent = TRUE)

# For daemons, called from cleanup.rs when something has changed. Packages are detached
# but stay loaded.
detach_others <- function(known) {
  for (name in search()) {
    env <- as.environment(name)
    if (name %in% c(".GlobalEnv", "package:base")) next
    if (!any(vapply(known, identical, NA, env))) detach(name, character.only = TRUE)
  }
}

# Returns whether there are added options that stay: a package sets its own when it is loaded, once in a process, and
# would be broken without them for the next task, which finds it loaded. `namespaces` were loaded before.
reset_options <- function(names, values, namespaces) {
  added <- setdiff(names(options()), names)
  own <- vapply(added, is_package_option, NA, setdiff(loadedNamespaces(), namespaces))
  gone <- added[!own]
  options(structure(values, names = names))
  options(structure(vector("list", length(gone)), names = gone))
  any(own)
}

# By the convention of `datatable.verbose` and package data.table.
is_package_option <- function(name, packages) {
  plain <- function(x) tolower(gsub("[^[:alnum:]]", "", x))
  any(startsWith(plain(name), plain(packages)))
}
