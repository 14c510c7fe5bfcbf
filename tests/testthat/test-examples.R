# The examples of the documents that this package was built from, with the output that they show. Examples that only
# take time are smaller. Random values and the names of hosts and files may differ.

test_that("Example 1: Compute-intensive Operations", {
  env <- session()
  expect_identical(
    printed(
      "
      input <- list(x = 2, y = 5, z = double(1e5))
      m <- mirai(
        {
          res <- rnorm(1e5, mean = mean, sd = sd)
          max(res) - min(res)
        },
        mean = input$x,
        sd = input$y
      )
      m
      m$data
      unresolved(m)
    ",
      env
    ),
    c("< mirai [] >", "'unresolved' logi NA", "[1] TRUE")
  )
  value <- printed("m[]", env)
  expect_match(value, "^\\[1\\] [0-9.]+$")
  expect_identical(printed("m\nm$data", env), c("< mirai [$data] >", value))
  expect_match(
    printed(
      "
      expr <- quote({
        res <- rnorm(1e5, mean = mean, sd = sd)
        max(res) - min(res)
      })
      args <- list(mean = input$x, sd = input$y)
      m <- mirai(.expr = expr, .args = args)
      m[]
    ",
      env
    ),
    "^\\[1\\] [0-9.]+$"
  )
  # the older document
  expect_match(
    printed(
      "
      expr <- quote({
        res <- rnorm(n) + m
        res / rev(res)
      })
      args <- list(m = runif(1), n = 1e5)
      m <- mirai(.expr = expr, .args = args)
      call_mirai(m)$data |> str()
    ",
      env
    ),
    "^ num \\[1:100000\\] "
  )
})

test_that("Example 2: I/O-bound Operations", {
  env <- session()
  out <- printed(
    "
    x <- rnorm(1e5)
    file <- tempfile()
    m <- mirai(write.csv(x, file = file), .args = environment())
    while (unresolved(m)) {
      cat(\"while unresolved\\n\")
      Sys.sleep(0.1)
    }
    cat(\"Write complete:\", is.null(m$data))
  ",
    env
  )
  expect_identical(unique(out), c("while unresolved", "Write complete: TRUE"))
  expect_length(readLines(env$file), 1e5 + 1)
  unlink(env$file)
})

test_that("Example 3: Resilient Pipelines", {
  env <- session()
  code <- "
    run_iteration <- function(i) {
      if (runif(1) < 0.1) stop(\"random error\\n\", call. = FALSE) # simulates a stochastic error rate
      sprintf(\"iteration %d successful\\n\", i)
    }
    for (i in 1:10) {
      m <- mirai(run_iteration(i), environment())
      while (is_error_value(call_mirai(m)$data)) {
        cat(m$data)
        m <- mirai(run_iteration(i), environment())
      }
      cat(m$data)
    }
  "
  successful <- sprintf("iteration %d successful", 1:10)
  # with a seed under which one of them fails
  daemons(1, seed = 1)
  out <- printed(code, env)
  expect_identical(out[out != "Error: random error"], successful)
  expect_true("Error: random error" %in% printed(sub("0.1", "0.5", code), env))
  daemons(0)
  out <- printed(sub("1:10", "1:2", code), env)
  expect_identical(out[out != "Error: random error"], successful[1:2])
})

test_that("Daemons: with and without dispatcher", {
  env <- session()
  out <- printed("daemons(6)\nstatus()\ndaemons(0)", env)
  expect_identical(
    gsub("abstract://[0-9a-f]{24}", "abstract://97c9b9931341ea8a4b70b6c8", out),
    c(
      "[1] 6",
      "$connections",
      "[1] 1",
      "",
      "$daemons",
      "                                    i online instance assigned complete",
      sprintf("abstract://97c9b9931341ea8a4b70b6c8 %d      1        1        0        0", 1:6),
      "",
      "[1] 0"
    )
  )
  out <- printed("daemons(6, dispatcher = FALSE)\nstatus()\ndaemons(0)", env)
  expect_identical(
    gsub("abstract://[0-9a-f]{24}", "abstract://df872fae5724c6e97d38f77e", out),
    c(
      "[1] 6",
      "$connections",
      "[1] 6",
      "",
      "$daemons",
      "[1] \"abstract://df872fae5724c6e97d38f77e\"",
      "",
      "[1] 0"
    )
  )
})

test_that("Everywhere: a database", {
  skip_if_not_installed("DBI")
  skip_if_not_installed("RSQLite")
  env <- session()
  out <- printed(
    "
    daemons(2)
    everywhere(library(DBI))
    file <- tempfile()
    everywhere(con <<- dbConnect(RSQLite::SQLite(), file), file = file)
    m <- mirai(capture.output(str(con)))
    m[]
    everywhere(dbDisconnect(con))[]
    daemons(0)
  ",
    env
  )
  # the document lacks repeated blanks, and the text between < and >
  plain <- function(x) gsub(" +", " ", gsub("<[^>]*>", "", trimws(x)))
  expected <- plain(c(
    "[1] 2",
    "[1] \"Formal class 'SQLiteConnection' [package \\\"RSQLite\\\"] with 8 slots\"",
    "[2] \" ..@ ptr : \"",
    sprintf("[3] \" ..@ dbname : chr \\\"%s\\\"\"", env$file),
    "[4] \" ..@ loadable.extensions: logi TRUE\"",
    "[5] \" ..@ flags : int 70\"",
    "[6] \" ..@ vfs : chr \\\"\\\"\"",
    "[7] \" ..@ ref : \"",
    "[8] \" ..@ bigint : chr \\\"integer64\\\"\"",
    "[9] \" ..@ extended_types : logi FALSE\""
  ))
  expect_identical(plain(out)[1:10], expected)
  expect_identical(out[length(out)], "[1] 0")
  expect_false(any(grepl("Error", out)))
  expect_true(file.exists(env$file))
  unlink(env$file)
})

test_that("Everywhere: the older document", {
  env <- session()
  out <- printed(
    "
    daemons(2, dispatcher = FALSE)
    everywhere(library(parallel))
    m <- mirai(\"package:parallel\" %in% search())
    m[]
    m <- mirai(\"package:parallel\" %in% search())
    m[]
    daemons(0)
  ",
    env
  )
  expect_identical(out, c("[1] 2", "[1] TRUE", "[1] TRUE", "[1] 0"))
})

test_that("With Method", {
  env <- session()
  out <- printed(
    "
    app <- function() length(unique(everywhere(Sys.getpid())[]))
    with(daemons(4), app())
    daemons_set()
  ",
    env
  )
  expect_identical(out, c("[1] 4", "[1] FALSE"))
})

test_that("Compute Profiles", {
  env <- session()
  out <- printed(
    "
    daemons(2, .compute = 'cpu')
    daemons(1, dispatcher = FALSE, .compute = 'gpu')
    m1 <- mirai(paste('on', x), x = 'cpu', .compute = 'cpu')
    m2 <- mirai(paste('on', x), x = 'gpu', .compute = 'gpu')
    m1[]
    m2[]
    nrow(status(.compute = 'cpu')$daemons)
    status(.compute = 'gpu')$connections
    status()
    launch_local(1, .compute = 'gpu')
    daemons(0, .compute = 'cpu')
    daemons(0, .compute = 'gpu')
  ",
    env
  )
  expect_identical(
    out,
    c(
      "[1] 2",
      "[1] 1",
      "[1] \"on cpu\"",
      "[1] \"on gpu\"",
      "[1] 2",
      "[1] 1",
      "$connections",
      "[1] 0",
      "",
      "$daemons",
      "[1] 0",
      "",
      "[1] 0",
      "[1] 0"
    )
  )
})

test_that("Errors, Interrupts and Timeouts", {
  code <- "
    m1 <- mirai(stop(\"occurred with a custom message\", call. = FALSE))
    m1[]
    m2 <- mirai(mirai::mirai())
    m2[]
    is_mirai_error(m2$data)
    is_error_value(m2$data)
    f <- function(x) if (x > 0) stop(\"positive\")
    m3 <- mirai({f(-1); f(1)}, f = f)
    m3[]
    m3$data$stack.trace
    is_mirai_interrupt(m2$data)
    m4 <- mirai(Sys.sleep(1000), .timeout = 500)
    m4[]
    is_mirai_error(m4$data)
    is_mirai_interrupt(m4$data)
    is_error_value(m4$data)
  "
  expected <- c(
    "'miraiError' chr Error: occurred with a custom message",
    "'miraiError' chr Error in mirai::mirai(): missing expression, perhaps wrap in {}?",
    "[1] TRUE",
    "[1] TRUE",
    "'miraiError' chr Error in f(1): positive",
    "[[1]]",
    "[1] \"function(x) if (x > 0) stop(\\\"positive\\\")\"",
    "",
    "[[2]]",
    "[1] \"f(1)\"",
    "",
    "[1] FALSE",
    "'errorValue' int 5 | Timed out",
    "[1] FALSE",
    "[1] FALSE",
    "[1] TRUE"
  )
  env <- session()
  expect_identical(printed(code, env), expected)
  # the older document
  daemons(1)
  expect_identical(printed(gsub("m([1-4])\\[\\]", "call_mirai(m\\1)$data", code), env), expected)
})
