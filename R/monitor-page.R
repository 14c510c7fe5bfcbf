require_shiny <- function(call) {
  if (!requireNamespace("shiny", quietly = TRUE)) {
    stop_error("'where = \"browser\"' needs package shiny, which is not installed", call)
  }
}
