# Writes the table of speed in README.md, between its marks, from vignettes/performance.json:
#   Rscript tools/readme.R            writes it
#   source("tools/readme.R")          only defines speed_table(), for tests/testthat/test-readme.R
speed_table <- function(json) {
  rows <- jsonlite::fromJSON(json)$rows
  shown <- c(
    "roundtrip" = "one task, there and back",
    "map-2" = "10,000 tiny tasks, 2 processes",
    "constant" = "200 tasks that share 10 MB, 2 processes",
    "vector-in" = "100 MB sent and summed up",
    "vector-both" = "100 MB sent, changed and returned",
    "oneoff" = "one task in a fresh process",
    "ready-first" = "4 processes started",
    "queue-time" = "100,000 tasks queued",
    "queue-memory" = "memory that these take"
  )
  text <- function(x, unit, bold = FALSE) {
    if (!length(x) || is.na(x)) return("")
    if (unit == "tasks/s") {
      x <- 1e4 / x * 1e3
      unit <- "ms"
    }
    scale <- switch(unit, us = 1e-6, ms = 1e-3, s = 1, NA)
    if (!is.na(scale)) {
      seconds <- x * scale
      unit <- if (seconds < 1e-3) "µs" else if (seconds < 1) "ms" else "s"
      x <- seconds / c(µs = 1e-6, ms = 1e-3, s = 1)[[unit]]
    }
    out <- paste0(format(signif(x, if (x < 100) 2 else 3), big.mark = ",", scientific = FALSE), " ", unit)
    if (bold) paste0("**", out, "**") else out
  }
  # the best of what a package offers for this work
  best <- function(name, pattern) {
    found <- rows[rows$name == name & grepl(pattern, rows$contender), ]
    more <- found$more[1L]
    if (nrow(found)) (if (more) max else min)(found$value)
  }
  lines <- vapply(names(shown), function(name) {
    ours <- rows[rows$name == name & rows$contender == "mirai", ]
    cells <- c(
      shown[[name]], text(ours$value, ours$unit, bold = TRUE), text(ours$cran, ours$unit),
      text(best(name, "^parL|^parallel clusterCall|makeCluster"), ours$unit), text(best(name, "^future"), ours$unit)
    )
    paste0("| ", paste(cells, collapse = " | "), " |")
  }, "", USE.NAMES = FALSE)
  c("| | this package | mirai 2.7 of CRAN | cluster of parallel | future |", "| --- | ---: | ---: | ---: | ---: |", lines)
}

speed_marks <- c("<!-- speed: made by tools/readme.R -->", "<!-- speed: end -->")

if (sys.nframe() == 0L) {
  readme <- readLines("README.md", encoding = "UTF-8")
  at <- match(speed_marks, readme)
  stopifnot(!anyNA(at))
  lines <- c(readme[seq_len(at[1L])], "", speed_table("vignettes/performance.json"), "", readme[at[2L]:length(readme)])
  writeLines(enc2utf8(lines), "README.md", useBytes = TRUE)
}
