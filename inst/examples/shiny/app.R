# A Shiny app whose computations run on daemons. Start it by
#
#   library(mirai)
#   with(daemons(4), shiny::runApp(system.file("examples", "shiny", package = "mirai")))
#
# and open it in two browser windows: neither waits for the other.

library(shiny)
library(mirai)
library(promises)

# Plots are quick. They have a daemon of their own, so that they do not wait behind the long computations, which run on the
# daemons that the app is started with.
daemons(1, .compute = "plots")
onStop(function() daemons(0, .compute = "plots"))

# A part of the bootstrap, evaluated by a daemon: the slopes of `n` regressions.
resample <- function(n, data) {
  replicate(n, {
    rows <- sample(nrow(data), replace = TRUE)
    coef(lm(eruptions ~ waiting, data[rows, ]))[["waiting"]]
  })
}

# Shiny's ExtendedTask. For an older Shiny, a list with the same methods.
background_task <- function(f) {
  if (packageVersion("shiny") >= "1.8.1") return(ExtendedTask$new(f))
  status <- reactiveVal("initial")
  outcome <- reactiveVal()
  settle <- function(how) {
    function(value) {
      outcome(value)
      status(how)
    }
  }
  list(
    invoke = function(...) {
      status("running")
      then(as.promise(f(...)), settle("success"), settle("error"))
      invisible()
    },
    status = function() status(),
    result = function() switch(status(), success = outcome(), error = stop(outcome()), req(FALSE))
  )
}

parts <- 50L

ui <- fluidPage(
  titlePanel("Old Faithful, by daemons"),
  sidebarLayout(
    sidebarPanel(
      selectInput(
        "replicates", "Bootstrap replicates",
        c("1,000" = "1000", "10,000" = "10000", "100,000" = "100000"),
        selectize = FALSE
      ),
      actionButton("start", "Start", class = "btn-primary"),
      actionButton("cancel", "Cancel"),
      p(),
      uiOutput("bar"),
      textOutput("status"),
      hr(),
      sliderInput("bandwidth", "Bandwidth (minutes)", min = 0.5, max = 10, value = 3, step = 0.5),
      hr(),
      actionButton("click", "Still there?"),
      textOutput("clicks", inline = TRUE)
    ),
    mainPanel(
      plotOutput("slopes", height = "280px"),
      plotOutput("density", height = "280px")
    )
  )
)

server <- function(input, output, session) {
  running <- list()
  finished <- reactiveVal(0L)

  bootstrap <- background_task(function(replicates) {
    n <- 0L
    finished(n)
    running <<- mirai_map(
      rep(replicates / parts, parts),
      resample,
      .args = list(data = faithful),
      .promise = list(
        function(value) finished(n <<- n + 1L),
        function(cnd) NULL # the promise of the whole map, below, sees it
      )
    )
    as.promise(running)
  })

  observeEvent(input$start, {
    if (bootstrap$status() != "running") bootstrap$invoke(as.numeric(input$replicates))
  })
  observeEvent(input$cancel, stop_mirai(running))
  session$onSessionEnded(function() stop_mirai(running))

  output$status <- renderText({
    switch(
      bootstrap$status(),
      initial = "Ready",
      running = paste("Running:", finished(), "of", parts, "parts are done"),
      success = "Done",
      error = paste("Stopped:", tryCatch(bootstrap$result(), error = conditionMessage))
    )
  })
  output$bar <- renderUI({
    req(bootstrap$status() == "running")
    tags$progress(value = finished(), max = parts, style = "width: 100%")
  })
  output$slopes <- renderPlot({
    req(bootstrap$status() == "success")
    slopes <- unlist(bootstrap$result())
    title <- paste("Slope of the regression,", format(length(slopes), big.mark = ","), "replicates")
    hist(slopes, breaks = 50, col = "steelblue", border = "white", main = title, xlab = "")
    abline(v = quantile(slopes, c(0.025, 0.975)), lty = 2)
  })

  # An output that is a promise: computed by a daemon, drawn here when it has arrived.
  output$density <- renderPlot({
    mirai(density(faithful$waiting, bw = bw), bw = input$bandwidth, .compute = "plots") %...>%
      plot(main = "Time between eruptions (minutes)", xlab = "", col = "steelblue", lwd = 2)
  })

  output$clicks <- renderText(paste("Yes, clicked", input$click, "times"))
}

shinyApp(ui, server)
