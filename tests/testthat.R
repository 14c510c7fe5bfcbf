library(testthat)
library(mirai)

# R CMD check runs what takes a few minutes and stays on this machine. The others, of networks, SSH, Slurm, browsers, large
# memory, crashes and other packages, are run by tools/test of the package's repository.
quick <- c(
  "collect",
  "daemon",
  "daemon-options",
  "dispatcher",
  "errors",
  "evaluate",
  "everywhere",
  "examples",
  "launch",
  "map",
  "mirai",
  "next",
  "promises",
  "random",
  "remote",
  "remote-jobs",
  "rscript",
  "serial",
  "serialize",
  "status",
  "sync",
  "urls",
  "wait"
)
test_check("mirai", filter = paste0("^(", paste(quick, collapse = "|"), ")$"))
