# Before testthat loads processx, whose handler of SIGCHLD would keep parallel from hearing that its children have
# ended: at the end of the session, parallel would complain that it cannot terminate them.
Sys.setenv(PROCESSX_NOTIFY_OLD_SIGCHLD = "true")

library(testthat)
library(mirai)

# R CMD check runs these: they take a few minutes and use this machine only. tools/test of the package's repository runs
# all: also networks, SSH, Slurm, browsers, large memory, crashes and other packages.
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
