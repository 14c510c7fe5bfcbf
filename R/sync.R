# Evaluates a task in this process, for profiles with `sync = TRUE`, and returns its mirai.
# The global environment is emptied for that long, and is given back what it had, so neither
# sees anything of the other. What everywhere() leaves behind (`setup`) is kept for the
# profile's next tasks.
evaluate_sync <- function(expr, globals, args, profile, setup = FALSE) {
  # Without a seed, the session would not return to its own kind of generator.
  if (is.null(globalenv()[[".Random.seed"]])) {
    set.seed(NULL)
  }
  session <- take_globals()
  on.exit({
    take_globals()
    put_globals(session)
  })
  kept <- the$globals[[profile]]
  put_globals(kept)
  put_globals(globals)
  stream <- if (!setup) .Call(rs_task_stream, profile)
  if (!is.null(stream)) {
    put_globals(list(.Random.seed = stream))
  }
  envir <- list2env(as.list(args), parent = globalenv())
  # Those of a full stack are shown to no calling handler.
  value <- tryCatch(evaluate(expr, envir), error = function(cnd) new_mirai_error(cnd, list()))
  left <- take_globals()
  if (setup) {
    kept <- left
  } else {
    kept[[".Random.seed"]] <- left[[".Random.seed"]]
  }
  the$globals[[profile]] <- kept
  .Call(rs_resolved, value)
}

# Active bindings stay where they are.
take_globals <- function() {
  objects <- as.list.environment(globalenv(), all.names = TRUE)
  active <- vapply(names(objects), bindingIsActive, NA, globalenv())
  objects <- objects[!active]
  rm(list = names(objects), envir = globalenv())
  objects
}

put_globals <- function(objects) list2env(as.list(objects), globalenv())
