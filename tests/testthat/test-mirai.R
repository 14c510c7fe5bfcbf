test_that("a mirai goes from unresolved to its value", {
  local_test_daemons(1)
  busy <- mirai(Sys.sleep(60))
  m <- withVisible(mirai(x + 1, x = 1))
  expect_false(m$visible)
  m <- m$value
  expect_s3_class(m, "mirai", exact = TRUE)
  expect_true(is.environment(m))
  expect_snapshot({
    m
    m$data
    m[["data"]]
  })
  expect_identical(m$data, structure(NA, class = "unresolvedValue"))
  expect_true(is.na(m$data))
  stop_mirai(busy)
  expect_identical(m[], 2)
  expect_identical(m$data, 2)
  expect_identical(m[["data"]], 2)
  expect_identical(m[], 2)
  expect_snapshot(m)
})

test_that("users may attach fields to a mirai, but not set its data", {
  local_test_daemons(1)
  busy <- mirai(Sys.sleep(60))
  m <- mirai("value")
  m$label <- "mine"
  m[["data2"]] <- 2
  expect_snapshot(show_errors({
    m$data <- 1
  }))
  stop_mirai(busy)
  expect_identical(m[], "value")
  expect_identical(m$label, "mine")
  expect_identical(m$data2, 2)
})

test_that("ids increase", {
  local_test_daemons(1)
  ids <- vapply(1:5, function(i) attr(mirai(i), "id"), 0L)
  expect_true(all(diff(ids) > 0L))
})

test_that("values of every type arrive as they are", {
  local_test_daemons(1)
  values <- list(
    NULL,
    TRUE,
    1L,
    pi,
    1i,
    "é\u4e2d",
    as.raw(1:3),
    list(a = 1, b = list()),
    mtcars,
    quote(a + b),
    as.name("a"),
    factor("a"),
    Sys.Date(),
    array(1:8, c(2, 2, 2)),
    1:1e6,
    character(),
    structure(list(), class = "mine"),
    expression(a, b),
    NA_character_,
    globalenv(),
    baseenv(),
    asNamespace("stats")
  )
  for (value in values) {
    m <- mirai(
      {
        value
      },
      value = value
    )
    expect_identical(m[], value)
  }
  f <- mirai(function(x) x + 1)[]
  expect_identical(f(1), 2)
  e <- mirai(list2env(list(x = 1)))[]
  expect_identical(e$x, 1)
})

test_that(".expr is quoted, or a variable that holds a language object", {
  local_test_daemons(1)
  expr <- quote(x * 10)
  x <- 1
  expect_identical(mirai(expr, x = 2)[], 20)
  expect_identical(mirai(.expr = expr, .args = list(x = 3))[], 30)
  name <- as.name("letters")
  expect_identical(mirai(name)[], letters)
  several <- expression(a <- x, a + 1)
  expect_identical(mirai(several, x = 2)[], 3)
  value <- 5
  expect_identical(mirai(value, value = 6)[], 6)
  expect_identical(
    mirai(
      {
        a <- x
        a + 1
      },
      x = 3
    )[],
    4
  )
  wrapper <- function(code) mirai(code)
  expect_identical(wrapper(quote(1 + 1))[], 2)
})

test_that("... are assigned to the global environment, .args are local to the evaluation", {
  local_test_daemons(1)
  where <- function() {
    list(
      global = exists("x", globalenv(), inherits = FALSE),
      visible = exists("x")
    )
  }
  environment(where) <- globalenv()
  m <- mirai(
    list(
      dots = exists("d", globalenv(), inherits = FALSE),
      args = exists("a", globalenv(), inherits = FALSE),
      seen = c(d, a),
      parent = identical(parent.env(environment()), globalenv())
    ),
    d = 1,
    .args = list(a = 2)
  )
  expect_identical(m[], list(dots = TRUE, args = FALSE, seen = c(1, 2), parent = TRUE))

  # so functions in `...` can call each other
  f <- function(x) g(x)
  g <- function(x) x * 2
  environment(f) <- environment(g) <- globalenv()
  expect_identical(mirai(f(4), f = f, g = g)[], 8)
  expect_true(is_mirai_error(mirai(f(4), .args = list(f = f, g = g))[]))
})

test_that("environments pass all of their objects but the RNG's state", {
  local_test_daemons(1)
  env <- list2env(list(a = 1, .hidden = 2, .Random.seed = 0L))
  expect_identical(mirai(a + .hidden, env)[], 3)
  expect_identical(mirai(a + .hidden, .args = env)[], 3)
  seed <- mirai(exists(".Random.seed") && identical(.Random.seed, 0L), env)
  expect_false(seed[])
  seed <- mirai(exists(".Random.seed", environment(), inherits = FALSE), .args = env)
  expect_false(seed[])
  f <- function(a, ...) mirai(a, environment())
  expect_identical(f("from a function", 2)[], "from a function")
  expect_identical(mirai(1, new.env())[], 1)
})

test_that(".args takes what coerces to a named list", {
  local_test_daemons(1)
  expect_identical(mirai(a + b, .args = c(a = 1, b = 2))[], 3)
  expect_identical(mirai(a, .args = data.frame(a = 1:2))[], 1:2)
  expect_identical(mirai(a, .args = pairlist(a = 1))[], 1)
  expect_identical(mirai(1, .args = NULL)[], 1)
})

test_that("no other object of the host is sent", {
  local_test_daemons(1)
  secret <- 1
  assign("mirai_test_global", 1, globalenv())
  defer(function() rm("mirai_test_global", envir = globalenv()), environment())
  expect_false(mirai(exists("secret"))[])
  expect_false(mirai(exists("mirai_test_global"))[])
  expect_identical(mirai(ls(globalenv(), all.names = TRUE))[], ".Random.seed")
  expect_identical(mirai(ls())[], character())
  expect_false(mirai("package:mirai" %in% search())[])
  expect_false(mirai("package:testthat" %in% search())[])
})

test_that("without daemons, a fresh process evaluates and then ends", {
  .compute <- test_profile()
  expect_false(daemons_set(.compute))
  lib <- local_file("lib")
  dir.create(lib)
  old <- .libPaths()
  .libPaths(c(lib, old))
  dir <- local_file("dir")
  dir.create(dir)
  wd <- setwd(dir)
  defer(function() setwd(wd), environment())
  local_envvar(MIRAI_TEST_VARIABLE = "a \"quoted\" 'value' \\ $HOME")
  m <- mirai(
    list(Sys.getpid(), .libPaths(), getwd(), Sys.getenv("MIRAI_TEST_VARIABLE"), ls(globalenv()), search()),
    .compute = .compute
  )
  m2 <- mirai(list(Sys.getpid(), x), x = 1, .compute = .compute)
  paths <- .libPaths()
  .libPaths(old)
  m[]
  expect_false(m$data[[1L]] == Sys.getpid())
  # and the library of this package, which may be another one
  expect_identical(m$data[[2L]], unique(c(paths, dirname(getNamespaceInfo("mirai", "path")))))
  expect_identical(m$data[[3L]], normalizePath(dir))
  expect_identical(m$data[[4L]], "a \"quoted\" 'value' \\ $HOME")
  expect_identical(m$data[[5L]], character())
  expect_false("package:mirai" %in% m$data[[6L]])
  expect_false(m2[][[1L]] == m$data[[1L]])
  expect_identical(m2$data[[2L]], 1)
  expect_true(ends(m$data[[1L]]))
  expect_true(ends(m2$data[[1L]]))
  expect_identical(status(.compute), list(connections = 0L, daemons = 0L))
})

test_that("without daemons, failures are values, too", {
  local_tmpdir()
  .compute <- test_profile()
  died <- mirai(tools::pskill(Sys.getpid(), tools::SIGKILL), .compute = .compute)
  quits <- mirai(quit(), .compute = .compute)
  fails <- mirai(stop("no"), .compute = .compute)
  file <- local_file()
  late <- mirai(
    {
      cat(Sys.getpid(), file = file)
      Sys.sleep(60)
    },
    file = file,
    .timeout = 1500,
    .compute = .compute
  )
  expect_snapshot({
    died[]
    quits[]
    fails[]
    late[]
  })
  if (file.exists(file)) expect_true(ends(scan(file, quiet = TRUE)))
})

test_that("without daemons, the process ends with its host", {
  out <- local_file()
  host <- r_process(
    sprintf("m <- mirai::mirai({cat(Sys.getpid(), '\\n', file = %s); Sys.sleep(60)}); m[]", deparse(out))
  )
  expect_true(wait_until(function() file.exists(out) && length(readLines(out)) == 1L))
  pid <- scan(out, quiet = TRUE)
  expect_true(is_alive(pid))
  host$kill()
  expect_true(ends(pid, 2))
})

test_that("a timeout removes a queued task and interrupts a running one", {
  profile <- local_test_daemons(1)
  pid <- mirai(Sys.getpid())[]
  file <- local_file()
  running <- mirai(
    {
      on.exit(cat("interrupted", file = file))
      Sys.sleep(60)
    },
    file = file,
    .timeout = 1000
  )
  queued <- mirai(cat("never", file = file), file = file, .timeout = 100)
  later <- mirai(Sys.getpid())
  call_mirai(queued)
  expect_true(unresolved(running))
  expect_identical(info()[["awaiting"]], 1L)
  expect_snapshot(queued[])
  expect_snapshot(running[])
  expect_identical(later[], pid)
  expect_identical(readLines(file, warn = FALSE), "interrupted")
  # a task that ends before its timeout
  m <- mirai(1, .timeout = 10000)
  expect_identical(m[], 1)
})

test_that("without dispatcher, a timeout resolves the mirai", {
  local_test_daemons(1, dispatcher = FALSE)
  m <- mirai(Sys.sleep(0.5), .timeout = 50)
  expect_identical(m[], structure(5L, class = "errorValue"))
  expect_identical(mirai(1)[], 1)
})

test_that("a daemon that dies resolves its task to 19 and the others go on", {
  local_tmpdir()
  local_test_daemons(4)
  bystander <- mirai({
    Sys.sleep(0.2)
    "fine"
  })
  m <- mirai(tools::pskill(Sys.getpid(), tools::SIGKILL))
  expect_reset(m[])
  expect_identical(bystander[], "fine")
  expect_identical(mirai(1)[], 1)
  expect_reset(mirai(quit("no"))[])
  segfault <- mirai(tools::pskill(Sys.getpid(), 11L))
  expect_reset(segfault[])
  expect_identical(mirai(1)[], 1)
})

test_that("try_mirai() gives up and mirai() waits when the queue is full", {
  local_test_daemons(1, memory = 1)
  expect_false(withVisible(try_mirai(1))$visible)
  expect_identical(try_mirai(x, x = 2)[], 2)
  big <- double(1e5)
  file <- local_file()
  busy <- mirai(
    while (!file.exists(file)) {
      Sys.sleep(0.01)
    },
    file = file
  )
  first <- try_mirai(length(big), big = big)
  expect_s3_class(first, "mirai")
  expect_null(try_mirai(length(big), big = big))
  expect_equal(status()$memory[["used"]], 0.8, tolerance = 0.01)
  expect_identical(status()$memory[["capacity"]], 1)
  # small ones still fit
  expect_s3_class(try_mirai(1), "mirai")
  opener <- mirai(file.create(file), file = file, .compute = test_profile())
  waited <- mirai(length(big), big = big)
  expect_true(opener[])
  expect_identical(waited[], 100000L)
  expect_identical(first[], 100000L)
  expect_identical(status()$memory[["used"]], 0)
  expect_gte(status()$memory[["peak"]], 0.8)
  # the caller's dots
  outer <- function(...) try_mirai(a + b, ...)
  inner <- function() {
    one <- 1
    outer(a = one, b = 2)
  }
  expect_identical(inner()[], 3)
})

test_that("bad arguments are errors", {
  expect_snapshot(show_errors({
    mirai()
    mirai(1, 2)
    mirai(1, a = 1, 2)
    mirai(1, new.env(), new.env())
    mirai(1, .args = 1)
    mirai(1, .args = list(1))
    mirai(1, .args = list(a = 1, 2))
    mirai(1, .timeout = "a")
    mirai(1, .timeout = -1)
    mirai(1, .timeout = NA)
    mirai(1, .timeout = c(1, 2))
    mirai(1, .compute = 1)
    mirai(1, .compute = "")
    mirai(1, .compute = c("a", "b"))
    try_mirai()
    try_mirai(1, 2)
    try_mirai(1, .timeout = 0)
  }))
})
