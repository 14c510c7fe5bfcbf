test_that("an evaluation is a child of the mirai or map that submitted it, across processes", {
  skip_if_not_installed("otel")
  recorder <- local_span_recorder()
  said <- r_output(
    '
    library(mirai)
    daemons(2, seed = 1L)
    outer <- otel::start_local_active_span("user", tracer = "user", activation_scope = environment())
    m <- mirai({
      local({
        otel::start_local_active_span("inside", tracer = "user")
        1 + 1
      })
      Sys.getpid()
    })
    x <- mirai_map(c(1, 2), sqrt)
    f <- function() stop("no good")
    e <- mirai(f(), f = f)
    cat("value", identical(x[], list(1, sqrt(2))), "\n")
    cat("pid", m[], "\n")
    cat("error", e[], "\n")
    cat("trace", unlist(e$data$stack.trace), "\n")
    cat("id", attr(e, "id"), "\n")
    daemons(0)
  '
  )
  expect_match(said, "value TRUE", all = FALSE)
  # The stack of an error has none of the frames of tracing.
  expect_match(said, "error Error in f(): no good", fixed = TRUE, all = FALSE)
  expect_match(said, 'trace stop("no good") f()', fixed = TRUE, all = FALSE)
  spans <- recorder$spans()
  named <- function(name) Filter(function(span) span$name == name, spans)
  daemons <- named("daemons")
  expect_length(daemons, 2L)
  expect_identical(daemons[[1L]]$attributes$n, 2)
  submitted <- named("mirai")
  expect_length(submitted, 2L)
  map <- named("mirai_map")
  expect_length(map, 1L)
  for (span in c(submitted, map)) {
    expect_identical(span$kind, "producer")
    expect_identical(unname(span$links), daemons[[1L]]$id)
    expect_identical(span$attributes$mirai.profile, "default")
  }
  evaluated <- named("mirai evaluation")
  expect_length(evaluated, 4L)
  parents <- vapply(evaluated, `[[`, "", "parent")
  expect_setequal(parents, c(vapply(submitted, `[[`, "", "id"), map[[1L]]$id))
  expect_identical(sum(parents == map[[1L]]$id), 2L)
  expect_length(unique(vapply(c(submitted, map, evaluated), `[[`, "", "trace")), 1L)
  # On the daemon, in the daemon's process.
  first <- evaluated[[which(parents == submitted[[1L]]$id)]]
  pid <- as.integer(sub("pid ", "", grep("^pid", said, value = TRUE)))
  expect_identical(first$attributes$process.pid, pid)
  inside <- named("inside")[[1L]]
  expect_identical(inside$parent, first$id)
  # The error.
  failed <- evaluated[[which(parents == submitted[[2L]]$id)]]
  expect_identical(failed$status, "error")
  expect_identical(failed$description, "no good")
  expect_true("simpleError" %in% failed$exception)
  id <- as.integer(sub("id ", "", grep("^id", said, value = TRUE)))
  expect_identical(submitted[[2L]]$attributes$mirai.id, id)
  # There is no `n`.
  said <- r_output("library(mirai)\nx <- daemons(url = local_url())\nx <- daemons(sync = TRUE)\ncat(mirai(1)[])")
  expect_identical(said, "1")
})

test_that("nothing is traced, and otel not loaded, where it is not set up", {
  said <- r_output(
    '
    library(mirai)
    invisible(daemons(1))
    m <- mirai("otel" %in% loadedNamespaces())
    cat(m[], "otel" %in% loadedNamespaces(), "\n")
    # An expression that is a list of two.
    print(do.call(mirai, list(list(1, 2)))[])
    daemons(0)
  '
  )
  expect_identical(said[[1L]], "FALSE FALSE ")
  expect_identical(said[[2L]], "[[1]]")
})
