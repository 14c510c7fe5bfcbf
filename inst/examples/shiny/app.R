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
# daemons that the app is started with. What a task prints is kept with it.
daemons(1, .compute = "plots", output = "task")
onStop(function() daemons(0, .compute = "plots"))

# A part of the bootstrap, evaluated by a daemon: the slopes of `n` regressions.
resample <- function(n, data) {
  replicate(n, {
    rows <- sample(nrow(data), replace = TRUE)
    coef(lm(eruptions ~ waiting, data[rows, ]))[["waiting"]]
  })
}

# Evaluated by a daemon, too: it says how far it is, prints, and warns.
check_model <- function(data) {
  folds <- 10L
  errors <- vapply(seq_len(folds), numeric(1), FUN = function(i) {
    out <- seq_len(nrow(data)) %% folds == i %% folds
    model <- lm(eruptions ~ waiting, data[!out, ])
    mirai::mirai_report(i / folds)
    sqrt(mean((predict(model, data[out, ]) - data$eruptions[out])^2))
  })
  cat("Mean error:", format(mean(errors), digits = 3), "minutes\n")
  if (max(errors) > 1.1 * mean(errors)) warning("the folds differ much")
  errors
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
      actionButton("check", "Check the model"),
      uiOutput("checked"),
      verbatimTextOutput("said"),
      hr(),
      actionButton("click", "Still there?"),
      textOutput("clicks", inline = TRUE)
    ),
    mainPanel(
      plotOutput("slopes", height = "280px"),
      plotOutput("density", height = "280px"),
      h4("Checks of this session"),
      tableOutput("tasks")
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

  # What a task sends ahead moves a bar. Its output and warnings are there when it is done, and the log knows the rest.
  progress <- reactiveVal(0)
  checks <- reactiveVal(list())
  observeEvent(input$check, {
    m <- mirai(
      check_model(faithful),
      check_model = check_model,
      .compute = "plots",
      .on_report = function(value) progress(value)
    )
    then(as.promise(m), function(value) checks(c(checks(), list(m))))
  })
  output$checked <- renderUI({
    req(progress() > 0)
    tags$progress(value = progress(), max = 1, style = "width: 100%")
  })
  output$said <- renderText({
    req(checks())
    last <- checks()[[length(checks())]]
    warnings <- vapply(mirai_conditions(last), conditionMessage, "")
    paste0(mirai_output(last), paste("Warning:", warnings, "\n", recycle0 = TRUE, collapse = ""))
  })
  output$tasks <- renderTable({
    req(checks())
    log <- task_log(.compute = "plots")
    mine <- log$id %in% vapply(checks(), attr, 0L, "id")
    data.frame(task = log$id, daemon = log$daemon, seconds = log$spent, state = log$state)[mine, ]
  })

  output$clicks <- renderText(paste("Yes, clicked", input$click, "times"))
}

shinyApp(ui, server)
