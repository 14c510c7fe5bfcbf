square <- function(x) x^2

test_that("collection options combine", {
  local_test_daemons(2)
  map <- mirai_map(c(a = 1, b = 2, c = 3), square)
  flat <- c(a = 1, b = 4, c = 9)
  values <- as.list(flat)
  quiet <- function(expr) {
    capture.output(value <- expr, type = "message")
    value
  }
  expect_identical(map[], values)
  expect_identical(map[.flat], flat)
  expect_identical(map[.stop], values)
  expect_identical(quiet(map[.progress]), values)
  options <- c(".flat", ".progress", ".stop")
  for (n in 1:3) {
    for (some in combn(options, n, simplify = FALSE)) {
      expected <- if (".flat" %in% some) flat else values
      symbols <- lapply(some, as.name)
      expect_identical(quiet(eval(as.call(c(quote(`[`), quote(map), symbols)))), expected)
      expect_identical(quiet(eval(call("[", quote(map), as.call(c(quote(c), symbols))))), expected)
      expect_identical(quiet(map[some]), expected)
      expect_identical(quiet(collect_mirai(map, options = some)), expected)
      expect_identical(quiet(collect_mirai(unclass(map), some)), expected)
    }
  }
  expect_identical(map[mirai::.flat, c(mirai::.stop)], flat)
  option <- .flat
  expect_identical(map[option], flat)
  expect_identical(map["." |> paste0("flat")], flat)
  expect_identical(map[NULL], values)
})

test_that("options can be given as a list by name, with values", {
  local_test_daemons(2)
  map <- mirai_map(c(a = 1, b = 4), sqrt)
  values <- list(a = 1, b = 2)
  flat <- c(a = 1, b = 2)
  expect_identical(collect_mirai(map, options = list(.flat = TRUE)), flat)
  expect_identical(collect_mirai(map, options = list(.flat = FALSE)), values)
  expect_identical(collect_mirai(map, options = list(".flat", .stop = TRUE)), flat)
  expect_identical(collect_mirai(map, options = list(.stop = TRUE, .flat = TRUE, .progress = FALSE)), flat)
  expect_identical(collect_mirai(map, options = list()), values)
  expect_identical(map[.flat = TRUE], flat)
  expect_identical(map[.flat, .stop = FALSE], flat)
  expect_identical(map[c(.flat = TRUE, .stop)], flat)
  expect_identical(map[list(.flat = TRUE)], flat)
  failing <- mirai_map(list(1, "a"), log)
  expect_error(collect_mirai(failing, list(.stop = TRUE)), class = "mirai_error_map")
  expect_error(failing[.stop = TRUE], class = "mirai_error_map")
  expect_true(is_mirai_error(collect_mirai(failing, list(.stop = FALSE))[[2L]]))
  expect_snapshot(show_errors({
    collect_mirai(map, list(flat = TRUE))
    collect_mirai(map, list(1))
    collect_mirai(map, list(.flat = "yes"))
    collect_mirai(map, list(.stop = NA))
    collect_mirai(map, list(.progress = 1))
    collect_mirai(map, list(.progress_cli = list("unnamed")))
    map[.flat = 1]
  }))
})

test_that("options work for a single mirai, too", {
  local_test_daemons(1)
  m <- mirai({
    warning("odd")
    1
  })
  call_mirai(m)
  expect_warning(expect_identical(collect_mirai(m, ".relay"), 1), "odd")
  expect_identical(collect_mirai(m, c(".flat", ".stop")), 1)
  expect_identical(collect_mirai(m, list(.relay = FALSE)), 1)
  local({
    local_options(mirai.relay = TRUE)
    expect_warning(expect_identical(collect_mirai(m), 1), "odd")
  })
  pending <- mirai(Sys.sleep(60))
  expect_null(collect_mirai(pending, ".done"))
  stop_mirai(pending)
  failed <- mirai(stop(errorCondition("no such", class = "lookup_error", id = 7)))
  expect_true(is_mirai_error(collect_mirai(failed)))
  expect_identical(expect_error(collect_mirai(failed, ".stop"), class = "lookup_error")$id, 7)
  expect_identical(expect_error(failed[.stop], "no such", fixed = TRUE)$id, 7)
  expect_error(pending[.stop], "Operation canceled", fixed = TRUE)
  expect_error(collect_mirai(m, "flat"), class = "mirai_error_argument")
})

test_that("the value of .progress is a label, or configures cli's bar", {
  out <- r_output(c(
    "ns <- asNamespace('mirai')",
    "unlockBinding('progress_uses_cli', ns)",
    "assign('progress_uses_cli', function() FALSE, ns)",
    "library(mirai)",
    "invisible(daemons(1))",
    "x <- collect_mirai(mirai_map(1:3, identity), list(.stop = TRUE, .progress = 'label'))",
    "y <- mirai_map(1:3, identity)[.progress = list(name = 'named')]",
    "invisible(daemons(0))"
  ))
  out <- unlist(strsplit(out, "\r"))
  expect_true("label [ 3 / 3 .... ]" %in% out)
  expect_true("named [ 3 / 3 .... ]" %in% out)
  skip_if_not_installed("cli")
  out <- r_output(c(
    "library(mirai)",
    "options(cli.progress_show_after = 0, cli.dynamic = TRUE, cli.progress_handlers_only = NULL)",
    "invisible(daemons(1))",
    "x <- mirai_map(1:10, function(x) Sys.sleep(0.1))",
    "y <- collect_mirai(x, list(.progress = 'A label'))",
    "x <- mirai_map(1:10, function(x) Sys.sleep(0.1))",
    "y <- x[.progress_cli = list(format = 'done: {cli::pb_current} of {cli::pb_total}')]",
    # as purrr passes it: with arguments that cli knows in C only
    "options(cli.progress_show_after = Inf)",
    "x <- mirai_map(1:10, function(x) Sys.sleep(0.1))",
    "y <- x[.progress = list(name = 'As purrr', type = 'iterator', show_after = 0, caller = environment())]",
    "cat('shows after', getOption('cli.progress_show_after'), '\\n')",
    "invisible(daemons(0))"
  ))
  out <- paste(out, collapse = "\n")
  expect_match(out, "A label")
  expect_match(out, "done: [0-9]+ of 10")
  expect_match(out, "As purrr")
  expect_match(out, "shows after Inf")
})

test_that("options work without the package attached", {
  code <- c(
    "x <- mirai::mirai_map(c(1, 4), sqrt)",
    "f <- function(x) x[.flat, .stop]",
    "environment(f) <- asNamespace('stats')",
    "cat(f(x), x[.flat], x[c(.flat, .progress)], x[mirai::.flat], mirai::collect_mirai(x, '.flat'), '\\n')",
    "cat('package:mirai' %in% search(), '\\n')"
  )
  out <- r_output(c("invisible(mirai::daemons(1))", code, "invisible(mirai::daemons(0))"))
  expect_identical(trimws(out[grepl("^1 2|FALSE", out)]), c("1 2 1 2 1 2 1 2 1 2", "FALSE"))
})

test_that(".flat does not mix factors with integers", {
  local_test_daemons(1)
  expect_identical(mirai_map(c("a", "b"), factor)[.flat], factor(c("a", "b")))
  expect_error(
    mirai_map(1:2, function(i) if (i == 1) factor("a") else i)[.flat],
    "cannot flatten values of different types: factor, integer"
  )
})

test_that(".flat takes values of one type only", {
  local_test_daemons(1)
  expect_identical(mirai_map(1:2, function(x) c(x, x))[.flat], c(1L, 1L, 2L, 2L))
  expect_identical(mirai_map(1:2, function(x) list(x))[.flat], list(1L, 2L))
  expect_identical(mirai_map(1:2, function(x) NULL)[.flat], NULL)
  expect_identical(mirai_map(factor(c("a", "b")), identity)[.flat], factor(c("a", "b")))
  expect_snapshot(show_errors({
    mirai_map(list(1, "a"), identity)[.flat]
    mirai_map(list(1, 1L), identity)[.flat]
    mirai_map(list(1, NULL), identity)[.flat]
    mirai_map(list("a", "b"), function(x) if (x == "b") stop("failed") else x)[.flat]
    collect_mirai(mirai_map(list(1, "a"), identity), ".flat")
  }))
})

test_that(".stop raises the first failure and stops the rest", {
  for (dispatcher in c(TRUE, FALSE)) {
    local_test_daemons(2, dispatcher = dispatcher)
    pids <- sort(unlist(everywhere(Sys.getpid())[]))
    dir <- local_file()
    dir.create(dir)
    map <- mirai_map(
      1:20,
      function(i, dir) {
        file.create(file.path(dir, i))
        if (i == 2) {
          stop(structure(class = c("custom", "error", "condition"), list(message = "second", call = NULL, data = 7)))
        }
        Sys.sleep(60)
      },
      .args = list(dir)
    )
    elapsed <- system.time(e <- tryCatch(map[.stop], error = identity))[["elapsed"]]
    expect_lt(elapsed, 30)
    expect_s3_class(e, "mirai_error_map")
    expect_identical(conditionMessage(e), "In index: 2.\nCaused by error: second")
    expect_identical(e$location, 2L)
    expect_s3_class(e$parent, c("custom", "error", "condition"), exact = TRUE)
    expect_identical(conditionMessage(e$parent), "second")
    expect_identical(e$parent$data, 7)
    values <- map[]
    expect_true(is_mirai_error(values[[2]]))
    expect_true(all(vapply(values[-2], identical, NA, structure(20L, class = "errorValue"))))
    # the daemons stay healthy, and have begun no other task
    expect_identical(sort(unlist(everywhere(Sys.getpid())[])), pids)
    expect_identical(mirai_map(1:10, square)[.flat], (1:10)^2)
    expect_lte(length(list.files(dir)), 4)
  }
  # other failures than errors
  map <- mirai_map(1:3, function(i) Sys.sleep(60))
  stop_mirai(map[[2]])
  expect_error(map[.stop], "Operation canceled")
  local_tmpdir()
  local_test_daemons(2)
  expect_error(
    mirai_map(1:2, function(i) if (i == 2) tools::pskill(Sys.getpid(), tools::SIGKILL) else Sys.sleep(60))[
      .stop,
      .progress
    ],
    "Connection reset"
  )
})

# A script that shows the progress of `maps` without cli.
progress_script <- function(...) {
  c(
    "ns <- asNamespace('mirai')",
    "unlockBinding('progress_uses_cli', ns)",
    "assign('progress_uses_cli', function() FALSE, ns)",
    "library(mirai)",
    "invisible(daemons(1))",
    ...,
    "invisible(daemons(0))"
  )
}

test_that(".progress shows a line without cli, and a bar with it", {
  # in another process, because the output goes to stderr and not by message()
  out <- r_output(c(
    "ns <- asNamespace('mirai')",
    "unlockBinding('progress_uses_cli', ns)",
    "assign('progress_uses_cli', function() FALSE, ns)",
    "library(mirai)",
    "invisible(daemons(1))",
    "x <- mirai_map(1:10, function(x) x)[.progress, .flat]",
    "cat(x, '\\n')",
    "tryCatch(mirai_map(1, sqrt)[.progress_cli], error = function(e) cat(conditionMessage(e), '\\n'))",
    "invisible(daemons(0))"
  ))
  out <- unlist(strsplit(out, "\r"))
  expect_true("[ 10 / 10 .... ]" %in% out)
  expect_true("1 2 3 4 5 6 7 8 9 10 " %in% out)
  expect_match(out, "needs package cli", all = FALSE)
  skip_if_not_installed("cli")
  out <- r_output(c(
    "library(mirai)",
    "options(cli.progress_show_after = 0, cli.dynamic = TRUE, cli.progress_handlers_only = NULL)",
    "invisible(daemons(1))",
    "x <- mirai_map(1:10, function(x) Sys.sleep(0.1))[.progress_cli]",
    "y <- mirai_map(1:3, function(x) if (x == 2) stop('no'))",
    "tryCatch(y[.progress_cli, .stop], error = function(e) cat('failed', '\\n'))",
    "cat('end', length(x), length(cli:::clienv$progress), '\\n')",
    "invisible(daemons(0))"
  ))
  out <- paste(out, collapse = "\n")
  expect_match(out, "[0-9]/10")
  expect_match(out, "failed")
  expect_match(out, "end 10 0")
})

test_that(".progress writes a line for each tenth to a log", {
  # 40 elements, four at a time, with pauses longer than the least time between two lines
  out <- r_output(progress_script(
    "x <- mirai_map(1:40, function(i) if (i %% 4 == 1) Sys.sleep(0.15))[.progress]",
    "x <- mirai_map(1:3, function(i) Sys.sleep(0.5))[.progress]",
    "x <- mirai_map(1:1000, function(i) i)[.progress]",
    "x <- mirai_map(list(), identity)[.progress]"
  ))
  expect_match(out, "^\\[ [0-9]+ / [0-9]+ [.]{4} \\]$")
  lines <- split(out, sub(".* / ([0-9]+) .*", "\\1", out))
  for (n in c("40", "3", "1000")) {
    expect_identical(anyDuplicated(lines[[n]]), 0L)
    expect_lte(length(lines[[n]]), 11L)
    expect_identical(utils::tail(lines[[n]], 1L), paste("[", n, "/", n, ".... ]"))
  }
  expect_identical(lines[["0"]], "[ 0 / 0 .... ]")
})

test_that(".progress redraws a line on a terminal when elements resolve", {
  skip_on_os("windows")
  skip_if_not_installed("processx")
  script <- r_script(
    progress_script(
      "x <- mirai_map(1:3, function(i) Sys.sleep(0.5))[.progress]",
      "cat('end\\n')"
    ),
    environment()
  )
  p <- processx::process$new(
    file.path(R.home("bin"), "Rscript"),
    c("--no-init-file", script),
    pty = TRUE,
    env = c("current", R_LIBS = paste(.libPaths(), collapse = ":"))
  )
  defer(function() p$kill(), environment())
  out <- ""
  while (!grepl("end", out) && p$poll_io(30000)[["output"]] == "ready") {
    out <- paste0(out, p$read_output())
  }
  p$wait(10000)
  steps <- strsplit(out, "\r", fixed = TRUE)[[1L]]
  steps <- grep("/ 3", steps, value = TRUE)
  expect_match(out, "\r[ 3 / 3 .... ]\r\n", fixed = TRUE)
  expect_identical(steps, unique(steps))
  expect_match(steps, "^\\[ [0-3] / 3 .... \\]$")
})

test_that("an interrupt during collection leaves the map usable", {
  skip_on_os("windows")
  for (options in c("", ".progress", ".stop")) {
    p <- r_process(c(
      "library(mirai)",
      "invisible(daemons(2))",
      "file <- tempfile()",
      "x <- mirai_map(1:4, function(i) { while (!file.exists(file)) Sys.sleep(0.01); i }, file = file)",
      "tryCatch({",
      "  cat('collecting\\n')",
      paste0("  x[", options, "]"),
      "}, interrupt = function(e) cat('interrupted\\n'))",
      "print(x)",
      "invisible(file.create(file))",
      "cat(x[.flat], '\\n')",
      "cat(mirai_map(1:2, sqrt)[.flat] == sqrt(1:2), '\\n')",
      "invisible(daemons(0))"
    ))
    wait_for_line(p, "collecting")
    p$interrupt()
    wait_for_line(p, "interrupted")
    wait_for_line(p, "< mirai map [0/4] >")
    wait_for_line(p, "1 2 3 4")
    wait_for_line(p, "TRUE TRUE")
  }
})

test_that("collect_mirai() returns the value or the list of values", {
  local_test_daemons(2)
  expect_identical(collect_mirai(mirai(1)), 1)
  expect_identical(collect_mirai(list(a = mirai("x"), b = mirai(NULL))), list(a = "x", b = NULL))
  expect_identical(collect_mirai(list()), list())
  failed <- collect_mirai(list(mirai(stop("no")), mirai(2)))
  expect_true(is_mirai_error(failed[[1L]]))
  expect_identical(failed[[2L]], 2)
  expect_identical(collect_mirai(everywhere(3)), list(3, 3))
})

test_that("no names in the brackets of a map choose no elements", {
  local_test_daemons(1)
  map <- mirai_map(c(a = 1, b = 2), identity)
  expect_length(map[character()], 0L)
  expect_identical(map[names(map)[FALSE]][], stats::setNames(list(), character()))
  expect_identical(map[], list(a = 1, b = 2))
})
