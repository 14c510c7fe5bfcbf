# Peers that send invalid data, and values that cannot be read.

decode <- function(bytes) .Call(mirai:::rs_decode, bytes)
encode <- function(x) .Call(mirai:::rs_encode, x)
int <- function(...) writeBin(as.integer(c(...)), raw(), endian = .Platform$endian)

# A serialization stream with these contents.
stream <- function(...) c(charToRaw("B\n"), int(3L, 0x40202L, 0x30500L, 5L), charToRaw("UTF-8"), ...)

calls <- function(n) Reduce(function(x, i) call("f", x), seq_len(n), quote(x))
lists <- function(n) {
  x <- NULL
  for (i in seq_len(n)) {
    x <- list(x)
  }
  x
}

test_that("mutants of real values do not crash R", {
  helper <- normalizePath("helper-hostile.R")
  frame <- environment()
  read <- function(seed) {
    code <- paste0(
      "source(",
      encodeString(helper, quote = "\""),
      "); cat('read', read_mutants(10000, ",
      seed,
      "), 'values')"
    )
    r_process(code, frame)
  }
  processes <- lapply(1:2, read)
  for (p in processes) {
    out <- paste(p$read_all_output_lines(), collapse = "\n")
    expect_match(out, "read [0-9]+ values")
  }
})

test_that("a negative or too large length in the stream is refused", {
  # R's own reader writes beyond a buffer with these.
  long <- function(n) c(charToRaw("B\n"), int(3L, 0x40202L, 0x30500L, n), as.raw(rep(0x41, 4000)))
  expect_error(decode(long(-1L)), "cannot be read")
  expect_error(decode(long(-1000L)), "cannot be read")
  expect_error(decode(stream(int(8L, -5L), as.raw(rep(0x41, 4000)))), "cannot be read")
  expect_error(decode(stream(int(13L, -1L, 1L, 0L), as.raw(rep(0x41, 4000)))), "cannot be read")
  # A valid length
  expect_identical(decode(stream(int(13L, 2L, 7L, 8L))), c(7L, 8L))
})

test_that("fields of objects have the types that R expects", {
  nil <- 254L
  # An environment whose parent is a number, one that is its own parent, a closure without environment
  expect_error(decode(stream(int(4L, 0L, 13L, 1L, 1L, nil, nil, nil))), "an environment was expected")
  expect_error(decode(stream(int(4L, 0L, 511L, nil, nil, nil))), "own ancestor")
  expect_error(decode(stream(int(3L + 1024L, 13L, 1L, 1L, nil, nil))), "an environment was expected")
  # Too few names: R would read beyond them
  names <- c(int(1L, 262153L, 5L), charToRaw("names"))
  expect_error(decode(stream(int(13L + 512L, 3L, 1:3, 1026L), names, int(16L, 0L, nil))), "as many names")
  # sum() is one object for the whole session
  builtin <- c(int(8L + 512L + 256L, 3L), charToRaw("sum"), int(1026L), names, int(nil, nil))
  expect_error(decode(stream(builtin)), "no such type")
  expect_null(attributes(sum))
})

test_that("byte code is not sent, and not read", {
  f <- function(x, y = 2) {
    z <- x + y
    for (i in 1:3) {
      z <- z * i
    }
    z
  }
  environment(f) <- globalenv()
  f <- compiler::cmpfun(f)
  # Of these R writes the byte code: the others are written here.
  x <- list(f, sum, f, quote(z))
  expect_error(decode(serialize(x, NULL, xdr = FALSE)), "byte code")
  back <- decode(encode(x))
  expect_false(any(grepl("bytecode", utils::capture.output(print(back[[1]])))))
  expect_identical(back, x)
  expect_identical(back[[1]](1, 1), 12)
  expect_identical(eval(decode(encode(compiler::compile(quote(1 + 1))))), 2)
  # An active binding takes it to R as well. Compiled functions share their code.
  adders <- compiler::cmpfun(function() lapply(1:3, function(i) function(x) x + i))()
  env <- list2env(list(adders = adders, f = f))
  makeActiveBinding("active", function() 42, env)
  back <- decode(encode(env))
  expect_identical(vapply(back$adders, function(f) f(10), 0), c(11, 12, 13))
  expect_identical(back$active, 42)
  local_test_daemons(1)
  expect_identical(mirai(list(f(1, 1), sum, env$active), f = f, env = env)[], list(12, sum, 42))
})

test_that("values of all kinds come back", {
  for (x in many_kinds()) {
    # The receiver's search path may differ.
    back <- suppressWarnings(decode(encode(x)))
    expect_identical(typeof(back), if (typeof(x) == "bytecode") "language" else typeof(x))
    expect_identical(class(back), if (typeof(x) == "bytecode") "call" else class(x))
    if (is.atomic(x)) expect_identical(back, x)
  }
})

test_that("a value that is nested too deeply is an error value, and the next one is read", {
  local_test_daemons(1)
  for (make in list(calls, lists)) {
    x <- mirai(make(n), make = make, n = 200000)[]
    expect_s3_class(x, "miraiError")
    expect_match(attr(x, "message"), "nested too deeply")
    expect_identical(mirai(1)[], 1)
    # Values that R can read are not too deep for us.
    x <- mirai(make(n), make = make, n = 5000)[]
    expect_false(is_error_value(x))
    depth <- 0
    while (is.recursive(x) && length(x)) {
      x <- x[[length(x)]]
      depth <- depth + 1
    }
    expect_identical(depth, 5000)
  }
  # Along an attribute
  x <- mirai({
    x <- 1
    for (i in 1:100000) {
      x <- structure(1, a = x)
    }
    x
  })[]
  expect_match(attr(x, "message"), "nested too deeply")
  expect_identical(mirai(1)[], 1)
})

test_that("a value nested too deeply does not crash R", {
  deep <- function(n, ...) stream(rep(int(...), n), int(254L))
  expect_error(decode(deep(1e6, 19L, 1L)), "nested too deeply")
  expect_error(decode(deep(1e6, 2L, 254L)), NA)
  # An object that only R can read comes first: then R itself must read the nested value
  builtin <- c(int(19L, 2L, 8L, 3L), charToRaw("sum"))
  expect_error(decode(stream(builtin, rep(int(19L, 1L), 1e6), int(254L))), "nested too deeply")
  expect_error(decode(stream(builtin, rep(int(2L, 254L), 1e6), int(254L))), "nested too deeply")
  depth <- function(n) decode(stream(builtin, rep(int(19L, 1L), n), int(254L)))
  expect_identical(depth(1000)[[1]], sum)
  # R can read each depth that is allowed.
  nil <- 254L
  a <- c(int(1L, 262153L, 1L), charToRaw("a"))
  nested <- list(
    depth,
    function(n) decode(deep(n, 19L, 1L)),
    # Calls, closures, environments, attributes
    function(n) decode(stream(rep(c(int(6L), a, int(2L)), n), int(nil), rep(int(nil), n))),
    function(n) decode(stream(rep(int(1027L, 253L, nil), n), int(nil))),
    function(n) decode(stream(rep(int(4L, 0L), n), int(242L), rep(int(nil, nil, nil), n))),
    function(n) decode(stream(rep(c(int(525L, 0L, 1026L), a), n), int(nil), rep(int(nil), n))),
    function(n) decode(stream(rep(c(int(781L, 0L, 1026L), a), n), builtin, rep(int(nil), n + 1)))
  )
  for (f in nested) {
    for (n in seq(1000, 40000, by = 3000)) {
      try(f(n), silent = TRUE)
    }
  }
  succeed()
})

test_that("a hostile daemon's replies are error values, and do not stop the rest of a map", {
  profile <- test_profile()
  defer(function() daemons(NULL, .compute = profile), environment())
  daemons(url = "tcp://127.0.0.1:0", .compute = profile)
  good <- encode("good")
  bad <- list(
    raw(),
    as.raw(1:100),
    good[1:30],
    c(good, good),
    c(charToRaw("B\n"), int(3L, 0L, 0L, -1L), as.raw(rep(0x41, 4000))),
    stream(rep(int(19L, 1L), 1e6), int(254L)),
    serialize(1, NULL),
    serialize(1, NULL, ascii = TRUE),
    stream(int(16L, 1L, 9L, 3L), as.raw(c(97, 0, 98)))
  )
  dir <- local_file("payloads")
  dir.create(dir)
  files <- file.path(dir, seq_len(2 * length(bad)))
  for (i in seq_along(bad)) {
    writeBin(bad[[i]], files[2 * i - 1])
    writeBin(good, files[2 * i])
  }
  p <- start_evil_daemon(profile, files)
  got <- answers_of(p, mirai_map(seq_along(files), function(x) x, .compute = profile))
  odd <- seq_along(bad) * 2 - 1
  for (x in got[odd]) {
    expect_s3_class(x, "miraiError")
    expect_match(attr(x, "message"), "cannot be read|nested too deeply|could not be sent")
  }
  expect_identical(got[-odd], rep(list("good"), length(bad)))
})

test_that("a hostile daemon's values are errors in the tasks that need them, on other daemons", {
  skip_on_cran()
  profile <- test_profile()
  defer(function() daemons(NULL, .compute = profile), environment())
  daemons(url = "tcp://127.0.0.1:0", .compute = profile)
  local_test_daemons(1)
  good <- encode("good")
  bad <- list(
    as.raw(1:100),
    good[1:30],
    c(good, good),
    c(charToRaw("B\n"), int(3L, 0L, 0L, -1L), as.raw(rep(0x41, 4000))),
    stream(rep(int(19L, 1L), 1e6), int(254L))
  )
  payloads <- c(list(good), bad, list(good))
  dir <- local_file("payloads")
  dir.create(dir)
  files <- file.path(dir, seq_along(payloads))
  Map(writeBin, payloads, files)
  values <- mirai_map(seq_along(files), function(x) x, .compute = profile)
  each <- mirai_map(values, function(x) x)
  both <- lapply(values, function(m) mirai(list(x, y), x = m, .args = list(y = values[c(1L, length(values))])))
  constant <- lapply(values, function(m) mirai_map(1, function(x, y) y, .args = list(y = m)))
  p <- start_evil_daemon(profile, files)
  suppressWarnings(answers_of(p, values))
  is_good <- c(TRUE, logical(length(bad)), TRUE)
  for (i in seq_along(files)) {
    got <- list(each[[i]][], both[[i]][], constant[[i]][][[1L]])
    if (is_good[[i]]) {
      expect_identical(got, list("good", list("good", list("good", "good")), "good"))
    } else {
      for (x in got) {
        expect_match(x$message, "cannot be read|nested too deeply")
      }
    }
  }
  # Of the daemon that has refused them, nothing is lost.
  expect_identical(task_log()$attempts, rep(1L, 3L * length(files)))
  expect_identical(nrow(daemon_log()), 1L)
})

test_that("a peer by hand that the host refuses, or that ends, fails its test", {
  skip_on_cran()
  profile <- test_profile()
  defer(function() daemons(NULL, .compute = profile), environment())
  daemons(url = "tcp://127.0.0.1:0", .compute = profile)
  file <- local_file("good")
  writeBin(encode("good"), file)
  p <- start_evil_daemon(profile, file)
  x <- lapply(1:2, function(i) mirai(i, .compute = profile))
  expect_identical(answers_of(p, x[[1L]]), "good")
  p$kill(close_connections = FALSE)
  expect_error(answers_of(p, mirai(3, .compute = profile)), "the evil daemon has ended")
  daemons(url = "tcp://127.0.0.1:0", .compute = profile)
  environment(evil_daemon) <- list2env(list(protocol_version = 1L), parent = environment(evil_daemon))
  environment(start_evil_daemon) <- environment()
  expect_error(start_evil_daemon(profile, file), "the host has refused this daemon: .*version")
})

test_that("mutants that a daemon answers with are values or error values", {
  profile <- test_profile()
  defer(function() daemons(NULL, .compute = profile), environment())
  daemons(url = "tcp://127.0.0.1:0", .compute = profile)
  dir <- local_file("payloads")
  dir.create(dir)
  # The seeds are fixed, so that a failure can be repeated.
  set.seed(20)
  all <- payloads()
  files <- file.path(dir, seq_len(200))
  for (file in files) {
    writeBin(mutate(all[[sample.int(length(all), 1L)]], all), file)
  }
  p <- start_evil_daemon(profile, files)
  got <- suppressWarnings(answers_of(p, mirai_map(files, function(x) x, .compute = profile)))
  expect_length(got, 200)
})

test_that("a task whose values are not where they belong is an error, and the next one is evaluated", {
  skip_on_cran()
  host <- evil_host()
  # What the host of a session sends for mirai(sum(x, y[[2L]]), x = a, .args = list(y = list(b, a))).
  task <- function(
    places,
    expr = quote(sum(x, unlist(y))),
    globals = list(x = NULL),
    args = list(y = list(NULL, NULL))
  ) {
    encode(list(expr, globals, args, NULL, places))
  }
  values <- lapply(list(1, 20), encode)
  good <- c(1L, 1L, 0L, 1L, 2L, 1L, 1L, 2L, 2L, 1L, 2L, 1L)
  expect_good <- function() expect_identical(host$send(task(good), values), 22)
  expect_good()
  at <- function(i, x) replace(good, i, x)
  bad <- c(
    list(as.numeric(good), good[-1L], letters, list(1L, 1L, 0L, 1L), quote(x)),
    # The list, the argument, the element, the value
    lapply(c(0L, -1L, 3L, 4L, NA, .Machine$integer.max), function(x) at(1L, x)),
    lapply(c(0L, -1L, 2L, NA, .Machine$integer.max), function(x) at(2L, x)),
    lapply(c(1L, -1L, NA, .Machine$integer.max), function(x) at(3L, x)),
    lapply(c(3L, -1L, NA, .Machine$integer.max), function(x) at(7L, x)),
    lapply(c(0L, 3L, -1L, NA, .Machine$integer.max), function(x) at(8L, x))
  )
  for (places in bad) {
    expect_match(host$send(task(places), values)$message, "what the host has sent is no task", fixed = TRUE)
  }
  for (payload in list(1, list(), list(1, 2), as.list(1:6), list(quote(x), 1, 2, NULL, good), quote(f(x, y, z, a)))) {
    expect_match(host$send(encode(payload), values)$message, "what the host has sent is no task", fixed = TRUE)
  }
  # A map's arguments are the second element of `.args`.
  for (args in list(list(a = 1), list(a = 1, b = 2), list(a = 1, b = NULL))) {
    expect_match(host$send(task(c(3L, 1L, 0L, 1L), args = args), values)$message, "no task")
  }
  expect_good()
  # Values that cannot be read
  deep <- stream(rep(int(19L, 1L), 1e6), int(254L))
  for (value in list(raw(), values[[1L]][1:20], as.raw(1:100), deep, c(values[[1L]], values[[2L]]))) {
    message <- host$send(task(good), list(value, values[[2L]]))$message
    expect_match(message, "cannot be read|nested too deeply|could not be sent")
  }
  # The message itself, cut or too long because the sizes are not true
  expect_match(host$send(task(good), values, lengths(values) + c(0L, 1L))$message, "cannot be read")
  expect_match(host$send(task(good), values, lengths(values) - c(0L, 1L))$message, "cannot be read")
  expect_good()
  # A value in the place of an argument, and in one of its own elements: it would be part of itself.
  value <- list(encode(list(NULL)))
  for (places in list(c(1L, 1L, 0L, 1L, 1L, 1L, 1L, 1L), c(1L, 1L, 1L, 1L, 1L, 1L, 0L, 1L))) {
    x <- host$send(task(places, quote(x), list(x = list(NULL))), value)
    expect_identical(x, list(NULL))
  }
  x <- host$send(task(c(2L, 2L, 1L, 1L, 3L, 1L, 1L, 1L), quote(b), args = list(a = 1, b = list(list(NULL)))), value)
  expect_identical(x, list(list(NULL)))
  # The same place many times
  expect_identical(host$send(task(rep(good, 10000L)), values), 22)
  expect_good()
})

test_that("a host that attaches more than it sends is left", {
  skip_on_cran()
  payload <- encode(list(quote(x), list(x = NULL), NULL, NULL, c(1L, 1L, 0L, 1L)))
  value <- list(encode(1))
  for (send in list(
    function(host) host$send(payload, value, attached = 2^32 - 1),
    function(host) host$send(payload, value, sizes = .Machine$integer.max),
    function(host) host$send(payload, value, sizes = c(.Machine$integer.max, .Machine$integer.max)),
    function(host) host$send(raw(), attached = 1)
  )) {
    host <- evil_host()
    expect_identical(host$send(payload, value), 1)
    expect_null(send(host))
    host$daemon$wait(20000)
    expect_identical(host$daemon$get_exit_status(), 0L)
  }
})

test_that("an interrupted read leaves the mirai to be read again", {
  out <- r_output(
    '
    library(mirai)
    daemons(1)
    counter <- structure(new.env(), class = "counter")
    times <- 0
    serialization(list(
      function(x) raw(1),
      function(x) {
        times <<- times + 1
        if (times == 1) { tools::pskill(Sys.getpid(), 2L); for (i in 1:1e7) i }
        "read"
      }
    ), "counter")
    m <- mirai(structure(new.env(), class = "counter"))
    call_mirai(m)
    cat("got:", tryCatch(m$data, interrupt = function(e) "interrupted"), "\\n")
    cat("got:", m$data, "\\n")
    daemons(0)
  '
  )
  expect_identical(trimws(grep("^got", out, value = TRUE)), c("got: interrupted", "got: read"))
})

test_that("texts of errors are not used as format strings", {
  expect_error(daemons(url = "ws://127.0.0.1:5555/my%20session"), "my%20session", fixed = TRUE)
  for (text in c("%n%s%d", "100%")) {
    out <- tryCatch(.Call(mirai:::rs_with_tokens, paste0("ftp://", text)), error = conditionMessage)
    expect_match(out, text, fixed = TRUE)
  }
  expect_error(decode(charToRaw("%n%s%n%s")), "cannot be read")
})
