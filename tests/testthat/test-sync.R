test_that("a synchronous profile evaluates in this process, at submission", {
  profile <- local_test_daemons(sync = TRUE)
  m <- mirai(list(Sys.getpid(), x + y), x = 1, .args = list(y = 2))
  expect_false(unresolved(m))
  expect_s3_class(m, "mirai", exact = TRUE)
  expect_identical(m$data, list(Sys.getpid(), 3))
  expect_snapshot(m)
  expect_identical(mirai(stop("no"))[]$message, "no")
  expect_snapshot(mirai(f(1), f = function(x) stop("positive"))[])
  expect_identical(stop_mirai(m), FALSE)
  expect_identical(race_mirai(list(m)), 1L)
  expect_identical(try_mirai(2)[], 2)
  expect_identical(status(), list(connections = 0L, daemons = 0L))
  expect_null(info())
})

test_that("the session and tasks do not see each other's global variables", {
  local_test_daemons(sync = TRUE)
  assign("mirai_test_x", "mine", globalenv())
  assign("mirai_test_null", NULL, globalenv())
  defer(function() rm("mirai_test_x", "mirai_test_null", envir = globalenv()), environment())
  before <- ls(globalenv(), all.names = TRUE)
  see <- function() exists("mirai_test_x")
  environment(see) <- globalenv()
  expect_false(mirai(see(), see = see)[])
  expect_identical(mirai(setdiff(ls(globalenv(), all.names = TRUE), ".Random.seed"))[], character())
  mirai({
    mirai_test_x <<- "theirs"
    mirai_test_y <<- "left"
    assign("mirai_test_z", 1, globalenv())
    stop("also on error")
  })
  mirai(rm(list = ls(globalenv(), all.names = TRUE), envir = globalenv()))
  expect_identical(get("mirai_test_x", globalenv()), "mine")
  expect_null(get("mirai_test_null", globalenv()))
  expect_setequal(ls(globalenv(), all.names = TRUE), c(before, ".Random.seed"))
  expect_false(mirai(exists("mirai_test_y"))[])
})

test_that("what everywhere() leaves persists for the profile", {
  profile <- local_test_daemons(sync = TRUE, seed = 1)
  map <- everywhere(rate <<- add, add = 100)
  expect_identical(map[], list(100))
  expect_identical(mirai(rate + 1)[], 101)
  mirai(rate <<- 0)
  expect_identical(mirai(rate + 1)[], 101)
  expect_false(exists("rate", globalenv(), inherits = FALSE))
  local_test_daemons(sync = TRUE)
  expect_false(mirai(exists("rate"))[])
})

test_that("a full stack is an error value", {
  local_test_daemons(sync = TRUE)
  m <- mirai({
    f <- function(n) f(n + 1)
    f(1)
  })
  expect_match(m[]$message, "nested too deeply|stack usage")
})

test_that("evaluations may be nested", {
  profile <- local_test_daemons(sync = TRUE)
  m <- mirai(
    {
      inner <- mirai::mirai(
        {
          x <<- 2
          x
        },
        .compute = profile
      )[]
      c(x, inner)
    },
    x = 1,
    profile = profile
  )
  expect_identical(m[], c(1, 2))
})

test_that("random numbers go on from task to task, and start anew with a seed", {
  profile <- local_test_daemons(sync = TRUE)
  a <- mirai(rnorm(1))[]
  expect_false(a == mirai(rnorm(1))[])
  daemons(sync = TRUE, seed = 7, .compute = profile)
  a <- c(mirai(rnorm(1))[], mirai(rnorm(1))[])
  daemons(sync = TRUE, seed = 7, .compute = profile)
  everywhere(rnorm(1))
  expect_identical(c(mirai(rnorm(1))[], mirai(rnorm(1))[]), a)
})

test_that("a mirai keeps its conditions, as one of a daemon does", {
  local_test_daemons(sync = TRUE)
  shown <- capture_messages(
    m <- mirai({
      message("one")
      inner <- mirai(message("inner"))
      suppressMessages(message("handled"))
      message("two")
      mirai_conditions(inner)
    })
  )
  expect_identical(shown, c("one\n", "inner\n", "two\n"))
  messages <- function(x) vapply(x, conditionMessage, "")
  expect_identical(messages(mirai_conditions(m)), c("one\n", "two\n"))
  expect_identical(messages(m[]), "inner\n")
  expect_identical(capture_messages(m[.relay]), c("one\n", "two\n"))
  expect_warning(map <- mirai_map(1:2, function(i) if (i == 2) warning("two")), "two")
  expect_identical(lengths(mirai_conditions(map)), 0:1)
  expect_message(
    failed <- mirai({
      message("before")
      stop("no")
    })
  )
  expect_identical(messages(mirai_conditions(failed)), "before\n")
  expect_identical(mirai_conditions(mirai(1)), list())
  expect_message(long <- mirai(message(strrep("x", 1e5))))
  expect_identical(attr(mirai_conditions(long), "dropped"), 1L)
})
