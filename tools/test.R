# Runs the R tests against the installed package: Rscript tools/test.R COUNTS [filter].
# Failures are printed in full. Writes "passed failed skipped", counted in test_that() blocks, to the file COUNTS; writes
# nothing if R does not get that far.
args <- commandArgs(TRUE)
library(testthat)

results <- as.data.frame(test_dir(
  "tests/testthat",
  filter = if (length(args) > 1L) args[2L],
  package = "mirai",
  load_package = "installed",
  reporter = SummaryReporter$new(show_praise = FALSE, max_reports = Inf),
  stop_on_failure = FALSE
))

failed <- results$failed > 0 | results$error
skipped <- results$skipped & !failed
writeLines(paste(sum(!failed & !skipped), sum(failed), sum(skipped)), args[1L])
