# The index of the web site names every help page and every vignette once. pkgdown stops if one is missing; this test
# finds it earlier.

site <- function() {
  path <- test_path("..", "..", "_pkgdown.yml")
  if (!file.exists(path)) {
    skip("_pkgdown.yml is not here")
  }
  skip_if_not_installed("yaml")
  yaml::read_yaml(path)
}

contents <- function(sections) unlist(lapply(sections, `[[`, "contents"))

test_that("the reference has every help page", {
  pages <- sub("\\.Rd$", "", list.files(test_path("..", "..", "man"), "\\.Rd$"))
  expect_identical(sort(contents(site()$reference)), sort(pages))
})

test_that("every vignette is among the articles", {
  vignettes <- sub("\\.Rmd$", "", list.files(test_path("..", "..", "vignettes"), "\\.Rmd$"))
  # that of the package's name is "Get started"
  expect_identical(sort(c("mirai", contents(site()$articles))), sort(vignettes))
})
