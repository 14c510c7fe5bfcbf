test_that("everywhere() reaches every daemon, and what it leaves persists", {
  local_test_daemons(2)
  shown <- withVisible(everywhere(
    {
      rate <<- add
      options(mirai_test = "set")
      library(splines)
      Sys.getpid()
    },
    add = 100
  ))
  expect_false(shown$visible)
  map <- shown$value
  expect_s3_class(map, "mirai_map", exact = TRUE)
  expect_length(map, 2)
  pids <- map[]
  expect_length(unique(pids), 2)
  expect_snapshot(map)
  seen <- lapply(1:6, function(i) {
    mirai({
      Sys.sleep(0.02)
      list(rate, getOption("mirai_test"), "package:splines" %in% search(), Sys.getpid())
    })
  })
  for (value in collect_mirai(seen)) {
    expect_identical(value[1:3], list(100, "set", TRUE))
    expect_true(value[[4L]] %in% pids)
  }
  # the cleanup after a task does not remove or change it
  m <- list(
    mirai({
      rate <<- 0
      detach("package:splines")
      options(mirai_test = NULL)
    }),
    mirai({
      rm("rate", envir = globalenv())
      options(mirai_test = "changed")
    })
  )
  call_mirai(m)
  again <- lapply(1:4, function(i) mirai(c(rate, getOption("mirai_test"), "package:splines" %in% search())))
  expect_identical(unique(collect_mirai(again)), list(c("100", "set", "TRUE")))
})

test_that("everywhere() comes before any task submitted later, after those before", {
  local_test_daemons(1)
  everywhere(history_ <<- "start")[]
  first <- mirai({
    Sys.sleep(0.1)
    history_
  })
  everywhere(history_ <<- c(history_, "one"))
  everywhere(history_ <<- c(history_, "two"))
  second <- mirai(history_)
  expect_identical(first[], "start")
  expect_identical(second[], c("start", "one", "two"))
})

test_that("everywhere() works without dispatcher", {
  local_test_daemons(2, dispatcher = FALSE)
  expect_length(unique(everywhere(Sys.getpid())[]), 2)
  everywhere(x <<- 1)
  expect_identical(collect_mirai(lapply(1:4, function(i) mirai(x))), list(1, 1, 1, 1))
})

test_that("daemons that connect later evaluate what .min asks for before anything else", {
  local_test_daemons(url = local_url())
  map <- everywhere(
    {
      made <<- "yes"
      Sys.getpid()
    },
    .min = 2
  )
  expect_length(map, 2)
  m <- mirai(made)
  expect_snapshot(map)
  launch_local(1)
  expect_identical(m[], "yes")
  launch_local(1)
  pids <- map[]
  expect_length(unique(pids), 2)
  expect_identical(everywhere(made)[], list("yes", "yes"))
})

test_that("errors in everywhere() are values", {
  local_test_daemons(2)
  values <- everywhere(stop("not here"))[]
  expect_true(all(vapply(values, is_mirai_error, NA)))
  expect_identical(mirai(1)[], 1)
})

test_that("everywhere() does not use up streams", {
  draw <- function(with) {
    local_test_daemons(2, seed = 42)
    first <- mirai(rnorm(1))[]
    if (with) {
      everywhere(rnorm(1))[]
    }
    c(first, mirai(rnorm(1))[])
  }
  expect_identical(draw(TRUE), draw(FALSE))
})

test_that("under a seed everywhere() has the same random numbers on every daemon, and others each time", {
  profile <- local_test_daemons(2, seed = 42L)
  first <- everywhere(.Random.seed)[]
  expect_length(first, 2L)
  expect_identical(first[[1L]], first[[2L]])
  expect_identical(first[[1L]][1L], 10407L)
  second <- everywhere(.Random.seed)[]
  expect_identical(second[[1L]], parallel::nextRNGSubStream(first[[1L]]))
  drawn <- everywhere(shared <<- rnorm(1))[]
  expect_identical(drawn[[1L]], drawn[[2L]])
  # they differ from those of tasks, and do not change them
  task <- mirai(.Random.seed)[]
  expect_identical(first[[1L]], parallel::nextRNGSubStream(task))
  daemons(1, seed = 42L, .compute = profile)
  expect_identical(mirai(.Random.seed)[], task)
  daemons(sync = TRUE, seed = 42L, .compute = profile)
  expect_identical(everywhere(.Random.seed)[[1L]]$data, first[[1L]])
  expect_identical(mirai(.Random.seed)[], task)
  # a user's own `.Random.seed` wins, and without a seed each daemon has its own stream
  expect_identical(everywhere(.Random.seed, .Random.seed = task)[[1L]]$data, task)
  daemons(2, .compute = profile)
  expect_false(anyDuplicated(everywhere(.Random.seed)[]) > 0L)
})

test_that(".expr, ... and .args are as in mirai()", {
  local_test_daemons(1)
  expr <- quote(both <<- a + b)
  everywhere(expr, .args = list(a = 1, b = 2))
  expect_identical(mirai(both)[], 3)
  everywhere({}, list2env(list(x = 1, .y = 2, .Random.seed = 0L)))
  expect_identical(mirai(c(x, .y))[], c(1, 2))
})

test_that("bad arguments are errors", {
  profile <- local_test_daemons(1)
  expect_snapshot(show_errors({
    everywhere()
    everywhere(1, 2)
    everywhere(1, .args = 1)
    everywhere(1, .min = -1)
    everywhere(1, .min = "a")
    everywhere(1, .compute = 1)
    everywhere(1, .compute = "not set")
    everywhere(1, .compute = "default")
  }))
})
