# The monitor as a page in the browser: a Shiny app that hands snapshots on. The page itself is inst/monitor.

# Loads shiny, all of it at once, and holds back interrupts meanwhile. Otherwise R loads an object when it is first
# used. An interrupt then leaves the environments that belong to it empty for the rest of the session, such as those in
# which R6 classes have their functions.
load_shiny <- function(call) {
  suspendInterrupts({
    if (!requireNamespace("shiny", quietly = TRUE)) {
      stop_error("'where = \"browser\"' needs package shiny, which is not installed", call)
    }
    for (package in c("later", "promises", "httpuv", "shiny")) {
      eapply(asNamespace(package), function(x) NULL, all.names = TRUE)
    }
  })
}

# Serves the page until Ctrl-C, the end of the session that is watched, `n` snapshots or `timeout` milliseconds.
watch_page <- function(number, pid, n, timeout, options) {
  # Anybody on this machine can connect to the page's port: it shows something only to those that know this.
  token <- .Call(rs_monitor_token)
  feed <- page_feed(number, n)
  app <- shiny::shinyApp(page_ui(token), page_server(token, feed))
  server <- release_of_server()
  stop_later <- if (is.finite(timeout)) later::later(shiny::stopApp, timeout / 1000)
  on.exit({
    feed$close()
    if (is.function(stop_later)) {
      stop_later()
    }
    server$wait()
  })
  feed$listen()
  do.call(shiny::runApp, c(list(app), page_options(options, token, server$watch)))
  if (feed$has_ended()) {
    cat("Session ", pid, " has ended.\n", sep = "")
  }
}

# Time in milliseconds for httpuv to let go of a server.
release_patience <- 1000

# After runApp() has returned, httpuv's thread still closes connections and lets go of the server, for which it calls
# package later. If R ends meanwhile, later may have been unloaded by then, which aborts the process. The functions of
# its AppWrapper are what httpuv gives up last: `wait` returns once the one that `watch` has found is garbage, or after
# `release_patience`.
release_of_server <- function() {
  held <- FALSE
  watch <- function(url) {
    port <- sub("^.*:([0-9]+).*$", "\\1", url)
    for (server in httpuv::listServers()) {
      wrapper <- server[[".__enclos_env__"]]$private$appWrapper
      # Servers at a Unix socket have no port.
      if (is.function(server$getPort) && server$getPort() == port && is.environment(wrapper)) {
        held <<- TRUE
        reg.finalizer(wrapper, function(e) held <<- FALSE)
      }
    }
  }
  wait <- function() {
    until <- proc.time()[["elapsed"]] + release_patience / 1000
    while (held && proc.time()[["elapsed"]] < until) {
      # Returns as soon as there was something to do.
      later::run_now(0.05)
      gc(FALSE)
    }
  }
  list(watch = watch, wait = wait)
}

# Arguments for runApp(). The page is opened as they say, at its address with the token, which is printed in any case.
# Before that, `on_start` is called with the address.
page_options <- function(options, token, on_start) {
  launch <- options$launch.browser
  if (is.null(launch)) {
    launch <- getOption("shiny.launch.browser", interactive())
  }
  options$launch.browser <- function(url) {
    on_start(url)
    url <- paste0(sub("/?$", "/", url), "?token=", token)
    cat("The monitor is at ", url, "\n", sep = "")
    flush(stdout())
    if (is.function(launch)) {
      launch(url)
    } else if (isTRUE(launch)) {
      utils::browseURL(url)
    }
  }
  if (is.null(options$quiet)) {
    options$quiet <- TRUE
  }
  options
}

page_ui <- function(token) {
  # The files are read here, so that the app serves no directory.
  read <- function(file) {
    lines <- readLines(system.file("monitor", file, package = "mirai", mustWork = TRUE), encoding = "UTF-8")
    shiny::HTML(paste(lines, collapse = "\n"))
  }
  page <- shiny::tagList(
    shiny::tags$head(shiny::tags$title("mirai monitor"), shiny::tags$style(read("monitor.css"))),
    read("monitor.html"),
    shiny::tags$script(read("monitor.js"))
  )
  function(request) {
    if (identical(shiny::parseQueryString(request$QUERY_STRING)$token, token)) {
      page
    } else {
      shiny::httpResponse(403L, "text/plain", "Open the monitor at the address that mirai_monitor() has printed.")
    }
  }
}

page_server <- function(token, feed) {
  function(input, output, session) {
    query <- shiny::parseQueryString(shiny::isolate(session$clientData$url_search))
    if (!identical(query$token, token)) {
      session$close()
      return()
    }
    feed$add(session)
    # The page says that it has shown the end.
    shiny::observeEvent(input$ended, feed$remove(session))
    session$onSessionEnded(function() feed$remove(session))
  }
}

# Hands the snapshots of a monitor on to pages. The I/O thread has `hear` called when there is one.
page_feed <- function(number, n) {
  pages <- list()
  latest <- NULL
  shown <- 0
  ended <- closed <- FALSE
  tell <- function(page, kind, text) page$sendCustomMessage("mirai", list(kind = kind, text = text))
  stop_if_over <- function() {
    if (ended && !length(pages)) {
      shiny::stopApp()
    }
  }
  hear <- function(index) {
    if (closed) {
      return(TRUE)
    }
    line <- .Call(rs_monitor_next, number, TRUE, 0)
    if (isFALSE(line)) {
      ended <<- TRUE
      lapply(pages, tell, "ended", "")
      stop_if_over()
      return(TRUE)
    }
    if (is.character(line)) {
      latest <<- line
      lapply(pages, tell, "snapshot", line)
      shown <<- shown + 1
      if (shown >= n) {
        shiny::stopApp()
      }
    }
    listen()
    TRUE
  }
  listen <- function() {
    # Should reading fail, so does mirai_monitor().
    .Call(rs_monitor_when_ready, number, list(hear, shiny::stopApp), later::current_loop()$id)
  }
  list(
    listen = listen,
    add = function(page) {
      pages[[page$token]] <<- page
      if (!is.null(latest)) {
        tell(page, "snapshot", latest)
      }
      if (ended) {
        tell(page, "ended", "")
      }
    },
    remove = function(page) {
      pages[[page$token]] <<- NULL
      stop_if_over()
    },
    has_ended = function() ended,
    close = function() closed <<- TRUE
  )
}
