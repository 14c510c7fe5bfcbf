# Large vectors are sent to local daemons and back in shared memory. Their values are tested, and by /proc also that the
# memory is shared.

skip_if_not(file.exists("/proc/self/maps"), "no /proc")

test_that("vectors of all types and shapes come back identical, and in shared memory", {
  local_test_daemons(1)
  x <- real()
  n <- length(x)
  i <- seq_len(n)
  i[2L] <- NA
  vectors <- list(
    x,
    replace(x, 3, NA),
    i,
    rep(c(TRUE, NA, FALSE), length.out = 3 * n),
    complex(real = x, imaginary = -x),
    as.raw(seq_len(1e6) %% 256L),
    stats::setNames(x, i),
    matrix(x, 10),
    array(i[1:100000], c(10, 10, 1000)),
    factor(letters[i %% 26L + 1L]),
    as.Date("2024-01-01") + x,
    as.POSIXct(x, origin = "1970-01-01", tz = "UTC"),
    data.frame(a = x, b = i, c = as.character(i)),
    list(x, list(i, x), a = x),
    structure(1, big = x),
    ts(x, frequency = 12),
    as.character(i),
    of_all_encodings()
  )
  for (v in vectors) {
    expect_identical(echo(v), v)
  }
  for (v in vectors[1:6]) {
    expect_true(is_shared(echo(v)))
  }
  expect_identical(mirai(list(sum(x), length(x), x[7], range(x)), x = x)[], list(sum(x), n, x[7], range(x)))
})

test_that("each of many vectors in a list is shared, there and here", {
  local_test_daemons(1)
  frame <- as.data.frame(lapply(stats::setNames(1:9, letters[1:9]), function(i) real() + i))
  got <- mirai(list(vapply(frame, is_shared, NA), frame), is_shared = is_shared, frame = frame)[]
  expect_identical(got, list(stats::setNames(rep(TRUE, 9), letters[1:9]), frame))
  expect_true(all(vapply(got[[2L]], is_shared, NA)))
  # As arguments of one call.
  all_of <- function(x, y, z) c(is_shared(x), is_shared(y), is_shared(z))
  environment(all_of) <- list2env(list(is_shared = is_shared), parent = globalenv())
  shared <- mirai(all_of(x, y, z), all_of = all_of, x = frame$a, y = frame$b, z = frame$c)
  expect_identical(shared[], c(TRUE, TRUE, TRUE))
})

test_that("random nested objects with large vectors come back identical", {
  set.seed(2)
  atoms <- list(
    function(n) sprintf("s%06d", sample(1e6, n)),
    function(n) sample(of_all_encodings(n)),
    function(n) rnorm(n),
    function(n) sample(c(NA, letters), n, TRUE),
    function(n) sample(n),
    function(n) factor(sprintf("f%06d", sample(1e6, n))),
    function(n) data.frame(a = sprintf("a%06d", sample(1e6, n)), b = seq_len(n) + 0.5),
    function(n) as.raw(sample(0:255, n, TRUE)),
    function(n) "a",
    function(n) NULL,
    function(n) quote(a + b)
  )
  random <- function(depth) {
    if (depth == 0 || runif(1) < 0.3) {
      return(sample(atoms, 1)[[1]](sample(c(10, 100, 2e4, 5e4), 1)))
    }
    x <- lapply(seq_len(sample(0:4, 1)), function(i) random(depth - 1))
    if (runif(1) < 0.5) {
      names(x) <- sprintf("n%d", seq_along(x))
    }
    if (runif(1) < 0.3) {
      attr(x, "extra") <- random(depth - 1)
    }
    x
  }
  local_test_daemons(1)
  for (i in 1:40) {
    x <- list(random(3))
    expect_identical(echo(x), x)
    expect_identical(echo(echo(x)), x)
  }
})

test_that("vectors around the least size come back identical", {
  local_test_daemons(1)
  for (n in 256 * 1024 + -2:2) {
    for (v in list(raw(n), numeric(n %/% 8), integer(n %/% 4), list(raw(n), 1, raw(n - 1)))) {
      expect_identical(echo(v), v)
    }
  }
  expect_false(is_shared(echo(raw(256 * 1024 - 1))))
  expect_true(is_shared(echo(raw(256 * 1024))))
})

test_that("more vectors than a message has segments for come back identical", {
  local_test_daemons(1)
  x <- lapply(1:300, function(i) rep(i, 40000))
  expect_identical(echo(x), x)
})

test_that("vectors behind R's own compact forms, in environments, functions and promises do, too", {
  local_test_daemons(1)
  x <- real()
  expect_identical(echo(1:1e6), 1:1e6)
  expect_identical(echo(sort(x)), sort(x))
  expect_identical(echo(list(as.character(1:1e5), x, 1:1e6)), list(as.character(1:1e5), x, 1:1e6))
  e <- new.env()
  e$x <- x
  e$self <- e
  makeActiveBinding("active", function() "found", e)
  got <- echo(e)
  expect_identical(got$x, x)
  expect_identical(got$self, got)
  expect_identical(got$active, "found")
  make <- function(data, later = stop("evaluated"), ...) function() data
  expect_identical(echo(make(x))(), x)
  expect_identical(
    echo(make({
      x + 1
    }))(),
    x + 1
  )
  expect_identical(echo(make(x, 1, x))(), x)
  make <- function(data, other = "default") function() other
  expect_identical(echo(make(x))(), "default")
})

test_that("nobody sees what others change", {
  local_test_daemons(1)
  x <- real()
  before <- x + 0
  m <- mirai(
    {
      x[1] <- -1
      y <- x
      y[2] <- -2
      list(x, y)
    },
    x = x
  )
  x[3] <- -3
  got <- m[]
  expect_identical(got[[1]], replace(before, 1, -1))
  expect_identical(got[[2]], replace(before, 1:2, c(-1, -2)))
  kept <- got[[1]]
  got[[1]][4] <- -4
  expect_identical(kept, replace(before, 1, -1))
  sum_of <- mirai(sum(x), x = kept)
  kept[5] <- 0
  expect_identical(sum_of[], sum(replace(before, 1, -1)))
  # The same vector twice in one message.
  both <- mirai(
    {
      a[1] <- 0
      list(a[1], b[1])
    },
    a = before,
    b = before
  )[]
  expect_identical(both, list(0, before[1]))
})

test_that("tasks of a map do not see each other's changes to what they share", {
  local_test_daemons(2)
  x <- real()
  change <- function(i, x) {
    first <- x[1]
    x[] <- i
    c(first, x[1])
  }
  out <- mirai_map(1:40, change, .args = list(x))[]
  expect_identical(out, lapply(1:40, function(i) c(x[1], i)))
  out <- mirai_map(
    1:10,
    function(i) {
      first <- x[1]
      x[1] <<- i
      first
    },
    x = x
  )[.flat]
  expect_identical(out, rep(x[1], 10))
  expect_true(nothing_left())
})

test_that("what was received can be written, read, copied and sent on", {
  local_test_daemons(1)
  x <- real()
  got <- echo(x)
  expect_identical(unserialize(serialize(got, NULL)), x)
  file <- local_file()
  saveRDS(got, file)
  expect_identical(readRDS(file), x)
  expect_false(is_shared(readRDS(file)))
  expect_identical(got[10:20], x[10:20])
  expect_identical(rev(got), rev(x))
  expect_identical(as.integer(got), as.integer(x))
  expect_identical(echo(got), x)
  # A daemon sends on what it has received to daemons of its own.
  on <- mirai(
    {
      mirai::daemons(1)
      on.exit(mirai::daemons(0))
      mirai::mirai(
        {
          x[1] <- 0
          x
        },
        x = x
      )[]
    },
    x = x
  )[]
  expect_identical(on, replace(x, 1, 0))
})

test_that("what was received and hardly changed is duplicated and sent on without being copied", {
  local_test_daemons(1)
  x <- real(4e6)
  # Private memory of this process, in MB.
  own <- function() {
    line <- grep("^RssAnon:", readLines("/proc/self/status"), value = TRUE)
    as.numeric(gsub("[^0-9]", "", line)) / 1000
  }
  got <- echo(x)
  expect_true(is_shared(got))
  copy <- got
  copy[2] <- 0
  expect_true(is_shared(copy))
  expect_identical(list(got, copy), list(x, replace(x, 2, 0)))
  named <- copy
  attr(named, "unit") <- "m"
  named[3] <- 0
  expect_identical(named, structure(replace(x, 2:3, 0), unit = "m"))
  expect_null(attributes(copy))
  expect_identical(echo(list(got, copy, named)), list(got, copy, named))
  there <- mirai(
    {
      f <- function(y) {
        y[length(y)] <- 0
        y
      }
      list(f(x), x)
    },
    x = copy
  )[]
  expect_identical(there, list(replace(copy, length(x), 0), copy))
  # The whole vector is changed after it was sent.
  m <- mirai(x, x = copy)
  copy[] <- 1
  expect_identical(m[], replace(x, 2, 0))
  expect_identical(echo(copy), rep(1, length(x)))
  twice <- copy
  twice[1] <- 2
  expect_identical(list(twice[1], copy[1]), list(2, 1))
  big <- echo(real(1e8))
  before <- own()
  back <- mirai(
    {
      x[1] <- 0
      x
    },
    x = big
  )[]
  big[1e6] <- 0
  expect_lt(own() - before, 30)
  expect_identical(back[1:3], c(0, 2.5, 3.5))
  rm(got, copy, named, there, m, twice, big, back)
  expect_true(nothing_left())
})

test_that("a forked process sees its own changes, not its parent's", {
  local_test_daemons(1)
  x <- real(4e6)
  got <- echo(x)
  got[1] <- -1
  there <- parallel::mccollect(parallel::mcparallel({
    got[2] <- -2
    copy <- got
    copy[3] <- -3
    list(got, copy)
  }))[[1]]
  expect_identical(there, list(replace(x, 1:2, c(-1, -2)), replace(x, 1:3, c(-1, -2, -3))))
  expect_identical(got, replace(x, 1, -1))
  there <- mirai(
    {
      forked <- parallel::mcparallel({
        x[2] <- -2
        x
      })
      list(x, parallel::mccollect(forked)[[1]])
    },
    x = got
  )[]
  expect_identical(there, list(got, replace(got, 2, -2)))
})

test_that("a finalizer may read what is waited for", {
  local_test_daemons(2)
  for (i in 1:5) {
    # Enough to make R collect garbage before the wait.
    kept <- lapply(1:3, function(i) mirai(numeric(1e7))[])
    done <- mirai(1)
    call_mirai(done)
    long <- mirai({
      Sys.sleep(0.02)
      2
    })
    local({
      m <- done
      reg.finalizer(new.env(), function(e) m$data)
    })
    expect_identical(lapply(call_mirai(list(done, long)), function(m) m$data), list(1, 2))
  }
})

test_that("everywhere(), single tasks and synchronous profiles take large vectors, too", {
  x <- real()
  local_test_daemons(2)
  everywhere(big <<- x, x = x)[]
  for (i in 1:4) {
    expect_identical(mirai(big)[], x)
  }
  daemons(0)
  expect_identical(echo(x), x)
  profile <- test_profile()
  daemons(sync = TRUE, .compute = profile)
  expect_identical(mirai(x, x = x, .compute = profile)[], x)
  daemons(0, .compute = profile)
})

test_that("hooks and large vectors work in the same message", {
  un <- function(x) structure(list(value = unserialize(x)), class = "memory_test")
  local_test_daemons(1)
  serialization(list(function(x) serialize(x$value, NULL), un), class = "memory_test")
  on.exit(mirai::serialization(NULL), add = TRUE)
  x <- real()
  object <- structure(list(value = x), class = "memory_test")
  expect_identical(echo(list(x, object, x)), list(x, object, x))
})

test_that("across the network vectors are copied, and large ones read into memory of their own", {
  profile <- test_profile()
  defer(function() daemons(NULL, .compute = profile), environment())
  daemons(1, url = "tcp://127.0.0.1:0", .compute = profile)
  launch_local(1, .compute = profile)
  x <- real()
  got <- mirai(x, x = x, .compute = profile)[]
  expect_identical(got, x)
  expect_false(is_shared(got))

  # 32 MiB and more: in the message, beside a small one, changed there, in a function's arguments, and of a task that
  # another needs.
  large <- list(real(4e7), i = seq_len(1e7) + 0L, small = x, raw = as.raw(rep(1:250, length.out = 34e6)))
  got <- mirai(large, large = large, .compute = profile)[]
  expect_identical(got, large)
  expect_identical(vapply(unname(got), is_shared, NA), c(TRUE, TRUE, FALSE, TRUE))
  unread <- mirai(large, large = large, .compute = profile)
  changed <- mirai(
    {
      large[[1L]][2] <- NA
      list(sum(large$i), large)
    },
    large = unread,
    .compute = profile
  )[]
  expect_identical(changed, list(sum(large$i), replace(large, 1L, list(replace(large[[1L]], 2, NA)))))
  # What has gone on to another task is kept for that, and R gets a copy.
  expect_identical(unread[], large)
  expect_false(is_shared(unread$data[[1L]]))
  # Each element has its own, whatever the others do.
  element <- function(i, large) {
    large[[1L]][i] <- -1
    c(sum(large[[1L]] < 0), large[[1L]][1:3], sum(large$raw == as.raw(7)))
  }
  sevens <- sum(large$raw == as.raw(7))
  expected <- lapply(1:3, function(i) c(1, replace(c(1, 2, 3) + 0.5, i, -1), sevens))
  expect_identical(unname(mirai_map(1:3, element, .args = list(large), .compute = profile)[]), expected)
  # Sent on, it is a copy.
  expect_identical(mirai(sum(x), x = got[[1L]], .compute = profile)[], sum(large[[1L]]))
})

test_that("across the network, what hooks make may be large", {
  profile <- test_profile()
  defer(function() daemons(NULL, .compute = profile), environment())
  un <- function(v) structure(list2env(list(v = v), parent = emptyenv()), class = "memory_test")
  config <- serial_config("memory_test", function(x) x$v, un)
  daemons(1, url = "tcp://127.0.0.1:0", serial = config, .compute = profile)
  launch_local(1, .compute = profile)
  object <- un(as.raw(rep(1:250, length.out = 34e6)))
  large <- real(4e7)
  got <- mirai(list(length(object$v), object, large), object = object, large = large, .compute = profile)[]
  expect_identical(got[[1L]], 34e6L)
  expect_identical(got[[2L]]$v, object$v)
  expect_identical(got[[3L]], large)
  # Behind the object in the message.
  expect_true(is_shared(got[[3L]]))
})

test_that("vectors of more than 2^31 elements and bytes are mapped there and back, and copied", {
  skip_on_cran()
  info <- grep("^MemAvailable:", readLines("/proc/meminfo"), value = TRUE)
  skip_if(as.numeric(gsub("[^0-9]", "", info)) < 1e7, "less than 10 GB of memory available")
  n <- 2^31 + 10
  at <- c(1, 2^31 - 1, 2^31, n)
  x <- raw(n)
  x[at] <- as.raw(1:4)
  profile <- local_test_daemons(1)
  got <- mirai(
    {
      x[2] <- as.raw(9)
      x
    },
    x = x
  )[]
  expect_true(is_shared(got))
  expect_identical(length(got), n)
  expect_identical(got[c(2, at)], as.raw(c(9, 1:4)))
  rm(got)
  expect_true(nothing_left())
  daemons(0, .compute = profile)
  # In one direction only, to save time and memory.
  daemons(1, url = "tcp://127.0.0.1:0", .compute = profile)
  launch_local(1, .compute = profile)
  expect_identical(mirai(list(length(x), x[at]), x = x, at = at, .compute = profile)[], list(n, as.raw(1:4)))
  rm(x)
  gc()
})
