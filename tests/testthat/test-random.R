# Random number streams of tasks and daemons. See also test-daemons.R, and test-cluster.R for clusters.

draw <- function(...) c(rnorm(1), runif(1), sample(100L, 1L))

# The values of draw() with the first streams of a seed, computed by package parallel.
expected_draws <- function(seed, n) {
  old <- RNGkind()
  before <- globalenv()$.Random.seed
  on.exit({
    do.call(RNGkind, as.list(old))
    if (!is.null(before)) assign(".Random.seed", before, globalenv())
  })
  set.seed(seed, "L'Ecuyer-CMRG", "Inversion", "Rejection")
  stream <- globalenv()$.Random.seed
  lapply(seq_len(n), function(i) {
    assign(".Random.seed", stream, globalenv())
    stream <<- parallel::nextRNGStream(stream)
    draw()
  })
}

test_that("with a seed, each element of a map has its stream, whoever evaluates it", {
  expected <- expected_draws(42L, 12)
  map <- function(...) {
    local_test_daemons(..., seed = 42L)
    mirai_map(1:12, draw)[]
  }
  expect_identical(map(1), expected)
  expect_identical(map(2), expected)
  expect_identical(map(3), expected)
  expect_identical(map(1, dispatcher = FALSE), expected)
  expect_identical(map(2, dispatcher = FALSE), expected)
  expect_identical(map(3, dispatcher = FALSE), expected)
  expect_identical(map(sync = TRUE), expected)
})

test_that("mirai() and mirai_map() take streams in turn, in order of submission", {
  expected <- expected_draws(7L, 6)
  for (dispatcher in c(TRUE, FALSE)) {
    local_test_daemons(2, seed = 7L, dispatcher = dispatcher)
    a <- mirai(draw(), draw = draw)
    b <- mirai_map(1:3, draw)
    c <- try_mirai(draw(), draw = draw)
    everywhere(rnorm(1))
    expect_identical(nextget("stream"), mirai(.Random.seed)[])
    d <- b[]
    expect_identical(c(list(a[]), d, list(c[])), expected[1:5])
  }
})

test_that("failures, cancelled tasks, timeouts and retries do not shift the streams", {
  expected <- expected_draws(3L, 5)
  local_tmpdir()
  profile <- local_test_daemons(2, seed = 3L, retry = TRUE)
  file <- local_file()
  one <- mirai(
    {
      first <- !file.exists(file)
      file.create(file)
      if (first) {
        tools::pskill(Sys.getpid(), tools::SIGKILL)
      }
      draw()
    },
    file = file,
    draw = draw
  )
  two <- mirai(Sys.sleep(60))
  stop_mirai(two)
  three <- mirai(Sys.sleep(60), .timeout = 10)
  four <- mirai(stop("fails"))
  five <- mirai_map(1, draw)
  expect_identical(one[], expected[[1]])
  expect_identical(unclass(two[]), 20L)
  expect_identical(unclass(three[]), 5L)
  expect_identical(five[], expected[5])
})

test_that("the same seed again gives the same, another seed does not", {
  map <- function(seed) {
    local_test_daemons(2, seed = seed)
    mirai_map(1:4, draw)[]
  }
  first <- map(1)
  expect_identical(map(1), first)
  expect_false(identical(map(2), first))
  expect_identical(map(-1), expected_draws(-1L, 4))
  # in two profiles at once, too
  one <- local_test_daemons(1, seed = 1)
  two <- local_test_daemons(1, seed = 1)
  expect_identical(mirai_map(1:4, draw, .compute = one)[], first)
  expect_identical(mirai_map(1:4, draw, .compute = two)[], first)
})

test_that("nextstream() takes a stream from the tasks", {
  expected <- expected_draws(11L, 3)
  local_test_daemons(2, seed = 11L)
  nextstream()
  expect_identical(mirai_map(1:2, draw)[], expected[2:3])
})

test_that("a task with a seed does not see the generator state or kind of other tasks", {
  expected <- expected_draws(5L, 3)
  local_test_daemons(1, seed = 5L)
  a <- mirai(
    {
      out <- draw()
      RNGkind("Wichmann-Hill", "Box-Muller")
      set.seed(1)
      rnorm(1)
      out
    },
    draw = draw
  )
  expect_identical(a[], expected[[1]])
  expect_identical(mirai_map(1:2, draw)[], expected[2:3])
})

test_that("without a seed, each daemon goes on with a stream of its own", {
  local_test_daemons(2, dispatcher = FALSE)
  streams <- everywhere(.Random.seed)[]
  # in the order in which they have connected
  if (!identical(streams[[2]], parallel::nextRNGStream(streams[[1]]))) {
    streams <- rev(streams)
  }
  expect_identical(streams[[2]], parallel::nextRNGStream(streams[[1]]))
  expect_false(identical(mirai(draw(), draw = draw)[], mirai(draw(), draw = draw)[]))
  values <- mirai_map(1:10, draw)[]
  expect_length(unique(values), 10)
})

test_that("without a seed, what a task does to the generator does not show in the numbers of later ones", {
  local_test_daemons(2, dispatcher = FALSE)
  first <- mirai_map(1:2, function(i) .Random.seed)[]
  # Nothing is drawn, and nothing changes.
  expect_identical(mirai_map(1:2, function(i) .Random.seed)[], first)
  mirai_map(1:2, function(i) set.seed(1))[]
  second <- mirai_map(1:2, function(i) .Random.seed)[]
  expect_identical(second, lapply(first, parallel::nextRNGSubStream))
  mirai_map(1:2, function(i) {
    RNGkind("Wichmann-Hill", "Box-Muller")
    rnorm(3)
  })[]
  third <- mirai_map(1:2, function(i) .Random.seed)[]
  expect_identical(third, lapply(second, parallel::nextRNGSubStream))
  mirai_map(1:2, function(i) {
    rm(.Random.seed, envir = globalenv())
    makeActiveBinding(".Random.seed", function(x) NULL, globalenv())
  })[]
  mirai_map(1:2, function(i) lockBinding(".Random.seed", globalenv()))[]
  fourth <- mirai_map(1:2, function(i) c(.Random.seed, runif(1)))[]
  expect_identical(lapply(fourth, head, 7L), lapply(third, function(x) as.double(parallel::nextRNGSubStream(x))))
  expect_length(unique(mirai_map(1:20, draw)[]), 20L)
})

test_that("a seed that everywhere() has set holds for all tasks that follow, one after the other", {
  local_test_daemons(1)
  everywhere(set.seed(1))
  values <- mirai_map(1:3, function(i) runif(1))[.flat]
  set.seed(1, "L'Ecuyer-CMRG")
  defer(function() RNGkind("default"), environment())
  expect_identical(values, runif(3))
  # But if it has only drawn some, the stream is still the daemon's.
  local_test_daemons(2, dispatcher = FALSE)
  everywhere({
    runif(1e5)
    NULL
  })
  mirai_map(1:2, function(i) set.seed(1))[]
  expect_length(unique(mirai_map(1:2, function(i) runif(1))[]), 2L)
  # What belongs to the daemon alone stays with `cleanup = FALSE`.
  local_test_daemons(1, cleanup = FALSE)
  mirai(set.seed(1))[]
  expect_identical(mirai_map(1:3, function(i) runif(1))[.flat], values)
})
