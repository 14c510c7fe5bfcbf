#!/usr/bin/env Rscript
# Changes bytes of real values at random and has R read them, in processes that must not crash.
#   Rscript tools/mutate.R [mutants, 1e6 unless given] [first seed]
# Prints the seed of each ten thousand; one that crashed can be run again alone: ... 1e4 SEED
args <- as.numeric(commandArgs(TRUE))
mutants <- if (length(args)) args[1L] else 1e6
seed <- if (length(args) > 1L) args[2L] else sample.int(1e8, 1L)
file <- sub("--file=", "", grep("--file=", commandArgs(FALSE), value = TRUE)[1L])
helper <- normalizePath(file.path(dirname(file), "..", "tests", "testthat", "helper-hostile.R"))
each <- min(1e4, mutants)
crashed <- 0L
for (i in seq_len(ceiling(mutants / each)) - 1L) {
  code <- sprintf("source('%s'); cat(read_mutants(%d, %d), 'of %d were read')", helper, as.integer(each), as.integer(seed + i), as.integer(each))
  status <- system2(file.path(R.home("bin"), "Rscript"), c("-e", shQuote(code)), stdout = "", stderr = "")
  cat(": seed", seed + i, if (status == 0L) "\n" else "CRASHED\n")
  crashed <- crashed + (status != 0L)
}
cat(mutants, "mutants,", crashed, "crashes\n")
quit(status = min(crashed, 1L))
