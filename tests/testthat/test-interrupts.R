# Interrupts of tasks, and of waits in the session.

skip_if_not(dir.exists("/proc/self"), "there is no /proc")

test_that("a running task is interrupted wherever it is", {
  local_test_daemons(1)
  pid <- daemon_pids()
  for (expr in expression(
    Sys.sleep(1e6),
    repeat {
      1
    },
    while (TRUE) {
      sort(runif(1000))
    },
    tryCatch(Sys.sleep(1e6), finally = 1),
    lapply(1, function(i) {
      repeat {
        i
      }
    }),
    repeat {
      gc()
    },
    try(
      repeat {
        Sys.sleep(1)
      },
      silent = TRUE
    )
  )) {
    file <- local_file()
    m <- mirai(
      {
        file.create(file)
        eval(expr)
      },
      expr = expr,
      file = file
    )
    expect_true(wait_until(function() file.exists(file)))
    expect_true(stop_mirai(m))
    expect_identical(m[], canceled)
    expect_identical(mirai(Sys.getpid())[], pid)
  }
  expect_healthy(pid)
})

test_that("SIGINT interrupts the task of a busy daemon, and does nothing to an idle one", {
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

# A script that presses Ctrl-C during a wait. The session goes on, and so do the tasks.
interrupts <- function(code, when = NULL) {
  host <- r_process(
    c(
      "library(mirai)",
      "catch <- function(expr) tryCatch(expr, interrupt = function(i) 'interrupted')",
      code
    ),
    frame = parent.frame()
  )
  wait_for_line(host, "waiting")
  if (!is.null(when)) {
    expect_true(wait_until(when))
  }
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

test_that("Ctrl-C ends the wait for daemons to start, and leaves no process", {
  dir <- local_file()
  dir.create(dir)
  profile <- file.path(dir, "profile")
  pids <- file.path(dir, "pids")
  writeLines(
    c(
      sprintf("cat(paste0(Sys.getpid(), '\\n'), file = '%s', append = TRUE)", pids),
      sprintf("while (!file.exists('%s/go')) Sys.sleep(0.01)", dir)
    ),
    profile
  )
  host <- interrupts(
    c(
      "Sys.unsetenv(c('R_ENVIRON', 'R_ENVIRON_USER'))", # callr's
      sprintf("Sys.setenv(R_PROFILE_USER = '%s')", profile),
      "print(catch({cat('waiting\\n'); daemons(2)}))",
      "stopifnot(!daemons_set())",
      "Sys.unsetenv('R_PROFILE_USER')",
      "stopifnot(daemons(1) == 1L, mirai(1)[] == 1)",
      "cat('fine\\n')"
    ),
    function() file.exists(pids) && length(readLines(pids)) >= 1L
  )
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

# Compiles a library that lets SIGINT come at the worst moment. While a process sleeps, R has a handler of its own for
# SIGINT, which it sets by signal(). Preloaded, the library is called in its place. If the file of that name exists, it
# removes it and waits for SIGINT: just before the handler is in place, or just after.
local_worst_moment <- function(frame = parent.frame()) {
  code <- c(
    "#define _GNU_SOURCE",
    "#include <dlfcn.h>",
    "#include <signal.h>",
    "#include <stdlib.h>",
    "#include <unistd.h>",
    "typedef void (*handler)(int);",
    "static void wait_if(const char *variable) {",
    "  const char *file = getenv(variable);",
    "  if (!file || access(file, F_OK)) return;",
    "  sigset_t set, old;",
    "  sigemptyset(&set);",
    "  sigaddset(&set, SIGINT);",
    "  pthread_sigmask(SIG_BLOCK, &set, &old);",
    "  unlink(file);",
    "  sigsuspend(&old);",
    "  pthread_sigmask(SIG_SETMASK, &old, 0);",
    "}",
    "handler signal(int number, handler new) {",
    "  handler (*real)(int, handler) = (handler (*)(int, handler)) dlsym(RTLD_NEXT, \"signal\");",
    "  if (number == SIGINT) wait_if(\"MIRAI_TEST_BEFORE\");",
    "  handler old = real(number, new);",
    "  if (number == SIGINT) wait_if(\"MIRAI_TEST_AFTER\");",
    "  return old;",
    "}"
  )
  local_library(code, frame)
}

test_that("an interrupt that R does not hear as it goes to sleep is repeated, and none ends the daemon", {
  skip_if_not_installed("callr")
  skip_on_cran()
  moments <- c(MIRAI_TEST_BEFORE = local_file(), MIRAI_TEST_AFTER = local_file())
  local_envvar(moments, LD_PRELOAD = local_worst_moment())
  for (moment in moments) {
    local_test_daemons(url = local_url())
    daemon_process(nextget("urls"))
    pid <- mirai(Sys.getpid())[]
    for (i in 1:3) {
      file.create(moment)
      m <- mirai(Sys.sleep(1e6))
      expect_true(wait_until(function() !file.exists(moment)))
      expect_true(stop_mirai(m))
      expect_identical(mirai(Sys.getpid(), .timeout = 10000)[], pid)
      # R has put back the right handler, which is the one that matters while it does not sleep.
      busy <- local_file()
      m <- mirai(
        {
          file.create(busy)
          repeat {
            NULL
          }
        },
        busy = busy
      )
      expect_true(wait_until(function() file.exists(busy)))
      expect_true(stop_mirai(m))
      expect_identical(mirai(Sys.getpid(), .timeout = 10000)[], pid)
    }
  }
})
