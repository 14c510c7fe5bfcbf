# Other packages that call this one, or are used beside it: their users' code, with the versions that are installed.
skip_on_os("windows")

test_that("purrr's in_parallel() maps on daemons", {
  skip_unless_version("purrr", "1.1.0")
  skip_unless_version("lobstr", "1.0")
  library <- local_client_library("carrier")
  out <- run_client(library = library, {
    suppressPackageStartupMessages(library(purrr))
    # Without daemons, purrr maps in this session.
    stopifnot(identical(map_int(1:3, in_parallel(function(x) Sys.getpid())), rep(Sys.getpid(), 3L)))

    invisible(daemons(2))
    f <- in_parallel(function(x) c(x + offset, Sys.getpid()), offset = 100)
    x <- map(c(a = 1, b = 2, c = 3), f)
    stopifnot(
      identical(vapply(x, `[[`, 0, 1L), c(a = 101, b = 102, c = 103)),
      !Sys.getpid() %in% vapply(x, `[[`, 0, 2L)
    )
    stopifnot(
      identical(map_dbl(1:3, in_parallel(function(x) sqrt(x))), sqrt(1:3)),
      identical(map_chr(1:2, in_parallel(function(x) letters[x])), c("a", "b")),
      identical(map2_dbl(1:3, 4:6, in_parallel(function(x, y) x * y)), c(4, 10, 18)),
      identical(pmap_dbl(list(x = 1:2, y = 3:4, z = 5:6), in_parallel(function(x, y, z) x + y + z)), c(9, 12)),
      identical(imap_chr(c(a = "x", b = "y"), in_parallel(function(x, name) paste(name, x))), c(a = "a x", b = "b y"))
    )
    walk(1:2, in_parallel(function(x) x))
    # Data that the helper function `h()` needs are sent once. The elements of a data frame are its columns.
    stopifnot(identical(map_dbl(data.frame(u = 1:4, v = 5:8), in_parallel(function(x) sum(x))), c(u = 10, v = 26)))

    failed <- tryCatch(
      map(list(a = 1, b = "b", c = 3), in_parallel(function(x) log(x))),
      error = identity
    )
    stopifnot(
      inherits(failed, "purrr_error_indexed"),
      identical(failed$location, 2L),
      identical(failed$name, "b")
    )
    conditionMessage(failed)
    conditionMessage(failed$parent)
    # The error has cancelled the other tasks, and the daemons are free.
    map_dbl(1:2, in_parallel(function(x) x), .progress = TRUE)
    map_dbl(1:2, in_parallel(function(x) x), .progress = "with a label")
    map_dbl(1:2, in_parallel(function(x) x), .progress = list(name = "with options"))
  })
  expect_match(out, "In index: 2.", fixed = TRUE, all = FALSE)
  expect_match(out, "non-numeric argument", fixed = TRUE, all = FALSE)
  expect_identical(sum(out == "[1] 1 2"), 3L)
})

test_that("future, foreach and doParallel are used beside this package, in one session", {
  skip_unless_version("future", "1.30.0")
  for (package in c("foreach", "doParallel")) {
    skip_if_not_installed(package)
  }
  run_client({
    suppressPackageStartupMessages(library(future))
    invisible(daemons(2))
    plan(multisession, workers = 2)
    there <- function(x) {
      Sys.sleep(0.05)
      c(x, Sys.getpid())
    }
    m <- mirai_map(1:4, there)
    f <- lapply(1:4, function(x) future(there(x)))
    from_future <- vapply(f, value, numeric(2))
    from_mirai <- vapply(m[], identity, numeric(2))
    stopifnot(
      identical(from_future[1L, ], as.numeric(1:4)),
      identical(from_mirai[1L, ], as.numeric(1:4)),
      !any(from_future[2L, ] %in% from_mirai[2L, ])
    )
    # Neither package masks a function of the other, or handles the other's objects.
    stopifnot(!length(intersect(getNamespaceExports("future"), getNamespaceExports("mirai"))))
    stopifnot(resolved(future(1)) || TRUE, !is_mirai(f[[1L]]), !unresolved(1))
    # A future that uses mirai, and a mirai that uses futures.
    stopifnot(identical(value(future(mirai::mirai(6 * 7)[])), 42))
    inner <- mirai({
      future::plan(future::sequential)
      future::value(future::future(6 * 7))
    })
    stopifnot(identical(inner[], 42))

    suppressPackageStartupMessages({
      library(foreach)
      library(doParallel)
    })
    cl <- make_cluster(2)
    registerDoParallel(cl)
    stopifnot(identical(foreach(i = 1:4, .combine = c) %dopar% sqrt(i), sqrt(1:4)))
    # Futures on our cluster's nodes, as for any other cluster of package parallel.
    plan(sequential)
    stopifnot(identical(foreach(i = 1:2, .combine = c) %dopar% (i + 1), c(2, 3)))
    stop_cluster(cl)
  })
})

test_that("a table of data.table can be changed by reference where it arrives", {
  skip_if_not_installed("data.table")
  out <- run_client({
    suppressPackageStartupMessages(library(data.table))
    invisible(daemons(1))
    # A small table is sent in the message, the columns of a large one in shared memory.
    for (n in c(3L, 100000L)) {
      table <- data.table(id = n:1, value = as.double(n:1), name = paste0("name", n:1))
      truth <- copy(table)
      m <- mirai(
        {
          options(warn = 2)
          library(data.table)
          changed <- function(x) {
            x[, double := value * 2]
            x[id == 2L, value := -1]
            set(x, i = 1L, j = "name", value = "first")
            x[, c("a", "b") := list(1L, "b")]
            setkey(x, id)
            x[, a := NULL]
            x
          }
          list(table = changed(table), joined = table[.(2:3), on = "id", sum(value)])
        },
        table = table
      )
      back <- m[]$table
      stopifnot(identical(table, truth))
      # Here, too, without a copy or a warning.
      stopifnot(is.data.table(back), identical(key(back), "id"), nrow(back) == n)
      back[, more := seq_len(.N)]
      back[1:2, name := "changed"]
      setorder(back, -id)
      stopifnot(
        identical(names(back), c("id", "value", "name", "double", "b", "more")),
        identical(back$id, n:1),
        identical(back$more, n:1),
        identical(back$double, as.double(n:1) * 2),
        identical(back[.(2L), on = "id"]$value, -1),
        identical(back[, .N, by = name][name == "changed", N], 2L),
        identical(back[id > 2L & id < n, name], truth[id > 2L & id < n, name])
      )
      # The table that was sent is unchanged, and can still grow.
      table[, extra := 1L]
      stopifnot(identical(names(table), c("id", "value", "name", "extra")))
    }
    # Tables as results of a map, bound together.
    parts <- mirai_map(1:4, function(i) data.table::data.table(i = i, x = rnorm(3)))[]
    all <- rbindlist(parts)
    all[, mean := mean(x), by = i]
    stopifnot(identical(dim(all), c(12L, 3L)))
  })
  expect_identical(out, character())
})

test_that("Arrow's tables arrive, as in the examples that the package was built from", {
  skip_if_not_installed("arrow")
  out <- run_client({
    suppressPackageStartupMessages(library(arrow, warn.conflicts = FALSE))
    daemons(2)
    everywhere(library(arrow))
    x <- as_arrow_table(iris)
    m <- mirai(list(a = head(x), b = "some text"), x = x)
    m[]
    serialization(
      list(
        arrow::write_to_raw,
        function(x) arrow::read_ipc_stream(x, as_data_frame = FALSE)
      ),
      class = "ArrowTabular"
    )
    m <- mirai(list(a = head(x), b = "some text"), x = x)
    m[]
    # nested in other objects, and as a result
    m <- mirai(list(list(table = x, rows = nrow(x)), x$Species), x = as_arrow_table(iris[1:3, ]))
    stopifnot(
      identical(as.data.frame(m[][[1L]]$table), as.data.frame(as_arrow_table(iris[1:3, ]))),
      m$data[[1L]]$rows == 3L
    )
    serialization(NULL)
    daemons(0)
  })
  expect_identical(
    out,
    c(
      "[1] 2",
      "'miraiError' chr Error: Invalid <Table>, external pointer to null",
      "$a",
      "Table",
      "6 rows x 5 columns",
      "$Sepal.Length <double>",
      "$Sepal.Width <double>",
      "$Petal.Length <double>",
      "$Petal.Width <double>",
      "$Species <dictionary<values=string, indices=int8>>",
      "",
      "See $metadata for additional Schema metadata",
      "",
      "$b",
      "[1] \"some text\"",
      "",
      "[1] 0"
    )
  )
})

# polars cannot be installed here. This package stands in for it: its data frame, too, is an external pointer with a
# class, and has methods by `$`. The pointer is that of an XML document, whose text is the bytes of the data frame.
polars_stand_in <- function() {
  pl <- list(read_ipc = function(x) {
    document <- xml2::read_xml(paste0("<frame>", paste(as.character(x), collapse = ""), "</frame>"))
    structure(document$node, document = document$doc, class = "RPolarsDataFrame")
  })
  bytes <- function(x) {
    document <- structure(list(node = x, doc = attr(x, "document")), class = c("xml_document", "xml_node"))
    text <- xml2::xml_text(document)
    at <- seq(1L, nchar(text), 2L)
    as.raw(strtoi(substring(text, at, at + 1L), 16L))
  }
  as_polars_df <- function(x) if (inherits(x, "RPolarsDataFrame")) x else pl$read_ipc(serialize(x, NULL))
  as.data.frame.RPolarsDataFrame <- function(x, ...) unserialize(bytes(x))
  `$.RPolarsDataFrame` <- function(x, name) switch(name, to_raw_ipc = function() bytes(x), stop("no method ", name))
  head.RPolarsDataFrame <- function(x, ...) as_polars_df(utils::head(as.data.frame(x), ...))
  print.RPolarsDataFrame <- function(x, ...) {
    x <- as.data.frame(x)
    cat("shape: (", nrow(x), ", ", ncol(x), ")\n", sep = "")
    print(x[1:2])
  }
}

test_that("data frames that are external pointers arrive, as in the example with polars", {
  skip_if_not_installed("xml2")
  library <- local_package_library(
    "polars",
    body(polars_stand_in),
    c(
      "export(pl, as_polars_df)",
      paste0("S3method(", c("print", "as.data.frame", "\"$\""), ", RPolarsDataFrame)"),
      "S3method(utils::head, RPolarsDataFrame)"
    )
  )
  out <- run_client(library = library, {
    daemons(2)
    polars <- asNamespace("polars")
    x <- polars$as_polars_df(iris)
    m <- mirai(list(a = head(x), b = "some text"), x = x)
    stopifnot(is_mirai_error(m[]))
    serialization(
      list(
        function(x) asNamespace("polars")$as_polars_df(x)$to_raw_ipc(),
        polars$pl$read_ipc
      ),
      class = "RPolarsDataFrame"
    )
    m <- mirai(list(a = head(x), b = "some text"), x = x)
    m[]
    serialization(NULL)
    daemons(0)
  })
  expect_identical(
    out,
    c(
      "[1] 2",
      "$a",
      "shape: (6, 5)",
      utils::capture.output(print(utils::head(iris)[1:2])),
      "",
      "$b",
      "[1] \"some text\"",
      "",
      "[1] 0"
    )
  )
})

test_that("logger's asynchronous appender writes on a daemon", {
  skip_unless_version("logger", "0.4.0")
  file <- local_file(fileext = ".log")
  run_client(file = file, {
    suppressPackageStartupMessages(library(logger))
    log_layout(layout_simple)
    log_appender(appender_async(appender_file(file), namespace = "log"))
    # It has asked for the number of daemons of a profile that was not set, has set one, and has prepared it.
    stopifnot(daemons_set("log"), identical(nextget("n", .compute = "log"), 1L))
    for (i in 1:20) {
      log_info("line {i}")
    }
    log_appender(appender_async(appender_file(file), namespace = "log"))
    log_warn("by the same daemon")
    # Logging does not wait. The daemon writes lines in order, so this task ends after them.
    mirai(TRUE, .compute = "log")[]
    lines <- readLines(file)
    stopifnot(
      length(lines) == 21L,
      all(endsWith(lines[1:20], paste("line", 1:20))),
      startsWith(lines[[21L]], "WARN")
    )
    info("log")[["connections"]]
    invisible(daemons(0, .compute = "log"))
  })
})

test_that("promises and later take mirai as they are, without a warning", {
  skip_unless_version("promises", "1.5.0")
  skip_unless_version("later", "1.4.0")
  out <- run_client({
    suppressPackageStartupMessages(library(promises))
    run <- function(promise) {
      outcome <- NULL
      then(promise, function(value) outcome <<- list(value), function(cnd) outcome <<- cnd)
      while (is.null(outcome)) {
        later::run_now(Inf)
      }
      if (is.list(outcome) && !inherits(outcome, "condition")) outcome[[1L]] else outcome
    }
    invisible(daemons(2))
    stopifnot(is.promising(mirai(1)), is.promising(mirai_map(1:2, identity)), !is.promising(1), !is.promise(mirai(1)))
    stopifnot(is.promise(as.promise(mirai(1))), is.promise(as.promise(mirai_map(1:2, identity))))
    stopifnot(
      identical(run(then(mirai(2), \(x) x * 3)), 6),
      identical(run(mirai(4) |> then(\(x) sqrt(x)) |> then(\(x) mirai(x + 1, x = x))), 3),
      identical(conditionMessage(run(mirai(stop("no")) |> then(identity))), "no"),
      identical(run(mirai(stop("no")) |> catch(\(cnd) "caught")), "caught"),
      identical(run(mirai(2) %...>% sqrt()), sqrt(2)),
      identical(run(mirai(2) %...T>% identity()), 2)
    )
    # The same code for a value and for a mirai.
    hybrid <- function(x) hybrid_then(x, on_success = \(value) value + 1, on_failure = \(cnd) conditionMessage(cnd))
    stopifnot(
      identical(hybrid(1), 2),
      is.promise(hybrid(mirai(1))),
      identical(run(hybrid(mirai(1))), 2),
      identical(run(hybrid(mirai(stop("late")))), "late"),
      identical(run(hybrid_then(mirai_map(1:3, \(x) x), \(value) sum(unlist(value)))), 6L),
      identical(run(hybrid_then(mirai(5), tee = TRUE, \(value) 6)), 5)
    )
    stopifnot(
      identical(
        run(promise_all(a = mirai(1), b = mirai_map(1:2, identity), c = promise_resolve(3))),
        list(a = 1, b = list(1L, 2L), c = 3)
      ),
      identical(run(promise_race(mirai(Sys.sleep(60)), mirai("first"))), "first"),
      identical(run(promise_map(1:3, \(x) mirai(x^2, x = x))), list(1, 4, 9)),
      identical(run(promise_reduce(1:3, \(total, x) mirai(total + x, total = total, x = x), .init = 0)), 6)
    )
    finished <- FALSE
    invisible(run(mirai(1) |> finally(\() finished <<- TRUE)))
    stopifnot(finished)
    # Promise domains, which Shiny uses, still work.
    seen <- character()
    domain <- new_promise_domain(
      wrapOnFulfilled = \(f) {
        function(...) {
          seen <<- c(seen, "wrapped")
          f(...)
        }
      }
    )
    invisible(run(with_promise_domain(domain, then(mirai(1), identity))))
    stopifnot(identical(seen, "wrapped"))
    while (!later::loop_empty()) {
      later::run_now()
    }
  })
  expect_identical(out, character())
})
