# Arguments that are mirai, or lists of mirai, stand for their values. For tasks of daemons, the glue sees to that: see
# submit/arguments.rs. This is for what waits in no queue: everywhere(), and profiles with `sync = TRUE`.

# Waits for the mirai among `objects`, a list, and returns it with their values in their places. If one has failed,
# returns its error value instead. Does nothing unless they were `given` one by one: objects of an environment stand for
# themselves.
awaited <- function(objects, given = TRUE) {
  for (i in if (given) seq_along(objects)) {
    x <- objects[[i]]
    if (is_mirai(x)) {
      values <- list(.Call(rs_collect, x))
      objects[i] <- values
    } else if (is_mirai_list(x)) {
      values <- .Call(rs_collect_list, unclass(x))
      objects[[i]] <- values
    } else {
      next
    }
    failed <- Find(is_error_value, values)
    if (!is.null(failed)) {
      return(failed)
    }
  }
  objects
}

# Waits for the mirai among `objects`, and reads their values.
read_arguments <- function(objects) {
  for (x in objects) {
    if (is_mirai(x)) {
      .Call(rs_collect, x)
    } else if (is_mirai_list(x)) {
      .Call(rs_collect_list, unclass(x))
    }
  }
}

# As the glue has it: a list all of whose elements are mirai.
is_mirai_list <- function(x) is.list(x) && length(x) && all(are_mirai(x))

# The value of a task of which an argument has come to `cause`, an error value. If that has failed for the same reason,
# it is the same value, so that `$parent` is the first that failed. Called from failures.rs, too.
argument_error <- function(cause) {
  if ("mirai_error_pipeline" %in% attr(cause, "condition.class", exact = TRUE)) {
    return(cause)
  }
  message <- paste0("an argument could not be computed: ", condition_text(value_condition(cause)))
  new_mirai_error(errorCondition(message, class = c("mirai_error_pipeline", "mirai_error"), parent = cause), list())
}
