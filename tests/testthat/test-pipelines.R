# Arguments that are mirai, and stand for their values.

# A task that does not end by itself, and another one that waits for it.
stuck <- function() mirai(Sys.sleep(600))

test_that("a mirai, or a list of mirai, stands for its value", {
  local_test_daemons(2)
  go <- local_file()
  a <- mirai(
    {
      while (!file.exists(go)) {
        Sys.sleep(0.01)
      }
      1:3
    },
    go = go
  )
  sums <- mirai(c(sum(x), sum(y), z), x = a, .args = list(y = a, z = 10))
  expect_true(unresolved(sums))
  file.create(go)
  expect_identical(sums[], c(6, 6, 10))
  # Resolved, and not read; and read.
  b <- call_mirai(mirai(list(x = NULL)))
  expect_identical(mirai(x, x = b)[], list(x = NULL))
  expect_identical(b[], mirai(x, x = b)[])
  expect_null(mirai(x, x = mirai(NULL))[])

  ms <- list(a = mirai("a"), b = b, mirai(NULL))
  values <- list(a = "a", b = list(x = NULL), NULL)
  expect_identical(mirai(ms, ms = ms)[], values)
  expect_identical(mirai(list(ms, x), .args = list(ms = ms, x = a))[], list(values, 1:3))
  map <- mirai_map(c(a = 1, b = 4), sqrt)
  expect_identical(mirai(map, map = map)[], list(a = 1, b = 2))
  # What the session has of them is as it was.
  expect_true(all(vapply(ms, is_mirai, NA)))
})

test_that("other objects that hold mirai are sent as they are", {
  local_test_daemons(1)
  never <- stuck()
  defer(function() stop_mirai(never), environment())
  local_test_daemons(1)
  x <- 1
  expect_identical(mirai(x + 1, environment())[], 2)
  expect_identical(mirai(length(y), y = list(1, never))[], 2L)
  expect_identical(mirai(length(y), y = list())[], 0L)
})

test_that("a chain of 1,000 steps, and 1,000 values for one task", {
  local_test_daemons(2)
  m <- mirai(0)
  for (i in seq_len(1000)) {
    m <- mirai(x + 1, x = m)
  }
  expect_identical(m[], 1000)
  ms <- lapply(1:1000, function(i) mirai(i, i = i))
  expect_identical(mirai(sum(unlist(ms)), ms = ms)[], 500500L)
  expect_identical(status()$mirai[["completed"]], 2002L)
})

test_that("a large value goes on as the same memory, and nothing is left", {
  skip_if_not(file.exists("/proc/self/maps"), "no /proc")
  local_test_daemons(2)
  pids <- unique(unlist(everywhere(Sys.getpid())[]))
  # The files behind the mapped memory that hold at least 100 MB.
  files <- function() {
    maps <- grep("memfd:mirai ", readLines("/proc/self/maps"), value = TRUE)
    fields <- strsplit(maps, " +")
    size <- vapply(fields, function(f) diff(strtoi_hex(strsplit(f[[1L]], "-")[[1L]])), 0)
    unique(vapply(fields[size >= 1e8], `[[`, "", 5L))
  }
  strtoi_hex <- function(x) vapply(x, function(x) sum(hex(utf8ToInt(x)) * 16^(rev(seq_len(nchar(x))) - 1)), 0)
  hex <- function(x) ifelse(x > 57L, x - 87L, x - 48L)
  step <- function(x) {
    first <- x[1]
    x[1] <- 0 # seen by nobody else
    list(file = files(), first = first, sum = sum(x))
  }
  environment(files) <- environment(step) <- environment(strtoi_hex) <- environment(hex) <- globalenv()
  top <- mirai(seq_len(12.5e6) + 0.5)
  left <- mirai(step(x), x = top, step = step, files = files, strtoi_hex = strtoi_hex, hex = hex)
  right <- mirai(step(x), x = top, step = step, files = files, strtoi_hex = strtoi_hex, hex = hex)
  bottom <- mirai(list(l, r), l = left, r = right)
  value <- bottom[]
  expect_identical(value[[1L]], value[[2L]])
  expect_length(value[[1L]]$file, 1L)
  expect_identical(value[[1L]]$first, 1.5)
  expect_identical(value[[1L]]$sum, sum(as.numeric(seq_len(12.5e6)) + 0.5) - 1.5)
  # What the session does with its own copy is not seen by tasks that come later, and the other way round.
  x <- top[]
  expect_true(is_shared(x))
  x[2] <- 0
  expect_identical(mirai(x[1:2], x = top)[], c(1.5, 2.5))
  rm(x, top, left, right, bottom, value)
  expect_true(nothing_left())
  mirai_map(1:20, function(i) gc())[]
  for (pid in pids) {
    expect_true(nothing_left(pid))
  }
})

test_that("the memory of what lies between does not pile up", {
  skip_if_not(file.exists("/proc/self/maps"), "no /proc")
  local_test_daemons(1)
  pid <- mirai(Sys.getpid())[]
  m <- mirai(real(1e8), real = real)
  for (i in 1:20) {
    m <- mirai(x + 1, x = m)
  }
  expect_identical(m[][1:2], c(21.5, 22.5))
  expect_lte(mappings(pid), 8L)
  # The same memory counts once.
  m <- mirai(real(1e8), real = real)
  for (i in 1:20) {
    m <- mirai(x, x = m)
  }
  expect_identical(m[][1:2], c(1.5, 2.5))
  rm(m)
  expect_true(nothing_left())
})

test_that("values of middle size go on, also while the session reads them", {
  local_test_daemons(2)
  # With a descriptor of their own, without, and strings.
  values <- list(real(2e6), real(3e5), real(1000), text())
  make <- lapply(values, function(v) mirai(v, v = v))
  next_ones <- lapply(make, function(m) mirai(list(x), x = m))
  all <- mirai(ms, ms = make)
  for (i in seq_along(values)) {
    x <- make[[i]][]
    x[1] <- NA
    expect_identical(next_ones[[i]][], values[i])
  }
  expect_identical(all[], values)
})

test_that("if an argument fails, so does the task, and the first failure is its parent", {
  local_test_daemons(1)
  m <- first <- mirai(stop("sorry"))
  for (i in 1:100) {
    m <- mirai(x, x = m)
  }
  other <- mirai(x, x = mirai(1))
  value <- m[]
  expect_s3_class(value, "miraiError")
  expect_identical(conditionMessage(value), "an argument could not be computed: sorry")
  expect_identical(value$parent, first[])
  expect_true("mirai_error_pipeline" %in% value$condition.class)
  expect_snapshot(value)
  expect_identical(other[], 1)
  # The same after it has been read.
  expect_identical(mirai(x, x = m)[], value)
  expect_identical(mirai(x, x = first)[], value)
  expect_identical(mirai_map(1:2, function(x, y) y, .args = list(y = first))[], list(value, value))
  expect_identical(mirai_map(list(first, 2), function(x) x)[], list(value, 2))
  log <- task_log()
  failed <- log[log$state == "failed", ]
  expect_identical(failed$attempts, rep(1:0, c(1L, 100L)))
  expect_identical(unique(failed$error), c("sorry", "an argument could not be computed"))
  expect_identical(info()[["awaiting"]], 0L)

  timed_out <- mirai(Sys.sleep(600), .timeout = 50)
  value <- mirai(x, x = timed_out)[]
  expect_identical(value$parent, structure(5L, class = "errorValue"))
  expect_identical(value$message, "an argument could not be computed: Timed out")
  expect_error(mirai_map(list(timed_out), identity)[.stop], "an argument could not be computed: Timed out")
})

test_that("cancelling the last of a chain cancels what nobody else wants", {
  local_test_daemons(1)
  kept <- mirai(Sys.sleep(600))
  m <- mirai(x, x = mirai(Sys.sleep(600)))
  shared <- mirai(x, x = mirai(x, x = kept))
  for (i in 1:300) {
    m <- mirai(x, x = m)
  }
  both <- mirai(c(x, y), x = m, y = shared)
  waiting <- info()[["awaiting"]]
  m <- NULL
  expect_true(stop_mirai(both))
  # All of `m` and what it needs, but not what is still in a variable.
  expect_identical(info()[["awaiting"]] + info()[["executing"]], waiting + 1L - 303L)
  expect_true(unresolved(kept) && unresolved(shared))
  # What another task needs is not cancelled.
  other <- mirai(x, x = shared)
  shared <- NULL
  last <- mirai(x, x = other)
  expect_true(stop_mirai(last))
  expect_identical(info()[["awaiting"]], 3L)
  other <- NULL
  gc()
  last <- kept
  expect_true(stop_mirai(last))
  expect_true(wait_until(function() sum(info()[c("awaiting", "executing")]) == 0))
  expect_identical(mirai(1)[], 1)
})

test_that("cancelling a map cancels what it alone needs", {
  local_test_daemons(1)
  map <- mirai_map(1:3, function(x, y) x, .args = list(y = mirai(Sys.sleep(600))))
  expect_identical(stop_mirai(map), rep(TRUE, 3))
  expect_identical(mirai(1)[], 1)
  expect_identical(task_log()$state, c(rep("cancelled", 4), "done"))
})

test_that("the time limit of a task that waits counts from its submission", {
  local_test_daemons(1)
  first <- stuck()
  late <- mirai(x, x = first, .timeout = 50)
  expect_identical(late[], structure(5L, class = "errorValue"))
  expect_true(unresolved(first))
  expect_identical(task_log()$state, c("running", "timed_out"))
  stop_mirai(first)
})

test_that("what nobody else wants is cancelled when the task that needs it times out or fails", {
  local_test_daemons(2)
  late <- mirai(c(x, y), x = stuck(), y = stuck(), .timeout = 50)
  expect_identical(late[], structure(5L, class = "errorValue"))
  # Both daemons are free.
  expect_identical(mirai_map(1:2, function(x) x)[.flat], 1:2)
  expect_identical(task_log()$state[1:3], c("cancelled", "cancelled", "timed_out"))
  kept <- stuck()
  failed <- mirai(c(x, y, z), x = mirai(stop("no")), y = stuck(), z = kept)
  expect_identical(failed[]$parent$message, "no")
  expect_identical(mirai(1)[], 1)
  expect_true(unresolved(kept))
  # Once no variable has it, the collector finds that out.
  kept <- NULL
  gc()
  expect_identical(mirai_map(1:2, function(x) x)[.flat], 1:2)
  map <- mirai_map(1:3, function(x, y) y, .args = list(y = stuck()), .timeout = 50)
  expect_identical(unique(map[]), list(structure(5L, class = "errorValue")))
  expect_identical(mirai_map(1:2, function(x) x)[.flat], 1:2)
  # What has let down nobody goes on: it may be of use by what it does.
  file <- local_file()
  mirai(file.create(file), file = file)
  gc()
  expect_true(wait_until(function() file.exists(file)))
})

test_that("what goes to a checkpoint is not cancelled", {
  local_test_daemons(1)
  go <- local_file()
  file <- local_file()
  slow <- function(x, go) {
    while (!file.exists(go)) {
      Sys.sleep(0.005)
    }
    x
  }
  environment(slow) <- globalenv()
  submit <- function() mirai_map(1:2, slow, .args = list(go = go), .checkpoint = file)
  late <- mirai(x, x = submit(), .timeout = 50)
  expect_identical(late[], structure(5L, class = "errorValue"))
  gc()
  file.create(go)
  expect_true(wait_until(function() info()[["completed"]] == 3L))
  expect_identical(submit()[.flat], 1:2)
  expect_identical(task_log()$state, c("done", "done", "timed_out"))
})

test_that("what waits counts as awaiting, and goes first to where it stood in the queue", {
  local_test_daemons(1)
  file <- local_file()
  first <- mirai(
    while (!file.exists(file)) {
      Sys.sleep(0.005)
    },
    file = file
  )
  second <- mirai(x, x = first)
  third <- mirai(3)
  expect_identical(info()[["awaiting"]], 2L)
  expect_identical(task_log()$state, c("running", "queued", "queued"))
  file.create(file)
  call_mirai(list(second, third))
  log <- task_log()
  expect_true(log$started[2L] >= log$ended[1L])
  urgent <- mirai(x, x = mirai(1), .priority = 1)
  expect_identical(urgent[], 1)
})

test_that("it works over tcp, without dispatcher, across profiles, and without daemons", {
  steps <- function(compute = NULL, n = 20) {
    m <- mirai(real(4e5), real = real, .compute = compute)
    for (i in seq_len(n)) {
      m <- mirai(x + 1, x = m, .compute = compute)
    }
    m
  }
  expected <- real(4e5) + 20
  tcp <- local_test_daemons(url = "tcp://127.0.0.1:0")
  launch_local(c(1, 1))
  expect_identical(steps()[], expected)
  local_test_daemons(2, dispatcher = FALSE)
  expect_identical(steps()[], expected)
  # From another profile, and on to another.
  m <- steps(tcp)
  expect_identical(mirai(x, x = m)[], expected)
  expect_identical(mirai(x, x = m, .compute = tcp)[], expected)
  ms <- list(mirai(1, .compute = tcp), mirai(2), mirai(3, .compute = "none"))
  expect_identical(mirai(unlist(ms), ms = ms)[], c(1, 2, 3))
  expect_identical(mirai(unlist(ms), ms = ms, .compute = "none")[], c(1, 2, 3))
  first <- stuck()
  waits <- mirai(x, x = first, .compute = tcp)
  daemons(0)
  value <- waits[]
  expect_identical(value$parent[1L], structure(19L, class = "errorValue")[1L])
})

test_that("a process for a single task ends with what it waits for", {
  skip_if_not(file.exists("/proc/self/stat"), "no /proc")
  # Daemons are started by Rscript, and are this process's children then.
  local_options(mirai.fork_server = FALSE)
  local_test_daemons(1)
  first <- stuck()
  before <- children()
  failed <- mirai(x, x = first, .compute = "none")
  late <- mirai(x, x = first, .compute = "none", .timeout = 1000)
  stopped <- mirai(Sys.getpid(), x = first, .compute = "none")
  expect_true(unresolved(list(failed, late, stopped)))
  expect_true(wait_until(function() length(children()) == length(before) + 3L))
  expect_true(stop_mirai(stopped))
  expect_identical(late[], structure(5L, class = "errorValue"))
  stop_mirai(first)
  expect_identical(failed[]$parent, structure(20L, class = "errorValue"))
  expect_true(wait_until(function() setequal(children(), before)))
  slow <- mirai(
    {
      Sys.sleep(0.3)
      7
    }
  )
  expect_identical(mirai(x, x = slow, .compute = "none")[], 7)
})

test_that("with retry, a task whose daemon was killed gets the same values again", {
  local_test_daemons(2, retry = TRUE)
  file <- local_file()
  x <- mirai(real(4e5), real = real)
  m <- mirai(
    {
      cat("x", file = file, append = TRUE)
      if (file.size(file) < 3) {
        tools::pskill(Sys.getpid(), 9L)
      }
      x
    },
    x = x,
    file = file
  )
  expect_identical(m[], real(4e5))
  expect_identical(file.size(file), 3)
})

test_that("a map takes mirai as constants and as elements", {
  local_test_daemons(2)
  constant <- mirai(10)
  objects <- mirai(5)
  map <- mirai_map(
    c(a = 1, b = 2),
    function(x, y, ys) x * y + z + sum(unlist(ys)),
    z = objects,
    .args = list(y = constant, ys = list(constant, 1))
  )
  expect_identical(suppressWarnings(map[[1L]][])$message, "invalid 'type' (list) of argument")
  map <- mirai_map(
    c(a = 1, b = 2),
    function(x, y, ys) x * y + z + sum(unlist(ys)),
    z = objects,
    .args = list(y = constant, ys = list(mirai(100), mirai(200)))
  )
  expect_identical(map[.flat], c(a = 315, b = 325))
  again <- mirai_map(map, function(x) x + 1)
  expect_identical(again[.flat], c(a = 316, b = 326))
  squares <- mirai_map(
    list(mirai(3), 4, mirai(NULL), again[[1L]]),
    function(x, p) if (!is.null(x)) x^p,
    .args = list(p = mirai(2))
  )
  expect_identical(squares[], list(9, 16, NULL, 316^2))
  file <- local_file()
  # A result belongs to the values, which are waited for.
  products <- function(y) mirai_map(list(1, mirai(2)), `*`, .args = list(y), .checkpoint = file)
  expect_identical(products(mirai(3))[], list(3, 6))
  again <- products(mirai(3))
  expect_false(unresolved(again))
  expect_identical(again[], list(3, 6))
  expect_identical(products(mirai(4))[], list(4, 8))
  map <- mirai_map(1:2, function(x) x + 0.5, .checkpoint = file)
  map[]
  stored <- mirai_map(1:2, function(x) x + 0.5, .checkpoint = file)
  expect_identical(mirai(sum(unlist(x)), x = stored)[], 4)
})

test_that("everywhere() and synchronous profiles wait for their arguments", {
  local_test_daemons(1)
  everywhere(here <<- x + y, x = mirai(1), .args = list(y = mirai(2)))
  expect_identical(mirai(here)[], 3)
  cnd <- tryCatch(everywhere(1, x = mirai(stop("no"))), mirai_error_pipeline = identity)
  expect_s3_class(cnd, "mirai_error")
  expect_identical(conditionMessage(cnd), "an argument could not be computed: no")
  expect_identical(conditionCall(cnd)[[1L]], quote(everywhere))
  profile <- local_test_daemons(sync = TRUE)
  m <- mirai(x + sum(unlist(y)), x = mirai(1), .args = list(y = list(mirai(2), mirai(3))))
  expect_identical(m$data, 6)
  failed <- mirai(x, x = mirai(stop("no")))[]
  expect_identical(failed$parent$message, "no")
  map <- mirai_map(list(mirai(2), 3, mirai(stop("no"))), function(x, y) x * y, .args = list(y = mirai(10)))
  expect_identical(map[1:2][.flat], c(20, 30))
  expect_identical(map[[3L]][]$message, "an argument could not be computed: no")
})

test_that("hooks, random number streams and limits of memory are as for other tasks", {
  local_test_daemons(2, seed = 1)
  draws <- mirai(c(x, runif(1)), x = mirai(runif(1)))[]
  local_test_daemons(1, seed = 1)
  first <- mirai(runif(1))[]
  expect_identical(draws, c(first, mirai(runif(1))[]))

  config <- serial_config("mirai_test_ref", function(x) charToRaw(x$text), function(raw) {
    structure(list2env(list(text = rawToChar(raw))), class = "mirai_test_ref")
  })
  local_test_daemons(1, serial = config)
  ref <- structure(list2env(list(text = "here")), class = "mirai_test_ref")
  expect_identical(mirai(x$text, x = mirai(ref, ref = ref))[], "here")

  local_test_daemons(1, memory = 1)
  first <- mirai(raw(8e5))
  expect_identical(lengths(lapply(1:5, function(i) mirai(x, x = first)[])), rep(800000L, 5L))
})

test_that("a promise of a task that waits resolves", {
  skip_if_not_installed("promises")
  local_test_daemons(1)
  seen <- NULL
  promises::then(promises::as.promise(mirai(x + 1, x = mirai(1))), function(value) seen <<- value)
  expect_true(wait_until(function() {
    later::run_now(0.01)
    !is.null(seen)
  }))
  expect_identical(seen, 2)
})
