# mirai_map(.checkpoint = ).

# Notes in `log` that it runs. Its environment is that of a function at top level: that of a test changes.
square <- function(x, log) {
  # In one write, because other daemons write, too.
  cat(paste0(x, "\n"), file = log, append = TRUE)
  if (x < 0) {
    stop("negative")
  }
  x^2
}
environment(square) <- globalenv()

# Files for a checkpoint and for `log`. `ran()` returns what has run since the last call.
local_checkpoint <- function(frame = parent.frame()) {
  file <- local_file("checkpoint", frame = frame)
  log <- local_file("log", frame = frame)
  ran <- function() {
    lines <- if (file.exists(log)) readLines(log)
    unlink(log)
    # A daemon may have been killed while it wrote a line.
    sort(suppressWarnings(as.numeric(lines)))
  }
  list(file = file, log = log, ran = ran, map = function(x, f = square, ...) {
    mirai_map(x, f, .args = list(log = log), ..., .checkpoint = file)
  })
}

# Code for a new session: as the functions above.
session_code <- function(check, ...) {
  c(
    paste0("library(mirai); file <- ", deparse(check$file), "; log <- ", deparse(check$log)),
    paste("square <-", paste(deparse(square), collapse = "\n")),
    ...
  )
}

test_that("a new session takes the results that are there and runs the rest and the failures", {
  check <- local_checkpoint()
  code <- session_code(
    check,
    "x <- mirai_map(c(3, -1, 1), square, .args = list(log = log), .checkpoint = file)[]",
    "cat(is_mirai_error(x[[2]]), x[[1]], x[[3]])"
  )
  code <- append(code, "daemons(1)", 1L)
  expect_identical(r_output(code), c("[1] 1", "TRUE 9 1"))
  expect_identical(check$ran(), c(-1, 1, 3))
  local_test_daemons(2)
  map <- check$map(c(3, -1, 1, 2))
  x <- map[]
  expect_identical(x[-2L], list(9, 1, 4))
  expect_match(x[[2L]], "negative")
  expect_identical(check$ran(), c(-1, 2))
  # Results that were there count, too.
  expect_identical(info()[["completed"]], 4L)
  expect_identical(check$map(c(1, 2, 3))[.flat], c(1, 4, 9))
  expect_identical(check$ran(), numeric())
})

test_that("what is changed runs again, and nothing else", {
  local_test_daemons(2)
  check <- local_checkpoint()
  x <- list(a = 1, b = 2, c = 3)
  expect_identical(check$map(x)[.flat], c(a = 1, b = 4, c = 9))
  check$ran()
  # an element
  x$b <- 5
  expect_identical(check$map(x)[.flat], c(a = 1, b = 25, c = 9))
  expect_identical(check$ran(), 5)
  # the order, and names
  expect_identical(check$map(list(3, 1))[.flat], c(9, 1))
  expect_identical(check$ran(), numeric())
  # the function's body, its environment, a constant, an object in `...`
  other <- square
  body(other)[[4L]] <- quote(x^3)
  expect_identical(check$map(list(1, 3), other)[.flat], c(1, 27))
  expect_identical(check$ran(), c(1, 3))
  environment(other) <- list2env(list(y = 1), parent = globalenv())
  check$map(list(1), other)[]
  expect_identical(check$ran(), 1)
  environment(other)$y <- 2
  check$map(list(1), other)[]
  expect_identical(check$ran(), 1)
  environment(other) <- list2env(list(y = 2), parent = globalenv())
  check$map(list(1), other)[]
  expect_identical(check$ran(), numeric())
  check$map(list(1), y = 1)[]
  check$map(list(1), y = 2)[]
  check$map(list(1), y = 2)[]
  expect_identical(check$ran(), c(1, 1))
})

test_that("source references, byte code and how R holds a value do not matter", {
  local_test_daemons(1)
  check <- local_checkpoint()
  make <- function(text, keep) eval(parse(text = text, keep.source = keep)[[1L]], globalenv())
  text <- "function(x, log) { cat(paste0(x[1L], '\\n'), file = log, append = TRUE); g <- function(y) y; g(x)[1L] }"
  check$map(list(1:10, 2), make(text, FALSE))[]
  expect_identical(check$ran(), c(1, 2))
  for (f in list(
    make(paste(text, "# comment"), TRUE),
    compiler::cmpfun(make(text, TRUE)),
    make(sub("{ ", "{\n\n", text, fixed = TRUE), TRUE)
  )) {
    check$map(list(c(1:9, 10L), 2), f)[]
    expect_identical(check$ran(), numeric())
  }
})

test_that("equal elements have results of their own", {
  local_test_daemons(2)
  check <- local_checkpoint()
  draw <- function(n) rnorm(n)
  environment(draw) <- globalenv()
  first <- mirai_map(rep(2, 5), draw, .checkpoint = check$file)[]
  expect_length(unique(first), 5L)
  expect_identical(mirai_map(rep(2, 5), draw, .checkpoint = check$file)[], first)
  expect_identical(mirai_map(rep(2, 7), draw, .checkpoint = check$file)[][1:5], first)
})

test_that("with a seed, results are those of the same seed, also of elements that run later", {
  check <- local_checkpoint()
  draw <- function(n) rnorm(n)
  environment(draw) <- globalenv()
  draws <- function(seed, x, file = check$file) {
    local_test_daemons(2, seed = seed)
    mirai_map(x, draw, .checkpoint = file)[]
  }
  first <- draws(1, 1:3)
  expect_identical(draws(1, 1:5)[1:3], first)
  expect_identical(draws(1, 1:5), draws(1, 1:5, NULL))
  expect_false(identical(draws(2, 1:3), first))
})

test_that("names, matrices, options of collecting, promises and conditions are as without", {
  local_test_daemons(2)
  check <- local_checkpoint()
  m <- matrix(1:4, 2, dimnames = list(c("a", "b"), c("x", "y")))
  f <- function(x, y) {
    warning("careful")
    x + y
  }
  environment(f) <- globalenv()
  for (i in 1:2) {
    map <- mirai_map(m, f, .checkpoint = check$file)
    expect_identical(map[.flat], c(a = 4L, b = 6L))
    expect_identical(conditionMessage(mirai_conditions(map)[[2L]][[1L]]), "careful")
    expect_output(print(map), "< mirai map [2/2] >", fixed = TRUE)
  }
  stopped <- check$map(c(1, -1, 2))
  expect_error(stopped[.stop], class = "mirai_error_map")
  again <- check$map(c(1, 2))
  progress <- capture.output(values <- again[.progress, .flat], type = "message")
  expect_identical(values, c(1, 4))
  skip_if_not_installed("promises")
  got <- NULL
  map <- mirai_map(c(1, 2), square, .args = list(log = check$log), .checkpoint = check$file, .promise = function(x) {
    got <<- c(got, x)
  })
  expect_true(wait_until(function() {
    later::run_now()
    length(got) == 2L
  }))
  expect_identical(sort(got), c(1, 4))
})

test_that("results are in the file while R is blocked, and after kill -9", {
  check <- local_checkpoint()
  local_test_daemons(1)
  # The size of a file with these results.
  whole <- local_file("whole")
  mirai_map(1:20, square, .args = list(log = check$log), .checkpoint = whole)[]
  local_closed(whole)
  code <- session_code(
    check,
    "invisible(daemons(2))",
    "map <- mirai_map(1:20, square, .args = list(log = log), .checkpoint = file)",
    "Sys.sleep(600)"
  )
  p <- r_process(code)
  # R of that session sleeps, and does nothing for it.
  expect_true(wait_until(function() isTRUE(file.size(check$file) == file.size(whole)), 30))
  p$kill()
  p$wait(5000)
  check$ran()
  expect_identical(check$map(1:20)[.flat], (1:20)^2)
  expect_identical(check$ran(), numeric())
})

test_that("a session that is killed at any moment leaves what it had, and no wrong result", {
  skip_on_cran()
  check <- local_checkpoint()
  n <- 400
  code <- session_code(
    check,
    "invisible(daemons(2))",
    "slow <- function(x, log) { Sys.sleep(0.005); square(x, log) }",
    paste0("map <- mirai_map(1:", n, ", slow, .args = list(log = log), square = square, .checkpoint = file)"),
    "cat('begun\\n')",
    "stopifnot(identical(map[.flat], (1:400)^2))",
    "cat('done\\n')"
  )
  times <- numeric(n)
  for (i in 1:30) {
    p <- r_process(code)
    wait_for_line(p, "begun")
    p$poll_io(sample(150L, 1L))
    p$kill()
    p$wait(5000)
    # Its daemons end by themselves.
    ran <- check$ran()
    times[ran] <- times[ran] + 1
  }
  p <- r_process(code)
  wait_for_line(p, "done")
  p$wait(5000)
  ran <- check$ran()
  times[ran] <- times[ran] + 1
  expect_true(all(times >= 1))
  # Only those run again that ran, or had not been written, when a session was killed.
  expect_lt(sum(times), n + 31 * 60)
  p <- r_process(code)
  wait_for_line(p, "done")
  expect_identical(check$ran(), numeric())
})

test_that("a damaged tail loses the tail only", {
  local_test_daemons(1)
  check <- local_checkpoint()
  check$map(1)[]
  size <- function() {
    # Until it is closed.
    wait_until(function() file.size(check$file) > 0)
    file.size(check$file)
  }
  written <- function(map) {
    map[]
    size()
  }
  one <- written(check$map(1))
  two <- written(check$map(c(1, 2)))
  expect_gt(two, one)
  check$ran()
  damage <- function(keep, more = raw()) {
    local_closed(check$file)
    bytes <- readBin(check$file, "raw", two)
    writeBin(c(bytes[seq_len(keep)], more), check$file)
  }
  damage(two - 1)
  expect_identical(check$map(c(1, 2))[.flat], c(1, 4))
  expect_identical(check$ran(), 2)
  damage(two, as.raw(1:99))
  expect_identical(check$map(c(1, 2))[.flat], c(1, 4))
  expect_identical(check$ran(), numeric())
})

test_that("what cannot be a checkpoint is refused and left alone", {
  local_test_daemons(1)
  dir <- local_file("dir")
  dir.create(dir)
  other <- file.path(dir, "other")
  writeLines("something else", other)
  refused <- function(file) tryCatch(mirai_map(1, square, .checkpoint = file), mirai_error_argument = conditionMessage)
  expect_match(refused(other), "'.checkpoint' cannot use .*: it is not a checkpoint")
  expect_identical(readLines(other), "something else")
  expect_match(refused(dir), "it is not a checkpoint")
  expect_match(refused(file.path(dir, "none", "file")), "No such file or directory")
  later <- file.path(dir, "later")
  writeBin(c(charToRaw("miraickp"), as.raw(c(9, 0, 0, 0, 0, 0, 0, 0))), later)
  expect_match(refused(later), "by another version of mirai")
  for (x in list(1, NA_character_, "", c("a", "b"))) {
    expect_match(refused(x), "'.checkpoint' must be a single non-empty character string", fixed = TRUE)
  }
})

test_that("what cannot be compared with an earlier session is refused, by its argument", {
  local_test_daemons(1)
  check <- local_checkpoint()
  connection <- textConnection("x")
  on.exit(close(connection), add = TRUE, after = FALSE)
  message <- function(...) tryCatch(mirai_map(..., .checkpoint = check$file), mirai_error_argument = conditionMessage)
  expect_match(message(list(1, connection), identity), "'.x' cannot be used .* in element 2.* external pointer")
  expect_match(message(1, square, .args = list(connection)), "'.args' cannot be used")
  expect_match(message(1, square, connection = connection), "'...' cannot be used", fixed = TRUE)
  f <- square
  environment(f) <- environment()
  expect_match(message(1, f), "'.f' cannot be used")
  # Nothing has been submitted.
  expect_identical(task_log()$id, integer())
  local_test_daemons(sync = TRUE)
  expect_match(message(1, identity), "must be left out with daemons(sync = TRUE)", fixed = TRUE)
})

test_that("what a function's environment has of this package, of its caller and of data.table is no hindrance", {
  local_test_daemons(1)
  check <- local_checkpoint()
  run <- function(..., file, log, square) {
    pending <- mirai(Sys.sleep(60))
    on.exit(stop_mirai(pending), add = TRUE, after = FALSE)
    earlier <- mirai_map(3, square, .args = list(log = log), .checkpoint = file)
    resolved <- mirai(1, .compute = "none-set")
    resolved[]
    table <- structure(list(1), .internal.selfref = attr(earlier, "checkpoint"))
    mirai_map(1:2, function(x) square(x, log), square = square, log = log, .checkpoint = file)
  }
  environment(run) <- globalenv()
  again <- function(...) run(..., file = check$file, log = check$log, square = square)[.flat]
  expect_identical(again(), c(1, 4))
  check$ran()
  expect_identical(again(), c(1, 4))
  expect_identical(check$ran(), numeric())
  # From R 4.5 on, its API does not tell what is in `...`: R serializes it, and with it the frames of callers.
  if (getRversion() < "4.5.0") {
    expect_identical(again(a = stop("not evaluated")), c(1, 4))
    check$ran()
    expect_identical(again(a = stop("not evaluated")), c(1, 4))
    expect_identical(check$ran(), numeric())
    expect_identical(again(a = stop("another")), c(1, 4))
    expect_identical(check$ran(), c(1, 2))
  }
})

test_that("objects with hooks are compared by what the hooks make of them", {
  local_test_daemons(1)
  check <- local_checkpoint()
  hooks <- list(function(x) serialize(x$n, NULL), function(x) unserialize(x))
  for (i in 1:2) {
    environment(hooks[[i]]) <- baseenv()
  }
  serialization(hooks, class = "holder")
  on.exit(serialization(NULL), add = TRUE, after = FALSE)
  holder <- function(n) structure(list2env(list(n = n, connection = stdin())), class = "holder")
  expect_identical(check$map(list(holder(2)))[.flat], 4)
  check$map(list(holder(2)))[]
  expect_identical(check$ran(), 2)
  check$map(list(holder(3)))[]
  expect_identical(check$ran(), 3)
})

test_that("another session is refused while one writes, and this one may use the file twice", {
  check <- local_checkpoint()
  local_test_daemons(1)
  wait <- function(x, log) {
    while (file.exists(log)) {
      Sys.sleep(0.01)
    }
    x
  }
  environment(wait) <- globalenv()
  file.create(check$log)
  map <- check$map(1, wait)
  code <- session_code(
    check,
    "tryCatch(mirai_map(1, square, .checkpoint = file), error = function(e) cat(conditionMessage(e)))"
  )
  expect_match(r_output(code), paste("process", Sys.getpid(), "is writing to it"))
  again <- check$map(2, wait)
  unlink(check$log)
  expect_identical(c(map[.flat], again[.flat]), c(1, 2))
  # What has arrived counts, whether or not it is in the file yet.
  large <- function(i) numeric(1e6) + i
  environment(large) <- globalenv()
  for (i in 1:2) {
    for (m in mirai_map(1:10, large, .checkpoint = check$file)) {
      call_mirai(m)
    }
  }
  expect_identical(sum(task_log()$state == "done"), 12L)
  # Once its tasks have resolved, the file is free, whether or not they have been collected.
  local_closed(check$file)
  code[[length(
    code
  )]] <- "invisible(daemons(1)); cat(mirai_map(5, square, .args = list(log = log), .checkpoint = file)[.flat])"
  expect_identical(r_output(code), "25")
})

test_that("where no more can be written results arrive all the same, and a warning says so once", {
  skip_if(!nzchar(Sys.which("prlimit")), "prlimit")
  check <- local_checkpoint()
  code <- session_code(
    check,
    "invisible(daemons(1))",
    "limit <- function(x) system2('prlimit', c('--pid', Sys.getpid(), paste0('--fsize=', x, ':')))",
    "f <- function(i) rep(i, 500)",
    "invisible(limit(20000))",
    "map <- mirai_map(as.numeric(1:20), f, .checkpoint = file)",
    "x <- withCallingHandlers(map[], warning = function(w) {",
    "  cat(conditionMessage(w), '\\n')",
    "  invokeRestart('muffleWarning')",
    "})",
    "cat(identical(x, lapply(as.numeric(1:20), f)), '\\n')",
    "print(map)",
    "invisible(limit('unlimited'))",
    "rm(map); y <- mirai_map(as.numeric(1:20), f, .checkpoint = file)",
    "cat(nrow(task_log()), identical(y[], x))"
  )
  out <- r_output(code)
  expect_match(out[[1L]], "the checkpoint has stopped.*File too large")
  expect_identical(trimws(out[-1L]), c("TRUE", "< mirai map [20/20] >", "36 TRUE"))
})

test_that("on a full disk results arrive all the same, and once there is room again the rest is stored", {
  skip_on_cran()
  check <- local_checkpoint()
  # A file system of 1 MB, mounted for this session alone.
  disk <- local_file("disk")
  dir.create(disk)
  check$file <- file.path(disk, "checkpoint")
  code <- session_code(
    check,
    "filler <- file.path(dirname(file), 'filler')",
    "writeBin(raw(6e5), filler)",
    "invisible(daemons(2))",
    "large <- function(i) i + numeric(7500)",
    "environment(large) <- globalenv()",
    "right <- function(x) identical(x, lapply(1:15, large))",
    "map <- mirai_map(1:15, large, .checkpoint = file)",
    "x <- withCallingHandlers(map[], warning = function(w) {",
    "  cat(conditionMessage(w), '\n')",
    "  invokeRestart('muffleWarning')",
    "})",
    "cat(right(x), file.size(file) > 1e5, '\n')",
    "unlink(filler)",
    # Nobody has the file that could not be written to any more.
    "rm(map)",
    "invisible(system2('flock', c('--timeout', '20', file, 'true')))",
    "before <- nrow(task_log())",
    "cat(right(mirai_map(1:15, large, .checkpoint = file)[]), '\n')",
    "again <- nrow(task_log()) - before",
    "cat(again > 0, again < 15, '\n')",
    "cat(right(mirai_map(1:15, large, .checkpoint = file)[]), nrow(task_log()) - before == again)"
  )
  skip_if(!nzchar(Sys.which("flock")), "flock")
  out <- output_with_disk(disk, "1m", code)
  expect_match(out[[1L]], "the checkpoint has stopped.*No space left on device")
  expect_identical(trimws(out[-1L]), c("TRUE TRUE", "TRUE", "TRUE TRUE", "TRUE TRUE"))
})

test_that("a value of 100 MB is stored as it came, whatever is done to it meanwhile", {
  skip_on_cran()
  local_test_daemons(1)
  check <- local_checkpoint()
  large <- function(n) as.numeric(seq_len(n))
  environment(large) <- globalenv()
  n <- 13e6
  first <- mirai_map(list(n), large, .checkpoint = check$file)[][[1L]]
  first[1:10] <- 0
  first[n] <- 0
  again <- mirai_map(list(n), large, .checkpoint = check$file)[][[1L]]
  expect_identical(again, large(n))
  expect_identical(nrow(task_log()), 1L)
})
