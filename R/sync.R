# Evaluates a task in this process, for profiles with `sync = TRUE`. Returns its mirai. The session's objects are taken
# out of the global environment during the evaluation, so that session and task do not see each other's objects. With
# `setup`, for everywhere(), the objects that the evaluation leaves are kept for the profile's next tasks.
evaluate_sync <- function(expr, globals, args, profile, setup = FALSE) {
  # An argument has failed: see awaited().
  for (failed in Filter(is_error_value, list(globals, args))) {
    return(.Call(rs_resolved, argument_error(failed)))
  }
  # If `.Random.seed` were missing, the session would not get its own kind of generator back.
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
  outer <- notes_so_far()
  on.exit(put_notes(outer), add = TRUE)
  begin_notes()
  # An error of a full stack calls no calling handler, and is caught here.
  value <- tryCatch(evaluate(expr, envir), error = function(cnd) new_mirai_error(cnd, list()))
  notes <- if (length(the$noted) || the$noted_dropped > 0L) take_notes("")
  left <- take_globals()
  if (setup) {
    kept <- left
  } else {
    kept[[".Random.seed"]] <- left[[".Random.seed"]]
  }
  the$globals[[profile]] <- kept
  m <- .Call(rs_resolved, value)
  if (!is.null(notes)) {
    # Where notes.rs looks for them.
    assign(".notes", notes, envir = m)
  }
  m
}

# Removes all objects from the global environment and returns them. Active bindings stay there.
take_globals <- function() {
  objects <- as.list.environment(globalenv(), all.names = TRUE)
  active <- vapply(names(objects), bindingIsActive, NA, globalenv())
  objects <- objects[!active]
  rm(list = names(objects), envir = globalenv())
  objects
}

put_globals <- function(objects) list2env(as.list(objects), globalenv())
