# Packages must not use R's internal entry points: R CMD check warns, and a later R may lack them. Package tools lists
# them, for the R that the package was built with.

# The names that the installed shared library imports.
imported <- function() {
  dll <- getLoadedDLLs()[["mirai"]][["path"]]
  out <- system2("nm", c("-D", "-u", shQuote(dll)), stdout = TRUE)
  names <- sub("^ *[Uwv] +([^@ ]+).*$", "\\1", out)
  # macOS adds an underscore, and its nm has another meaning of -D
  if (Sys.info()[["sysname"]] == "Darwin") {
    names <- sub("^_", "", names)
  }
  names
}

test_that("the shared library uses R's public API only", {
  skip_on_os("windows")
  # nm comes with the compiler. On CI it must be there.
  if (!isTRUE(as.logical(Sys.getenv("CI")))) {
    skip_if(!nzchar(Sys.which("nm")), "nm")
  }
  names <- imported()
  # nm must find the API functions, which shows that it worked
  expect_true(all(c("Rf_protect", "R_MakeExternalPtr") %in% names))
  forbidden <- getNamespace("tools")[["nonAPI"]]
  expect_gt(length(forbidden), 50L)
  expect_identical(intersect(names, forbidden), character())
})
