skip_unless_driven()
skip_if_not_installed("shiny")

app <- function() {
  local_server(
    c(
      "library(mirai)",
      "app <- system.file('examples', 'shiny', package = 'mirai')",
      "tryCatch(",
      "  with(daemons(2), shiny::runApp(app, launch.browser = FALSE)),",
      "  interrupt = function(i) NULL",
      ")",
      "cat('left:', sum(daemons_set(), daemons_set('plots')), '\\n')"
    ),
    "Listening on http://127.0.0.1:([0-9]+)",
    frame = parent.frame()
  )
}

drawn <- function(id) paste0("document.querySelector('#", id, " img') != null")

test_that("the example app serves two browsers at once while daemons compute", {
  server <- app()
  driver <- local_chromedriver()
  one <- local_browser(driver, server$url)
  two <- local_browser(driver, server$url)
  ready <- paste(text_of("status"), "== 'Ready'")
  expect_true(one$wait(ready))
  expect_true(two$wait(ready))

  # Session One has a long computation. Session Two is served: the app answers, and a daemon makes a plot.
  one$select("replicates", "100000")
  one$click("start")
  expect_true(one$wait(paste(text_of("status"), ".startsWith('Running')")))
  expect_true(two$wait(drawn("density")))
  for (i in 1:3) {
    two$click("click")
    expect_true(two$wait(sprintf("%s == 'Yes, clicked %d times'", text_of("clicks"), i)))
  }
  before <- two$script("return document.querySelector('#density img').src")
  two$script("$('#bandwidth').data('ionRangeSlider').update({from: 8})")
  other <- sprintf("document.querySelector('#density img').src != '%s'", before)
  expect_true(two$wait(paste(drawn("density"), "&&", other)))
  # and so is the browser of session One
  one$click("click")
  expect_true(one$wait(paste(text_of("clicks"), "== 'Yes, clicked 1 times'")))
  expect_match(one$script(paste("return", text_of("status"))), "^Running")

  # Progress is shown when parts arrive, in the session that they belong to.
  expect_true(one$wait("document.querySelector('#bar progress')?.value >= 2"))
  expect_identical(two$script(paste("return", text_of("status"))), "Ready")
  if (nzchar(dir <- Sys.getenv("MIRAI_SCREENSHOTS"))) {
    one$screenshot(file.path(dir, "running.png"))
  }

  # What a task sends ahead, prints and warns of, and the session's own tasks.
  one$click("check")
  expect_true(one$wait("document.querySelector('#checked progress')?.value == 1"))
  expect_true(one$wait(paste(text_of("said"), ".includes('Mean error: 0.')")))
  expect_match(one$script(paste("return", text_of("said"))), "Warning: the folds differ much")
  rows <- "document.querySelectorAll('#tasks tbody tr').length"
  expect_true(one$wait(paste(rows, "== 1")))
  one$click("check")
  expect_true(one$wait(paste(rows, "== 2")))
  expect_identical(two$script(paste("return", rows)), 0L)

  # Two's computation waits behind One's, and starts when that is cancelled.
  two$select("replicates", "1000")
  two$click("start")
  expect_true(two$wait(paste(text_of("status"), ".startsWith('Running')")))
  one$click("cancel")
  expect_true(one$wait(paste(text_of("status"), "== 'Stopped: Operation canceled'")))
  expect_true(two$wait(paste(text_of("status"), "== 'Done' &&", drawn("slopes"))))

  # A computation that was cancelled can be started again.
  one$select("replicates", "1000")
  one$click("start")
  expect_true(one$wait(paste(text_of("status"), "== 'Done' &&", drawn("slopes"))))
  picture <- local_file(fileext = ".png")
  one$screenshot(picture)
  expect_gt(file.size(picture), 20000)
  if (nzchar(dir)) {
    file.copy(picture, file.path(dir, "done.png"), overwrite = TRUE)
  }

  expect_match(end_server(server), "left: 0", fixed = TRUE, all = FALSE)
})

test_that("closing the browser cancels its computation", {
  server <- app()
  driver <- local_chromedriver()
  two <- local_browser(driver, server$url)
  expect_true(two$wait(paste(text_of("status"), "== 'Ready'")))
  local({
    one <- local_browser(driver, server$url)
    expect_true(one$wait(paste(text_of("status"), "== 'Ready'")))
    one$select("replicates", "100000")
    one$click("start")
    expect_true(one$wait(paste(text_of("status"), ".startsWith('Running')")))
  })
  two$click("start")
  expect_true(two$wait(paste(text_of("status"), "== 'Done'")))
})
