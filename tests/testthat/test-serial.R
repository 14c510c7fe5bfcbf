# Hooks for objects that R cannot serialize.

# A reference object whose hook sends `n` only. `secret` must not be sent.
new_counter <- function(n) {
  structure(list2env(list(n = n, secret = "here"), parent = emptyenv()), class = "counter")
}
counter_hooks <- list(
  function(x) serialize(x$n, NULL),
  function(x) structure(list2env(list(n = unserialize(x), arrived = TRUE), parent = emptyenv()), class = "counter")
)
for (i in 1:2) {
  environment(counter_hooks[[i]]) <- baseenv()
}

local_hooks <- function(..., frame = parent.frame()) {
  serialization(...)
  do.call(on.exit, list(quote(mirai::serialization(NULL)), add = TRUE), envir = frame)
}

test_that("an object of a registered class goes through its functions, both ways", {
  local_test_daemons(1)
  local_hooks(counter_hooks, class = "counter")
  counter <- new_counter(5)
  m <- mirai(
    {
      counter$n <- counter$n + 1
      list(arrived = counter$arrived, secret = counter$secret, counter = counter)
    },
    counter = counter
  )
  expect_true(m[]$arrived)
  expect_null(m$data$secret)
  expect_identical(m$data$counter$n, 6)
  expect_true(m$data$counter$arrived)
  expect_identical(counter$n, 5)
})

test_that("objects are found deep inside lists, attributes, environments and S4 slots, and stay one object", {
  local_test_daemons(1)
  local_hooks(counter_hooks, class = "counter")
  setClass("Holder", representation(held = "ANY"), where = globalenv())
  on.exit(removeClass("Holder", where = globalenv()), add = TRUE)
  a <- new_counter(1)
  env <- new.env()
  env$deep <- list(list(a))
  x <- list(
    a = a,
    again = a,
    text = structure("t", attached = a),
    env = env,
    slot = new("Holder", held = a),
    big = 1:1e5,
    call = call("f", a),
    other = new_counter(2)
  )
  back <- mirai(x, x = x)[]
  expect_identical(back$a$n, 1)
  for (same in list(back$again, attr(back$text, "attached"), back$env$deep[[1]][[1]], back$slot@held, back$call[[2]])) {
    expect_identical(same, back$a)
  }
  expect_identical(back$other$n, 2)
  expect_identical(back$big, 1:1e5)
})

test_that("environments survive while hooks are registered", {
  local_hooks(counter_hooks, class = "counter")
  round_trip <- function(x) .Call(rs_decode, .Call(rs_encode, x))
  env <- new.env()
  for (i in 1:200) {
    assign(paste0("variable", i), i, envir = env)
  }
  env[["\u00e9"]] <- "accent"
  env$self <- env
  lockBinding("variable1", env)
  lockEnvironment(env)
  attr(env, "note") <- "n"
  back <- round_trip(env)
  expect_identical(mget(ls(env, pattern = "^v"), envir = back), mget(ls(env, pattern = "^v"), envir = env))
  expect_identical(back[["\u00e9"]], "accent")
  expect_identical(back$self, back)
  expect_true(bindingIsLocked("variable1", back))
  expect_false(bindingIsLocked("variable2", back))
  expect_true(environmentIsLocked(back))
  expect_identical(attr(back, "note"), "n")
  f <- local({
    hidden <- 3
    lazy <- 4
    function(x) x + hidden
  })
  expect_identical(round_trip(f)(1), 4)
  delayedAssign("later", stop("must not be evaluated"))
  expect_identical(ls(round_trip(environment())), ls())
})

test_that("vectorized functions are called once for all objects", {
  local_test_daemons(1)
  local_hooks(
    list(
      function(x) serialize(c(length(x), vapply(x, function(e) e$n, 0)), NULL),
      function(x) {
        x <- unserialize(x)
        lapply(x[-1], function(n) structure(list2env(list(n = n, together = x[1])), class = "counter"))
      }
    ),
    class = "counter",
    vec = TRUE
  )
  m <- mirai(vapply(x, function(e) c(e$n, e$together), c(0, 0)), x = lapply(1:3, new_counter))
  expect_identical(m[], rbind(c(1, 2, 3), c(3, 3, 3)))
})

test_that("registrations reach daemons that connect later, one-off processes, and go when cancelled", {
  local_hooks(counter_hooks, class = "counter")
  counter <- new_counter(7)
  expect_identical(mirai(counter$arrived, counter = counter, .compute = test_profile())[], TRUE)
  local_test_daemons(1)
  expect_identical(mirai(counter$arrived, counter = counter)[], TRUE)
  expect_identical(serialization()$class, "counter")
  serialization(NULL)
  expect_null(serialization())
  expect_identical(mirai(counter$secret, counter = counter)[], "here")
})

test_that("several classes have functions at once: profile, package and session", {
  tag <- function(with) {
    f <- function(x) serialize(with, NULL)
    environment(f) <- list2env(list(with = with), parent = baseenv())
    f
  }
  un <- function(x) unserialize(x)
  environment(un) <- baseenv()
  old <- the$registered
  defer(
    function() {
      the$registered <- old
      update_hooks()
    },
    environment()
  )
  config <- serial_config(c("one", "two"), list(tag("1"), tag("2")), list(un, un))
  local_test_daemons(1, serial = config)
  register_serial("three", tag("3"), un)
  local_hooks(list(tag("4"), un), class = "four")
  x <- lapply(c("one", "two", "three", "four", "five"), function(class) structure(new.env(), class = class))
  expect_identical(mirai(x[1:4], x = x)[], list("1", "2", "3", "4"))
})

test_that("functions of profiles and packages apply to reference objects only", {
  tag <- function(x) raw(1)
  un <- function(x) "by the hook"
  environment(un) <- environment(tag) <- baseenv()
  local_test_daemons(1, serial = serial_config(c("tagged", "Account"), list(tag, tag), list(un, un)))
  env <- structure(new.env(), class = "tagged")
  pointer <- structure(methods::new("externalptr"), class = "tagged")
  Account <- setRefClass("Account", fields = list(balance = "numeric"), where = globalenv())
  on.exit(removeClass("Account", where = globalenv()), add = TRUE)
  for (x in list(env, pointer, Account$new(balance = 1))) {
    expect_identical(mirai(x, x = x)[], "by the hook")
  }
  vectors <- list(list(1), 1:3, data.frame(a = 1), quote(f(x)), function(x) x)
  for (x in vectors) {
    class(x) <- c("tagged", class(x))
    expect_identical(class(mirai(identity(x), x = x)[]), class(x))
    expect_identical(mirai(list(x, e)[2L], x = x, e = env)[], list("by the hook"))
  }
  # serialization() applies to all objects of the class
  local_hooks(list(tag, un), class = "tagged")
  expect_identical(mirai(x, x = structure(list(1), class = "tagged"))[], "by the hook")
})

test_that("a function that fails, or returns another type, is an error of the mirai, on both sides", {
  local_test_daemons(1)
  un <- counter_hooks[[2]]
  counter <- new_counter(1)
  local_hooks(list(function(x) stop("cannot do it"), un), class = "counter")
  expect_snapshot({
    mirai(1, counter = counter)[]
    mirai_map(list(1, counter), class)[]
    everywhere(1, counter = counter)[]
  })
  serialization(list(function(x) "text", un), class = "counter")
  expect_snapshot(mirai(1, counter = counter)[])
  make <- function() structure(new.env(), class = "counter")
  environment(make) <- globalenv()
  expect_snapshot(mirai(make(), make = make)[])
  serialization(list(counter_hooks[[1]], function(x) stop("cannot read it")), class = "counter")
  expect_snapshot({
    mirai(1, counter = counter)[]
    m <- mirai(
      {
        x <- make()
        x$n <- 1
        x
      },
      make = make
    )
    m[]
  })
  # Hooks still work after all of that.
  serialization(counter_hooks, class = "counter")
  expect_true(mirai(counter$arrived, counter = counter)[])
})

test_that("xml2 documents are sent and returned", {
  skip_if_not_installed("xml2")
  local_test_daemons(1)
  doc <- xml2::read_xml("<a><b>1</b><b>2</b></a>")
  ask <- function(doc) tryCatch(xml2::xml_text(xml2::xml_find_all(doc, "//b")), error = function(e) "lost")
  environment(ask) <- globalenv()
  # Without hooks the pointers arrive empty.
  expect_identical(mirai(ask(doc), doc = doc, ask = ask)[], "lost")
  local_hooks(
    list(function(x) xml2::xml_serialize(x, NULL), function(x) xml2::xml_unserialize(x)),
    class = "xml_document"
  )
  m <- mirai(list(text = ask(x$docs[[1]]), doc = x$docs[[1]]), x = list(docs = list(doc)), ask = ask)
  expect_identical(m[]$text, c("1", "2"))
  expect_identical(as.character(m$data$doc), as.character(doc))
})

test_that("a function may itself submit tasks, which come first", {
  local_test_daemons(2)
  on.exit(mirai::serialization(NULL), add = TRUE)
  inner <- list()
  write <- function(x) {
    inner[[length(inner) + 1L]] <<- mirai(2)
    charToRaw("x")
  }
  mirai::serialization(list(write, function(x) structure(new.env(), class = "restored")), class = "submits")
  object <- structure(new.env(), class = "submits")
  busy <- lapply(1:2, function(i) mirai(Sys.sleep(0.2)))
  outer <- lapply(1:3, function(i) mirai(class(x), x = object))
  limited <- mirai(
    {
      x
      Sys.sleep(60)
    },
    x = object,
    .timeout = 500
  )
  mapped <- mirai_map(1:3, function(i, x) class(x), .args = list(object))
  expect_identical(lapply(outer, function(m) m[]), rep(list("restored"), 3))
  expect_identical(unclass(limited[]), 5L)
  expect_identical(mapped[.flat], rep("restored", 3))
  expect_identical(unique(lapply(inner, function(m) m[])), list(2))
  expect_identical(status()$mirai[["awaiting"]], 0L)
})

test_that("external pointers of a class can be hooked, and arrive empty otherwise", {
  local_test_daemons(1)
  pointer <- structure(methods::new("externalptr"), class = "handle")
  expect_identical(mirai(typeof(p), p = pointer)[], "externalptr")
  local_hooks(list(function(x) as.raw(42), function(x) as.integer(x)), class = "handle")
  expect_identical(mirai(p, p = pointer)[], 42L)
  expect_identical(mirai(p[[1]][[1]], p = list(list(pointer)))[], 42L)
})

test_that("bad arguments are errors", {
  expect_snapshot(show_errors({
    serialization(list(sum), class = "a")
    serialization(list(sum, sum))
    serialization(list(sum, sum), class = 1)
    serialization(list(sum, sum), class = "a", vec = NA)
    serial_config(1, sum, sum)
    serial_config(c("a", "b"), sum, list(sum, sum))
    daemons(1, serial = list())
  }))
})
