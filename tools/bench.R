# Rscript tools/bench.R PING_PONG [--json]: see tools/bench.
#
# Each row is measured several times; the raw ping-pong before each, so that a row's
# multiple is of what the machine did at that time.
library(mirai)
options(width = 200)

args <- commandArgs(TRUE)
ping_pong <- args[1L]
json <- "--json" %in% args

raw <- function() as.numeric(system2(ping_pong, stdout = TRUE))

seconds <- function(expr) {
  start <- Sys.time()
  force(expr)
  as.numeric(difftime(Sys.time(), start, units = "secs"))
}

rss_mb <- function() {
  line <- grep("^VmRSS", readLines("/proc/self/status"), value = TRUE)
  as.numeric(gsub("[^0-9]", "", line)) / 1024
}

cpu_ticks <- function(pids) {
  sum(vapply(pids, function(pid) {
    stat <- sub(".*\\) ", "", readLines(file.path("/proc", pid, "stat")))
    sum(as.numeric(strsplit(stat, " ")[[1L]][12:13]))
  }, 0))
}

rows <- list()

# Measures `f()`, a number in `unit`, `times` times. `budget` is in `unit`, or in multiples
# of the ping-pong where `of_raw`.
row <- function(what, unit, budget, f, times = 5L, of_raw = FALSE) {
  values <- raws <- numeric(times)
  for (i in seq_len(times)) {
    raws[i] <- raw()
    invisible(gc())
    values[i] <- f()
  }
  value <- stats::median(values)
  multiple <- if (unit == "us") stats::median(values / raws)
  rows[[length(rows) + 1L]] <<- list(
    what = what, value = value, unit = unit, low = min(values), high = max(values),
    raw = stats::median(raws), multiple = multiple, budget = budget, of_raw = of_raw
  )
}

## One daemon

invisible(daemons(1))
row("mirai(1)[], one daemon", "us", 4.5, of_raw = TRUE, times = 9L, f = function() {
  for (i in 1:500) mirai(1)[]
  seconds(for (i in 1:5000) mirai(1)[]) / 5000 * 1e6
})

row("mirai(1), submission only", "us", 10, f = function() {
  x <- vector("list", 5000)
  busy <- mirai(Sys.sleep(60))
  time <- seconds(for (i in 1:5000) x[[i]] <- mirai(1)) / 5000 * 1e6
  stop_mirai(c(list(busy), x))
  call_mirai(mirai(1))
  time
})

# In a process of its own: memory that was used before would hide what this uses.
queue <- function() {
  x <- vector("list", 1e5)
  busy <- mirai(Sys.sleep(60))
  before <- rss_mb()
  time <- seconds(for (i in seq_along(x)) x[[i]] <- mirai(1))
  memory <- rss_mb() - before
  stop_mirai(busy)
  drain <- seconds(call_mirai(x))
  c(time = time, memory = memory, drain = drain)
}
queued <- replicate(3L, simplify = FALSE, {
  code <- c(
    "library(mirai)", "invisible(daemons(1))",
    paste("seconds <-", paste(deparse(seconds), collapse = "\n")),
    paste("rss_mb <-", paste(deparse(rss_mb), collapse = "\n")),
    paste("queue <-", paste(deparse(queue), collapse = "\n")),
    "cat(queue())"
  )
  file <- tempfile(fileext = ".R")
  writeLines(code, file)
  as.numeric(strsplit(system2(file.path(R.home("bin"), "Rscript"), file, stdout = TRUE), " ")[[1L]])
})
queue_row <- function(what, unit, budget, i) {
  values <- vapply(queued, `[`, 0, i)
  rows[[length(rows) + 1L]] <<- list(
    what = what, value = stats::median(values), unit = unit, low = min(values), high = max(values),
    raw = NULL, multiple = NULL, budget = budget, of_raw = FALSE
  )
}
queue_row("100,000 tasks queued behind one: time", "s", 1.5, 1L)
queue_row("100,000 tasks queued behind one: host memory", "MB", 200, 2L)
queue_row("100,000 tasks then done by one daemon", "s", NA, 3L)

## Maps

identity_map <- function(x) x
environment(identity_map) <- globalenv()
for (n in 1:2) {
  invisible(daemons(n))
  row(paste0("mirai_map(1:10000, f), trivial f, ", n, " daemon", if (n > 1) "s"), "tasks/s", c(50000, 60000)[n], f = function() {
    1e4 / seconds(mirai_map(1:10000, identity_map)[])
  })
}
row("the same with .progress", "tasks/s", NA, f = function() {
  1e4 / seconds(suppressMessages(mirai_map(1:10000, identity_map)[.progress]))
})
constant <- stats::runif(1.25e6)
row("200 map tasks with a 10 MB constant, 2 daemons", "ms", NA, times = 3L, f = function() {
  seconds(mirai_map(1:200, function(i, x) x[[i]], .args = list(constant))[]) * 1e3
})

## Uneven work

# How much longer tasks take than they would if each went to the daemon that is free first, at no
# cost. Sleeping, so that it can be seen on a machine of few cores; as long as they really slept.
nap <- function(x) {
  start <- Sys.time()
  Sys.sleep(x)
  as.numeric(difftime(Sys.time(), start, units = "secs"))
}
environment(nap) <- globalenv()
list_schedule <- function(times, n) {
  free <- numeric(n)
  for (time in times) {
    i <- which.min(free)
    free[i] <- free[i] + time
  }
  max(free)
}
invisible(daemons(4))
row("1,000 tasks of 0 to 20 ms, 4 daemons: beyond the ideal", "%", 3, times = 3L, f = function() {
  times <- stats::runif(1000, 0, 0.02)
  took <- seconds(slept <- mirai_map(times, nap)[])
  100 * (took / list_schedule(unlist(slept), 4) - 1)
})

## Large vectors

invisible(daemons(1))
x <- stats::runif(1.25e7)
row("100 MB vector: in and summed", "ms", NA, times = 3L, f = function() seconds(mirai(sum(x), x = x)[]) * 1e3)
row("100 MB vector: made there and sent out", "ms", NA, times = 3L, f = function() seconds(mirai(numeric(1.25e7))[]) * 1e3)
rm(x)
invisible(gc())

## Starting

# The first time in a session includes starting the fork server.
first <- replicate(3L, {
  code <- paste("library(mirai); s <- Sys.time(); d <- daemons(4);", "cat(as.numeric(Sys.time() - s, units = 'secs') * 1e3)")
  as.numeric(system2(file.path(R.home("bin"), "Rscript"), c("-e", shQuote(code)), stdout = TRUE))
})
rows[[length(rows) + 1L]] <- list(
  what = "daemons(4) ready, first time", value = stats::median(first), unit = "ms", low = min(first),
  high = max(first), raw = NULL, multiple = NULL, budget = NA, of_raw = FALSE
)
row("daemons(4) ready, again", "ms", NA, times = 5L, f = function() {
  invisible(daemons(0))
  seconds(daemons(4)) * 1e3
})

row("idle for 2 s: CPU of host and 4 daemons", "ms", 0, times = 3L, f = function() {
  pids <- c(Sys.getpid(), vapply(everywhere(Sys.getpid())[], identity, 0L))
  before <- cpu_ticks(pids)
  Sys.sleep(2)
  (cpu_ticks(pids) - before) * 10
})
invisible(daemons(0))

row("mirai(1)[] with no daemons", "ms", NA, times = 3L, f = function() seconds(mirai(1)[]) * 1e3)

## Report

if (json) {
  number <- function(x) if (is.null(x) || is.na(x)) "null" else format(x, digits = 6)
  lines <- vapply(rows, function(r) {
    sprintf(
      '  {"what": "%s", "value": %s, "unit": "%s", "low": %s, "high": %s, "raw_us": %s, "multiple": %s, "budget": %s, "budget_is_multiple": %s}',
      r$what, number(r$value), r$unit, number(r$low), number(r$high), number(r$raw), number(r$multiple),
      number(r$budget), tolower(r$of_raw)
    )
  }, "")
  cat("[\n", paste(lines, collapse = ",\n"), "\n]\n", sep = "")
} else {
  show <- function(x, unit) if (is.null(x) || is.na(x)) "" else paste(format(round(x, if (x < 10) 2 else 1)), unit)
  table <- data.frame(
    what = vapply(rows, `[[`, "", "what"),
    median = vapply(rows, function(r) show(r$value, r$unit), ""),
    range = vapply(rows, function(r) paste0(signif(r$low, 3), " - ", signif(r$high, 3)), ""),
    `x raw` = vapply(rows, function(r) show(r$multiple, ""), ""),
    budget = vapply(rows, function(r) show(r$budget, if (r$of_raw) "x raw" else r$unit), ""),
    check.names = FALSE
  )
  cat("raw ping-pong of a Unix socket: ", show(raw(), "us"), "\n\n", sep = "")
  print(table, right = FALSE, row.names = FALSE)
}
