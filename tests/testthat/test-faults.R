# Faults: processes that die or cannot start, cancellation at any moment, tasks that harm their process. Nothing hangs,
# and nothing is left behind. See also test-interrupts.R, test-forks.R and test-resources.R.

skip_if_not(dir.exists("/proc/self"), "there is no /proc")

test_that("a daemon killed in mid-task is 19 at once, and the others go on", {
  local_test_daemons(3, respawn = FALSE)
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

test_that("tasks that wait for a daemon that is killed go to another daemon", {
  for (dispatcher in c(TRUE, FALSE)) {
    local_test_daemons(2, dispatcher = dispatcher, respawn = FALSE)
    pids <- daemon_pids()
    go <- local_file()
    ms <- lapply(1:20, function(i) {
      mirai(
        {
          while (!file.exists(go)) {
            Sys.sleep(0.01)
          }
          i
        },
        i = i,
        go = go
      )
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
  local_test_daemons(2, retry = TRUE, respawn = FALSE)
  tried <- local_file()
  m <- mirai(
    {
      if (!file.exists(tried)) {
        file.create(tried)
        tools::pskill(Sys.getpid(), tools::SIGKILL)
        Sys.sleep(1e6)
      }
      "finished"
    },
    tried = tried
  )
  expect_identical(m[], "finished")
  expect_identical(info()[["connections"]], 1L)
})

test_that("a daemon that is killed leaves no session directory, nor does one without daemons", {
  local_test_daemons(1)
  dirs <- vapply(
    1:2,
    function(i) {
      file <- local_file()
      compute <- if (i == 2L) test_profile()
      m <- mirai(
        {
          writeLines(c(tempdir(), Sys.getpid()), paste0(file, "-"))
          file.rename(paste0(file, "-"), file)
          Sys.sleep(1e6)
        },
        file = file,
        .compute = compute
      )
      expect_true(wait_until(function() file.exists(file)))
      said <- readLines(file)
      expect_true(dir.exists(said[1L]))
      tools::pskill(as.integer(said[2L]), tools::SIGKILL)
      expect_reset(m[])
      said[1L]
    },
    ""
  )
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
      # tasks: one that R can interrupt, one that it cannot, and one without daemons
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
    # The host that was killed cannot remove its own directory.
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
      # Sometimes give the task time to start, or to end.
      if (i %% 7L == 0L) {
        mirai(NULL)[]
      }
      if (i %% 5L == 0L) {
        later <- mirai("untouched")
      }
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

test_that("a daemon survives what a task does to its process", {
  local_test_daemons(1)
  pid <- daemon_pids()
  expect_match(mirai(stop("plain"))[], "Error: plain")
  expect_match(
    mirai({
      f <- function() f()
      f()
    })[],
    "nested too deeply|stack"
  )
  expect_match(
    mirai({
      options(expressions = 5e5)
      f <- function() f()
      f()
    })[],
    "nested too deeply|stack"
  )
  expect_match(
    mirai({
      x <- list()
      for (i in 1:1e5) {
        x <- list(x)
      }
      x
    })[],
    "nested too deeply|stack"
  )
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
    mirai(
      for (i in 1:60) {
        warning("one of many")
      }
    ),
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
  local_test_daemons(length(endings) + 1L, respawn = FALSE)
  pids <- daemon_pids()
  for (ending in as.list(endings)) {
    m <- mirai(
      {
        eval(ending)
        Sys.sleep(1e6)
      },
      ending = ending
    )
    expect_reset(m[])
    alone <- mirai(
      {
        eval(ending)
        Sys.sleep(1e6)
      },
      ending = ending,
      .compute = "none set"
    )
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
  for (i in 1:1e5) {
    deep <- list(deep)
  }
  # not expect_error(), whose handler R does not call when the stack is full
  said <- tryCatch(mirai(1, deep = deep), error = conditionMessage)
  expect_match(said, "nested too deeply|stack")
  expect_healthy(pid)
})

test_that("SIGTERM ends a daemon, and its task is 19", {
  local_test_daemons(2, respawn = FALSE)
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

  # and resetting daemons does not wait for it
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
  # A process that is killed while R starts leaves a directory whose name is not known.
  local_tmpdir()
  local_envvar(R_PROFILE_USER = file.path(dir, "profile"))
  writeLines("cat('a bad start\\n', file = stderr()); quit(status = 9)", file.path(dir, "profile"))
  expect_error(daemons(3, .compute = profile), "exit status 9.*a bad start")
  expect_false(daemons_set(profile))
  expect_true(wait_until(function() setequal(children(), before)))
  m <- mirai(1, .compute = profile)
  expect_reset(m[])
  # and a process that is killed while it starts
  writeLines("tools::pskill(Sys.getpid(), 9L); Sys.sleep(60)", file.path(dir, "profile"))
  expect_error(daemons(2, .compute = profile), "killed by signal 9")
  expect_false(daemons_set(profile))
  expect_true(wait_until(function() setequal(children(), before)))
})

test_that("daemons(0) ends all daemons, busy or idle", {
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
  # R may run finalizers at any time, for example while it serializes a task.
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
  # even if they are not ended by daemons(0)
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
