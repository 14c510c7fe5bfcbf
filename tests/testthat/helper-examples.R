# Evaluates code as at the prompt, with source references. Returns the lines that it prints.
printed <- function(code, env) {
  capture.output(
    for (expr in parse(text = code, keep.source = TRUE)) {
      value <- withVisible(eval(expr, env))
      if (value$visible) print(value$value)
    }
  )
}

session <- function(frame = parent.frame()) {
  defer(function() daemons(0), frame)
  new.env(parent = globalenv())
}
