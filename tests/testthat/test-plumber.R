skip_unless_driven()
skip_if_not_installed("plumber")

local_api <- function(n, frame = parent.frame()) {
  local_server(
    c(
      "library(mirai)",
      "api <- plumber::pr(system.file('examples', 'plumber', 'plumber.R', package = 'mirai'))",
      sprintf("d <- daemons(%d)", n),
      "port <- httpuv::randomPort()",
      # once the server runs the event loop, not before
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

  # All slow ones were under way at the same time, each on a daemon of its own.
  bodies <- lapply(answers[seq_len(n)], `[[`, "body")
  starts <- vapply(bodies, `[[`, 0, "start")
  ends <- vapply(bodies, `[[`, 0, "end")
  expect_lt(max(starts), min(ends))
  expect_length(unique(vapply(bodies, `[[`, 0L, "daemon")), n)
  expect_equal(bodies[[1L]]$quantiles[["50%"]], 1, tolerance = 0.2)
  # The quick one did not wait for them.
  expect_identical(answers[[n + 1L]]$body$connections, n)
  expect_lt(answers[[n + 1L]]$body$completed, n)
  expect_match(end_server(server), "left: 0", fixed = TRUE, all = FALSE)
})

test_that("the example API queues what is more than its daemons can do, and reports failures", {
  server <- local_api(2L)
  url <- paste0(server$url, "/simulate?")
  answers <- fetch_all(paste0(url, c(
    rep("n=1000&seconds=0.1", 8L), "n=1e12", "n=none", "seconds=-1"
  )))
  expect_identical(vapply(answers, `[[`, 0L, "status"), rep(c(200L, 503L, 400L), c(8L, 1L, 2L)))
  expect_match(answers[[9L]]$body$error, "allocate|memory")
  expect_match(answers[[10L]]$body$error, "'n' has to be", fixed = TRUE)
  daemons <- vapply(answers[1:8], function(answer) answer$body$daemon, 0L)
  expect_lte(length(unique(daemons)), 2L)
})
