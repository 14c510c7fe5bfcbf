test_that("kinds of values are told apart", {
  local_test_daemons(1)
  error <- mirai(stop("no"))[]
  interrupt <- mirai(stop(structure(class = c("interrupt", "condition"), list())))[]
  m <- mirai(Sys.sleep(60))
  stop_mirai(m)
  canceled <- m[]
  map <- everywhere(1)
  map[]
  tell <- function(x) {
    c(
      error = is_error_value(x),
      mirai_error = is_mirai_error(x),
      interrupt = is_mirai_interrupt(x),
      mirai = is_mirai(x),
      map = is_mirai_map(x),
      unresolved = unresolved(x)
    )
  }
  expect_snapshot({
    tell(error)
    tell(interrupt)
    tell(canceled)
    tell(m)
    tell(map)
    tell(structure(NA, class = "unresolvedValue"))
    tell("text")
    tell(NULL)
  })
})

test_that("error values print", {
  code <- function(x) structure(x, class = "errorValue")
  expect_snapshot({
    code(5L)
    code(7L)
    code(19L)
    code(20L)
    code(99L)
  })
  expect_identical(class(mirai(stop("no"))[]), c("miraiError", "errorValue", "try-error"))
})

test_that("an R error keeps its message, call and stack", {
  local_test_daemons(1)
  f <- function(x) stop("positive")
  environment(f) <- globalenv()
  m <- mirai(f(1), f = f)
  m[]
  expect_snapshot({
    m$data
    as.vector(m$data)
    m$data$message
    m$data$call
    m$data$condition.class
    conditionMessage(m$data)
    conditionCall(m$data)
    m$data$unknown
  })
  expect_identical(unclass(m$data)[1L], "Error in f(1): positive")
  expect_s3_class(attr(m$data, "condition"), NA)
  expect_setequal(
    utils:::.DollarNames(m$data, ""),
    c("stack.trace", "message", "call", "condition.class")
  )
  expect_identical(utils:::.DollarNames(m$data, "^st"), "stack.trace")
})

test_that("data that do.call() puts into a call does not come back with the error", {
  local_test_daemons(1)
  f <- function(x) stop("positive")
  environment(f) <- globalenv()
  e <- mirai(do.call(f, list(numeric(1e5))), f = f)[]
  expect_match(e, "^Error in \\(function .*: positive$")
  expect_identical(as.list(e$call)[-1L], list(quote(...)))
  expect_lt(as.numeric(object.size(e)), 1e5)
})

test_that("the call is left out when there is none or it is the evaluator's", {
  local_test_daemons(1)
  expect_snapshot({
    mirai(stop("without call", call. = FALSE))[]
    mirai(stop("top level"))[]
    mirai(not_there)[]
    mirai(1 + "a")[]
    mirai(mirai::mirai())[]
    mirai(stop())[]
    mirai(stop(errorCondition("a condition", class = "mine", data = 1:3)))[]
    mirai(base::signalCondition(simpleCondition("only signalled")))[]
    mirai(tryCatch(stop("handled"), error = function(e) "handled"))[]
    mirai(try(stop("tried"), silent = TRUE))[] |> class()
    mirai(warning("a warning is no error"))[]
  })
})

test_that("every field of a condition is kept, except names that R reserves for attributes", {
  local_test_daemons(1)
  e <- mirai(
    stop(errorCondition("m", class = "mine", call = quote(g(x)), data = list(1, "a"), names = "n", dim = 3, level = 4))
  )[]
  expect_identical(e$data, list(1, "a"))
  expect_identical(e$level, 4)
  expect_identical(e$condition.class, c("mine", "error", "condition"))
  expect_identical(conditionCall(e), quote(g(x)))
  expect_identical(length(e), 1L)

  skip_if_not_installed("rlang")
  e <- mirai(rlang::abort("abort", class = "my_class", body = "more", footer = "end", extra = 42))[]
  expect_identical(e$extra, 42)
  expect_s3_class(e$trace, "rlang_trace")
  expect_true("my_class" %in% e$condition.class)
  expect_match(conditionMessage(e), "abort")
})

test_that("a conditionMessage() method that adds to the message adds it once", {
  local_test_daemons(1)
  twofold_message <- function(c) paste0(c$message, ", because ", c$reason)
  m <- mirai(
    {
      registerS3method("conditionMessage", "twofold", method, envir = baseenv())
      stop(structure(
        list(message = "it failed", call = NULL, reason = "so"),
        class = c("twofold", "error", "condition")
      ))
    },
    method = twofold_message
  )
  expect_identical(m[]$message, "it failed, because so")
  expect_output(print(m$data), "Error: it failed, because so")
  # with and without the class's method in this session
  expect_identical(conditionMessage(value_condition(m$data)), "it failed, because so")
  registerS3method("conditionMessage", "twofold", twofold_message, envir = baseenv())
  map <- mirai_map(1, function(x) stop(cnd), cnd = value_condition(m$data))
  expect_identical(conditionMessage(value_condition(m$data)), "it failed, because so")
  e <- tryCatch(map[.stop], error = identity)
  expect_identical(conditionMessage(e), "In index: 1.\nCaused by error: it failed, because so")
  expect_identical(conditionMessage(e$parent), "it failed, because so")

  skip_if_not_installed("rlang")
  m <- mirai(rlang::abort("outer", parent = simpleError("inner"), call = NULL))
  expect_match(m[]$message, "^outer\nCaused by error:?\n! inner$")
  expect_match(conditionMessage(value_condition(m$data)), "^outer\nCaused by error:?\n! inner$")
})

test_that("stack traces are innermost first, with the text of the source", {
  local_test_daemons(1)
  source <- c("outer <- function(x) {", "  inner(x)  # a comment", "}", "inner <- function(x) stop('deep')")
  kept <- new.env()
  eval(parse(text = source, keep.source = TRUE), kept)
  f <- kept$outer
  environment(f) <- globalenv()
  g <- kept$inner
  environment(g) <- globalenv()
  m <- mirai(outer(1), outer = f, inner = g)
  m[]
  expect_snapshot(m$data$stack.trace)
  # without source references
  m <- mirai(outer(1), outer = utils::removeSource(f), inner = utils::removeSource(g))
  m[]
  expect_snapshot(m$data$stack.trace)
  # R's own errors, at the top level, and in nested evaluation
  expect_snapshot(mirai(1 + "a")[]$stack.trace)
  loop <- parse(text = 'local(lapply(1, function(i) stop("in a loop")))', keep.source = TRUE)[[1L]]
  expect_snapshot(mirai(loop)[]$stack.trace)
  expect_identical(mirai(stop("top"))[]$stack.trace[[1L]], "stop(\"top\")")
})

test_that("an interrupted daemon's task is a miraiInterrupt", {
  skip_on_os("windows") # pskill() has no SIGINT there
  local_test_daemons(1)
  pid <- mirai(Sys.getpid())[]
  file <- local_file()
  m <- mirai(
    {
      file.create(file)
      Sys.sleep(60)
    },
    file = file
  )
  expect_true(wait_until(function() file.exists(file)))
  tools::pskill(pid, tools::SIGINT)
  m[]
  expect_snapshot(m$data)
  expect_true(is_mirai_interrupt(m$data))
  expect_identical(class(m$data), c("miraiInterrupt", "errorValue", "try-error"))
  expect_identical(as.vector(unclass(m$data)), "")
  expect_identical(conditionMessage(m$data), "the evaluation was interrupted")
  expect_null(conditionCall(m$data))
  # an interrupt does nothing to an idle daemon
  tools::pskill(pid, tools::SIGINT)
  expect_identical(mirai(Sys.getpid())[], pid)
})
