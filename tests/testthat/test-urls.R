test_that("local_url() is a different URL each time", {
  urls <- replicate(10, local_url())
  expect_length(unique(urls), 10)
  skip_on_os(c("mac", "windows", "solaris"))
  expect_match(urls, "^abstract://[0-9a-f]{24}$")
})
