test_that("daemon() returns why it has ended", {
  profile <- local_test_daemons(url = local_url())
  url <- nextget("url")
  idle <- daemon_process(url, ", idletime = 100")
  wall <- daemon_process(url, ", walltime = 100")
  expect_identical(end_code(idle), 1L)
  expect_identical(end_code(wall), 2L)
  most <- daemon_process(url, ", maxtasks = 2")
  ms <- lapply(1:3, function(i) mirai(i, i = i))
  expect_identical(collect_mirai(ms[1:2]), list(1L, 2L))
  expect_identical(end_code(most), 3L)
  # the third was not lost
  expect_true(unresolved(ms[[3L]]))
  ended <- daemon_process(url)
  expect_identical(ms[[3L]][], 3L)
  daemons(0, .compute = profile)
  expect_identical(end_code(ended), 0L)
})

test_that("limits do not interrupt a running task", {
  profile <- local_test_daemons(url = local_url())
  # The time counts from the first task, so it is not used up by a slow start.
  first <- mirai("first")
  m <- mirai({
    Sys.sleep(1.5)
    "finished"
  })
  q <- mirai("next")
  p <- daemon_process(nextget("url"), ", walltime = 1000, timerstart = 1")
  expect_identical(first[], "first")
  expect_identical(m[], "finished")
  expect_identical(end_code(p), 2L)
  expect_true(unresolved(q))
  launch_local()
  expect_identical(q[], "next")
})

test_that("timers start after as many tasks as timerstart says", {
  profile <- local_test_daemons(url = local_url())
  p <- daemon_process(nextget("url"), ", idletime = 50, timerstart = 1L")
  expect_true(connected(1))
  # a task that ends in 200 ms
  mirai(Sys.sleep(60), .timeout = 200, .compute = test_profile())[]
  expect_identical(info()[["connections"]], 1L)
  expect_identical(mirai(1)[], 1)
  expect_identical(end_code(p), 1L)
})

test_that("a daemon that cannot connect raises an error, or tries again with asyncdial = TRUE", {
  url <- local_url()
  expect_snapshot(
    show_errors({
      daemon(url)
    }),
    transform = mask_urls
  )
  p <- daemon_process(url, ", asyncdial = TRUE", before = "cat('dialling\\n')")
  q <- daemon_process(url, ", autoexit = FALSE", before = "cat('dialling\\n')")
  wait_for_line(p, "dialling")
  wait_for_line(q, "dialling")
  profile <- local_test_daemons(url = url)
  expect_true(connected(2))
  daemons(NULL, .compute = profile)
  p$wait(10000)
  q$wait(10000)
  expect_identical(c(p$get_exit_status(), q$get_exit_status()), c(0L, 0L))
})

# Starts a host process with such daemons. Returns the daemons' process ids when each has begun a task.
test_host <- function(daemons, task = "Sys.sleep(60)", frame = parent.frame()) {
  host <- r_process(
    c(
      "library(mirai)",
      daemons,
      "pids <- unlist(everywhere(Sys.getpid())[])",
      "dirs <- unlist(everywhere(tempdir())[])",
      "cat('pids', pids, '\\n')",
      "cat('dirs', dirs, '\\n')",
      sprintf("ms <- lapply(pids, function(i) mirai({file.create(i); %s}, i = tempfile()))", task),
      "cat('ready\\n')",
      "Sys.sleep(60)"
    ),
    frame = frame
  )
  lines <- character()
  while (!"ready" %in% lines && host$is_alive()) {
    host$poll_io(1000)
    lines <- c(lines, host$read_output_lines())
  }
  field <- function(name) {
    strsplit(sub(paste0("^", name, " "), "", grep(paste0("^", name), lines, value = TRUE)), " ")[[1L]]
  }
  list(process = host, pids = as.integer(field("pids")), dirs = field("dirs"))
}

test_that("daemons end at once with their host, busy or idle", {
  busy <- test_host("d <- daemons(2)")
  hard <- test_host("d <- daemons(1, dispatcher = FALSE)", "repeat tryCatch(Sys.sleep(1), interrupt = identity)")
  idle <- test_host("d <- daemons(1, autoexit = NA)", "1")
  for (host in list(busy, hard, idle)) {
    host$process$kill()
  }
  for (host in list(busy, hard, idle)) {
    for (pid in host$pids) {
      expect_true(ends(pid, 3))
    }
    expect_false(any(dir.exists(host$dirs)))
  }
})

test_that("autoexit = NA finishes the running task first", {
  file <- local_file()
  host <- test_host(
    "d <- daemons(1, autoexit = NA)",
    sprintf("{Sys.sleep(0.5); cat('finished', file = %s)}", deparse(file))
  )
  host$process$kill()
  expect_true(is_alive(host$pids))
  expect_true(ends(host$pids))
  expect_identical(readLines(file, warn = FALSE), "finished")
})

test_that("with autoexit = FALSE a daemon outlives the host and connects to the next", {
  url <- local_url()
  host <- r_process(c(
    sprintf("d <- mirai::daemons(url = '%s')", url),
    "cat(mirai::mirai('served')[], '\\n')",
    "Sys.sleep(60)"
  ))
  p <- daemon_process(url, ", autoexit = FALSE")
  wait_for_line(host, "served")
  host$kill()
  host$wait(5000)
  profile <- local_test_daemons(url = url)
  expect_identical(mirai(Sys.getpid())[], p$get_pid())
  expect_true(p$is_alive())
  daemons(NULL, .compute = profile)
  expect_identical(end_code(p), 0L)
})

test_that("autoexit may be a signal", {
  url <- local_url()
  host <- r_process(c(
    sprintf("d <- mirai::daemons(url = '%s')", url),
    "cat('listening\\n')",
    "cat(mirai::mirai('served')[], '\\n')",
    "Sys.sleep(60)"
  ))
  wait_for_line(host, "listening")
  p <- daemon_process(url, ", autoexit = tools::SIGTERM")
  wait_for_line(host, "served")
  host$kill()
  p$wait(5000)
  expect_identical(p$get_exit_status(), -tools::SIGTERM)
})

test_that("cleanup restores global environment, packages and options", {
  profile <- local_file(fileext = ".R")
  writeLines(c("from_profile <- 'mine'", ".hidden <- 1", "options(mirai_profile = 'set')"), profile)
  local_envvar(R_PROFILE_USER = profile)
  local_test_daemons(1)
  digits <- mirai(getOption("digits"))[]
  search <- mirai(search())[]
  m <- mirai({
    x <<- 1
    .y <<- 2
    from_profile <<- "changed"
    rm(.hidden, envir = globalenv())
    library(splines)
    attach(list(z = 1), name = "attached")
    options(digits = 3, mirai_added = 1, mirai_profile = NULL)
    "done"
  })
  expect_identical(m[], "done")
  after <- mirai(list(
    ls(globalenv(), all.names = TRUE),
    from_profile,
    search(),
    isNamespaceLoaded("splines"),
    getOption("digits"),
    getOption("mirai_added"),
    getOption("mirai_profile")
  ))[]
  expect_setequal(after[[1L]], c(".Random.seed", ".hidden", "from_profile"))
  expect_identical(after[-1L], list("mine", search, TRUE, digits, NULL, "set"))
  # objects that a task made are removed
  mirai(1, passed = 1)[]
  expect_false(mirai(exists("passed"))[])
})

test_that("each step of the cleanup is done even if others fail", {
  local_test_daemons(1)
  everywhere({
    kept <<- "kept"
    constant <<- "constant"
    lockBinding("constant", globalenv())
  })[]
  state <- function() {
    mirai(list(
      sort(setdiff(ls(globalenv(), all.names = TRUE), ".Random.seed")),
      get("kept", globalenv()),
      get("constant", globalenv()),
      bindingIsLocked("kept", globalenv()),
      bindingIsLocked("constant", globalenv()),
      search(),
      options()[c("digits", "warn", "mirai_added")]
    ))[]
  }
  before <- state()
  expect_identical(before[2:5], list("kept", "constant", FALSE, TRUE))
  pid <- mirai(Sys.getpid())[]
  spoil <- function(expr) {
    expr <- substitute(expr)
    expect_identical(mirai(expr)[], "done")
    expect_identical(state(), before)
  }
  # locked bindings, with another value or the same, and a variable that has become an active binding
  spoil({
    added <<- 1
    kept <<- "changed"
    for (name in c("added", "kept")) {
      lockBinding(name, globalenv())
    }
    unlockBinding("constant", globalenv())
    constant <<- "changed"
    "done"
  })
  spoil({
    lockBinding("kept", globalenv())
    "done"
  })
  spoil({
    rm("kept", envir = globalenv())
    makeActiveBinding("kept", function(value) stop("not to be assigned"), globalenv())
    "done"
  })
  # warnings that become errors, also in hooks; a hook that jumps out, and one that leaves an object
  spoil({
    library(splines)
    setHook(packageEvent("splines", "detach"), function(...) {
      options(mirai_added = "by a hook")
      added <<- "by a hook"
      warning("by a hook")
    })
    attach(list(z = 1), name = "attached")
    attach(list(z = 2), name = "attached")
    options(digits = 3, warn = 2)
    "done"
  })
  spoil({
    library(stats4)
    env <- list2env(list(z = 1))
    env$.conflicts.OK <- TRUE
    attach(env, name = "attached")
    options(digits = 3, mirai_added = 1)
    setHook(packageEvent("stats4", "detach"), function(...) invokeRestart("abort"), "replace")
    added <<- 1
    "done"
  })
  expect_identical(mirai(Sys.getpid())[], pid)
})

test_that("what a task detaches is attached again, where it was", {
  local_test_daemons(1)
  everywhere({
    attach(list(attached_value = 1), name = "attached")
    NULL
  })
  path <- mirai(search())[]
  expect_identical(path[[2L]], "attached")
  detach_all <- function(names) {
    for (name in names) {
      detach(name, character.only = TRUE)
    }
    length(search())
  }
  found <- mirai(detach_all(names), detach_all = detach_all, names = path[2:8])[]
  expect_identical(found, length(path) - 7L)
  expect_identical(mirai(list(search(), attached_value, sd(c(1, 3))))[], list(path, 1, sqrt(2)))
  # It has what it had.
  everywhere(library(splines, exclude = "ns"))
  mirai(detach("package:splines"))[]
  expect_identical(mirai(c(exists("ns"), exists("bs")))[], c(FALSE, TRUE))
  everywhere(detach("package:splines"))
  # Another order is not what was there either.
  mirai({
    detach("package:stats")
    detach("attached")
    library(stats, pos = length(search()) - 1L)
    library(splines)
  })[]
  expect_identical(mirai(search())[], path)
})

test_that("what cannot be attached again is given up, and the rest of the path is as it was", {
  local_test_daemons(1)
  skip_if_not_installed("callr")
  lib <- local_file("lib")
  source <- local_file("gone")
  for (dir in c(lib, source, file.path(source, "R"))) {
    dir.create(dir)
  }
  writeLines(c("Package: gone", "Version: 1.0", "Title: Gone"), file.path(source, "DESCRIPTION"))
  writeLines("export(f)", file.path(source, "NAMESPACE"))
  writeLines("f <- function() 1", file.path(source, "R", "f.R"))
  callr::rcmd("INSTALL", c("--no-docs", "-l", lib, source), fail_on_status = TRUE)
  everywhere(
    {
      nameless <- attach(NULL)
      attr(nameless, "name") <- NULL
      library(name, lib.loc = lib, character.only = TRUE)
    },
    name = "gone",
    lib = lib
  )
  path <- mirai(search())[]
  mirai(
    {
      detach("package:gone", unload = TRUE)
      detach(3L)
      detach("package:stats")
      unlink(lib, recursive = TRUE)
    },
    lib = lib
  )[]
  for (i in 1:2) {
    expect_identical(mirai(search())[], setdiff(path, "package:gone"))
  }
})

test_that("output = TRUE prints lines with the number of their task, and the lines of two daemons do not mix", {
  out <- r_output(
    '{
    library(mirai)
    daemons(2, output = TRUE)
    x <- mirai_map(1:4, function(i) {
      for (k in 1:200) {
        cat("element", i, "")
        cat("line", k, "\n")
      }
      system("echo child")
      message("message")
      cat("no end of line")
    })
    x[]
    cat("ids", vapply(x, attr, 0, "id"), "\n")
    invisible(mirai::everywhere(cat("set up\n"))[])
    daemons(0)
  }'
  )
  skip_on_os("windows")
  ids <- scan(text = sub("ids ", "", grep("^ids", out, value = TRUE)), quiet = TRUE)
  expect_length(ids, 4L)
  for (i in 1:4) {
    name <- paste0("[task ", ids[[i]], "] ")
    lines <- substring(out[startsWith(out, name)], nchar(name) + 1L)
    expect_identical(lines, c(paste("element", i, "line", 1:200, ""), "child", "message", "no end of line"))
  }
  # All of it was there before the values were.
  said <- startsWith(out, "[task")
  expect_identical(which(said)[1:812], 1:812)
  expect_match(out[said][-(1:812)], "^\\[task [56]\\] set up$")
})

test_that("output = TRUE keeps stdout and stderr apart, and shows what a daemon has written that is killed", {
  skip_on_os("windows")
  file <- local_file("stderr")
  code <- '{
    library(mirai)
    daemons(1, output = TRUE, respawn = FALSE)
    mirai({ cat("out\\n"); message("err"); system("echo both; echo both >&2") })[]
    m <- mirai({ cat("to the end\\n", file = stderr()); tools::pskill(Sys.getpid(), tools::SIGKILL) })[]
    cat(attr(m, "reason"), "\\n")
    daemons(0)
  }'
  p <- r_process(code, stderr = file)
  p$wait(30000)
  out <- p$read_all_output_lines()
  expect_identical(out[1:2], paste("[task 1]", c("out", "both")))
  expect_identical(readLines(file)[1:2], paste("[task 1]", c("err", "both")))
  expect_true("to the end" %in% trimws(out))
})

test_that("what cannot be cleaned up is reported once, and does not stop the cleanup", {
  url <- local_url()
  local_test_daemons(url = url)
  p <- daemon_process(url, ", output = TRUE", "options(keep.source = FALSE); known <- 1")
  expect_true(connected(1L))
  for (i in 1:3) {
    m <- mirai(
      {
        if (!environmentIsLocked(globalenv())) {
          assign(paste0("added", i), i, globalenv())
        }
        known <<- 2
        options(digits = 3)
        library(splines)
        if (i == 2) {
          lockEnvironment(globalenv(), bindings = TRUE)
        }
        i
      },
      .args = list(i = i)
    )
    expect_identical(m[], i)
    left <- mirai(list(get("known", globalenv()), getOption("digits"), "package:splines" %in% search()))[]
    expect_identical(left, list(1, 7L, FALSE))
  }
  daemons(0)
  told <- grep("the clean-up after a task", words(p), value = TRUE)
  expect_identical(
    told,
    "mirai: the clean-up after a task could not restore the global environment: a task has locked it"
  )
})

test_that("cleanup restores global variables that are promises, evaluated or not", {
  local_test_daemons(1)
  everywhere({
    delayedAssign("late", 42, assign.env = globalenv())
    delayedAssign("evaluated", 43, assign.env = globalenv())
    get("evaluated", globalenv())
  })
  mirai({
    assign("late", 0, globalenv())
    assign("evaluated", 0, globalenv())
  })[]
  expect_identical(mirai(c(late, evaluated))[], c(42, 43))
  mirai(rm(late, evaluated, envir = globalenv()))[]
  expect_identical(mirai(c(late, evaluated))[], c(42, 43))
})

test_that("each daemon has its own session directory", {
  local_test_daemons(3)
  dirs <- unlist(everywhere(tempdir())[])
  expect_identical(anyDuplicated(c(dirs, tempdir())), 0L)
  expect_true(all(dir.exists(dirs)))
  files <- unlist(everywhere(tempfile())[])
  expect_identical(dirname(files), dirs)
})

test_that("cleanup may be a bit mask", {
  left <- function(cleanup) {
    local_test_daemons(1, cleanup = cleanup)
    mirai({
      x <<- 1
      library(splines)
      options(mirai_added = 1)
    })[]
    mirai(c(
      globals = exists("x", globalenv(), inherits = FALSE),
      packages = "package:splines" %in% search(),
      options = !is.null(getOption("mirai_added"))
    ))[]
  }
  expect_identical(left(FALSE), c(globals = TRUE, packages = TRUE, options = TRUE))
  expect_identical(left(1L), c(globals = FALSE, packages = TRUE, options = TRUE))
  expect_identical(left(2), c(globals = TRUE, packages = FALSE, options = TRUE))
  expect_identical(left(4L), c(globals = TRUE, packages = TRUE, options = FALSE))
  expect_identical(left(15L), c(globals = FALSE, packages = FALSE, options = FALSE))
})

test_that("cleanup leaves a package the options that it has set when it was loaded", {
  library <- local_package_library(
    "loads.options",
    quote({
      .onLoad <- function(libname, pkgname) options(loadsoptions.depth = 3L, unrelated = TRUE)
      depth <- function() getOption("loadsoptions.depth") + 1L
    }),
    "export(depth)"
  )
  local_test_daemons(1)
  use <- function() mirai(asNamespace("loads.options")$depth())
  everywhere(.libPaths(c(library, .libPaths())), library = library)
  expect_identical(use()[], 4L)
  expect_identical(use()[], 4L)
  # Other options are removed, and so are options that a task sets after the package was loaded.
  expect_identical(mirai(options(loadsoptions.depth = 8L, loadsoptions.more = 1)$loadsoptions.depth)[], 3L)
  expect_null(mirai(c(getOption("unrelated"), getOption("loadsoptions.more")))[])
  expect_identical(use()[], 4L)
})

test_that("rs is the state of the random number generator", {
  profile <- local_test_daemons(url = local_url())
  daemon_process(nextget("url"), ", rs = c(10407, 1:6)")
  expect_identical(mirai(.Random.seed)[], c(10407L, 1:6))
})

test_that("on_daemon() is TRUE on a daemon only", {
  expect_false(on_daemon())
  local_test_daemons(1)
  expect_true(mirai(mirai::on_daemon())[])
  expect_true(mirai(mirai::on_daemon(), .compute = test_profile())[])
  local_test_daemons(sync = TRUE)
  expect_type(mirai(mirai::on_daemon())[], "logical")
})

test_that("nextcode() explains the exit code", {
  expect_snapshot({
    nextcode(0L)
    nextcode(1L)
    nextcode(2L)
    nextcode(3L)
  })
  expect_identical(nextcode(xc = 2L), nextcode(2L))
  expect_snapshot(show_errors({
    nextcode()
    nextcode(4)
    nextcode("a")
  }))
})

test_that("bad arguments are errors", {
  expect_snapshot(show_errors({
    daemon()
    daemon(1)
    daemon("")
    daemon("nonsense")
    daemon("abstract://x", asyncdial = "yes")
    daemon("abstract://x", output = NA)
    daemon("abstract://x", autoexit = "a")
    daemon("abstract://x", autoexit = -1)
    daemon("abstract://x", cleanup = 16)
    daemon("abstract://x", cleanup = NA)
    daemon("abstract://x", idletime = 0)
    daemon("abstract://x", walltime = "a")
    daemon("abstract://x", maxtasks = NA)
    daemon("abstract://x", timerstart = -1)
    daemon("abstract://x", rs = 1:3)
  }))
})

test_that("a daemon that was started in the background of a script, where Ctrl-C is ignored, can be interrupted", {
  skip_on_os("windows")
  local_tmpdir()
  url <- local_url()
  local_test_daemons(url = url)
  code <- sprintf(".libPaths(c(%s)); mirai::daemon('%s')", paste0("'", .libPaths(), "'", collapse = ","), url)
  rscript <- file.path(R.home("bin"), "Rscript")
  system2("sh", c("-c", shQuote(paste("trap '' INT; exec", rscript, "-e", shQuote(code)))), wait = FALSE)
  expect_true(connected(1))
  pid <- mirai(Sys.getpid())[]
  defer(function() tools::pskill(pid, tools::SIGKILL), environment())
  file <- local_file()
  for (sleeping in c(TRUE, FALSE)) {
    m <- mirai(
      {
        file.create(file)
        if (sleeping) {
          Sys.sleep(60)
        } else {
          repeat {
            NULL
          }
        }
      },
      .args = list(file = file, sleeping = sleeping)
    )
    expect_true(wait_until(function() file.exists(file)))
    unlink(file)
    expect_true(stop_mirai(m))
    expect_identical(call_mirai(mirai(Sys.getpid(), .timeout = 20000))$data, pid)
  }
})
