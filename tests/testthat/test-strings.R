# Large character vectors in shared memory. test-memory.R has the other types.

skip_if_not(file.exists("/proc/self/maps"), "no /proc")

test_that("strings come back identical and are made when they are asked for", {
  local_test_daemons(1)
  x <- of_all_encodings()
  got <- echo(x)
  expect_true(is_shared(got))
  expect_length(got, length(x))
  some <- c(99990:1e5, 1:130, 5000, 77, 1e5, NA)
  expect_identical(got[some], x[some])
  expect_true(is_shared(got))
  expect_identical(got, x)
  expect_identical(Encoding(got), Encoding(x))
  # Now it is an ordinary vector.
  expect_false(is_shared(got))
  expect_identical(got[some], x[some])
  expect_true(nothing_left())
  expect_identical(echo(got), x)
  expect_identical(
    mirai(list(length(x), x[7], sum(nchar(x, "bytes"))), x = x)[],
    list(length(x), x[7], sum(nchar(x, "bytes")))
  )
  same <- function(f) expect_identical(f(echo(x)), f(x))
  same(is.na)
  same(unique)
  same(function(x) x == "string 000007")
  same(function(x) match(c("", NA, x[8:12]), x))
  same(rev)
  same(function(x) paste(x, "a"))
  same(function(x) x[c(TRUE, FALSE)])
  x <- text()
  same(sort)
  same(function(x) sort(x, method = "radix", decreasing = TRUE))
  same(factor)
})

test_that("strings keep their attributes, and are attributes", {
  local_test_daemons(1)
  x <- text()
  vectors <- list(
    stats::setNames(x, x),
    matrix(x, 10),
    structure(x, class = c("a", "b"), other = list(x)),
    factor(x),
    data.frame(x = x, i = seq_along(x)),
    data.frame(i = 1, row.names = "r")[rep(1, 3), , drop = FALSE],
    list(x, list(x), a = x),
    structure(1:3, note = x),
    stats::setNames(as.list(seq_along(x)), x),
    I(x),
    strrep(c("a", "b", NA), 3e5)
  )
  for (v in vectors) {
    expect_identical(echo(v), v)
  }
  expect_true(is_shared(levels(echo(vectors[[4]]))))
  expect_true(is_shared(echo(strrep("a", 3e5))))
})

test_that("few strings, or few different strings, are copied", {
  local_test_daemons(1)
  # 14 bytes for each string.
  n <- 256 * 1024 / 14
  for (x in list(sprintf("%06d", seq_len(n)), rep(letters, 1e4), rep(text(500), 200), rep(c(NA, ""), 1e5))) {
    expect_false(is_shared(echo(x)))
    expect_identical(echo(x), x)
  }
  x <- sprintf("%06d", seq_len(n + 1))
  expect_true(is_shared(echo(x)))
  expect_identical(echo(x), x)
})

test_that("nobody sees which strings others change", {
  local_test_daemons(1)
  x <- text()
  before <- paste0(x)
  m <- mirai(
    {
      x[1] <- "a"
      y <- x
      y[2] <- NA
      list(x, y)
    },
    x = x
  )
  x[3] <- "c"
  got <- m[]
  expect_identical(got[[1]], replace(before, 1, "a"))
  expect_identical(got[[2]], replace(before, 1:2, c("a", NA)))
  got <- echo(before)
  kept <- got
  got[4] <- "d"
  expect_identical(kept, before)
  expect_identical(got, replace(before, 4, "d"))
  names(kept) <- before
  kept[["string 000005"]] <- "e"
  expect_identical(kept, stats::setNames(replace(before, 5, "e"), before))
  both <- mirai(
    {
      a[1] <- ""
      list(a[1], b[1])
    },
    a = before,
    b = before
  )[]
  expect_identical(both, list("", before[1]))
  change <- function(i, x) {
    first <- x[1]
    x[] <- as.character(i)
    c(first, x[1])
  }
  expect_identical(mirai_map(1:10, change, .args = list(before))[], lapply(1:10, function(i) c(before[1], i)))
})

test_that("strings that were received can be written, read, copied and sent on", {
  local_test_daemons(1)
  x <- of_all_encodings()
  expect_identical(unserialize(serialize(echo(x), NULL)), x)
  file <- local_file()
  saveRDS(echo(x), file)
  expect_identical(readRDS(file), x)
  expect_false(is_shared(readRDS(file)))
  # Before any string is made, when some are, and when all are.
  got <- echo(x)
  expect_true(is_shared(echo(got)))
  expect_identical(echo(got), x)
  expect_identical(got[1:50], x[1:50])
  expect_identical(echo(got), x)
  expect_true(is_shared(got))
  got[2] <- "b"
  expect_identical(echo(got), replace(x, 2, "b"))
  expect_identical(.Call(rs_decode, .Call(rs_encode, echo(x))), x)
  on <- mirai(
    {
      mirai::daemons(1)
      on.exit(mirai::daemons(0))
      mirai::mirai(
        {
          x[1] <- NA
          x
        },
        x = mirai::mirai(x, x = x)[]
      )[]
    },
    x = x
  )[]
  expect_identical(on, replace(x, 1, NA))
  profile <- test_profile()
  defer(function() daemons(NULL, .compute = profile), environment())
  daemons(1, url = "tcp://127.0.0.1:0", .compute = profile)
  launch_local(1, .compute = profile)
  got <- mirai(x, x = echo(x), .compute = profile)[]
  expect_identical(got, x)
  expect_false(is_shared(got))
  # Where R itself writes or reads, because of an object that only R can handle.
  expect_identical(echo(list(x, 1:1e6)), list(x, 1:1e6))
  deep <- list(x)
  for (i in 1:500) {
    deep <- list(deep)
  }
  expect_identical(echo(deep), deep)
})

test_that("strings stay valid while the garbage collector runs", {
  local_test_daemons(1)
  x <- paste0(1:40, strrep("x", 8000), c("\u00fc", NA, "z"))
  got <- echo(x)
  expect_true(is_shared(got))
  gctorture(TRUE)
  defer(function() gctorture(FALSE), environment())
  some <- got[c(40, 1, 7)]
  back <- mirai(
    {
      gctorture(TRUE)
      y <- x
      y[2] <- "changed"
      gctorture(FALSE)
      list(x, y)
    },
    x = got
  )[]
  all <- paste(got)
  gctorture(FALSE)
  expect_identical(some, x[c(40, 1, 7)])
  expect_identical(all, x)
  expect_identical(back, list(x, replace(x, 2, "changed")))
})
