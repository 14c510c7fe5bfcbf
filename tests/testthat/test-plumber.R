skip_unless_driven()
skip_if_not_installed("plumber")

local_api <- function(
  n,
  file = system.file("examples", "plumber", "plumber.R", package = "mirai"),
  frame = parent.frame()
) {
  local_server(
    c(
      "library(mirai)",
      paste0("api <- plumber::pr(", deparse(file), ")"),
      sprintf("d <- daemons(%d)", n),
      "port <- httpuv::randomPort()",
      # when the server runs the event loop
      "later::later(function() cat('Listening on', port, '\\n'))",
      "tryCatch(",
      "  plumber::pr_run(api, port = port, docs = FALSE, quiet = TRUE),",
      "  interrupt = function(i) NULL",
      ")",
      "cat('left:', daemons(0), '\\n')"
    ),
    "Listening on ([0-9]+)",
    frame
  )
}

test_that("the example API answers concurrent requests concurrently", {
  n <- 6L
  server <- local_api(n)
  slow <- rep(paste0(server$url, "/simulate?n=1000&seconds=1"), n)
  answers <- fetch_all(c(slow, paste0(server$url, "/status")))
  expect_identical(vapply(answers, `[[`, 0L, "status"), rep(200L, n + 1L))

  # All slow requests ran at the same time, each on its own daemon.
  bodies <- lapply(answers[seq_len(n)], `[[`, "body")
  starts <- vapply(bodies, `[[`, 0, "start")
  ends <- vapply(bodies, `[[`, 0, "end")
  expect_lt(max(starts), min(ends))
  expect_length(unique(vapply(bodies, `[[`, 0L, "daemon")), n)
  expect_equal(bodies[[1L]]$quantiles[["50%"]], 1, tolerance = 0.2)
  # The quick request did not wait for them.
  expect_identical(answers[[n + 1L]]$body$connections, n)
  expect_lt(answers[[n + 1L]]$body$completed, n)
  expect_match(end_server(server), "left: 0", fixed = TRUE, all = FALSE)
})

test_that("the example API queues what is more than its daemons can do, and reports failures", {
  server <- local_api(2L)
  url <- paste0(server$url, "/simulate?")
  answers <- fetch_all(paste0(
    url,
    c(
      rep("n=1000&seconds=0.1", 8L),
      "n=1e12",
      "n=none",
      "seconds=-1"
    )
  ))
  expect_identical(vapply(answers, `[[`, 0L, "status"), rep(c(200L, 503L, 400L), c(8L, 1L, 2L)))
  expect_match(answers[[9L]]$body$error, "allocate|memory")
  expect_match(answers[[10L]]$body$error, "'n' has to be", fixed = TRUE)
  daemons <- vapply(answers[1:8], function(answer) answer$body$daemon, 0L)
  expect_lte(length(unique(daemons)), 2L)
})

test_that("an endpoint may return a mirai, or a map, as it is", {
  skip_unless_version("promises", "1.3.0")
  file <- local_file(fileext = ".R")
  writeLines(
    c(
      "#* @serializer unboxedJSON",
      "#* @get /mirai",
      "function(x) mirai::mirai({Sys.sleep(0.2); as.numeric(x)^2}, x = x)",
      "#* @serializer unboxedJSON",
      "#* @get /map",
      "function(n) mirai::mirai_map(seq_len(as.numeric(n)), function(i) i * 10)",
      "#* @get /fails",
      "function() mirai::mirai(stop('on purpose'))"
    ),
    file
  )
  server <- local_api(2L, file)
  answers <- fetch_all(paste0(server$url, c("/mirai?x=3", "/mirai?x=4", "/map?n=3", "/fails")))
  expect_identical(vapply(answers, `[[`, 0L, "status"), c(200L, 200L, 200L, 500L))
  expect_equal(lapply(answers[1:3], `[[`, "body"), list(9, 16, c(10, 20, 30)))
  expect_match(end_server(server), "left: 0", fixed = TRUE, all = FALSE)
})
