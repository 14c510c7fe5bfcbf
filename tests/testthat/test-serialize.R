# Objects come back identical from our own serializer, both those that it handles itself and those that it leaves to R.
# R can read what it writes.

round_trip <- function(x) .Call(rs_decode, .Call(rs_encode, x))

expect_round_trip <- function(x) {
  bytes <- .Call(rs_encode, x)
  expect_identical(.Call(rs_decode, bytes), x)
  expect_identical(unserialize(bytes), x)
  # In R's own streams there may be byte code, which is not read here: see test-hostile.R.
  if (!is.function(x) || is.primitive(x)) expect_identical(.Call(rs_decode, serialize(x, NULL, xdr = FALSE)), x)
}

test_that("vectors of all types survive, with what is missing in them", {
  for (x in list(
    NULL,
    TRUE,
    c(NA, FALSE),
    1L,
    c(NA_integer_, -5L),
    pi,
    c(NA, NaN, Inf, -0),
    1i,
    c(NA_complex_, 2 - 1i),
    "a",
    c(NA, "", "b"),
    raw(0),
    as.raw(0:255),
    list(),
    list(1, "a", NULL),
    character(0),
    integer(0)
  )) {
    expect_round_trip(x)
  }
})

test_that("attributes, factors, data frames, dates and matrices survive", {
  expect_round_trip(c(a = 1, b = 2))
  expect_round_trip(iris)
  expect_round_trip(matrix(1:6, 2, dimnames = list(NULL, letters[1:3])))
  expect_round_trip(structure(list(1), class = c("x", "y"), other = quote(f(x))))
  expect_round_trip(as.POSIXlt("2024-02-29 12:00:00", tz = "UTC"))
  expect_round_trip(ts(1:24, start = c(2020, 1), frequency = 12))
})

# `x` with an attribute that R code cannot set, because R would refuse it or store something else.
with_odd_attribute <- function(x, name, value) {
  attr(x, "marker") <- value
  text <- rawToChar(serialize(x, NULL, ascii = TRUE))
  unserialize(charToRaw(sub("\n6\nmarker\n", sprintf("\n%d\n%s\n", nchar(name), name), text, fixed = TRUE)))
}

test_that("unusual but harmless attributes survive", {
  odd <- list(
    with_odd_attribute(1:2, "names", structure(c("a", "b"), x = 1)),
    with_odd_attribute(array(1:2, 2L), "names", c("a", "b")),
    with_odd_attribute(1:2, "class", "without the object bit"),
    with_odd_attribute(1:2, "comment", character())
  )
  for (i in seq_along(odd)) {
    # in their order, without R's checks of attributes
    same <- identical(round_trip(odd[[i]]), odd[[i]], attrib.as.set = FALSE)
    expect_true(same, label = paste("case", i))
    same <- identical(round_trip(list(odd[[i]], "more")), list(odd[[i]], "more"), attrib.as.set = FALSE)
    expect_true(same, label = paste("case", i, "in a list"))
  }
})

test_that("attributes that would make R read beyond a vector are refused", {
  odd <- list(
    with_odd_attribute(1:2, "names", letters[1:3]),
    with_odd_attribute(1:2, "names", 1:2),
    with_odd_attribute(quote(f(x)), "names", c("a", "b")),
    with_odd_attribute(1:6, "dim", c(2, 3)),
    with_odd_attribute(1:6, "dim", c(2L, 2L)),
    with_odd_attribute(1:6, "dim", c(-2L, -3L)),
    with_odd_attribute(1:6, "dim", integer()),
    with_odd_attribute(1:2, "dimnames", list(c("a", "b"))),
    with_odd_attribute(matrix(1:4, 2L), "dimnames", list(c("a", "b", "c"), NULL)),
    with_odd_attribute(matrix(1:4, 2L), "dimnames", list(c("a", "b"))),
    with_odd_attribute(matrix(1:4, 2L), "dimnames", list(structure(c("a", "b"), x = 1), 1:2)),
    with_odd_attribute(matrix(1:4, 2L), "dimnames", list(character(), NULL)),
    with_odd_attribute("a", "class", "factor"),
    with_odd_attribute(1:2, "class", 1L),
    with_odd_attribute(1:2, "class", character()),
    with_odd_attribute(1:2, "tsp", c(1, 5, 1)),
    with_odd_attribute(1:2, "tsp", c(1, 2, -1)),
    with_odd_attribute(1:2, "tsp", c(1L, 2L, 1L)),
    with_odd_attribute(1:2, "comment", 1),
    with_odd_attribute(list(1:2), "row.names", c(1, 2)),
    with_odd_attribute(list(1:2), "row.names", list(1, 2))
  )
  for (i in seq_along(odd)) {
    expect_error(round_trip(odd[[i]]), "the value cannot be read", label = paste("case", i))
    expect_error(round_trip(list(odd[[i]], "more")), "the value cannot be read", label = paste("case", i, "in a list"))
  }
})

test_that("attributes keep their order and their form", {
  frames <- list(
    data.frame(a = 1:3),
    data.frame(a = 1:3)[c(3, 1), , drop = FALSE],
    data.frame(a = 1:3, row.names = c("x", "y", "z")),
    data.frame(),
    structure(list(a = 1:3), class = "data.frame", row.names = c(2L, 4L, 6L)),
    as.data.frame(table(c(1, 1, 2)))
  )
  others <- list(
    table(a = c(1, 1, 2), b = c("x", "y", "x")),
    matrix(0, 0, 3, dimnames = list(NULL, letters[1:3])),
    array(1:3, 3, list(c("a", "b", "c"))),
    structure(1:2, class = c("b", "a"), z = 1, names = c("x", "y"), comment = "said"),
    structure(1L, levels = "a", class = "factor"),
    ts(matrix(1:6, 3), start = 2000, frequency = 4),
    structure(function(x) x, class = "f", note = "n"),
    structure(quote(a + b), class = "call of mine", z = 1),
    structure(list(1), names = "a", class = "x", more = structure(1, deep = structure(2, deeper = 3))),
    asS4(1),
    asS4(list(a = 1))
  )
  for (x in c(frames, others)) {
    expect_true(identical(round_trip(x), x, attrib.as.set = FALSE, ignore.environment = TRUE))
    expect_identical(isS4(round_trip(x)), isS4(x))
  }
})

test_that("strings survive in every encoding", {
  latin <- "fa\xE7ile"
  Encoding(latin) <- "latin1"
  bytes <- "\xff\xfe"
  Encoding(bytes) <- "bytes"
  for (x in list("\u6771\u4eac", latin, bytes, c("ascii", "\u00e9", latin, NA))) {
    expect_round_trip(x)
    expect_identical(Encoding(round_trip(x)), Encoding(x))
  }
})

test_that("language objects survive", {
  expect_round_trip(quote(x))
  expect_round_trip(quote(f(x, y = 2, ...)[[1]]$z))
  expect_round_trip(as.formula("y ~ x + log(z)", globalenv()))
  expect_round_trip(expression(a, b + 1))
  expect_round_trip(quote(function(x, y = 2) x + y))
  expect_round_trip(pairlist(a = 1, b = quote(z)))
  expect_round_trip(as.name("a name with spaces"))
  with_source <- parse(text = "{ a # comment\n b }", keep.source = TRUE)[[1]]
  expect_identical(as.character(attr(round_trip(with_source), "srcref")), as.character(attr(with_source, "srcref")))
})

test_that("functions survive: closures here and in namespaces, compiled ones, primitives", {
  f <- function(x, ...) x + 1
  environment(f) <- globalenv()
  expect_round_trip(f)
  expect_round_trip(compiler::cmpfun(f))
  expect_round_trip(stats::sd)
  expect_round_trip(sum)
  expect_round_trip(`if`)
  expect_identical(round_trip(compiler::cmpfun(f))(2), 3)
})

test_that("environments survive, with cycles and locked bindings", {
  env <- new.env()
  env$self <- env
  env$x <- 1:3
  lockBinding("x", env)
  back <- round_trip(list(env, env))
  expect_identical(back[[1]], back[[2]])
  expect_identical(back[[1]]$self, back[[1]])
  expect_identical(back[[1]]$x, 1:3)
  for (x in list(globalenv(), emptyenv(), baseenv(), .BaseNamespaceEnv, asNamespace("stats"))) {
    expect_identical(round_trip(x), x)
  }
  counter <- local({
    n <- 0
    function() n <<- n + 1
  })
  counter()
  expect_identical(round_trip(counter)(), 2)
})

test_that("S4 objects survive", {
  where <- globalenv()
  setClass("Point", representation(x = "numeric", y = "numeric"), where = where)
  setClass("Named", contains = "numeric", representation(name = "character"), where = where)
  defer(function() lapply(c("Point", "Named"), removeClass, where = where), environment())
  expect_round_trip(new("Point", x = 1, y = 2))
  expect_round_trip(new("Named", c(1, 2), name = "n"))
  expect_true(isS4(round_trip(new("Named", 1, name = "n"))))
})

test_that("compact and other alternative representations survive, and large ones stay compact", {
  expect_round_trip(1:10)
  expect_round_trip(1:1e6)
  expect_round_trip(as.character(1:5))
  expect_round_trip(as.character(1:5000))
  expect_round_trip(seq(0.5, 1e4))
  expect_lt(length(.Call(rs_encode, 1:1e9)), 500)
})

test_that("many symbols, deep nesting and large vectors survive", {
  expect_round_trip(as.call(lapply(paste0("s", 1:500), as.name)))
  deep <- list()
  for (i in 1:1000) {
    deep <- list(deep)
  }
  expect_round_trip(deep)
  expect_round_trip(c(runif(1e6)))
  expect_round_trip(as.list(1:5000))
})

test_that("random nested objects survive", {
  set.seed(1)
  atoms <- list(
    function() sample(c(TRUE, FALSE, NA), 3),
    function() sample(10L),
    function() rnorm(2),
    function() sample(letters, 2),
    function() quote(a + b),
    function() as.name("q"),
    function() NULL,
    function() factor(sample(letters, 3)),
    function() complex(1, 2, 3),
    function() 1:4,
    function() as.raw(7),
    function() function(x) x,
    function() Sys.Date(),
    function() "\u00fc",
    function() {
      c(NA, "", `Encoding<-`("fa\xE7ile", "latin1"), `Encoding<-`("\xff", "bytes"), strrep("x", sample(1e4, 1)))
    },
    function() stats::setNames(sample(sprintf("s%d", 1:2000)), NULL)
  )
  random <- function(depth) {
    if (depth == 0 || runif(1) < 0.3) {
      return(sample(atoms, 1)[[1]]())
    }
    x <- lapply(seq_len(sample(0:4, 1)), function(i) random(depth - 1))
    if (runif(1) < 0.5) {
      names(x) <- make.names(seq_along(x))
    }
    if (runif(1) < 0.3) {
      attr(x, "extra") <- random(depth - 1)
    }
    x
  }
  for (i in 1:300) {
    x <- random(5)
    # Functions are compared without their environments: those are copies.
    expect_true(all.equal(round_trip(x), x, check.environment = FALSE))
  }
})

test_that("bytes that are not an object are an error", {
  bytes <- .Call(rs_encode, list(1, "a", quote(x + y), iris))
  for (n in c(0, 1, 5, 30, 100, length(bytes) - 1)) {
    expect_error(.Call(rs_decode, bytes[seq_len(n)]))
  }
  expect_error(.Call(rs_decode, as.raw(1:100)))
})
