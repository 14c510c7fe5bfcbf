# Traces, by package otel (OpenTelemetry). Spans are made if that package has a tracer that is enabled: daemons(),
# mirai() and mirai_map() on the host, and each evaluation on the daemon, as a child of the span that submitted it. See
# ?mirai_traces.

#' Traces of tasks
#'
#' If package otel has been set up to record traces (OpenTelemetry), mirai makes spans. There is nothing to switch on
#' here: set otel's environment variables, such as `OTEL_TRACES_EXPORTER=http`, before you set daemons. Local daemons
#' inherit them. On other machines, set them for the daemons, too.
#'
#' | span | kind | what it is |
#' | --- | --- | --- |
#' | `daemons` | internal | a call of [daemons()] that sets or resets daemons |
#' | `mirai` | producer | the submission of a task by [mirai()], with a link to the span of its `daemons` |
#' | `mirai_map` | producer | the submission of a map by [mirai_map()], with the same link |
#' | `mirai evaluation` | consumer | the evaluation of a task on a daemon: a child of what submitted it |
#'
#' Spans that the evaluated code makes are children of its evaluation, also across processes and machines. An evaluation
#' that fails has status `error` with the error's message, and records the exception. Its attributes are `process.pid`,
#' `mirai.profile` on the host, and `mirai.id`, which [task_log()] has, too.
#'
#' Whether otel is in use is looked up by the first [mirai()] of a session, and by each call of [daemons()] and
#' [daemon()]. If it is not, it is not loaded, and tasks cost the same as without.
#' @seealso [task_log()] and [mirai_conditions()], which need no other package.
#' @name mirai_traces
#' @examplesIf requireNamespace("otel", quietly = TRUE)
#' Sys.setenv(OTEL_TRACES_EXPORTER = "none")
#' daemons(1)
#' mirai(1 + 1)[]
#' daemons(0)
NULL

# Looks whether there is a tracer. Called by the first mirai(), and by daemons() and daemon(). Not when the package is
# loaded: the fork server does that, and an exporter's threads do not survive a fork.
find_tracer <- function() {
  the$tracer_sought <- TRUE
  wanted <- isNamespaceLoaded("otel") || any(nzchar(Sys.getenv(c("OTEL_R_TRACES_EXPORTER", "OTEL_TRACES_EXPORTER"))))
  the$tracer <- NULL
  if (wanted && requireNamespace("otel", quietly = TRUE)) {
    tracer <- otel::get_tracer("r.package.mirai")
    if (otel::is_tracing_enabled(tracer)) {
      the$tracer <- tracer
    }
  }
}

# Makes a span, which ends with the calling function. Returns it, or NULL if there is no tracer.
local_span <- function(name, kind, attributes, profile = NULL, frame = parent.frame()) {
  tracer <- the$tracer
  if (is.null(tracer)) {
    return()
  }
  link <- if (!is.null(profile)) the$daemons_spans[[profile]]
  attributes$mirai.profile <- profile
  otel::start_local_active_span(
    name,
    attributes = otel::as_attributes(Filter(Negate(is.null), attributes)),
    links = if (!is.null(link)) list(daemons = link),
    options = list(kind = kind),
    tracer = tracer,
    activation_scope = frame
  )
}

# An expression as it is sent while a span is active: with what the daemon needs to continue the trace. evaluate.rs
# takes it apart.
with_context <- function(expr) structure(list(expr, otel::pack_http_context()), class = "miraiContext")

# Called by evaluate.rs in place of `expr` alone: evaluates it in a span, whose parent is in `context`.
in_span <- function(expr, context) {
  tracer <- the$tracer
  if (is.null(tracer)) {
    return(expr)
  }
  span <- otel::start_span(
    "mirai evaluation",
    attributes = otel::as_attributes(list(process.pid = Sys.getpid())),
    options = list(kind = "consumer", parent = otel::extract_http_context(context)),
    tracer = tracer
  )
  # An interrupt, and what else leaves without a value or an error, keeps this.
  failed <- "interrupted"
  on.exit({
    if (!is.null(failed)) {
      span$set_status("error", failed)
    }
    span$end()
  })
  value <- withCallingHandlers(
    otel::with_active_span(span, expr),
    error = function(cnd) {
      failed <<- condition_text(cnd)
      span$record_exception(cnd)
    }
  )
  failed <- NULL
  value
}
