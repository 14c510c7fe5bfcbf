# A tracer provider for package otel, in package `spanrecorder`, which is installed for the test: it appends each span
# that ends to a file. New sessions use it. `spans()` returns those spans.
local_span_recorder <- function(frame = parent.frame()) {
  dir <- local_file("recorder", frame = frame)
  source <- file.path(dir, "spanrecorder")
  dir.create(file.path(source, "R"), recursive = TRUE)
  description <- c("Package: spanrecorder", "Version: 1.0", "Title: Records Spans", "License: MIT")
  writeLines(description, file.path(source, "DESCRIPTION"))
  writeLines("export(provider)", file.path(source, "NAMESPACE"))
  writeLines(span_recorder, file.path(source, "R", "provider.R"))
  library <- file.path(dir, "library")
  dir.create(library)
  utils::install.packages(source, library, repos = NULL, type = "source", quiet = TRUE)
  file <- file.path(dir, "spans")
  file.create(file)
  old <- .libPaths()
  .libPaths(c(library, old))
  defer(function() .libPaths(old), frame)
  local_envvar(OTEL_R_TRACES_EXPORTER = "spanrecorder::provider", SPANRECORDER_FILE = file, frame = frame)
  list(spans = function() lapply(readLines(file), function(line) eval(str2lang(line))))
}

span_recorder <- '
active <- new.env()
active$spans <- list()

hex <- function(bytes) paste(format(as.hexmode(sample.int(256L, bytes, TRUE) - 1L), width = 2), collapse = "")

# Random, but not at the cost of the random numbers of the code under test.
identifier <- function(bytes) {
  old <- get0(".Random.seed", globalenv(), inherits = FALSE)
  on.exit(if (is.null(old)) rm(".Random.seed", envir = globalenv()) else assign(".Random.seed", old, globalenv()))
  set.seed(NULL)
  hex(bytes)
}

context <- function(trace, span) {
  structure(class = "otel_span_context", list(
    is_valid = function() nzchar(span),
    get_trace_id = function() trace,
    get_span_id = function() span,
    to_http_headers = function() {
      if (nzchar(span)) c(traceparent = paste("00", trace, span, "01", sep = "-")) else character()
    }
  ))
}

current <- function() {
  if (length(active$spans)) active$spans[[length(active$spans)]]$get_context() else context("", "")
}

new_span <- function(name, attributes, links, options) {
  parent <- options$parent
  if (is.null(parent)) parent <- current()
  if (inherits(parent, "otel_span")) parent <- parent$get_context()
  trace <- if (parent$is_valid()) parent$get_trace_id() else identifier(16L)
  id <- identifier(8L)
  record <- list(name = name, trace = trace, id = id, parent = parent$get_span_id(), kind = options$kind,
    attributes = attributes, links = vapply(links, function(l) l$get_context()$get_span_id(), ""), status = "unset")
  ended <- FALSE
  self <- structure(class = "otel_span", list(
    get_context = function() context(trace, id),
    is_valid = function() TRUE,
    is_recording = function() !ended,
    set_attribute = function(name, value = NULL) { record$attributes[[name]] <<- value; invisible(self) },
    set_status = function(status_code, description = NULL) {
      record$status <<- status_code
      record$description <<- description
      invisible(self)
    },
    record_exception = function(error_condition, ...) { record$exception <<- class(error_condition); invisible(self) },
    end = function(options = NULL, status_code = NULL) {
      if (!ended) {
        ended <<- TRUE
        record$pid <- Sys.getpid()
        line <- paste0(paste(deparse(record, width.cutoff = 500L), collapse = " "), "\\n")
        # At once: other processes append to the file, too.
        file <- file(Sys.getenv("SPANRECORDER_FILE"), "ab")
        writeBin(charToRaw(line), file)
        close(file)
      }
      invisible(self)
    },
    activate = function(activation_scope = parent.frame(), end_on_exit = FALSE) {
      active$spans <- c(active$spans, list(self))
      leave <- function() {
        active$spans <- active$spans[-length(active$spans)]
        if (end_on_exit) self$end()
      }
      do.call(base::on.exit, list(as.call(list(leave)), TRUE), envir = activation_scope)
      invisible(self)
    },
    deactivate = function(...) invisible(self)
  ))
  self
}

provider <- list(new = function() {
  structure(class = "otel_tracer_provider", list(
    get_tracer = function(name = NULL, ...) {
      structure(class = "otel_tracer", list(
        start_span = function(name = NULL, attributes = NULL, links = NULL, options = NULL, ...) {
          new_span(name, attributes, links, options)
        },
        is_enabled = function() TRUE,
        flush = function() invisible(),
        get_active_span_context = current,
        extract_http_context = function(headers) {
          part <- strsplit(headers[["traceparent"]], "-")[[1]]
          context(part[[2]], part[[3]])
        }
      ))
    }
  ))
})
'
