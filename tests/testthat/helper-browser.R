# Clients of servers that run in processes of their own: headless browsers, driven by chromedriver (the WebDriver
# protocol: JSON over HTTP), and concurrent HTTP requests.

skip_unless_driven <- function() {
  for (package in c("curl", "jsonlite", "callr", "promises")) {
    skip_if_not_installed(package)
  }
}

# Waits until a process writes a line that matches. Returns the part that the pattern's parentheses matched.
wait_for_match <- function(p, pattern, seconds = 30) {
  deadline <- Sys.time() + seconds
  lines <- character()
  repeat {
    found <- regmatches(lines, regexec(pattern, lines))
    found <- Filter(length, found)
    if (length(found)) {
      return(found[[1L]][[2L]])
    }
    if (Sys.time() > deadline || !p$is_alive() && !p$is_incomplete_output()) {
      stop("'", pattern, "' not seen in:\n", paste(lines, collapse = "\n"))
    }
    p$poll_io(1000)
    lines <- c(lines, p$read_output_lines())
  }
}

# Starts a server, which prints the port at which it listens. It ends with the test.
local_server <- function(code, pattern, frame = parent.frame()) {
  p <- r_process(code, frame)
  list(process = p, url = paste0("http://127.0.0.1:", wait_for_match(p, pattern)))
}

# Interrupts a server and returns what it writes after that.
end_server <- function(server) {
  server$process$interrupt()
  server$process$wait(20000)
  if (server$process$is_alive()) {
    return("still running")
  }
  c(server$process$read_all_output_lines(), paste("status", server$process$get_exit_status()))
}

local_chromedriver <- function(frame = parent.frame()) {
  skip_if(!nzchar(Sys.which("chromedriver")), "chromedriver is not installed")
  home <- local_file("home", frame = frame)
  dir.create(home)
  p <- processx::process$new(
    "chromedriver",
    "--port=0",
    # Chromium keeps some files outside of its profile directory.
    env = c("current", HOME = home, TMPDIR = home, XDG_CONFIG_HOME = home, XDG_CACHE_HOME = home),
    stdout = "|",
    stderr = "2>&1",
    cleanup_tree = TRUE
  )
  defer(
    function() {
      p$kill_tree()
      p$wait(5000)
    },
    frame
  )
  port <- wait_for_match(p, "started successfully on port ([0-9]+)")
  list(url = paste0("http://127.0.0.1:", port), home = home)
}

webdriver <- function(method, url, body = list()) {
  handle <- curl::new_handle(customrequest = method, timeout = 120L, noproxy = "*")
  if (method == "POST") {
    body <- if (length(body)) jsonlite::toJSON(body, auto_unbox = TRUE) else "{}"
    curl::handle_setopt(handle, postfields = body)
    curl::handle_setheaders(handle, "Content-Type" = "application/json")
  }
  answer <- curl::curl_fetch_memory(url, handle)
  value <- jsonlite::fromJSON(rawToChar(answer$content), simplifyVector = FALSE)$value
  if (answer$status_code != 200L) {
    stop("WebDriver: ", value$error, ": ", value$message)
  }
  value
}

# Starts a browser that shows `url`. Returns a list of functions that drive it.
local_browser <- function(driver, url, frame = parent.frame()) {
  flags <- c(
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "disable-dev-shm-usage",
    "window-size=1200,900",
    paste0("user-data-dir=", tempfile("profile", driver$home))
  )
  session <- webdriver(
    "POST",
    paste0(driver$url, "/session"),
    list(
      capabilities = list(
        alwaysMatch = list(
          "goog:chromeOptions" = list(args = as.list(paste0("--", flags))),
          timeouts = list(script = 60000L)
        )
      )
    )
  )
  base <- paste0(driver$url, "/session/", session$sessionId)
  defer(function() webdriver("DELETE", base), frame)
  post <- function(what, ...) webdriver("POST", paste0(base, what), list(...))
  post("/url", url = url)
  script <- function(code, async = FALSE) {
    post(if (async) "/execute/async" else "/execute/sync", script = code, args = list())
  }
  list(
    script = script,
    # Waits until a JavaScript expression is true, and returns its value. Checks it when the page changes.
    wait = function(expression) {
      code <- paste0(
        "const done = arguments[arguments.length - 1];",
        "const look = () => {",
        "  const value = (",
        expression,
        ");",
        "  if (value) { observer.disconnect(); done(value); }",
        "};",
        "const observer = new MutationObserver(look);",
        "observer.observe(document, {subtree: true, childList: true, characterData: true, attributes: true});",
        "look();"
      )
      tryCatch(script(code, async = TRUE), error = function(cnd) {
        stop(conditionMessage(cnd), "\n", expression, "\nThe page shows:\n", script("return document.body.innerText"))
      })
    },
    click = function(id) {
      element <- post("/element", using = "css selector", value = paste0("#", id))[[1L]]
      post(paste0("/element/", element, "/click"))
    },
    select = function(id, value) {
      selector <- paste0("#", id, " option[value='", value, "']")
      element <- post("/element", using = "css selector", value = selector)[[1L]]
      post(paste0("/element/", element, "/click"))
    },
    screenshot = function(file) {
      writeBin(jsonlite::base64_dec(webdriver("GET", paste0(base, "/screenshot"))), file)
    }
  )
}

text_of <- function(id) paste0("document.getElementById('", id, "').textContent")

# Requests all URLs at the same time. Returns a list of answers, each with `status` and `body`.
fetch_all <- function(urls) {
  pool <- curl::new_pool(total_con = length(urls), host_con = length(urls))
  answers <- vector("list", length(urls))
  lapply(seq_along(urls), function(i) {
    curl::curl_fetch_multi(
      urls[[i]],
      done = function(answer) {
        answers[[i]] <<- list(
          status = answer$status_code,
          body = jsonlite::fromJSON(rawToChar(answer$content))
        )
      },
      fail = function(message) answers[[i]] <<- list(status = 0L, body = message),
      pool = pool,
      handle = curl::new_handle(noproxy = "*", fresh_connect = TRUE)
    )
  })
  curl::multi_run(timeout = 60, pool = pool)
  answers
}
