# Runs the event loop until a promise has settled. Returns list(fulfilled = <value>) or list(rejected = <condition>).
settled <- function(promise, loop = later::current_loop()) {
  out <- NULL
  promises::then(
    promise,
    function(value) out <<- list(fulfilled = value),
    function(cnd) out <<- list(rejected = cnd)
  )
  run_until(function() !is.null(out), loop)
  out
}

run_until <- function(condition, loop = later::current_loop(), seconds = 120) {
  deadline <- Sys.time() + seconds
  while (!condition()) {
    left <- as.double(deadline - Sys.time(), units = "secs")
    if (left <= 0) {
      stop("the event loop ran for ", seconds, " s in vain")
    }
    later::run_now(left, loop = loop)
  }
}
