# Packages must not use R's internal entry points: R CMD check warns, and a later R may lack them. Package tools lists
# them, for the R that the package was built with.

# The names that the installed shared library imports.
imported <- function() {
  dll <- getLoadedDLLs()[["mirai"]][["path"]]
  out <- system2("nm", c("-D", "-u", shQuote(dll)), stdout = TRUE)
  names <- sub("^ *[Uwv] +([^@ ]+).*$", "\\1", out)
  # macOS puts an underscore in front, and reads -D as something else
  if (Sys.info()[["sysname"]] == "Darwin") {
    names <- sub("^_", "", names)
  }
  names
}

test_that("the shared library uses R's public API only", {
  skip_on_os("windows")
  # It comes with the compiler; on CI its absence is a failure.
  if (!isTRUE(as.logical(Sys.getenv("CI")))) {
    skip_if(!nzchar(Sys.which("nm")), "nm")
  }
  names <- imported()
  # so that it is known to have looked
  expect_true(all(c("Rf_protect", "R_MakeExternalPtr") %in% names))
  forbidden <- getNamespace("tools")[["nonAPI"]]
  expect_gt(length(forbidden), 50L)
  expect_identical(intersect(names, forbidden), character())
})
