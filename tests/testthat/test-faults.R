# What happens when something goes wrong: processes that die, interrupts, forks, things that
# tasks should not do. Nothing hangs, and nothing is left behind.

skip_if_not(dir.exists("/proc/self"), "there is no /proc")

reset <- structure(19L, class = "errorValue")
canceled <- structure(20L, class = "errorValue")

all_end <- function(pids, seconds = 3) {
  wait_until(function() !any(vapply(pids, is_alive, NA)), seconds)
}

daemon_pids <- function() unlist(collect_mirai(everywhere(Sys.getpid())))

# A task that creates a file and then sleeps "for ever"; returns once it does so.
sleeper <- function(file = tempfile()) {
  m <- mirai({
    file.create(file)
    Sys.sleep(1e6)
  }, file = file)
  expect_true(wait_until(function() file.exists(file)))
  unlink(file)
  m
}

# Daemons are all there and take tasks that nothing interrupts.
expect_healthy <- function(pids) {
  expect_setequal(daemon_pids(), pids)
  expect_identical(collect_mirai(lapply(1:20, function(i) mirai(i, i = i))), as.list(1:20))
  expect_identical(status()$mirai[c("awaiting", "executing")], c(awaiting = 0L, executing = 0L))
}

# Numbers of descriptors and threads of this process.
resources <- function() {
  c(length(list.files("/proc/self/fd")), length(list.files("/proc/self/task")))
}

# From /proc/<pid>/stat, after the name: state, parent, and 12 and 13 the CPU time in ticks.
process_stat <- function(pid) {
  stat <- suppressWarnings(tryCatch(readLines(file.path("/proc", pid, "stat")), error = function(e) ") Z 0"))
  strsplit(sub("^.*\\) ", "", stat[1L]), " ")[[1L]]
}

cpu_ticks <- function(pids) vapply(pids, function(pid) sum(as.numeric(process_stat(pid)[12:13])), 0)

# Our own living child processes.
children <- function() {
  pids <- grep("^[0-9]+$", list.files("/proc"), value = TRUE)
  ours <- vapply(pids, function(pid) {
    stat <- process_stat(pid)
    stat[2L] == Sys.getpid() && stat[1L] != "Z"
  }, NA)
  as.integer(pids[ours])
}

# What a host process has written to a file, once it has.
read_ints <- function(file) {
  expect_true(wait_until(function() file.exists(file), 30))
  scan(file, 0L, quiet = TRUE)
}

# Code that puts integers into a file all at once.
put <- function(what, file) {
  sprintf("{x <- %s; cat(x, '\\n', file = '%s-'); invisible(file.rename('%s-', '%s'))}", what, file, file, file)
}

all_pids <- "unlist(collect_mirai(everywhere(Sys.getpid())))"

test_that("a daemon killed in mid-task is 19 at once, and the others go on", {
  local_test_daemons(3)
  pids <- daemon_pids()
  running <- list(sleeper(), sleeper())
  survivor <- mirai(Sys.getpid())[]
  waiting <- lapply(1:50, function(i) mirai(Sys.getpid()))
  others <- setdiff(pids, survivor)
  tools::pskill(others, tools::SIGKILL)
  elapsed <- system.time(values <- collect_mirai(running))[["elapsed"]]
  expect_identical(lapply(values, without_reason), list(reset, reset))
  expect_lt(elapsed, 1)
  expect_identical(unique(collect_mirai(waiting)), list(survivor))
  expect_true(connected(1))
  expect_healthy(survivor)
  expect_true(all_end(others))
})

test_that("what waits for a daemon that is killed goes to another", {
  for (dispatcher in c(TRUE, FALSE)) {
    local_test_daemons(2, dispatcher = dispatcher)
    pids <- daemon_pids()
    go <- local_file()
    ms <- lapply(1:20, function(i) {
      mirai({
        while (!file.exists(go)) Sys.sleep(0.01)
        i
      }, i = i, go = go)
    })
    tools::pskill(pids[1L], tools::SIGKILL)
    expect_true(connected(1))
    file.create(go)
    values <- collect_mirai(ms)
    lost <- vapply(lapply(values, without_reason), identical, NA, reset)
    expect_identical(sum(lost), 1L)
    expect_identical(values[!lost], as.list(1:20)[!lost])
  }
})

test_that("with retry a task finishes on another daemon", {
  local_test_daemons(2, retry = TRUE)
  tried <- local_file()
  m <- mirai({
    if (!file.exists(tried)) {
      file.create(tried)
      tools::pskill(Sys.getpid(), tools::SIGKILL)
      Sys.sleep(1e6)
    }
    "finished"
  }, tried = tried)
  expect_identical(m[], "finished")
  expect_identical(info()[["connections"]], 1L)
})

test_that("a daemon that is killed leaves no session directory, nor does one without daemons", {
  local_test_daemons(1)
  dirs <- vapply(1:2, function(i) {
    file <- local_file()
    compute <- if (i == 2L) test_profile()
    m <- mirai({
      writeLines(c(tempdir(), Sys.getpid()), paste0(file, "-"))
      file.rename(paste0(file, "-"), file)
      Sys.sleep(1e6)
    }, file = file, .compute = compute)
    expect_true(wait_until(function() file.exists(file)))
    said <- readLines(file)
    expect_true(dir.exists(said[1L]))
    tools::pskill(as.integer(said[2L]), tools::SIGKILL)
    expect_reset(m[])
    said[1L]
  }, "")
  expect_true(wait_until(function() !any(dir.exists(dirs))))
})

for (signal in c("SIGKILL", "SIGTERM")) {
  test_that(paste("a host that ends by", signal, "takes its daemons along, and their files"), {
    report <- local_file()
    host <- r_process(c(
      "library(mirai)",
      "d <- daemons(3)",
      "daemons(1, dispatcher = FALSE, .compute = 'other')",
      "ids <- function(...) collect_mirai(everywhere(c(tempdir(), Sys.getpid()), ...))",
      "about <- c(ids(), ids(.compute = 'other'))",
      "file <- tempfile()",
      # busy in R, busy where R cannot be interrupted, one without daemons
      "m1 <- mirai({file.create(file); Sys.sleep(1e6)}, file = paste0(file, 1))",
      "m2 <- mirai({file.create(file); suspendInterrupts(repeat 1)}, file = paste0(file, 2))",
      "m3 <- mirai({writeLines(c(tempdir(), Sys.getpid()), file); Sys.sleep(1e6)},",
      "  file = paste0(file, 3), .compute = 'none')",
      "while (!all(file.exists(paste0(file, 1:3)))) Sys.sleep(0.01)",
      "while (length(alone <- readLines(paste0(file, 3))) < 2) Sys.sleep(0.01)",
      sprintf("writeLines(c(unlist(about), alone), '%s')", report),
      "cat('ready\\n')",
      "m1[]"
    ))
    wait_for_line(host, "ready")
    about <- matrix(readLines(report), nrow = 2L)
    pids <- as.integer(about[2L, ])
    expect_length(unique(pids), 5L)
    expect_true(all(dir.exists(about[1L, ])))
    host$signal(getExportedValue("tools", signal))
    expect_true(all_end(pids))
    # The host itself cannot remove its own.
    root <- unique(dirname(about[1L, ]))
    expect_true(wait_until(function() length(list.files(root, "^Rtmp")) <= 1L))
    expect_false(any(dir.exists(about[1L, ])))
  })
}

test_that("1,000 rounds of submit and cancel leave daemons healthy and no later task interrupted", {
  for (dispatcher in c(TRUE, FALSE)) {
    local_test_daemons(2, dispatcher = dispatcher)
    pids <- daemon_pids()
    for (i in 1:500) {
      m <- mirai(if (i %% 2L) Sys.sleep(1e6) else i, i = i)
      # Now and then give it the time to start, or to finish.
      if (i %% 7L == 0L) mirai(NULL)[]
      if (i %% 5L == 0L) later <- mirai("untouched")
      stopped <- stop_mirai(m)
      expect_identical(m[], if (stopped) canceled else i)
      if (i %% 5L == 0L) expect_identical(later[], "untouched")
    }
    expect_healthy(pids)
  }
})

test_that("tasks that time out leave daemons healthy", {
  local_test_daemons(2)
  pids <- daemon_pids()
  ms <- lapply(1:100, function(i) mirai(Sys.sleep(if (i %% 2L) 1e6 else 0), i = i, .timeout = 1 + i / 10))
  values <- collect_mirai(ms)
  expect_true(all(vapply(values, function(v) is.null(v) || identical(v, structure(5L, class = "errorValue")), NA)))
  expect_healthy(pids)
})

test_that("whatever a task does, its daemon goes on", {
  local_test_daemons(1)
  pid <- daemon_pids()
  expect_match(mirai(stop("plain"))[], "Error: plain")
  expect_match(mirai({
    f <- function() f()
    f()
  })[], "nested too deeply|stack")
  expect_match(mirai({
    options(expressions = 5e5)
    f <- function() f()
    f()
  })[], "nested too deeply|stack")
  expect_match(mirai({
    x <- list()
    for (i in 1:1e5) x <- list(x)
    x
  })[], "nested too deeply|stack")
  expect_match(mirai(numeric(2^51))[], "cannot allocate|too large|too big")
  expect_true(is_mirai_interrupt(mirai(invokeRestart("abort"))[]))
  expect_true(is_mirai_interrupt(mirai({
    tryCatch(stop("earlier"), error = identity)
    invokeRestart("abort")
  })[]))

  # whatever it leaves behind
  call_mirai(list(
    mirai(rm(list = ls(globalenv(), all.names = TRUE), envir = globalenv())),
    mirai(rm(list = ls(all.names = TRUE))),
    mirai(options(warn = 2, error = quote(quit()), expressions = 100, scipen = 9)),
    mirai(.Options$scipen <- 9),
    mirai(sink(tempfile())),
    mirai(closeAllConnections()),
    mirai(close(stdout())),
    mirai(reg.finalizer(new.env(), function(e) stop("in a finalizer"))),
    mirai({
      reg.finalizer(globalenv(), function(e) quit(), onexit = FALSE)
      gc()
    }),
    mirai(for (i in 1:60) warning("one of many")),
    mirai(on.exit(stop("on exit"))),
    mirai(suspendInterrupts(invokeRestart("abort"))),
    mirai({
      makeActiveBinding("active", function() stop("active"), globalenv())
      lockBinding("active", globalenv())
    }),
    mirai(trace("mirai", quote(stop()), where = asNamespace("mirai"), print = FALSE)),
    mirai(library(stats4)),
    mirai(attach(list(x = 1))),
    mirai(setwd(tempdir())),
    mirai(environment()),
    mirai(globalenv()),
    mirai(unloadNamespace("mirai"))
  ))
  left <- mirai(c(getOption("scipen") > 0, exists("active"), "package:stats4" %in% search()))
  expect_identical(left[], c(FALSE, FALSE, FALSE))
  expect_healthy(pid)
})

test_that("a task that ends its daemon is 19: quit(), a segfault, any signal", {
  endings <- expression(
    quit(),
    quit("no", 3, FALSE),
    tools::pskill(Sys.getpid(), 11L),
    tools::pskill(Sys.getpid(), tools::SIGKILL),
    tools::pskill(Sys.getpid(), tools::SIGTERM),
    tools::pskill(Sys.getpid(), 6L)
  )
  local_test_daemons(length(endings) + 1L)
  pids <- daemon_pids()
  for (ending in as.list(endings)) {
    m <- mirai({
      eval(ending)
      Sys.sleep(1e6)
    }, ending = ending)
    expect_reset(m[])
    alone <- mirai({
      eval(ending)
      Sys.sleep(1e6)
    }, ending = ending, .compute = "none set")
    expect_reset(alone[])
  }
  expect_true(connected(1))
  expect_true(wait_until(function() sum(vapply(pids, is_alive, NA)) == 1L))
  expect_identical(mirai("still there")[], "still there")
})

test_that("large values arrive, and what cannot be sent is an error on the host", {
  local_test_daemons(1)
  pid <- daemon_pids()
  expect_identical(mirai(as.raw(rep(1:7, 1e6)))[], as.raw(rep(1:7, 1e6)))
  x <- runif(5e6)
  expect_identical(mirai(x, x = x)[], x)
  deep <- list()
  for (i in 1:1e5) deep <- list(deep)
  # not expect_error(), whose handler R does not call when the stack is full
  said <- tryCatch(mirai(1, deep = deep), error = conditionMessage)
  expect_match(said, "nested too deeply|stack")
  expect_healthy(pid)
})

test_that("a running task is interrupted wherever it is", {
  local_test_daemons(1)
  pid <- daemon_pids()
  for (expr in expression(
    Sys.sleep(1e6),
    repeat 1,
    while (TRUE) sort(runif(1000)),
    tryCatch(Sys.sleep(1e6), finally = 1),
    lapply(1, function(i) repeat i),
    repeat gc(),
    try(repeat Sys.sleep(1), silent = TRUE)
  )) {
    file <- local_file()
    m <- mirai({
      file.create(file)
      eval(expr)
    }, expr = expr, file = file)
    expect_true(wait_until(function() file.exists(file)))
    expect_true(stop_mirai(m))
    expect_identical(m[], canceled)
    expect_identical(mirai(Sys.getpid())[], pid)
  }
  expect_healthy(pid)
})

test_that("SIGINT means nothing to an idle daemon, and interrupts the task of a busy one", {
  for (timer in list(Inf, 1e6)) {
    local_test_daemons(1, idletime = timer)
    pid <- daemon_pids()
    for (i in 1:10) {
      tools::pskill(pid, tools::SIGINT)
      expect_identical(mirai("done")[], "done")
    }
    m <- sleeper()
    tools::pskill(pid, tools::SIGINT)
    expect_true(is_mirai_interrupt(m[]))
    expect_healthy(pid)
  }
})

test_that("SIGTERM ends a daemon, and its task is 19", {
  local_test_daemons(2)
  pids <- daemon_pids()
  m <- sleeper()
  free <- mirai(Sys.getpid())[]
  dirs <- everywhere(tempdir())
  tools::pskill(setdiff(pids, free), tools::SIGTERM)
  expect_reset(m[])
  expect_true(all_end(setdiff(pids, free)))
  expect_identical(mirai(Sys.getpid())[], free)
})

test_that("a daemon that is stopped and continued loses nothing", {
  local_test_daemons(1)
  pid <- daemon_pids()
  tools::pskill(pid, tools::SIGSTOP)
  x <- raw(5e6)
  ms <- lapply(1:5, function(i) mirai(length(x), x = x))
  gone <- mirai("cancelled meanwhile")
  expect_true(stop_mirai(gone))
  expect_true(stop_mirai(ms[[1L]]))
  expect_true(unresolved(ms[-1L]))
  tools::pskill(pid, tools::SIGCONT)
  expect_identical(collect_mirai(ms[-1L]), as.list(rep(5e6L, 4L)))
  expect_healthy(pid)

  # and resetting does not wait for it
  tools::pskill(pid, tools::SIGSTOP)
  m <- mirai(1)
  daemons(0)
  expect_reset(m[])
  tools::pskill(pid, tools::SIGCONT)
  expect_true(all_end(pid))
})

test_that("a daemon that cannot start shows what it has said and leaves nothing", {
  dir <- local_file()
  dir.create(dir)
  profile <- test_profile()
  before <- children()
  # One that is killed while R starts leaves a directory that nobody knows of.
  local_tmpdir()
  local_envvar(R_PROFILE_USER = file.path(dir, "profile"))
  writeLines("cat('a bad start\\n', file = stderr()); quit(status = 9)", file.path(dir, "profile"))
  expect_error(daemons(3, .compute = profile), "exit status 9.*a bad start")
  expect_false(daemons_set(profile))
  expect_true(wait_until(function() setequal(children(), before)))
  m <- mirai(1, .compute = profile)
  expect_reset(m[])
  # and one that is killed while it starts
  writeLines("tools::pskill(Sys.getpid(), 9L); Sys.sleep(60)", file.path(dir, "profile"))
  expect_error(daemons(2, .compute = profile), "killed by signal 9")
  expect_false(daemons_set(profile))
  expect_true(wait_until(function() setequal(children(), before)))
})

test_that("a fork server that is interrupted means nothing, and one that is killed is done without", {
  said <- r_output(c(
    "library(mirai)",
    paste(c("process_stat <-", deparse(process_stat)), collapse = "\n"),
    paste(c("children <-", deparse(children)), collapse = "\n"),
    "d <- daemons(2)",
    "server <- children()",
    "stopifnot(length(server) == 1L, mirai(1)[] == 1)",
    "tools::pskill(server, tools::SIGINT)",
    "d <- daemons(2, .compute = 'second')",
    "stopifnot(mirai(2, .compute = 'second')[] == 2, identical(children(), server))",
    "tools::pskill(server, tools::SIGKILL)",
    "d <- daemons(2, .compute = 'third')",
    "stopifnot(mirai(3, .compute = 'third')[] == 3, mirai(4, .compute = 'none')[] == 4)",
    "d <- daemons(1, .compute = 'third')",
    "stopifnot(mirai(5, .compute = 'third')[] == 5, mirai(6)[] == 6)",
    "cat('fine\\n')"
  ))
  expect_identical(said[length(said)], "fine")
})

test_that("children of parallel::mclapply() do not disturb daemons", {
  local_test_daemons(2)
  pids <- daemon_pids()
  m <- sleeper()
  resolved <- call_mirai(mirai("resolved"))
  dropped <- lapply(1:100, function(i) mirai(i, i = i))
  said <- parallel::mclapply(1:4, function(i) {
    dropped <<- NULL
    gc()
    text <- function(expr) tryCatch(expr, error = conditionMessage)
    list(
      text(mirai(1)),
      text(daemons(1)),
      text(daemons(0)),
      text(mirai(1, .compute = "none set")),
      text(m[]),
      text(race_mirai(list(m))),
      stop_mirai(m),
      unresolved(m),
      resolved[]
    )
  }, mc.cores = 2)
  for (x in said) {
    expect_match(unlist(x[1:6]), "forked")
    expect_identical(x[7:9], list(FALSE, TRUE, "resolved"))
  }
  expect_true(unresolved(m))
  expect_identical(collect_mirai(dropped), as.list(1:100))
  expect_true(stop_mirai(m))
  expect_healthy(pids)
})

test_that("mclapply() works in a task, and its children neither disturb nor keep anything", {
  local_test_daemons(2)
  pids <- daemon_pids()
  m <- mirai(unlist(parallel::mclapply(1:4, function(i) i^2, mc.cores = 2)))
  expect_identical(m[], c(1, 4, 9, 16))
  expect_healthy(pids)

  # A daemon that is killed is lost at once, although its children have its sockets.
  file <- local_file()
  m <- mirai({
    parallel::mcparallel({
      writeLines(as.character(Sys.getpid()), file)
      Sys.sleep(1e6)
    })
    while (!length(readLines(file))) Sys.sleep(0.01)
    tools::pskill(Sys.getpid(), tools::SIGKILL)
  }, file = {
    file.create(file)
    file
  })
  expect_reset(m[])
  child <- as.integer(readLines(file))
  expect_true(is_alive(child))
  tools::pskill(child, tools::SIGKILL)
  expect_true(connected(1))
})

test_that("a host that is killed takes its daemons along although a fork of it lives on", {
  files <- vapply(1:2, function(i) local_file(), "")
  host <- r_process(c(
    "library(mirai)",
    "d <- daemons(2)",
    put(all_pids, files[1L]),
    "m <- mirai(Sys.sleep(1e6))",
    paste0("fork <- parallel::mcparallel({", put("Sys.getpid()", files[2L]), "; Sys.sleep(1e6)})"),
    "m[]"
  ))
  pids <- read_ints(files[1L])
  fork <- read_ints(files[2L])
  defer(function() tools::pskill(fork, tools::SIGKILL), environment())
  host$signal(tools::SIGKILL)
  expect_true(all_end(pids))
  expect_true(is_alive(fork))
})

# Ctrl-C in every kind of wait: the session goes on, and so does what was waited for.
interrupts <- function(code, when = NULL) {
  host <- r_process(c(
    "library(mirai)",
    "catch <- function(expr) tryCatch(expr, interrupt = function(i) 'interrupted')",
    code
  ), frame = parent.frame())
  wait_for_line(host, "waiting")
  if (!is.null(when)) expect_true(wait_until(when))
  interrupt_asleep(host)
  host
}

interrupt_asleep <- function(host) {
  expect_true(wait_until(function() process_stat(host$get_pid())[1L] == "S"))
  host$interrupt()
}

test_that("Ctrl-C ends every kind of wait for mirai, which can be waited for again", {
  host <- interrupts(c(
    "d <- daemons(1)",
    "go <- tempfile()",
    "m <- mirai({while (!file.exists(go)) Sys.sleep(0.01); 'value'}, go = go)",
    "ms <- list(m, mirai('next'))",
    "waits <- expression(m[], call_mirai(m), call_mirai(ms), race_mirai(ms), collect_mirai(ms))",
    "for (i in seq_along(waits)) print(catch({cat('waiting\\n'); eval(waits[[i]])}))",
    "stopifnot(unresolved(m))",
    "file.create(go)",
    "print(m[])",
    "print(race_mirai(ms))",
    "str(collect_mirai(ms))",
    "print(mirai('later')[])"
  ))
  for (i in 1:5) {
    wait_for_line(host, "[1] \"interrupted\"")
    if (i < 5L) {
      wait_for_line(host, "waiting")
      interrupt_asleep(host)
    }
  }
  wait_for_line(host, "[1] \"value\"")
  wait_for_line(host, "[1] 1")
  wait_for_line(host, "[1] \"later\"")
  host$wait(10000)
  expect_identical(host$get_exit_status(), 0L)
})

test_that("Ctrl-C ends the wait for room in the queue", {
  host <- interrupts(c(
    "d <- daemons(1, memory = 1)",
    "go <- tempfile()",
    "m <- mirai({while (!file.exists(go)) Sys.sleep(0.01); 'value'}, go = go)",
    "full <- mirai(length(x), x = raw(9e5))",
    "print(catch({cat('waiting\\n'); mirai(length(x), x = raw(9e5))}))",
    "stopifnot(identical(unname(status()$mirai[1:2]), c(1L, 1L)))",
    "file.create(go)",
    "stopifnot(m[] == 'value', full[] == 9e5, mirai(length(x), x = raw(9e5))[] == 9e5)",
    "cat('fine\\n')"
  ))
  wait_for_line(host, "[1] \"interrupted\"")
  wait_for_line(host, "fine")
})

test_that("Ctrl-C ends the wait for daemons to start, and leaves none half made", {
  dir <- local_file()
  dir.create(dir)
  profile <- file.path(dir, "profile")
  pids <- file.path(dir, "pids")
  writeLines(c(
    sprintf("cat(Sys.getpid(), '\\n', file = '%s', append = TRUE)", pids),
    sprintf("while (!file.exists('%s/go')) Sys.sleep(0.01)", dir)
  ), profile)
  host <- interrupts(c(
    "Sys.unsetenv(c('R_ENVIRON', 'R_ENVIRON_USER'))", # callr's
    sprintf("Sys.setenv(R_PROFILE_USER = '%s')", profile),
    "print(catch({cat('waiting\\n'); daemons(2)}))",
    "stopifnot(!daemons_set())",
    "Sys.unsetenv('R_PROFILE_USER')",
    "stopifnot(daemons(1) == 1L, mirai(1)[] == 1)",
    "cat('fine\\n')"
  ), function() file.exists(pids) && length(readLines(pids)) >= 1L)
  wait_for_line(host, "[1] \"interrupted\"")
  wait_for_line(host, "fine")
  file.create(file.path(dir, "go"))
  expect_true(all_end(scan(pids, quiet = TRUE)))
})

test_that("an unhandled Ctrl-C ends a script and its daemons", {
  file <- local_file()
  host <- interrupts(c(
    "d <- daemons(2)",
    put(all_pids, file),
    "m <- mirai(Sys.sleep(1e6))",
    "cat('waiting\\n')",
    "m[]"
  ))
  expect_true(all_end(c(host$get_pid(), read_ints(file))))
})

test_that("a session at its limit of descriptors gets errors and recovers", {
  skip_if(Sys.which("prlimit") == "", "prlimit is not installed")
  # Before there is anything of ours, and after.
  for (early in c(TRUE, FALSE)) {
    said <- r_output(c(
      "library(mirai)",
      "Sys.unsetenv('RUST_BACKTRACE')", # of the errors, which are expected
      "try_that <- function(expr) tryCatch(expr, error = function(e) FALSE)",
      if (!early) "d <- daemons(1, .compute = 'first'); stopifnot(mirai(1, .compute = 'first')[] == 1)",
      "limit <- function(n) system2('prlimit', c('--pid', Sys.getpid(), paste0('--nofile=', n, ':1024')))",
      "free <- setdiff(0:1000, as.integer(list.files('/proc/self/fd')))",
      "failed <- 0",
      "for (spare in c(0:4, 6, 9, 14)) {",
      "  limit(free[spare + 1L])",
      "  m <- try_that(mirai(2, .compute = 'none')[])",
      "  d <- try_that(daemons(2))",
      "  limit(1000)",
      "  failed <- failed + identical(m, FALSE) + identical(d, FALSE)",
      "  stopifnot(identical(m, FALSE) || m %in% c(2, 19L), identical(daemons_set(), !identical(d, FALSE)))",
      "  if (daemons_set()) daemons(0)",
      "}",
      if (!early) "stopifnot(mirai(3, .compute = 'first')[] == 3)",
      "stopifnot(failed > 5, daemons(1) == 1L, mirai(4)[] == 4, mirai(5, .compute = 'none')[] == 5)",
      "cat('fine\\n')"
    ))
    expect_identical(said[length(said)], "fine")
  }
})

test_that("many profiles come and go, and leave nothing", {
  mirai(1, .compute = test_profile())[]
  profiles <- vapply(1:20, function(i) test_profile(), "")
  once <- function() {
    for (p in profiles) daemons(url = local_url(), .compute = p)
    for (p in profiles[1:3]) {
      launch_local(1L, .compute = p)
      expect_identical(mirai("here", .compute = p)[], "here")
    }
    pids <- vapply(profiles[1:3], function(p) mirai(Sys.getpid(), .compute = p)[], 1L)
    for (p in profiles) daemons(0, .compute = p)
    expect_true(all_end(pids))
  }
  once()
  gc()
  before <- resources()
  for (i in 1:3) once()
  expect_true(wait_until(function() all(resources() <= before)))
})

test_that("daemons(0) in the midst of things ends them all", {
  profile <- local_test_daemons(3)
  pids <- daemon_pids()
  ms <- lapply(1:500, function(i) mirai(Sys.sleep(i %% 3), i = i, .timeout = if (i %% 2L) 1e5))
  daemons(0)
  expect_true(all(vapply(collect_mirai(ms), function(v) is.null(v) || identical(without_reason(v), reset), NA)))
  expect_true(all_end(pids))
  # over and over
  for (i in 1:5) {
    daemons(2)
    ms <- lapply(1:50, function(i) mirai(Sys.sleep(60)))
    es <- everywhere(Sys.sleep(60))
    pids <- c(pids, children())
  }
  daemons(0)
  expect_identical(unique(lapply(collect_mirai(ms), without_reason)), list(reset))
  expect_identical(unique(lapply(collect_mirai(es), without_reason)), list(reset))
})

test_that("thousands of mirai may be dropped while pending", {
  local_test_daemons(2)
  pids <- daemon_pids()
  for (round in 1:2) {
    for (i in 1:1000) {
      mirai({
        if (i %% 100 == 0) gc()
        list(i, x)
      }, i = i, x = new.env(parent = emptyenv()))
      if (i %% 250 == 0) gc()
    }
  }
  kept <- mirai("kept")
  gc()
  expect_identical(kept[], "kept")
  expect_healthy(pids)
})

test_that("the same mirai may be waited for more than once in a list", {
  local_test_daemons(1)
  m <- mirai({
    Sys.sleep(0.1)
    1
  })
  expect_identical(collect_mirai(list(m, m, m)), list(1, 1, 1))
  m <- mirai(Sys.sleep(0.1))
  expect_identical(race_mirai(list(m, m)), 1L)
})

test_that("finalizers may use mirai whenever R runs them", {
  # R runs them when it likes: in the midst of serializing a task, say.
  said <- r_output(c(
    "library(mirai)",
    "d <- daemons(1)",
    "count <- 0L",
    "use <- function(e) {",
    "  count <<- count + 1L",
    "  m <- mirai(x, x = runif(100))",
    "  if (count %% 3L == 0L) stop_mirai(m)",
    "  if (count %% 5L == 0L) m[]",
    "  status()",
    "}",
    "x <- list(1:3, new.env(), quote(a + b), as.character(1:50), letters)",
    "for (wait in 1:400) {",
    "  reg.finalizer(new.env(), use)",
    "  gctorture2(1e6, wait = wait)",
    "  m <- mirai(x, x = x)",
    "  s <- status()",
    "  gctorture2(0)",
    "  v <- m[]",
    "  stopifnot(identical(v[-2], x[-2]), is.environment(v[[2]]))",
    "}",
    "stopifnot(count > 200)",
    "cat('fine\\n')"
  ))
  expect_identical(said[length(said)], "fine")
})

test_that("hooks may use mirai, even the one that is being read", {
  said <- r_output(c(
    "library(mirai)",
    "d <- daemons(1)",
    "depth <- 0",
    "serialization(list(",
    "  function(x) {mirai::mirai(1, .compute = 'none'); charToRaw(x[[1]])},",
    "  function(x) {",
    "    if (!mirai::on_daemon() && (depth <<- depth + 1) < 3) {m$data; mirai(list(m, runif(1e5)))[]; gc()}",
    "    list(rawToChar(x))",
    "  }",
    "), 'hooked')",
    "m <- mirai(c(x, list(y, 'end')), x = structure(list('text'), class = 'hooked'), y = runif(1e5))",
    "v <- m[]",
    "stopifnot(identical(v[[3]], 'end'), length(v[[2]]) == 1e5, identical(m$data, v))",
    "m <- mirai(list(x, 'end'), x = structure(list('text'), class = 'hooked'))",
    "v <- m[]",
    "m <- mirai(structure(list('made there'), class = 'hooked'))",
    "stopifnot(identical(v, list(list('text'), 'end')), identical(m[], list('made there')))",
    "cat('fine\\n')"
  ))
  expect_identical(said[length(said)], "fine")
})

test_that("daemons of daemons end with them", {
  local_test_daemons(1)
  pid <- daemon_pids()
  m <- mirai({
    mirai::daemons(2)
    on.exit(mirai::daemons(0))
    m <- mirai::mirai(Sys.getpid())
    c(m[], mirai::mirai(1 + 1)[])
  })
  value <- m[]
  expect_identical(value[2L], 2)
  expect_true(all_end(value[1L]))
  expect_healthy(pid)
  # also when nobody ends them
  m <- mirai({
    mirai::daemons(2)
    unlist(mirai::collect_mirai(mirai::everywhere(Sys.getpid())))
  })
  below <- m[]
  expect_length(below, 2L)
  expect_true(all(vapply(below, is_alive, NA)))
  tools::pskill(pid, tools::SIGKILL)
  expect_true(all_end(c(pid, below)))
})

test_that("idle host and daemons use no CPU", {
  file <- local_file()
  host <- r_process(c(
    "library(mirai)",
    "d <- daemons(4)",
    "daemons(1, dispatcher = FALSE, .compute = 'other')",
    "mirai(1)[]; mirai(Sys.sleep(1e6), .timeout = 1e6, .compute = 'other')",
    put(paste0("c(Sys.getpid(), ", all_pids, ")"), file),
    "Sys.sleep(1e6)"
  ))
  pids <- read_ints(file)
  expect_length(pids, 5L)
  Sys.sleep(0.5)
  before <- cpu_ticks(pids)
  Sys.sleep(2)
  expect_identical(cpu_ticks(pids), before)
})
