skip_if_not_installed("callr")

test_that("a session is watched while it waits for a mirai, and while it sleeps", {
  skip_if_not_installed("jsonlite")
  for (wait in c("m[]", "Sys.sleep(600)")) {
    meeting <- local_meeting()
    busy <- watched_session(
      meeting,
      c(
        "x <- mirai_map(c(one = 1, two = 2, three = 3), function(i) if (i == 2) stop('two is no good') else i)",
        "x[]",
        "m <- mirai(Sys.sleep(600))",
        "k <- mirai(tools::pskill(Sys.getpid(), 9))",
        "k[]",
        "cat('ready\n')",
        wait
      )
    )
    wait_for_line(busy, "ready")
    lines <- words(monitor_process(meeting, "format = 'json', n = 1"))
    x <- snapshots_of(lines)[[1L]]
    expect_identical(names(x), c("version", "pid", "host", "time", "memory", "profiles", "profiles_more"))
    expect_identical(c(x$version, x$pid), c(1L, busy$get_pid()))
    expect_lt(abs(as.numeric(Sys.time()) - x$time), 60)
    profile <- x$profiles[[1L]]
    expect_identical(
      names(profile),
      c(
        "name",
        "urls",
        "urls_more",
        "tasks",
        "throughput",
        "queue",
        "running",
        "running_more",
        "daemons",
        "daemons_more",
        "gone",
        "failures",
        "recent"
      )
    )
    expect_identical(profile$name, "default")
    expect_identical(
      profile$tasks,
      list(queued = 0L, running = 1L, done = 2L, failed = 1L, cancelled = 0L, timed_out = 0L, lost = 1L)
    )
    expect_identical(names(profile$throughput), c("last_1s", "last_10s"))
    expect_identical(names(profile$queue), c("bytes", "peak", "capacity"))
    running <- profile$running[[1L]]
    expect_identical(names(running), c("id", "name", "daemon", "started", "age"))
    expect_equal(running$started + running$age, x$time, tolerance = 1e-9)
    daemon <- profile$daemons[[1L]]
    expect_identical(
      names(daemon),
      c("daemon", "host", "pid", "state", "since", "tasks", "busy", "memory", "reason")
    )
    expect_identical(daemon$state, "busy")
    expect_gt(daemon$memory, 1e6)
    expect_identical(profile$gone[[1L]]$state, "lost")
    expect_identical(profile$gone[[1L]]$reason, "was killed by signal 9")
    failures <- profile$failures
    expect_identical(vapply(failures, `[[`, "", "state"), c("lost", "failed"))
    expect_identical(failures[[2L]][c("name", "error")], list(name = "two", error = "two is no good"))
    expect_identical(names(profile$recent[[1L]]), c("id", "daemon", "started", "ended", "state"))
    busy$kill()
  }
})

test_that("a session watches itself", {
  local_test_daemons(1)
  mirai(stop("no"))[]
  out <- capture.output(value <- withVisible(mirai_monitor(n = 1)))
  expect_identical(value, list(value = NULL, visible = FALSE))
  expect_match(out[[1L]], paste0("^mirai session ", Sys.getpid(), " on "))
  expect_true(any(grepl("0 queued, 0 running, 0 done, 1 failed", out, fixed = TRUE)))
  expect_true(any(grepl("idle", out)))
  expect_true(any(grepl("failed +no$", out)))
  expect_identical(capture.output(mirai_monitor(Sys.getpid(), n = 1))[[2L]], out[[2L]])
  json <- capture.output(mirai_monitor(format = "json", n = 1))
  expect_length(json, 1L)
  expect_match(json, "^\\{\"version\":1,.*\\}$")
  # Nothing more happens, so that time is what ends this.
  began <- Sys.time()
  capture.output(mirai_monitor(timeout = 300))
  expect_gte(as.numeric(Sys.time() - began, units = "secs"), 0.29)
})

test_that("a monitor obeys time limits and Ctrl-C", {
  local_test_daemons(1)
  limited <- function() {
    setTimeLimit(elapsed = 0.5, transient = TRUE)
    on.exit(setTimeLimit())
    mirai_monitor()
  }
  expect_error(capture.output(limited()), "time limit")
  meeting <- local_meeting()
  busy <- watched_session(meeting, c("cat('ready\n')", "Sys.sleep(600)"))
  wait_for_line(busy, "ready")
  code <- c(
    meet_at(meeting),
    "value <- withVisible(mirai::mirai_monitor())",
    "cat('value', is.null(value$value), value$visible, '\n')"
  )
  p <- r_process(code)
  wait_for_match(p, "(0 queued)")
  p$interrupt()
  expect_true("value TRUE FALSE " %in% words(p))
  expect_true(busy$is_alive())
})

test_that("arguments are checked", {
  wrong <- function(...) expect_error(mirai_monitor(...), class = "mirai_error_argument")
  wrong("1")
  wrong(0)
  wrong(where = "paper")
  wrong(format = c("json", "text"))
  wrong(n = 0)
  wrong(n = 1.5)
  wrong(timeout = -1)
  wrong(where = "browser", format = "json")
  wrong(port = 1234)
  expect_error(mirai_monitor(1), "no running session of yours", class = "mirai_error_connect")
  expect_identical(deparse(conditionCall(tryCatch(mirai_monitor(1), error = identity))), "mirai_monitor(1)")
})

test_that("which session to watch is found, or asked for", {
  meeting <- local_meeting()
  monitor <- function(...) words(monitor_process(meeting, paste0("n = 1", ...)))
  out <- monitor()
  expect_true(any(grepl("there is nothing to watch: neither this R session nor another one", out)))
  one <- watched_session(meeting, c("cat('ready\n')", "Sys.sleep(600)"))
  wait_for_line(one, "ready")
  expect_true(any(grepl(paste("mirai session", one$get_pid()), monitor())))
  two <- watched_session(meeting, c("cat('ready\n')", "Sys.sleep(600)"))
  wait_for_line(two, "ready")
  out <- monitor()
  expect_true(any(grepl("several R sessions can be watched. Choose one by its process id", out)))
  for (p in list(one, two)) {
    expect_true(any(grepl(paste0("^ *", p$get_pid(), "  .*R"), out)))
    expect_true(any(grepl(paste("mirai session", p$get_pid()), monitor(", pid = ", p$get_pid()))))
  }
  # What a killed one leaves behind goes when somebody looks.
  expect_length(sockets(meeting), 2L)
  one$kill()
  expect_true(any(grepl(paste("mirai session", two$get_pid()), monitor())))
  expect_identical(sockets(meeting), as.character(two$get_pid()))
  two$kill()
  monitor()
  expect_identical(sockets(meeting), character())
})

test_that("a session with another TMPDIR is found by its process id", {
  skip_if_not(dir.exists("/proc/self"), "there is no /proc")
  # r_process() gives each process a TMPDIR of its own.
  busy <- r_process(c("library(mirai)", "d <- daemons(1)", "cat('ready\n')", "Sys.sleep(600)"))
  wait_for_line(busy, "ready")
  found <- r_output(paste0("mirai::mirai_monitor(", busy$get_pid(), ", n = 1)"))
  expect_true(any(grepl(paste("mirai session", busy$get_pid()), found)))
  found <- r_output("mirai::mirai_monitor()")
  expect_true(any(grepl("there is nothing to watch", found)))
})

test_that("the end of the session ends its monitors, however it ends, and nothing is left", {
  skip_on_os("windows")
  for (end in c("quit", "kill", "kill with a fork")) {
    meeting <- local_meeting()
    wait <- "Sys.sleep(600)"
    if (end == "kill with a fork") {
      # The child holds the session's sockets open.
      wait <- c("child <- parallel::mcparallel(Sys.sleep(20))", "cat('child', child$pid, '\n')", wait)
    }
    busy <- watched_session(meeting, c("cat('ready\n')", wait))
    if (end == "kill with a fork") {
      child <- as.integer(wait_for_match(busy, "child ([0-9]+)"))
      defer(function() tools::pskill(child), environment())
    } else {
      wait_for_line(busy, "ready")
    }
    text <- monitor_process(meeting)
    json <- monitor_process(meeting, "format = 'json'")
    wait_for_match(text, "(0 queued)")
    wait_for_match(json, "(version)")
    if (end == "quit") {
      busy$interrupt()
    } else {
      busy$kill()
    }
    for (p in list(text, json)) {
      expect_true(paste0("Session ", busy$get_pid(), " has ended.") %in% words(p))
      expect_identical(p$get_exit_status(), 0L)
    }
    if (end == "quit") {
      expect_identical(list.files(meeting, "^mirai"), character())
    }
  }
})

test_that("a session that is stopped does not keep a monitor waiting for ever", {
  meeting <- local_meeting()
  busy <- watched_session(meeting, c("cat('ready\n')", "Sys.sleep(600)"))
  wait_for_line(busy, "ready")
  tools::pskill(busy$get_pid(), tools::SIGSTOP)
  out <- words(monitor_process(meeting))
  tools::pskill(busy$get_pid(), tools::SIGCONT)
  expect_true(any(grepl(paste("session", busy$get_pid(), "does not answer: is it stopped"), out)))
})

test_that("in a terminal the view is redrawn in place, and the terminal is restored", {
  skip_if_not_installed("cli")
  meeting <- local_meeting()
  busy <- watched_session(
    meeting,
    c(
      "x <- mirai_map(c(slow = 60, bad = 0, evil = -1), function(i) {",
      "  if (i < 0) stop('\\033[2Jcleared')",
      "  if (!i) stop('no good')",
      "  Sys.sleep(i)",
      "})",
      "cat('ready\n')",
      "Sys.sleep(600)"
    )
  )
  wait_for_line(busy, "ready")
  terminal <- local_terminal(c(
    meet_at(meeting),
    "cat('before\\n')",
    "mirai::mirai_monitor()",
    "cat('after\\n')"
  ))
  terminal$wait_for("2 failed")
  screen <- terminal$screen()
  expect_match(screen[[1L]], paste0("^mirai session ", busy$get_pid(), " on .*:.* MB$"))
  expect_identical(screen[[2L]], "default  0 queued, 1 running, 0 done, 2 failed")
  expect_true(any(grepl("^ +1 +[12] +[0-9.]+ s  slow$", screen)))
  expect_true(any(grepl("failed  bad +no good$", screen)))
  # A message cannot command the terminal.
  expect_true(any(grepl("failed  evil +.\\[2Jcleared$", screen)))
  expect_false(any(grepl("before", screen)))
  expect_true(any(grepl("\033[31m", terminal$colours(), fixed = TRUE)))
  expect_identical(terminal$state(), "1 0")
  # The age moves on by itself.
  age <- function() {
    as.numeric(sub(" s  slow$", "", sub("^ +1 +[12] +", "", grep("slow$", terminal$screen(), value = TRUE))))
  }
  first <- age()
  expect_true(wait_until(function() isTRUE(age() >= first + 2)))
  # A smaller terminal has less of it, and nothing else.
  terminal$resize(40, 10)
  terminal$wait_for("\\.\\.\\.$")
  expect_true(wait_until(function() sum(grepl("mirai session", terminal$screen())) == 1L))
  expect_true(any(grepl("running", terminal$screen())))
  terminal$resize(80, 24)
  terminal$type("C-c")
  terminal$wait_for("^after")
  screen <- terminal$screen()
  expect_true("before" %in% screen)
  expect_identical(sum(grepl("mirai session", screen)), 1L)
  expect_identical(terminal$state(), "0 1")
})

test_that("the view fits into its screen", {
  style <- monitor_style(FALSE)
  rows <- function(n) {
    list(
      urls = "abstract://x",
      tasks = c(n, n, 0, n, 1, 1, 0),
      throughput = c(1, 15),
      queue = c(1500, 3e6, Inf),
      running = list(id = seq_len(n), name = rep("a name", n), daemon = seq_len(n), started = rep(0, n)),
      running_more = 1234,
      daemons = list(
        daemon = seq_len(n),
        host = rep("node", n),
        pid = seq_len(n),
        state = rep(c("busy", "idle"), length.out = n),
        since = rep(0, n),
        tasks = rep(1e6, n),
        busy = rep(50, n),
        memory = rep(NA_real_, n),
        reason = rep(NA_character_, n)
      ),
      daemons_more = 0,
      gone = list(
        daemon = integer(),
        host = character(),
        pid = integer(),
        state = character(),
        since = double(),
        tasks = double(),
        busy = double(),
        memory = double(),
        reason = character()
      ),
      failures = list(
        id = seq_len(n),
        name = rep(NA_character_, n),
        state = rep("timed_out", n),
        daemon = rep(1L, n),
        ended = seq_len(n),
        error = rep(NA_character_, n)
      )
    )
  }
  profiles <- list(a = rows(30L), b = rows(0L))
  x <- list(pid = 1L, host = "n\033[1mode", time = 100, memory = 1e9, profiles = profiles, profiles_more = 3)
  for (height in c(1, 2, 5, 10, 24, 50, 200)) {
    for (width in c(10, 40, 80, 200)) {
      lines <- monitor_lines(x, height, width, style, now = 100)
      expect_lte(length(lines), height)
      expect_lte(max(nchar(lines, "width")), width)
    }
  }
  lines <- monitor_lines(x, Inf, 200, style, now = 100)
  expect_match(lines[[1L]], "^mirai session 1 on n \\[1mode  .*  1.0 GB$")
  expect_identical(lines[[2L]], "a  30 queued, 30 running, 0 done, 30 failed, 1 cancelled, 1 timed out")
  expect_identical(lines[[3L]], "  1/s in the last second, 1.5/s in the last 10; 1.5 kB queued")
  expect_identical(lines[4:5], c("  task  daemon    runs for  name", "     1       1  1 min 40 s  a name"))
  expect_true("  and 1,254 more" %in% lines)
  expect_true("       1  busy   1,000,000  100 %            1  node" %in% lines)
  expect_identical(lines[[length(lines)]], "and 3 more profiles")
  empty <- monitor_lines(list(pid = 1L, host = "node", time = 0, memory = NA, profiles = list()), 10, 80, style)
  expect_identical(empty[[2L]], "No daemons are set.")
  expect_identical(
    as_duration(c(0.04, 59.9, 61, 3600, 100000)),
    c("0.0 s", "59.9 s", "1 min 01 s", "1 h 00 min", "27 h 46 min")
  )
  expect_identical(as_bytes(c(0, 999, 1000, 2.5e9)), c("0 B", "999 B", "1.0 kB", "2.5 GB"))
})

test_that("a forked process does not watch its parent's profiles as its own", {
  skip_on_os("windows")
  local_test_daemons(1)
  job <- parallel::mcparallel(tryCatch(mirai_monitor(n = 1), error = conditionMessage))
  text <- parallel::mccollect(job)[[1L]]
  expect_match(text, "forked from an R session")
  # It does not take the socket along.
  expect_match(capture.output(mirai_monitor(n = 1))[[1L]], "mirai session")
})

test_that("the page in the browser shows a session that is busy, and its end", {
  skip_unless_driven()
  skip_if_not_installed("shiny")
  meeting <- local_meeting()
  busy <- watched_session(
    meeting,
    c(
      "x <- mirai_map(c(quick = 0.5, bad = -1, slow = 600), function(i) {",
      "  if (i < 0) stop('<b>no good</b>')",
      "  Sys.sleep(i)",
      "})",
      "cat('ready\n')",
      "Sys.sleep(600)"
    )
  )
  wait_for_line(busy, "ready")
  page <- monitor_process(meeting, "where = 'browser', launch.browser = FALSE")
  url <- wait_for_match(page, "^The monitor is at (http://127[.]0[.]0[.]1:[0-9]+/[?]token=[0-9a-f]{24})$")
  # Nobody sees anything without the token.
  for (without in c(sub("[?].*", "", url), sub("token=.", "token=x", url))) {
    answer <- curl::curl_fetch_memory(without, curl::new_handle(noproxy = "*"))
    expect_identical(answer$status_code, 403L)
  }
  driver <- local_chromedriver()
  browser <- local_browser(driver, url)
  expect_true(browser$wait("document.getElementById('state').className == 'live'"))
  texts <- browser$script("return [...document.querySelectorAll('.number')].map((e) => e.textContent)")
  expect_identical(unlist(texts)[c(1:2, 4:5)], c("0", "1", "1", "1"))
  body <- browser$script("return document.body.innerText")
  expect_match(body, paste("session", busy$get_pid()), fixed = TRUE)
  expect_match(body, "slow")
  expect_match(body, "failed: <b>no good</b>", fixed = TRUE)
  # The timeline has the colours of what is done, failed and running.
  colours <- browser$script(paste(
    "const c = document.querySelector('canvas.timeline');",
    "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; const seen = {};",
    "for (let i = 0; i < d.length; i += 4) seen[[d[i], d[i + 1], d[i + 2]].join()] = true;",
    "return ['166,206,227', '213,94,0', '76,140,191'].map((k) => !!seen[k]);"
  ))
  expect_identical(colours, list(TRUE, TRUE, TRUE))
  # Nothing comes from elsewhere.
  loaded <- unlist(browser$script("return performance.getEntriesByType('resource').map((e) => e.name)"))
  expect_true(all(startsWith(loaded, sub("[?].*", "", url))))
  # Pushed: a change of the session changes the page.
  tools::pskill(daemon_of(browser), tools::SIGKILL)
  expect_true(browser$wait("document.body.innerText.includes('lost: was killed by signal 9')"))
  file <- local_file(fileext = ".png")
  browser$screenshot(file)
  expect_gt(file.size(file), 10000)
  busy$interrupt()
  expect_true(browser$wait("document.getElementById('state').textContent == 'ended'"))
  expect_match(browser$script("return document.body.innerText"), "The session has ended")
  expect_identical(utils::tail(words(page), 1L), paste0("Session ", busy$get_pid(), " has ended."))
  expect_identical(page$get_exit_status(), 0L)
})

test_that("Ctrl-C while the page starts ends it, whatever has been loaded by then", {
  skip_if_not_installed("shiny")
  skip_on_os("windows")
  meeting <- local_meeting()
  busy <- watched_session(meeting, c("cat('ready\n')", "Sys.sleep(600)"))
  wait_for_line(busy, "ready")
  interrupt <- "tools::pskill(Sys.getpid(), tools::SIGINT)"
  page <- function(before, arguments = "launch.browser = FALSE") {
    call <- paste0("mirai::mirai_monitor(where = 'browser', ", arguments, ")")
    code <- c(meet_at(meeting), before, paste0("value <- withVisible(", call, ")"))
    words(r_process(c(code, "cat('value', is.null(value$value), value$visible, '\n')")))
  }
  loading <- function(package) {
    paste0("setHook(packageEvent('", package, "', 'onLoad'), function(...) ", interrupt, ")")
  }
  for (package in c("R6", "httpuv", "shiny")) {
    expect_true("value TRUE FALSE " %in% page(loading(package)))
  }
  expect_true("value TRUE FALSE " %in% page("", paste0("launch.browser = function(url) ", interrupt)))
})

test_that("an error of what puts things back after Ctrl-C is not shown, others are", {
  skip_on_os("windows")
  out <- r_output(
    '{
    until_interrupted <- mirai:::until_interrupted
    interrupted <- function() {
      on.exit(stop("not prepared"))
      tools::pskill(Sys.getpid(), tools::SIGINT)
      Sys.sleep(60)
    }
    cat("value", format(until_interrupted(interrupted())), "\n")
    cat("value", tryCatch(until_interrupted(stop("told")), error = conditionMessage), "\n")
    cat("value", until_interrupted(1), "\n")
  }'
  )
  expect_identical(trimws(grep("^value", out, value = TRUE)), c("value NULL", "value told", "value 1"))
})

test_that("the page ends by Ctrl-C, and after a time", {
  skip_if_not_installed("shiny")
  skip_if_not_installed("curl")
  meeting <- local_meeting()
  busy <- watched_session(meeting, c("cat('ready\n')", "Sys.sleep(600)"))
  wait_for_line(busy, "ready")
  page <- monitor_process(meeting, "where = 'browser', launch.browser = FALSE")
  url <- wait_for_match(page, "^The monitor is at (.*)$")
  # It serves the page. A Ctrl-C while shiny still starts may end in an error of package R6 instead.
  expect_identical(curl::curl_fetch_memory(url, curl::new_handle(noproxy = "*"))$status_code, 200L)
  page$interrupt()
  page$wait(10000)
  expect_identical(page$get_exit_status(), 0L)
  for (limit in c("timeout = 200", "n = 1")) {
    page <- monitor_process(meeting, paste0("where = 'browser', launch.browser = FALSE, ", limit))
    words(page)
    expect_identical(page$get_exit_status(), 0L)
  }
})

# Compiles a library that lets the threads of package httpuv be late. Preloaded, it makes them sleep whenever they have
# taken something from their queue. The process itself sleeps after it has unloaded its packages' libraries.
local_late_httpuv <- function(frame = parent.frame()) {
  code <- c(
    "#define _GNU_SOURCE",
    "#include <dlfcn.h>",
    "#include <errno.h>",
    "#include <string.h>",
    "#include <sys/syscall.h>",
    "#include <unistd.h>",
    "void uv_mutex_unlock(void *mutex) {",
    "  static void (*real)(void *);",
    "  if (!real) real = (void (*)(void *)) dlsym(dlopen(\"libuv.so.1\", RTLD_NOW), \"uv_mutex_unlock\");",
    "  real(mutex);",
    "  if (syscall(SYS_gettid) != getpid()) usleep(5000);",
    "}",
    "__attribute__((destructor)) static void end(void) {",
    "  if (!strcmp(program_invocation_short_name, \"R\")) usleep(500000);",
    "}"
  )
  local_library(code, frame)
}

test_that("the page does not return while httpuv still closes its server, which would abort a process that ends then", {
  skip_if_not_installed("shiny")
  skip_if_not_installed("curl")
  skip_if_not(identical(Sys.info()[["sysname"]], "Linux"))
  skip_on_cran()
  meeting <- local_meeting()
  busy <- watched_session(meeting, c("cat('ready\n')", "Sys.sleep(600)"))
  wait_for_line(busy, "ready")
  local_envvar(LD_PRELOAD = local_late_httpuv())
  page <- monitor_process(meeting, "where = 'browser', launch.browser = FALSE")
  url <- wait_for_match(page, "^The monitor is at (.*)$")
  # Its connection remains.
  expect_identical(curl::curl_fetch_memory(url, curl::new_handle(noproxy = "*"))$status_code, 200L)
  page$interrupt()
  expect_identical(words(page), "")
  expect_identical(page$get_exit_status(), 0L)
})
