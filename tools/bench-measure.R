# Sourced by bench.R: how a row is measured.
#
# A row has contenders, mirai the first of them: functions that do the same work and return a
# number each. They take turns within a round, so noise hits all alike, and before each round the
# raw ping-pong of a Unix socket tells what the machine does just then. Medians are reported.

## Clocks and meters

now <- function() as.numeric(Sys.time())

seconds <- function(expr) {
  start <- now()
  force(expr)
  now() - start
}

ms <- function(expr) seconds(expr) * 1e3

# Fields of /proc/PID/status, in MB.
memory_mb <- function(field, pid = "self") {
  line <- grep(paste0("^", field, ":"), readLines(file.path("/proc", pid, "status")), value = TRUE)
  as.numeric(gsub("[^0-9]", "", line)) * 1024 / 1e6
}

# The most memory so far becomes what is used now.
reset_peak <- function() writeLines("5", "/proc/self/clear_refs")

# Processor time of processes, in milliseconds.
cpu_ms <- function(pids) {
  sum(vapply(pids, function(pid) {
    stat <- sub(".*\\) ", "", readLines(file.path("/proc", pid, "stat")))
    sum(as.numeric(strsplit(stat, " ")[[1L]][12:13])) * 10
  }, 0))
}

# Calls a function in a session of its own and returns the numbers that it returns: for what would
# otherwise depend on what was measured before.
fresh <- function(f, ...) {
  file <- tempfile(fileext = ".R")
  on.exit(unlink(file))
  dump(c("now", "seconds", "ms", "memory_mb", "reset_peak"), file, envir = globalenv())
  cat("in_there <-", deparse(f), "\n", file = file, sep = "\n", append = TRUE)
  call <- as.call(c(list(as.name("in_there")), list(...)))
  cat("cat('\\n', format(", deparse(call), ", digits = 15))\n", file = file, append = TRUE)
  out <- system2(file.path(R.home("bin"), "Rscript"), c("--no-init-file", file), stdout = TRUE)
  as.numeric(strsplit(trimws(out[length(out)]), " +")[[1L]])
}

# A ping-pong without R and without mirai, in microseconds: see examples/ping_pong.rs.
raw_us <- function(way = character()) as.numeric(system2(file.path(programs, "ping_pong"), way, stdout = TRUE))

## Processes, kept from one row to the next

have <- function(package) requireNamespace(package, quietly = TRUE)

pools <- new.env()

# `n` daemons in the default profile.
our <- function(n) {
  if (!identical(pools$mirai, n)) invisible(mirai::daemons(n))
  pools$mirai <- n
}

# A daemon across the loopback interface, in a profile named as the scheme.
networked <- function(scheme) {
  if (is.null(pools[[scheme]])) pools[[scheme]] <- join_network(scheme)
  scheme
}

join_network <- function(scheme) {
  mirai::daemons(url = paste0(scheme, "://127.0.0.1:0"), .compute = scheme)
  mirai::launch_local(1, .compute = scheme)
  mirai::mirai(1, .compute = scheme)[]
}

psock <- function(n) {
  if (!identical(length(pools$psock), n)) {
    if (!is.null(pools$psock)) parallel::stopCluster(pools$psock)
    pools$psock <- parallel::makeCluster(n, "PSOCK")
  }
  pools$psock
}

multisession <- function(n) {
  if (!identical(pools$future, n)) suppressWarnings(future::plan(future::multisession, workers = n))
  pools$future <- n
}

callr_session <- function() {
  if (is.null(pools$callr)) pools$callr <- callr::r_session$new()
  pools$callr
}

end_pools <- function() {
  for (profile in intersect(c("tcp", "tls+tcp"), names(pools))) mirai::daemons(0, .compute = profile)
  mirai::daemons(0)
  if (!is.null(pools$psock)) parallel::stopCluster(pools$psock)
  if (!is.null(pools$future)) future::plan(future::sequential)
  if (!is.null(pools$callr)) pools$callr$close()
}

## Rows

rows <- list()

# Adds a row. `name` is what it is selected by, and `at` its place on the x axis of a plot. `budget` is in
# `unit`, or in multiples of the ping-pong where `of_raw`. `cran` is what CRAN's mirai 2.7 took on this kind of machine
# (DESIGN.md). `limit`: a budget that is only known when the row has been measured, as a function of the
# results so far. `more`: more is better. `warm`: everyone has a try that does not count.
row <- function(
  name,
  what,
  unit,
  contenders,
  budget = NA,
  of_raw = FALSE,
  cran = NA,
  rounds = 5L,
  at = NA,
  limit = NULL,
  more = FALSE,
  warm = TRUE,
  note = NULL
) {
  if (is.function(contenders)) contenders <- list(mirai = contenders)
  rows[[length(rows) + 1L]] <<- list(
    name = name, what = what, group = group, unit = unit, contenders = contenders, budget = budget, of_raw = of_raw,
    cran = cran, rounds = rounds, at = at, limit = limit, more = more, warm = warm, note = note
  )
}

# One figure for each contender: a list of data frames.
measure <- function(row, results) {
  contenders <- row$contenders[vapply(row$contenders, is.function, NA)]
  rounds <- if (quick) min(row$rounds, 3L) else row$rounds
  values <- matrix(NA_real_, rounds, length(contenders), dimnames = list(NULL, names(contenders)))
  raws <- numeric(rounds)
  attempt <- function(who) {
    invisible(gc())
    tryCatch(suppressMessages(contenders[[who]]()), error = function(e) {
      message("  ", row$name, ", ", who, ": ", conditionMessage(e))
      NA_real_
    })
  }
  if (row$warm) for (who in names(contenders)) attempt(who)
  for (i in seq_len(rounds)) {
    raws[i] <- raw_us()
    # Each is the first as often as any other.
    for (j in (seq_along(contenders) + i - 2L) %% length(contenders) + 1L) values[i, j] <- attempt(names(contenders)[j])
  }
  ours <- stats::median(values[, 1L])
  figures <- lapply(seq_along(contenders), function(j) {
    value <- stats::median(values[, j])
    ratio <- if (row$more) ours / value else value / ours
    data.frame(
      name = row$name, group = row$group, what = row$what, contender = names(contenders)[j], unit = row$unit,
      value = value, low = min(values[, j]), high = max(values[, j]), rounds = rounds, at = row$at,
      raw_us = stats::median(raws), x_raw = if (row$unit == "us") stats::median(values[, j] / raws) else NA_real_,
      times_ours = if (j == 1L) 1 else ratio, more = row$more,
      budget = NA_real_, of_raw = row$of_raw, cran = NA_real_, over = NA_real_, note = NA_character_
    )
  })
  if (!length(figures)) return(NULL)
  figures <- do.call(rbind, figures)
  figures$cran[1L] <- row$cran
  figures$budget[1L] <- row$budget
  if (!is.null(row$note)) figures$note[1L] <- if (is.function(row$note)) row$note() else row$note
  if (!is.null(row$limit)) figures$budget[1L] <- row$limit(rbind(results, figures))
  figures$over[1L] <- over(figures[1L, ])
  figures
}

# How many times over its budget a figure is; up to 1 it is met.
over <- function(figure) {
  value <- if (figure$of_raw) figure$x_raw else figure$value
  if (is.na(figure$budget)) return(NA_real_)
  if (figure$budget == 0) return(if (value == 0) 1 else Inf)
  if (figure$more) figure$budget / value else value / figure$budget
}

# The least of mirai's values in those rows, of the family `prefix`, that come before `at`.
least_before <- function(results, prefix, at) {
  before <- results$contender == "mirai" & startsWith(results$name, prefix) & results$at < at
  if (any(before)) min(results$value[before]) else NA_real_
}
