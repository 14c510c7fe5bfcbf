# Signals and catches what `expr` relays, in order.
relayed <- function(expr) {
  seen <- list()
  keep <- function(restart) {
    function(cnd) {
      seen <<- c(seen, list(cnd))
      invokeRestart(restart)
    }
  }
  withCallingHandlers(expr, warning = keep("muffleWarning"), message = keep("muffleMessage"))
  seen
}

test_that("a mirai keeps the warnings and messages of its evaluation, in order, with classes and calls", {
  local_test_daemons(1)
  m <- mirai({
    f <- function() warning("from f")
    message("one")
    f()
    suppressWarnings(warning("handled"))
    withCallingHandlers(message("seen"), message = function(m) NULL)
    rlang_like <- structure(class = c("my_warning", "warning", "condition"), list(message = "mine", call = NULL))
    warning(rlang_like)
    "value"
  })
  expect_identical(m[], "value")
  got <- mirai_conditions(m)
  expect_identical(vapply(got, conditionMessage, ""), c("one\n", "from f", "seen\n", "mine"))
  expect_identical(conditionCall(got[[2L]]), quote(f()))
  expect_identical(class(got[[4L]]), c("my_warning", "warning", "condition"))
  expect_null(attr(got, "dropped"))
  # The next task begins anew.
  m <- mirai(NULL)
  m[]
  expect_identical(mirai_conditions(m), list())
})

test_that("the conditions of an evaluation that fails are kept, too", {
  local_test_daemons(1)
  m <- mirai({
    warning("before")
    stop("the end")
  })
  expect_true(is_mirai_error(m[]))
  expect_identical(conditionMessage(mirai_conditions(m)[[1L]]), "before")
})

test_that("conditions are kept within bounds, and those beyond are counted", {
  local_test_daemons(1)
  m <- mirai(
    for (i in 1:100000) {
      warning(i)
    }
  )
  m[]
  got <- mirai_conditions(m)
  expect_length(got, 100L)
  expect_identical(conditionMessage(got[[100L]]), "100")
  expect_identical(attr(got, "dropped"), 99900L)
  m <- mirai(
    for (i in 1:10) {
      message(strrep("x", 30000))
    }
  )
  m[]
  expect_length(mirai_conditions(m), 2L)
  expect_identical(attr(mirai_conditions(m), "dropped"), 8L)
  # A call with large data in it, and a condition that has no message.
  m <- mirai({
    do.call(warning, list(numeric(1e6)[1], call. = TRUE))
    do.call(function(x) warning("large"), list(numeric(1e6)))
    warning(structure(class = c("odd", "warning", "condition"), list()))
  })
  m[]
  got <- mirai_conditions(m)
  expect_null(conditionCall(got[[2L]]))
  expect_lt(length(serialize(got, NULL)), 20000)
})

test_that("conditions are relayed upon request, from a map with index and name", {
  local_test_daemons(2)
  m <- mirai({
    message("hello")
    warning("careful")
    1
  })
  m[]
  expect_identical(vapply(relayed(m[.relay]), conditionMessage, ""), c("hello\n", "careful"))
  expect_length(relayed(m[]), 0L)
  local_options(mirai.relay = TRUE)
  expect_length(relayed(m[]), 2L)
  options(mirai.relay = NULL)
  x <- mirai_map(c(a = 1, b = 2, 3), function(i) {
    if (i > 1) {
      warning("no. ", i)
    }
    i
  })
  seen <- relayed(x[.relay, .flat])
  expect_identical(
    vapply(seen, conditionMessage, ""),
    c("In index: 2. With name: b. no. 2", "In index: 3. no. 3")
  )
  expect_identical(seen[[1L]]$location, 2L)
  expect_identical(seen[[1L]]$name, "b")
  expect_null(seen[[2L]]$name)
  expect_identical(conditionMessage(seen[[1L]]$parent), "no. 2")
  expect_length(relayed(collect_mirai(x, ".relay")), 2L)
  expect_error(m[.relay = "x"], class = "mirai_error_argument")
  expect_error(m["nonsense"], class = "mirai_error_argument")
})

test_that("conditions are of no account while there are none", {
  expect_identical(mirai_conditions(list()), list())
  m <- mirai(Sys.sleep(60))
  expect_identical(mirai_conditions(m), list())
  stop_mirai(m)
  expect_identical(mirai_conditions(m), list())
  expect_error(mirai_conditions(1), class = "mirai_error_argument")
})

test_that("conditions and reports come by every transport", {
  noted <- function() {
    m <- mirai({
      warning("careful")
      mirai::mirai_report(numeric(1e5))
      1
    })
    expect_identical(m[], 1)
    expect_identical(conditionMessage(mirai_conditions(m)[[1L]]), "careful")
    mirai_reports(m)
  }
  for (scheme in c("abstract", "tcp", "tls+tcp", "wss")) {
    local({
      url <- if (scheme == "abstract") paste0("abstract://notes-", Sys.getpid()) else paste0(scheme, "://127.0.0.1:0")
      local_test_daemons(url = url)
      launch_local()
      expect_identical(noted(), list(numeric(1e5)))
    })
  }
})

test_that("a task's reports can be read while it runs and afterwards", {
  local_test_daemons(1)
  go <- local_file()
  m <- mirai(
    {
      for (i in 1:3) {
        mirai::mirai_report(i)
      }
      while (!file.exists(go)) {
        Sys.sleep(0.01)
      }
      mirai::mirai_report("last")
      "value"
    },
    go = go
  )
  expect_true(wait_until(function() length(mirai_reports(m)) == 3L))
  expect_true(unresolved(m))
  expect_identical(mirai_reports(m), list(1L, 2L, 3L))
  file.create(go)
  expect_identical(m[], "value")
  expect_identical(mirai_reports(m), list(1L, 2L, 3L, "last"))
})

test_that("only the last reports of very many are kept", {
  local_test_daemons(1)
  m <- mirai(
    for (i in 1:5000) {
      mirai::mirai_report(i)
    }
  )
  m[]
  got <- mirai_reports(m)
  expect_identical(unlist(got), 4001:5000)
  expect_identical(attr(got, "dropped"), 4000L)
  m <- mirai(
    for (i in 1:20) {
      mirai::mirai_report(rep(i, 1e6))
    }
  )
  m[]
  got <- mirai_reports(m)
  expect_identical(got[[length(got)]][[1L]], 20L)
  expect_lt(length(got), 6L)
})

test_that("a report that cannot be sent is an error in the task, and one outside of a task is nothing", {
  expect_false(mirai_report(1))
  expect_error(mirai_reports(1), class = "mirai_error_argument")
  local_test_daemons(1)
  m <- mirai({
    x <- NULL
    for (i in 1:200000) {
      x <- list(x)
    }
    try(mirai::mirai_report(x), silent = TRUE)
    mirai::mirai_report("after")
  })
  expect_true(m[])
  expect_identical(mirai_reports(m), list("after"))
})

test_that("a process that a task has forked does not report on its daemon's link", {
  skip_on_os("windows")
  local_test_daemons(1)
  m <- mirai(unlist(parallel::mclapply(1:4, function(i) mirai::mirai_report(i), mc.cores = 2)))
  expect_identical(m[], rep(FALSE, 4L))
  expect_identical(mirai_reports(m), list())
  expect_identical(mirai(1)[], 1)
})

test_that("a mirai keeps what its evaluation prints: R code, C code, programs and forks", {
  local_test_daemons(1, output = "task")
  m <- mirai({
    cat("R\n")
    message("message")
    system("echo program; echo its stderr >&2")
    parallel::mccollect(parallel::mcparallel(system("echo fork")))
    print(1:3)
    cat("no end of line")
    "value"
  })
  expect_identical(m[], "value")
  said <- "R\nmessage\nprogram\nits stderr\nfork\n[1] 1 2 3\nno end of line"
  expect_identical(mirai_output(m), said)
  expect_identical(vapply(mirai_conditions(m), conditionMessage, ""), "message\n")
  # The next task begins anew.
  m <- mirai(NULL)
  m[]
  expect_identical(mirai_output(m), "")
  m <- mirai({
    cat("before ")
    stop("the end")
  })
  m[]
  expect_identical(mirai_output(m), "before ")
})

test_that("the output of a map is a character vector, and is empty where nothing is kept", {
  local_test_daemons(2, output = "task")
  x <- mirai_map(c(a = 1, b = 2), function(x) cat("element", x))
  x[]
  expect_identical(mirai_output(x), c(a = "element 1", b = "element 2"))
  expect_identical(mirai_output(mirai_map(list(), identity)), character())
  expect_error(mirai_output(1), "'x' must be")
  local_test_daemons(1)
  m <- mirai(cat("nothing"))
  expect_identical(mirai_output(m), "")
  m[]
  expect_identical(mirai_output(m), "")
})

test_that(".relay prints output, with messages in their places, once", {
  local_test_daemons(1, output = "task")
  m <- mirai({
    cat("one\n")
    message("two")
    cat("three\n")
    warning("four")
    suppressMessages(message("never"))
    cat("five\n")
  })
  said <- capture.output(seen <- relayed(m[.relay]))
  expect_identical(said, c("one", "three", "five"))
  expect_identical(vapply(seen, conditionMessage, ""), c("two\n", "four"))
  # The message is signalled between what was printed before and after it.
  order <- capture.output(withCallingHandlers(
    invisible(m[.relay]),
    message = function(cnd) {
      cat("<", conditionMessage(cnd), ">", sep = "")
      invokeRestart("muffleMessage")
    },
    warning = function(cnd) invokeRestart("muffleWarning")
  ))
  expect_identical(order, c("one", "<two", ">three", "five"))
  x <- mirai_map(1:2, function(i) cat("element", i, "\n"))
  expect_identical(capture.output(invisible(x[.relay])), c("element 1 ", "element 2 "))
})

test_that("of a flood of output the beginning and the end are kept, with the number of bytes between", {
  local_test_daemons(1, output = "task")
  m <- mirai({
    cat("first\n")
    system("yes 0123456789abcde | head -c 1000000000")
    cat("last\n")
  })
  m[]
  said <- mirai_output(m)
  expect_true(startsWith(said, "first\n0123456789abcde\n"))
  expect_true(endsWith(said, "0123456789abcde\nlast\n"))
  expect_match(said, "\n[... 998951435 bytes are left out here ...]\n", fixed = TRUE)
  expect_lt(nchar(said), 2^20 + 100)
})

test_that("a task that closes, redirects or sinks its output does so for itself", {
  local_test_daemons(1, output = "task")
  file <- local_file()
  m <- mirai(
    {
      sink(file)
      cat("to the file\n")
      sink()
      cat("to the host\n")
      closeAllConnections()
      cat("still\n")
    },
    file = file
  )
  m[]
  expect_identical(readLines(file), "to the file")
  expect_identical(mirai_output(m), "to the host\nstill\n")
  # What is not text.
  m <- mirai(system("printf 'a\\000b\\377c'"))
  m[]
  expect_identical(mirai_output(m), "ab\ufffdc")
})

test_that("output = TRUE prints warnings as well, where R would not", {
  said <- r_output(
    '{
    library(mirai)
    daemons(1, output = TRUE)
    f <- function() warning("seen")
    mirai(
      {
        f()
        warning("at top")
        suppressWarnings(warning("never"))
        options(warn = 1)
        warning("by R")
      },
      f = f
    )[]
    daemons(0)
  }'
  )
  expect_identical(
    grep("Warning|seen|by R|never", said, value = TRUE),
    c(
      "[task 1] Warning in f() : seen",
      "[task 1] Warning: at top",
      "[task 1] Warning in eval(.expr., .envir.) : by R"
    )
  )
})

test_that(".on_report is called with each report and its index, in order, while the session waits", {
  skip_if_not_installed("later")
  local_test_daemons(2)
  seen <- list()
  x <- mirai_map(
    c(a = 10, b = 20),
    function(x) {
      for (i in 1:3) {
        mirai::mirai_report(x + i)
      }
      x
    },
    .on_report = function(value, i) seen <<- c(seen, list(c(i, value)))
  )
  expect_identical(x[], list(a = 10, b = 20))
  expect_length(seen, 6L)
  at <- vapply(seen, `[`, 0, 1L)
  values <- vapply(seen, `[`, 0, 2L)
  expect_identical(values[at == 1], c(11, 12, 13))
  expect_identical(values[at == 2], c(21, 22, 23))
  # Nothing is kept when all is told.
  while (.Call(rs_promises_kept) > 0L) {
    later::run_now(Inf)
  }
  expect_error(mirai_map(1, identity, .on_report = 1), "'.on_report' must be a function")
  expect_error(mirai(1, .on_report = "f"), "'.on_report' must be a function")
})

test_that("a report is told before its task is over, and an error in .on_report is a warning", {
  skip_if_not_installed("later")
  local_test_daemons(1)
  go <- local_file()
  told <- NULL
  m <- mirai(
    {
      mirai::mirai_report("waiting")
      while (!file.exists(go)) {
        Sys.sleep(0.01)
      }
      mirai::mirai_report("going")
      "value"
    },
    go = go,
    .on_report = function(value) {
      told <<- c(told, value)
      file.create(go)
      stop("bad handler")
    }
  )
  # Package later calls it where no handler of the caller's is.
  local_options(warn = 1)
  said <- capture.output(type = "message", {
    while (length(told) < 2L) {
      later::run_now(Inf)
    }
  })
  expect_identical(said, rep("Warning: '.on_report' failed: bad handler", 2L))
  expect_identical(told, c("waiting", "going"))
  expect_identical(m[], "value")
})

test_that(".on_report is called during every wait, and may itself wait", {
  skip_if_not_installed("later")
  local_test_daemons(2)
  go <- local_file()
  work <- function(i, go) {
    mirai::mirai_report(i)
    while (!file.exists(go)) {
      Sys.sleep(0.01)
    }
    i
  }
  told <- integer()
  # The wait would not end if this were not called meanwhile.
  release <- function(value) {
    told <<- c(told, value, mirai(10L * value, value = value, .compute = other)[])
    file.create(go)
  }
  other <- test_profile()
  daemons(1, .compute = other)
  defer(function() daemons(0, .compute = other), environment())
  for (wait in list(
    function(m) m[],
    call_mirai,
    race_mirai,
    collect_mirai,
    function(m) list(m)[[1L]][.progress],
    function(m) everywhere(x, x = m)[],
    function(m) mirai_map(list(m), identity)[.flat]
  )) {
    unlink(go)
    told <- integer()
    m <- mirai(work(1L, go), work = work, go = go, .on_report = release)
    wait(m)
    expect_identical(told, c(1L, 10L))
  }
  x <- mirai_map(1:2, work, .args = list(go = local_file()), .on_report = function(value) stop_mirai(x))
  expect_true(all(vapply(x[], function(value) identical(as.integer(value), 20L), NA)))
  while (.Call(rs_promises_kept) > 0L) {
    later::run_now(Inf)
  }
  expect_identical(told, c(1L, 10L))
})

test_that(".on_report of a flood is told the newest, and never the same twice", {
  skip_if_not_installed("later")
  local_test_daemons(1)
  told <- integer()
  m <- mirai(
    for (i in 1:20000) {
      mirai::mirai_report(i)
    },
    .on_report = function(value) told <<- c(told, value)
  )
  m[]
  while (.Call(rs_promises_kept) > 0L) {
    later::run_now(Inf)
  }
  expect_false(anyDuplicated(told) > 0L)
  expect_false(is.unsorted(told))
  expect_identical(told[length(told)], 20000L)
})
