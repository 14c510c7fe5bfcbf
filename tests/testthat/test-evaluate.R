test_that("an evaluation may use return(), warnings, messages and output", {
  local_test_daemons(1)
  pid <- mirai(Sys.getpid())[]
  expect_identical(mirai(invisible(1))[], 1)
  expect_identical(mirai(return("returned"))[], "returned")
  expect_identical(
    mirai(withCallingHandlers(
      {
        warning("w")
        "muffled"
      },
      warning = function(w) invokeRestart("muffleWarning")
    ))[],
    "muffled"
  )
  expect_identical(
    mirai({
      message("m")
      cat("c")
      print(1)
      "quiet"
    })[],
    "quiet"
  )
  expect_identical(
    mirai({
      suppressWarnings(as.integer("a"))
    })[],
    NA_integer_
  )
  expect_identical(mirai(tryCatch(stop("a"), finally = NULL, error = function(e) conditionMessage(e)))[], "a")
  expect_true(is_mirai_interrupt(mirai(invokeRestart("abort"))[]))
  deep <- mirai({
    f <- function(n) f(n + 1)
    f(1)
  })
  expect_match(deep[]$message, "nested too deeply|stack usage")
  expect_identical(mirai(sys.function)[], sys.function)
  condition <- quote(stop(structure(class = c("mine", "condition"), list(message = "no error", call = NULL))))
  expect_identical(mirai(condition)[]$message, "no error")
  # a connection, sink or graphics device that a task leaves does not affect the next task
  mirai(sink(tempfile()))[]
  expect_identical(mirai(Sys.getpid())[], pid)
})

test_that("a value or an argument that cannot be sent is an error of that task only", {
  local_test_daemons(1)
  expect_identical(mirai(class(x), x = stdin())[], c("terminal", "connection"))
  p <- mirai(environment())[]
  expect_true(is.environment(p))
  m <- mirai({
    e <- new.env()
    makeActiveBinding("b", function() stop("cannot be read"), e)
    as.list(e)
  })
  expect_match(m[]$message, "cannot be read")
  expect_identical(mirai(1)[], 1)
})

test_that("a loop without function calls can be interrupted", {
  local_test_daemons(1)
  pid <- mirai(Sys.getpid())[]
  file <- local_file()
  m <- mirai(
    {
      file.create(file)
      repeat {
        NULL
      }
    },
    file = file,
    .timeout = 5000
  )
  expect_true(wait_until(function() file.exists(file)))
  expect_true(stop_mirai(m))
  expect_identical(mirai(Sys.getpid())[], pid)
})
