# An app as in Shiny's documentation: an ExtendedTask whose function returns a mirai, with bslib's button, which is busy
# while the task runs.
skip_unless_driven()
skip_unless_version("shiny", "1.8.1")
skip_unless_version("bslib", "0.7.0")
skip_unless_version("promises", "1.3.0")

# Tasks on 'slow' wait for a file whose name is the number of their session.
tasks_app <- function(dir, frame = parent.frame()) {
  app <- local_file("app", frame = frame)
  dir.create(app)
  code <- quote({
    library(shiny)
    library(bslib)
    library(mirai)
    ui <- page_fluid(
      numericInput("x", "x", 3),
      checkboxInput("slow", "slow", FALSE),
      input_task_button("go", "Compute"),
      textOutput("status"),
      textOutput("result"),
      input_task_button("map", "Map"),
      textOutput("mapped"),
      actionButton("stop", "Stop"),
      actionButton("click", "Click"),
      textOutput("clicks"),
      textOutput("plain")
    )
    server <- function(input, output, session) {
      running <- NULL
      task <- ExtendedTask$new(function(x, slow) {
        running <<- mirai(
          {
            while (slow && !file.exists(gate)) {
              Sys.sleep(0.01)
            }
            if (x < 0) {
              stop("x is negative")
            }
            x^2
          },
          x = x,
          slow = slow,
          gate = file.path(dir, x)
        )
      })
      bind_task_button(task, "go")
      observeEvent(input$go, task$invoke(input$x, input$slow))
      observeEvent(input$stop, stop_mirai(running))
      output$status <- renderText(task$status())
      output$result <- renderText(paste("x^2 is", task$result()))

      map <- ExtendedTask$new(function(n) mirai_map(seq_len(n), function(i) i * 10))
      bind_task_button(map, "map")
      observeEvent(input$map, map$invoke(input$x))
      output$mapped <- renderText(paste(unlist(map$result()), collapse = " "))

      output$clicks <- renderText(paste("clicked", input$click))
      # an output whose value is a mirai, and a reactive that is one
      doubled <- reactive(mirai(x * 2, x = input$x))
      output$plain <- renderText(doubled() |> promises::then(\(value) paste("2 x is", value)))
    }
    shinyApp(ui, server)
  })
  writeLines(
    c(paste0("dir <- ", deparse(dir)), vapply(as.list(code)[-1L], deparse1, "", collapse = "\n")),
    file.path(app, "app.R")
  )
  local_server(
    c(
      "options(warn = 1)",
      "suppressPackageStartupMessages(library(mirai))",
      sprintf(
        "tryCatch(with(daemons(2), shiny::runApp(%s, launch.browser = FALSE)), interrupt = function(i) NULL)",
        deparse(app)
      ),
      "cat('left:', sum(daemons_set()), '\\n')"
    ),
    "Listening on http://127.0.0.1:([0-9]+)",
    frame = frame
  )
}

enter <- function(browser, x, slow = FALSE) {
  browser$script(sprintf("Shiny.setInputValue('x', %d); Shiny.setInputValue('slow', %s)", x, tolower(slow)))
}
says <- function(id, text) sprintf("%s == '%s'", text_of(id), text)
fails <- function(id, text) sprintf("%s.endsWith('%s')", text_of(id), text)
busy <- function(id) sprintf("document.querySelector('#%s bslib-switch-inline').getAttribute('case') == 'busy'", id)
ready <- function(id) sprintf("document.querySelector('#%s bslib-switch-inline').getAttribute('case') == 'ready'", id)

test_that("ExtendedTask and input_task_button() serve two sessions at once", {
  dir <- local_file("gates")
  dir.create(dir)
  server <- tasks_app(dir)
  driver <- local_chromedriver()
  one <- local_browser(driver, server$url)
  two <- local_browser(driver, server$url)
  for (browser in list(one, two)) {
    expect_true(browser$wait(says("status", "initial")))
    expect_true(browser$wait(says("plain", "2 x is 6")))
  }

  # The task of session One waits. Its button is busy, and both sessions are served.
  enter(one, 3, slow = TRUE)
  expect_true(one$wait(says("plain", "2 x is 6")))
  one$click("go")
  expect_true(one$wait(paste(says("status", "running"), "&&", busy("go"))))
  one$click("click")
  expect_true(one$wait(says("clicks", "clicked 1")))
  enter(two, 4)
  expect_true(two$wait(says("plain", "2 x is 8")))
  two$click("go")
  expect_true(two$wait(paste(says("result", "x^2 is 16"), "&&", ready("go"))))
  two$click("map")
  expect_true(two$wait(says("mapped", "10 20 30 40")))
  expect_true(one$script(paste("return", busy("go"))))
  if (nzchar(pictures <- Sys.getenv("MIRAI_SCREENSHOTS"))) {
    one$screenshot(file.path(pictures, "tasks.png"))
  }

  file.create(file.path(dir, "3"))
  expect_true(one$wait(paste(says("result", "x^2 is 9"), "&&", ready("go"))))

  # A failure is shown in place of the result, and the button can be used again.
  enter(two, -1)
  expect_true(two$wait(says("plain", "2 x is -2")))
  two$click("go")
  expect_true(two$wait(paste(fails("result", "x is negative"), "&&", says("status", "error"), "&&", ready("go"))))

  # The same for a task that is cancelled.
  enter(one, 5, slow = TRUE)
  expect_true(one$wait(says("plain", "2 x is 10")))
  one$click("go")
  expect_true(one$wait(busy("go")))
  one$click("stop")
  expect_true(one$wait(paste(fails("result", "Operation canceled"), "&&", ready("go"))))
  file.create(file.path(dir, "5"))
  one$click("go")
  expect_true(one$wait(paste(says("result", "x^2 is 25"), "&&", ready("go"))))

  said <- end_server(server)
  expect_match(said, "left: 0", fixed = TRUE, all = FALSE)
  # Shiny itself warns of the two tasks that did not succeed; there is no other warning.
  warnings <- grep("Warning|Unhandled", said, value = TRUE)
  expect_match(warnings, "task[$]invoke|x is negative|Operation canceled")
})
