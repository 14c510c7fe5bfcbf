# The README shows real output and real figures.
readme <- function() {
  path <- test_path("..", "..", "README.md")
  if (!file.exists(path)) {
    skip("README.md is not here")
  }
  readLines(path, encoding = "UTF-8")
}

test_that("its first example prints what it shows", {
  lines <- readme()
  from <- match("```r", lines)
  block <- lines[(from + 1L):(from + match("```", lines[-seq_len(from)]) - 1L)]
  shown <- startsWith(block, "#> ")
  expect_identical(printed(block[!shown], session()), sub("^#> ", "", block[shown]))
})

test_that("its figures of speed are those of the vignette", {
  tool <- test_path("..", "..", "tools", "readme.R")
  if (!file.exists(tool)) {
    skip("tools/readme.R is not here")
  }
  skip_if_not_installed("jsonlite")
  env <- new.env()
  source(tool, local = env, encoding = "UTF-8")
  lines <- readme()
  at <- match(env$speed_marks, lines)
  table <- lines[(at[1L] + 2L):(at[2L] - 2L)]
  expect_identical(table, env$speed_table(test_path("..", "..", "vignettes", "performance.json")))
})
