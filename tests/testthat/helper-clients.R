# Scripts that use other packages. Each runs in an R session of its own, where every warning is an error.

# Skips the test unless a package is installed in this version or later.
skip_unless_version <- function(package, version) {
  if (!requireNamespace(package, quietly = TRUE)) {
    skip(paste(package, "is not installed"))
  }
  has <- utils::packageVersion(package)
  if (has < version) skip(paste0(package, " ", has, " is too old: ", version, " is needed"))
}

# Runs the expressions in braces at the top level of a new session. Returns its output, stderr included. `...` are
# objects that the script uses. A script that does not reach its end fails the test.
run_client <- function(script, ..., library = character(), frame = parent.frame()) {
  skip_if_not_installed("callr")
  objects <- list(...)
  code <- c(
    "options(warn = 2, width = 100)",
    if (length(library)) paste0(".libPaths(c(", deparse1(library), ", .libPaths()))"),
    if (length(objects)) paste(names(objects), "<-", vapply(objects, deparse1, "")),
    "suppressPackageStartupMessages(library(mirai))",
    vapply(as.list(substitute(script))[-1L], function(expr) paste(deparse(expr), collapse = "\n"), ""),
    "invisible(daemons(0))",
    "cat('the end\\n')"
  )
  out <- local({
    p <- r_process(code, frame)
    p$wait(120000)
    p$read_all_output_lines()
  })
  expect_identical(utils::tail(out, 1L), "the end", info = paste(out, collapse = "\n"))
  utils::head(out, -1L)
}

# Installs a package from the sources in `shared/clients` beside the checkout, into a library that is deleted with the
# test. Returns that library.
local_client_library <- function(package, frame = parent.frame()) {
  source <- test_path("..", "..", "..", "shared", "clients", paste0(package, ".tar.gz"))
  if (!file.exists(source)) {
    skip(paste("the source of", package, "is not beside the checkout"))
  }
  sources <- local_file("sources", frame = frame)
  utils::untar(source, exdir = sources)
  install_locally(file.path(sources, package), frame)
}

# The same for a package that consists of the expressions in `code`.
local_package_library <- function(package, code, namespace, frame = parent.frame()) {
  sources <- file.path(local_file("sources", frame = frame), package)
  dir.create(file.path(sources, "R"), recursive = TRUE)
  writeLines(
    c(
      paste("Package:", package),
      "Title: T",
      "Version: 99.0",
      "Description: D.",
      "License: MIT",
      "Author: A",
      "Maintainer: A <a@a>"
    ),
    file.path(sources, "DESCRIPTION")
  )
  writeLines(namespace, file.path(sources, "NAMESPACE"))
  writeLines(vapply(as.list(code)[-1L], deparse1, "", collapse = "\n"), file.path(sources, "R", "code.R"))
  install_locally(sources, frame)
}

install_locally <- function(sources, frame) {
  skip_if_not_installed("callr")
  library <- local_file("library", frame = frame)
  dir.create(library)
  out <- callr::rcmd("INSTALL", c("--no-docs", "--no-lock", paste0("--library=", library), sources))
  if (out$status != 0L) {
    stop(out$stdout, out$stderr)
  }
  library
}
