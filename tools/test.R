# Runs the R tests against the installed package: Rscript tools/test.R COUNTS ABSENT [filter].
# Failures are printed in full. Writes "passed failed skipped", counted in test_that() blocks, to the file COUNTS; writes
# nothing if R does not get that far. ABSENT names the R packages, separated by spaces, that cannot be had here.
args <- commandArgs(TRUE)
library(testthat)

results <- test_dir(
  "tests/testthat",
  filter = if (length(args) > 2L) args[3L],
  package = "mirai",
  load_package = "installed",
  reporter = SummaryReporter$new(show_praise = FALSE, max_reports = Inf),
  stop_on_failure = FALSE
)

# Skipped for want of what this version of R or this release of Debian does not have: named here, and not counted.
absent <- strsplit(args[2L], " ", fixed = TRUE)[[1L]]
impossible <- paste(
  c(
    sprintf("^\\W*%s\\W* (is not installed|cannot be loaded)", absent),
    "^Installed \\S+ is version .* is required",
    "^\\S+ [0-9.-]+ is too old",
    "^R [0-9.]+ is too old"
  ),
  collapse = "|"
)
reason <- vapply(results, function(result) {
  skips <- Filter(function(x) inherits(x, c("skip", "expectation_skip")), result$results)
  if (length(skips)) sub("^Reason: ", "", conditionMessage(skips[[1L]])) else NA_character_
}, "")
not_here <- grepl(impossible, reason)
if (any(not_here)) {
  cat("\nNot for ", R.version.string, ":\n", sep = "")
  name <- vapply(results, function(result) paste(c(result$file, result$test), collapse = ": "), "")
  cat(sprintf("  %s (%s)\n", name, reason)[not_here], sep = "")
}

table <- as.data.frame(results)
failed <- table$failed > 0 | table$error
skipped <- table$skipped & !failed
counts <- c(sum(!failed & !skipped), sum(failed), sum(skipped & !not_here))
writeLines(paste(counts, collapse = " "), args[1L])
