square <- function(x) x^2

test_that("it maps over vectors and lists, as lapply() does", {
  local_test_daemons(2)
  same <- function(x, f = identity) expect_identical(mirai_map(x, f)[], lapply(x, f))
  same(1:5, function(x) x^2)
  same(c(a = 1, b = 2))
  same(letters[1:3], toupper)
  same(c(TRUE, NA))
  same(1:2 + 1i)
  same(as.raw(1:2))
  same(list(1, "a", NULL, list(2)))
  same(list(a = 1, 2))
  same(factor(c(x = "u", y = "v")))
  same(Sys.Date() + 0:1)
  same(as.POSIXct(0:1, origin = "1970-01-01", tz = "UTC"))
  same(as.difftime(1:2, units = "mins"))
  same(expression(a, b + 1), class)
  same(array(1:8, c(2, 2, 2)))
  same(table(c("a", "b", "a")))
  same(list(sum, quote(a), new.env), class)
  # nothing
  same(NULL)
  same(list())
  same(character())
  expect_identical(mirai_map(list(), square)[.flat], NULL)
  expect_identical(mirai_map(list(), square)[.progress, .stop], list())
})

test_that("it returns at once, invisibly, and prints how many have resolved", {
  local_test_daemons(1)
  file <- local_file()
  wait <- function(i) {
    while (i == 2 && !file.exists(file)) {
      Sys.sleep(0.005)
    }
  }
  map <- withVisible(mirai_map(1:3, wait, file = file))
  expect_false(map$visible)
  map <- map$value
  expect_s3_class(map, "mirai_map", exact = TRUE)
  expect_true(all(vapply(unclass(map), is_mirai, NA)))
  expect_true(is_mirai_map(map))
  map[[1]][]
  expect_identical(capture.output(print(map)), "< mirai map [1/3] >")
  expect_true(unresolved(map))
  file.create(file)
  expect_identical(map[], vector("list", 3))
  expect_identical(capture.output(map), "< mirai map [3/3] >")
  expect_false(unresolved(map))
  expect_identical(capture.output(print(mirai_map(NULL, square))), "< mirai map [0/0] >")
})

test_that("matrices and data frames are mapped by row", {
  local_test_daemons(2)
  m <- matrix(1:6, 2)
  expect_identical(mirai_map(m, function(x, y, z) x * y * z)[], list(15L, 48L))
  colnames(m) <- c("a", "b", "c")
  expect_identical(mirai_map(m, function(c, b, a) c - a)[], list(4L, 4L))
  rownames(m) <- c("one", "two")
  expect_identical(
    mirai_map(m, function(...) list(...))[],
    list(
      one = list(a = 1L, b = 3L, c = 5L),
      two = list(a = 2L, b = 4L, c = 6L)
    )
  )
  expect_identical(mirai_map(m[, 1, drop = FALSE], function(a) a)[], list(one = 1L, two = 2L))
  expect_identical(mirai_map(m[1, , drop = FALSE], function(a, b, c) c)[.flat], c(one = 5L))
  expect_identical(
    mirai_map(matrix(list(1, "a", 2, "b"), 2), function(x, y) list(x, y))[],
    list(list(1, 2), list("a", "b"))
  )

  d <- data.frame(x = 1:2, y = c("a", "b"), z = factor(c("u", "v")), when = as.Date(c("2024-01-01", "2024-01-02")))
  expect_identical(
    mirai_map(d, function(x, y, z, when) list(x, y, z, when))[],
    lapply(1:2, function(i) list(d$x[i], d$y[i], d$z[i], d$when[i]))
  )
  expect_identical(
    mirai_map(mtcars[1:2, 1:3], function(disp, cyl, ...) cyl)[],
    list("Mazda RX4" = 6, "Mazda RX4 Wag" = 6)
  )
  expect_identical(mirai_map(mtcars[0, 1:3], function(...) 1)[], list())
  d <- data.frame(i = 1:2)
  d$list <- list(1:3, "a")
  d$matrix <- matrix(1:4, 2)
  expect_identical(
    mirai_map(d, function(i, list, matrix) list(list, matrix))[],
    list(list(1:3, c(1L, 3L)), list("a", c(2L, 4L)))
  )
  # further arguments come after the columns
  expect_identical(mirai_map(data.frame(x = 1:2), function(x, by) x * by, .args = list(10))[.flat], c(10, 20))
})

test_that(".args are further arguments, ... are objects that the function uses", {
  local_test_daemons(2)
  expect_identical(
    mirai_map(1:3, function(x, y, z) c(x, y, z), .args = list(10, 100))[],
    list(c(1, 10, 100), c(2, 10, 100), c(3, 10, 100))
  )
  expect_identical(
    mirai_map(1:2, function(x, y, z) c(x, y, z), .args = list(z = 10, 100))[],
    list(c(1, 100, 10), c(2, 100, 10))
  )
  expect_identical(mirai_map(2:3, `-`, .args = list(1))[.flat], c(1, 2))
  # language is passed as it is, as are NULL and functions
  expect_identical(
    mirai_map(1, function(x, a, b, f) list(a, b, f(x)), .args = list(quote(a + b), NULL, f = sqrt))[],
    list(list(quote(a + b), NULL, 1))
  )

  f <- function(x) g(x) + offset
  environment(f) <- globalenv()
  g <- function(x) x * 2
  environment(g) <- globalenv()
  expect_identical(mirai_map(1:2, f, g = g, offset = 100)[.flat], c(102, 104))
  env <- list2env(list(g = g, offset = 1000, .hidden = 1))
  expect_identical(mirai_map(1:2, f, env)[.flat], c(1002, 1004))
  expect_identical(mirai_map(1, function(x) exists(".hidden"), env)[.flat], TRUE)
  # and the objects are removed afterwards
  expect_true(is_mirai_error(mirai_map(1, f)[][[1]]))
})

test_that("functions are sent with their enclosing environments", {
  local_test_daemons(2)
  make <- function(n) function(x) x^n
  expect_identical(mirai_map(1:3, make(3))[.flat], c(1, 8, 27))
  expect_identical(mirai_map(1:3, compiler::cmpfun(make(2)))[.flat], c(1, 4, 9))
  counter <- local({
    count <- 0
    function(x) count <<- count + 1
  })
  expect_identical(mirai_map(1:2, counter)[.flat], c(1, 1))
  expect_identical(counter(1), 1)
  expect_identical(mirai_map(c(4, 9), sqrt)[.flat], c(2, 3))
  expect_identical(mirai_map(list(1:3), function(x) sapply(x, function(y) y + length(x)))[], list(4:6))
})

test_that("no element sees what others have done to the function and its arguments", {
  local_test_daemons(1)
  # one daemon evaluates all, and has read the same bytes before
  inspect <- function(i, numbers, record, call, g) {
    given <- parent.frame()
    seen <- list(
      is_new = !isdebugged(given$.f) && is.null(attr(given$.f, "used")) && is.null(attr(g, "used")),
      numbers = numbers,
      record = record,
      call = call,
      g = g(1)
    )
    debug(given$.f)
    attr(given$.f, "used") <- attr(g, "used") <- TRUE
    body(g)[[2]] <- 100
    numbers[1] <- 0
    record$a$b <- "changed"
    call[[1]] <- quote(`-`)
    seen
  }
  environment(inspect) <- globalenv()
  g <- function(x) x + 1
  environment(g) <- globalenv()
  args <- list(numbers = c(1, 2, 3), record = list(a = list(b = "as it was")), call = quote(1 + 2), g = g)
  first <- list(is_new = TRUE, numbers = args$numbers, record = args$record, call = args$call, g = 2)
  expect_identical(mirai_map(1:20, inspect, .args = args)[], rep(list(first), 20))
  # what has a state of its own is new for each element
  counter <- local({
    n <- 0
    function(x) n <<- n + 1
  })
  expect_identical(mirai_map(1:20, counter)[.flat], rep(1, 20))
  state <- new.env()
  count <- function(x, state) state$n <- length(state) + 1
  environment(count) <- globalenv()
  expect_identical(mirai_map(1:20, count, .args = list(state))[.flat], rep(1, 20))
  expect_identical(mirai_map(1:20, count, .args = list(state = structure(list(), env = state)))[.flat], rep(1, 20))
})

test_that("functions with source references are sent, and compiled ones", {
  local_test_daemons(1)
  sourced <- eval(parse(text = "function(x) {\n  x + 1 # next\n}", keep.source = TRUE), globalenv())
  compiled <- compiler::cmpfun(sourced)
  for (f in list(sourced, compiled, identity, sum, `+`, stats::sd)) {
    expect_identical(mirai_map(1:5, f)[], lapply(1:5, f))
  }
  text <- mirai_map(1:5, function(i, f) deparse(f), .args = list(f = sourced))[]
  expect_identical(text, rep(list(deparse(sourced)), 5))
})

test_that("elements may be S4 objects, and large things are shared", {
  local_test_daemons(2)
  generator <- setClass("MiraiTestPoint", representation(x = "numeric"), where = globalenv())
  defer(function() removeClass("MiraiTestPoint", where = globalenv()), environment())
  points <- list(generator(x = 1), generator(x = 2))
  expect_identical(mirai_map(points, function(p) p@x)[.flat], c(1, 2))
  expect_identical(mirai_map(points, identity)[], points)

  big <- runif(1e6)
  expect_identical(mirai_map(1:20, function(i, big) big[i], .args = list(big = big))[.flat], big[1:20])
  sum_to <- function(i) sum(data[seq_len(i)])
  expect_equal(mirai_map(1:20, sum_to, data = big)[.flat], cumsum(big[1:20]))
})

test_that("an element that fails is an error value in its place", {
  local_test_daemons(2)
  out <- mirai_map(list(a = 1, b = "a", c = 3), sum)[]
  expect_identical(out[c("a", "c")], list(a = 1, c = 3))
  expect_true(is_mirai_error(out$b))
  expect_identical(conditionMessage(out$b), "invalid 'type' (character) of argument")
  # a failed evaluation has no effect on others
  out <- mirai_map(1:50, function(i) if (i %% 7 == 0) stop("seven") else i)[]
  expect_identical(which(vapply(out, is_error_value, NA)), as.integer(seq(7, 49, 7)))
})

test_that("without daemons one is launched, with a warning", {
  profile <- test_profile()
  defer(function() daemons(0, .compute = profile), environment())
  expect_warning(
    map <- mirai_map(1:3, square, .compute = profile),
    "^launching one local daemon as none previously set$"
  )
  expect_identical(map[.flat], c(1, 4, 9))
  expect_identical(status(profile)$connections, 1L)
  expect_type(status(profile)$daemons, "character")
  expect_silent(mirai_map(1:3, square, .compute = profile)[])
})

test_that("a daemon does not launch daemons from within a map", {
  local_test_daemons(1)
  message <- "local daemons cannot be set on a daemon from within mirai_map()"
  out <- mirai_map(1:2, function(i) mirai::daemons(2))[]
  expect_identical(vapply(out, conditionMessage, ""), rep(message, 2))
  out <- suppressWarnings(mirai_map(1, function(i) mirai::mirai_map(1:2, sqrt)))[]
  expect_identical(conditionMessage(out[[1]]), message)
  expect_identical(conditionCall(out[[1]]), quote(mirai::mirai_map(1:2, sqrt)))
  expect_identical(mirai_map(1:2, function(i) mirai::mirai(i, i = i)[])[], list(1L, 2L))
  # outside of a map it may
  expect_identical(
    mirai({
      on.exit(mirai::daemons(0))
      mirai::daemons(1)
      mirai::mirai_map(1:2, sqrt)[.flat]
    })[],
    sqrt(1:2)
  )
})

test_that("it works in synchronous profiles and without dispatcher", {
  for (set in list(list(sync = TRUE), list(2, dispatcher = FALSE))) {
    do.call(local_test_daemons, c(set, frame = environment()))
    expect_identical(
      mirai_map(c(a = 1, b = 2), function(x, y) x + y + z, .args = list(10), z = 100)[.flat],
      c(a = 111, b = 112)
    )
    expect_identical(mirai_map(data.frame(x = 1:2, y = 3:4), function(y, x) y - x)[.flat], c(2L, 2L))
    map <- mirai_map(list(1, "a"), sum)
    expect_true(is_mirai_error(map[][[2]]))
    expect_error(map[.stop], "invalid 'type'")
  }
})

test_that("values of 3,000 elements are in order", {
  for (dispatcher in c(TRUE, FALSE)) {
    local_test_daemons(3, dispatcher = dispatcher)
    expect_identical(mirai_map(1:3000, function(x) x)[.flat], 1:3000)
  }
})

test_that("uneven work is spread evenly over the daemons", {
  local_test_daemons(4)
  elapsed <- system.time(mirai_map(c(1, 1, 4, 4, 1, 1, 1, 1) / 10, Sys.sleep)[])[["elapsed"]]
  expect_gte(elapsed, 0.4)
  expect_lt(elapsed, 0.7)
})

test_that("the examples of the documents", {
  profile <- test_profile()
  out <- with(
    daemons(3, dispatcher = FALSE, .compute = profile),
    mirai_map(1:3, rnorm, .args = list(mean = 20, sd = 2))[]
  )
  expect_identical(lengths(out), 1:3)
  expect_true(all(unlist(out) > 0))

  defer(function() daemons(0), environment())
  expect_warning(
    ml <- mirai_map(c(a = 1, b = 2, c = 3), function(x) do(x, as.logical(x %% 2)), do = function(n, hex) list(n, hex)),
    "launching one local daemon as none previously set"
  )
  expect_match(capture.output(ml), "^< mirai map \\[[0-3]/3\\] >$")
  expect_identical(ml[], list(a = list(1, TRUE), b = list(2, FALSE), c = list(3, TRUE)))
  e <- tryCatch(mirai_map(list(a = 1, b = "a", c = 3), sum)[.stop], error = identity)
  expect_s3_class(e, "mirai_error_map")
  expect_s3_class(e$parent, c("simpleError", "error", "condition"), exact = TRUE)
  expect_match(capture.output(print(e$parent)), "<simpleError in .*: invalid 'type' \\(character\\) of argument>")
  out <- with(
    daemons(4, dispatcher = FALSE, .compute = profile),
    mirai_map(c(0.1, 0.2, 0.3), Sys.sleep)[.progress]
  )
  expect_identical(out, vector("list", 3))
})

test_that("some elements of a map are a map", {
  local_test_daemons(2)
  x <- mirai_map(c(a = 1, b = 2, c = 3), identity)
  for (some in list(x[1:2], x[c("a", "b")], x[-3], x[c(TRUE, TRUE, FALSE)], head(x, 2), x[c(1, 2)])) {
    expect_true(is_mirai_map(some))
    expect_identical(some[], list(a = 1, b = 2))
  }
  expect_identical(x["c"][.flat], c(c = 3))
  expect_identical(tail(x, 1)[.flat], c(c = 3))
  expect_identical(rev(x)[.flat], c(c = 3, b = 2, a = 1))
  i <- c(2, 2)
  expect_identical(x[i][.flat], structure(c(2, 2), names = c("b", "b")))
  expect_length(x[0][], 0L)
  expect_identical(capture.output(x[0]), "< mirai map [0/0] >")
  # The names of options are options.
  y <- mirai_map(c(.flat = 1, b = 2), identity)
  expect_identical(y[".flat"], c(.flat = 1, b = 2))
  expect_error(x[c("a", "d")], "'x' must be indexed by numbers from 1 to 3, logical values or names", fixed = TRUE)
  expect_error(x[".fat"], "'options' must be", fixed = TRUE)
})

test_that("an element that was replaced by another object is its own value", {
  local_test_daemons(1)
  x <- mirai_map(c(a = 1, b = 2, c = 3), function(i) if (i == 2) stop("no") else i)
  x[[2]] <- 20
  x$d <- new.env()
  call_mirai(x)
  expect_identical(capture.output(x), "< mirai map [4/4] >")
  expect_identical(x[1:3][.flat], c(a = 1, b = 20, c = 3))
  expect_identical(x[.done, .stop, .relay], list(a = 1, b = 20, c = 3, d = x$d))
  x[[3]] <- mirai(stop("yes"))[]
  expect_identical(capture.output(x), "< mirai map [4/4, 1 failed] >")
  expect_identical(expect_error(x[.stop], class = "mirai_error_map")$location, 3L)
  # What a user has done to a mirai does not crash R.
  m <- mirai(1)
  assign(".task", 5, m)
  expect_identical(as.integer(m[]), 7L)
  expect_null(structure(new.env(), class = "mirai")[])
})

test_that("x[.done] collects what has resolved, and does not wait", {
  local_test_daemons(1)
  go <- local_file()
  work <- function(i, go) {
    while (i == 3 && !file.exists(go)) {
      Sys.sleep(0.005)
    }
    if (i == 2) NULL else i
  }
  x <- mirai_map(c(a = 1, b = 2, c = 3, d = 4), work, .args = list(go = go))
  expect_true(wait_until(function() sum(lengths(x[.done])) == 1L && !unresolved(x[[2L]])))
  expect_identical(x[.done], list(a = 1, b = NULL, c = NULL, d = NULL))
  expect_identical(collect_mirai(x, ".done"), x[.done])
  expect_identical(collect_mirai(x, list(.done = TRUE))$a, 1)
  expect_identical(x[1][.done, .flat], c(a = 1))
  expect_error(x[.done, .flat], "types: double, NULL")
  expect_null(x[[4L]][.done])
  expect_identical(x[[1L]][.done], 1)
  file.create(go)
  expect_identical(x[.done = FALSE]$d, 4)
  expect_identical(x[.done], x[])
  # Failures are in place, and `.stop` raises those that are there.
  y <- mirai_map(1:2, function(i) if (i == 1) stop("bad") else Sys.sleep(60))
  expect_true(wait_until(function() !unresolved(y[[1L]])))
  expect_true(is_mirai_error(y[.done][[1L]]))
  expect_error(y[.done, .stop], "In index: 1", class = "mirai_error_map")
  expect_identical(unclass(y[[2L]][]), 20L)
})

test_that("each element has its time", {
  for (dispatcher in c(TRUE, FALSE)) {
    local_test_daemons(2, dispatcher = dispatcher)
    start <- Sys.time()
    x <- mirai_map(1:4, function(i) if (i %% 2) i else Sys.sleep(1), .timeout = 300)
    values <- lapply(x[], unclass)
    expect_lt(as.numeric(Sys.time() - start, units = "secs"), 0.9)
    expect_identical(values[[1L]], 1L)
    expect_identical(values[c(2L, 4L)], list(5L, 5L))
  }
})

test_that("higher priority goes first, and first in first out within one", {
  local_test_daemons(1)
  go <- local_file()
  order <- local_file()
  note <- function(i, order) cat(i, "\n", file = order, append = TRUE)
  first <- mirai(
    while (!file.exists(go)) {
      Sys.sleep(0.005)
    },
    go = go
  )
  low <- mirai_map(1:3, note, .args = list(order = order), .priority = -1)
  normal <- mirai_map(4:6, note, .args = list(order = order))
  high <- mirai_map(7:9, note, .args = list(order = order), .priority = 1.5)
  one <- mirai(note(10, order), note = note, order = order, .priority = Inf)
  normal_too <- mirai(note(11, order), note = note, order = order)
  file.create(go)
  low[]
  expect_identical(scan(order, quiet = TRUE), c(10, 7, 8, 9, 4, 5, 6, 11, 1, 2, 3))
})

test_that("bad arguments are errors", {
  local_test_daemons(sync = TRUE)
  expect_snapshot(show_errors({
    mirai_map(sum, identity)
    mirai_map(globalenv(), identity)
    mirai_map(quote(a), identity)
    mirai_map(1:3, "sum")
    mirai_map(1:3)
    mirai_map(1:2, identity, 3)
    mirai_map(1:2, identity, a = 1, 2)
    mirai_map(1:2, identity, .args = 1)
    mirai_map(1:2, identity, .compute = 1)
    mirai_map(1:2, identity)[3]
    mirai_map(1:2, identity)[NA]
    mirai_map(1:2, identity)[1, .flat]
    mirai_map(1:2, identity, .timeout = 0)
    mirai_map(1:2, identity, .priority = NA)
    mirai_map(1:2, identity, .retry = "yes")
    mirai_map(1:2, identity)[".unknown"]
    mirai_map(1:2, identity)[not_there]
    collect_mirai(mirai_map(1:2, identity), "flat")
    collect_mirai(1)
  }))
})
