test_that("daemons() returns what was set, visibly", {
  profile <- test_profile()
  set <- withVisible(daemons(2, .compute = profile))
  expect_true(set$visible)
  expect_identical(set$value, structure(2L, class = c("miraiDaemons", profile)))
  expect_snapshot({
    daemons(1, .compute = profile)
    daemons(1, dispatcher = FALSE, .compute = profile)
    daemons(sync = TRUE, .compute = profile)
    daemons(0, .compute = profile)
    daemons(NULL, .compute = profile)
    daemons(.compute = profile)
  })
  expect_snapshot(daemons(url = local_url(), .compute = profile))
  expect_snapshot(daemons(url = c(local_url(), local_url()), .compute = profile))
  url <- local_url()
  expect_identical(
    daemons(url = url, dispatcher = FALSE, .compute = profile),
    structure(url, class = c("miraiDaemons", profile))
  )
  expect_identical(nextget("urls", .compute = profile), url)
  expect_snapshot(print(daemons(url = url, dispatcher = FALSE, .compute = profile)), transform = mask_urls)
  daemons(0, .compute = profile)
})

test_that("daemons() without arguments is status()", {
  local_test_daemons(1)
  expect_identical(daemons(), status())
})

test_that("new settings replace the old ones, whose pending mirai become 19", {
  profile <- local_test_daemons(1)
  pid <- mirai(Sys.getpid())[]
  running <- mirai(Sys.sleep(60))
  queued <- mirai(1)
  daemons(2, .compute = profile)
  expect_false(unresolved(list(running, queued)))
  expect_reset(running$data)
  expect_reset(queued$data)
  expect_true(ends(pid))
  pids <- unlist(everywhere(Sys.getpid())[])
  expect_length(unique(pids), 2)
  daemons(0, .compute = profile)
  expect_false(daemons_set(profile))
  for (pid in pids) {
    expect_true(ends(pid))
  }
  # a mirai that has resolved keeps its value
  daemons(1, .compute = profile)
  m <- call_mirai(mirai("value"))
  daemons(0, .compute = profile)
  expect_identical(m[], "value")
})

test_that("a call with bad arguments changes nothing", {
  profile <- local_test_daemons(sync = TRUE)
  everywhere(kept <<- 1)
  wrong <- function(...) expect_error(daemons(..., .compute = profile), class = "mirai_error")
  wrong(2, max = 1)
  wrong(1, max = 2, dispatcher = FALSE)
  wrong(url = c(local_url(), local_url()), dispatcher = FALSE)
  wrong(3, url = c(local_url(), local_url()))
  wrong(url = "nonsense")
  wrong(0, url = local_url())
  wrong(0, url = local_url(), dispatcher = FALSE)
  expect_identical(mirai(kept)[], 1)
})

test_that("memory = Inf is no limit", {
  local_test_daemons(1, memory = Inf)
  expect_identical(status()$memory[["capacity"]], Inf)
})

test_that("tasks are first in, first out, and go to a free daemon", {
  local_test_daemons(1)
  everywhere(taken <<- integer())
  file <- local_file()
  ms <- lapply(1:20, function(i) mirai(cat(i, "\n", file = file, append = TRUE), i = i, file = file))
  call_mirai(ms)
  expect_identical(as.integer(readLines(file)), 1:20)

  local_test_daemons(2)
  slow <- mirai({
    Sys.sleep(60)
  })
  # none of these waits behind the slow one
  pids <- collect_mirai(lapply(1:10, function(i) mirai(Sys.getpid())))
  expect_length(unique(pids), 1)
  expect_true(unresolved(slow))
  stop_mirai(slow)
})

test_that("without dispatcher, tasks are spread evenly", {
  profile <- local_test_daemons(3, dispatcher = FALSE)
  expect_identical(status()$connections, 3L)
  ms <- lapply(1:30, function(i) {
    mirai(
      {
        if (i < 10) {
          Sys.sleep(0.01)
        }
        Sys.getpid()
      },
      i = i
    )
  })
  pids <- unlist(collect_mirai(ms))
  expect_identical(as.vector(table(pids)), c(10L, 10L, 10L))
  expect_identical(pids[1:3], pids[4:6])
})

test_that("a daemon that cannot start is an error with its stderr, and nothing is left half made", {
  profile <- test_profile()
  file <- local_file(fileext = ".R")
  writeLines("stop('this profile is broken')", file)
  message <- local({
    local_envvar(R_PROFILE_USER = file)
    tryCatch(daemons(2, .compute = profile), error = conditionMessage)
  })
  expect_match(message, "daemon [12] could not start")
  expect_match(message, "this profile is broken")
  expect_false(daemons_set(profile))
  daemons(1, .compute = profile)
  expect_identical(mirai(1, .compute = profile)[], 1)
  daemons(0, .compute = profile)
})

test_that("daemons can be started by launch_local() or by any process", {
  profile <- local_test_daemons(url = local_url())
  m <- mirai("first")
  expect_identical(info()[["connections"]], 0L)
  expect_identical(info()[["awaiting"]], 1L)
  expect_identical(withVisible(launch_local())[c("value", "visible")], list(value = 1L, visible = FALSE))
  expect_identical(m[], "first")
  p <- daemon_process(nextget("url"))
  expect_true(connected(2))
  slow <- lapply(1:2, function(i) {
    mirai({
      Sys.sleep(0.2)
      Sys.getpid()
    })
  })
  pids <- collect_mirai(slow)
  expect_length(unique(pids), 2)
  expect_identical(status()$daemons[, "online"], 2L)
  daemons(0, .compute = profile)
  expect_identical(end_code(p), 0L)
  for (pid in pids) {
    expect_true(ends(pid))
  }
})

test_that("several URLs are several endpoints, and ipc URLs are files that go away", {
  dir <- local_file()
  dir.create(dir)
  url <- paste0("ipc://", dir, "/s")
  profile <- local_test_daemons(2, url = url)
  expect_identical(nextget("urls"), paste0(url, "-", 1:2))
  expect_identical(launch_local(1:2), 2L)
  expect_true(connected(2))
  expect_identical(unname(status()$daemons[, "online"]), c(1L, 1L))
  expect_identical(mirai(1)[], 1)
  daemons(0, .compute = profile)
  expect_true(wait_until(function() !length(list.files(dir, all.files = TRUE, recursive = TRUE))))

  profile <- local_test_daemons(url = local_url(), token = TRUE)
  expect_match(nextget("url"), "^abstract://.*/[[:alnum:]]{24}$")
  launch_local(1)
  expect_identical(mirai(1)[], 1)
})

test_that("local daemons find a host with a random path in its URL", {
  for (dispatcher in c(TRUE, FALSE)) {
    local_test_daemons(2, token = TRUE, dispatcher = dispatcher)
    expect_match(nextget("urls"), "/[[:alnum:]]{24}$")
    expect_identical(info()[["connections"]], 2L)
    expect_identical(mirai("found")[], "found")
  }
})

test_that("with retry, the task of a daemon that died runs on the next daemon", {
  local_tmpdir()
  local_test_daemons(2, retry = TRUE)
  file <- local_file()
  m <- mirai(
    {
      first <- !file.exists(file)
      cat(Sys.getpid(), "\n", file = file, append = TRUE)
      if (first) {
        tools::pskill(Sys.getpid(), tools::SIGKILL)
      }
      Sys.getpid()
    },
    file = file
  )
  pid <- m[]
  pids <- scan(file, quiet = TRUE)
  expect_length(pids, 2)
  expect_identical(as.integer(pids[2L]), pid)
  expect_identical(mirai(1)[], 1)
})

test_that("with a seed, results do not depend on the number of daemons", {
  draw <- function(...) {
    local_test_daemons(..., seed = 123L)
    unlist(collect_mirai(lapply(1:6, function(i) {
      mirai(
        {
          if (wait) {
            Sys.sleep(0.02)
          }
          c(rnorm(1), runif(1), sample(100L, 1L))
        },
        wait = i %% 2
      )
    })))
  }
  one <- draw(1)
  expect_identical(draw(3), one)
  expect_identical(draw(2, dispatcher = FALSE), one)
  expect_identical(draw(sync = TRUE), one)

  # and they are the streams of package parallel
  expected <- local({
    old <- RNGkind("L'Ecuyer-CMRG")
    before <- get(".Random.seed", globalenv())
    on.exit(do.call(RNGkind, as.list(old)))
    set.seed(123L)
    seed <- .Random.seed
    out <- vector("list", 6)
    for (i in 1:6) {
      assign(".Random.seed", seed, globalenv())
      out[[i]] <- c(rnorm(1), runif(1), sample(100L, 1L))
      seed <- parallel::nextRNGStream(seed)
    }
    unlist(out)
  })
  expect_identical(one, expected)
})

test_that("failed, cancelled and setup evaluations do not shift the streams of others", {
  draw <- function(before) {
    local_test_daemons(2, seed = 5L)
    force(before)
    mirai(stop("uses one"))[]
    mirai(rnorm(1))[]
  }
  expect_identical(draw(NULL), draw(everywhere(rnorm(10))))
})

test_that("without a seed, each daemon has a stream of its own", {
  local_test_daemons(2)
  streams <- everywhere(.Random.seed)[]
  expect_true(all(vapply(streams, `[`, 0L, 1L) == 10407L))
  expect_false(identical(streams[[1L]], streams[[2L]]))
  expect_identical(mirai(RNGkind()[1L])[], "L'Ecuyer-CMRG")
  # and the stream goes on from task to task
  local_test_daemons(1)
  a <- mirai({
    before <- .Random.seed
    rnorm(1)
    list(before, .Random.seed)
  })[]
  b <- mirai(.Random.seed)[]
  expect_identical(b, a[[2L]])
})

test_that("the session's own random numbers are not touched", {
  set.seed(1)
  before <- .Random.seed
  profile <- local_test_daemons(1, seed = 3)
  mirai(rnorm(1))[]
  daemons(sync = TRUE, seed = 3, .compute = profile)
  mirai(rnorm(1))[]
  daemons(sync = TRUE, .compute = profile)
  mirai(rnorm(1))[]
  expect_identical(.Random.seed, before)
})

test_that("profiles are independent", {
  one <- local_test_daemons(1)
  two <- local_test_daemons(1)
  expect_false(mirai(Sys.getpid(), .compute = one)[] == mirai(Sys.getpid(), .compute = two)[])
  everywhere(x <<- "one", .compute = one)
  everywhere(x <<- "two", .compute = two)
  expect_identical(mirai(x, .compute = one)[], "one")
  expect_identical(mirai(x)[], "two")
  daemons(0, .compute = one)
  expect_true(daemons_set(two))
  expect_false(daemons_set(one))
})

test_that("with() ends its daemons after the expression, also after an error", {
  profile <- test_profile()
  pid <- with(daemons(1, .compute = profile), {
    expect_identical(nextget("urls"), nextget("urls", .compute = profile))
    mirai(Sys.getpid())[]
  })
  expect_false(daemons_set(profile))
  expect_true(ends(pid))
  expect_error(
    with(daemons(1, dispatcher = FALSE, .compute = profile), stop("inside")),
    "inside"
  )
  expect_false(daemons_set(profile))
  expect_false(daemons_set())
  expect_identical(with(daemons(sync = TRUE, .compute = profile), mirai(Sys.getpid())[]), Sys.getpid())
})

test_that("with_daemons() and local_daemons() make a profile current, and restore also on error", {
  profile <- test_profile()
  set <- daemons(1, .compute = profile)
  expect_false(daemons_set())
  pid <- mirai(Sys.getpid(), .compute = profile)[]
  expect_identical(with_daemons(profile, mirai(Sys.getpid())[]), pid)
  expect_identical(with_daemons(set, mirai(Sys.getpid())[]), pid)
  expect_error(with_daemons(profile, stop("inside")), "inside")
  expect_false(daemons_set())
  f <- function(fail) {
    before <- local_daemons(profile)
    expect_true(daemons_set())
    if (fail) {
      stop("inside")
    }
    list(before, mirai(Sys.getpid())[], status()$connections)
  }
  expect_identical(f(FALSE), list("default", pid, 1L))
  expect_error(f(TRUE), "inside")
  expect_false(daemons_set())
  daemons(0, .compute = profile)
})

test_that("daemons_set() and require_daemons() tell whether daemons are set", {
  profile <- "needed"
  expect_false(daemons_set(profile))
  needs <- function(.compute) require_daemons(.compute)
  expect_snapshot(show_errors({
    needs(NULL)
    needs(profile)
    daemons_set(1)
  }))
  daemons(sync = TRUE, .compute = profile)
  expect_true(daemons_set(profile))
  expect_identical(withVisible(needs(profile)), list(value = TRUE, visible = FALSE))
  daemons(0, .compute = profile)
})

test_that("daemons(NULL) also ends daemons with autoexit = FALSE, daemons(0) does not", {
  profile <- local_test_daemons(1, autoexit = FALSE)
  pid <- mirai(Sys.getpid())[]
  url <- nextget("url")
  daemons(0, .compute = profile)
  daemons(url = url, .compute = profile)
  # the earlier profile is current again
  expect_identical(mirai(Sys.getpid())[], pid)
  daemons(NULL, .compute = profile)
  expect_true(ends(pid))
})

test_that("bad arguments are errors", {
  profile <- test_profile()
  url <- local_url()
  expect_snapshot(
    transform = mask_urls,
    show_errors({
      daemons("a")
      daemons(-1)
      daemons(1.5)
      daemons(NA)
      daemons(c(1, 2))
      daemons(url = 1)
      daemons(url = character())
      daemons(url = "")
      daemons(url = "nonsense")
      daemons(url = "gopher://host")
      daemons(url = c(local_url(), local_url()), dispatcher = FALSE)
      daemons(url = "ipc:///not/there/at/all", .compute = "broken")
      daemons(1, dispatcher = "all")
      daemons(1, dispatcher = NA)
      daemons(1, sync = NA)
      daemons(1, seed = "a")
      daemons(1, seed = 1.5)
      daemons(1, seed = 1e10)
      daemons(1, seed = -Inf)
      daemons(1, seed = 1:2)
      daemons(1, memory = "a")
      daemons(1, memory = 0)
      daemons(1, .compute = 1)
      daemons(1, .compute = character())
      with_daemons("not set", 1)
      with_daemons(1, 1)
      local_daemons("not set")
    })
  )
  expect_false(daemons_set())
  expect_false(daemons_set("broken"))
})

test_that("on a daemon, daemons may be set", {
  local_test_daemons(1)
  m <- mirai({
    n <- mirai::daemons(1)
    on.exit(mirai::daemons(0))
    list(as.integer(n), mirai::mirai(Sys.getpid())[] != Sys.getpid())
  })
  expect_identical(m[], list(1L, TRUE))
})

test_that("within mirai_map(), setting local daemons is an error", {
  local_test_daemons(1)
  expect_snapshot(mirai_map(1, function(i) mirai::daemons(1))[])
  expect_identical(mirai_map(1, function(i) as.integer(mirai::daemons(0)))[], list(0L))
  expect_identical(mirai(as.integer(mirai::daemons(0)))[], 0L)
})

test_that("a process forked from the session is told that it cannot use its daemons", {
  skip_on_os("windows")
  local_test_daemons(1)
  pending <- mirai({
    Sys.sleep(0.2)
    "value"
  })
  out <- parallel::mclapply(
    1:2,
    function(i) {
      tryCatch(mirai(1), error = conditionMessage)
    },
    mc.cores = 2
  )
  expect_snapshot(out)
  expect_identical(pending[], "value")
  expect_identical(mirai(1)[], 1)
})

test_that("arguments that are of no use without daemons to set are an error", {
  profile <- local_test_daemons(1)
  for (given in list(list(seed = 3), list(dispatcher = FALSE), list(max = 2), list(remote = remote_config()))) {
    text <- paste0("'n' must be given, or 'url', where there is '", names(given), "'")
    expect_error(do.call(daemons, given), text, fixed = TRUE, class = "mirai_error_argument")
  }
  expect_error(
    daemons(NULL, max = 2),
    "'n' must be the number of daemons to begin with",
    class = "mirai_error_argument"
  )
  expect_identical(daemons(.compute = profile), status(profile))
  wrapper <- function(n, .compute = NULL) daemons(n, .compute = .compute)
  expect_identical(wrapper(), status())
  expect_identical(daemons(url = NULL, sync = FALSE), status())
})

test_that("a value of daemons() and a cluster stand for their compute profile", {
  d <- daemons(1, .compute = test_profile())
  defer(function() daemons(NULL, .compute = d), environment())
  expect_identical(mirai(1, .compute = d)[], 1)
  expect_identical(try_mirai(2, .compute = d)[], 2)
  expect_identical(status(d)$connections, 1L)
  cl <- make_cluster(1)
  defer(function() stop_cluster(cl), environment())
  expect_identical(mirai(1, .compute = cl)[], 1)
  expect_identical(with_daemons(cl, mirai(2)[]), 2)
})
