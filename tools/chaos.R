# Chaos: see tools/chaos, which runs this with a temporary directory of its own.
library(mirai)
source("tools/resources.R")

options(mirai.keepalive = 2000)

# ---- What to run

rounds <- expand.grid(
  link = c("local", "abstract", "tcp", "ws", "tls+tcp", "wss", "relay"),
  policy = c("dispatcher", "direct"),
  retry = c("once", "retry"),
  stringsAsFactors = FALSE
)
# A relay is for hosts without dispatcher.
rounds <- rounds[!(rounds$link == "relay" & rounds$policy == "dispatcher"), ]
rounds$name <- do.call(paste, rounds)

read_arguments <- function(args) {
  out <- list(minutes = 3, seed = NULL, tasks = 2000, rounds = Inf, only = character(), list = FALSE)
  while (length(args)) {
    value <- suppressWarnings(as.numeric(args[2L]))
    number <- function() if (is.na(value)) stop(args[1L], " needs a number", call. = FALSE) else value
    taken <- 2L
    switch(
      args[1L],
      "--minutes" = out$minutes <- number(),
      "--hours" = out$minutes <- 60 * number(),
      "--seed" = out$seed <- as.integer(number()),
      "--tasks" = out$tasks <- number(),
      "--rounds" = out$rounds <- number(),
      "--list" = {
        out$list <- TRUE
        taken <- 1L
      },
      {
        if (startsWith(args[1L], "-")) stop("unknown option ", args[1L], call. = FALSE)
        out$only <- c(out$only, args[1L])
        taken <- 1L
      }
    )
    args <- args[-seq_len(taken)]
  }
  out
}

# ---- Daemons, and what is done to them

is_alive <- function(pid) tools::pskill(pid, 0L)

# A daemon that has started a task lately and still runs.
a_daemon <- function(marks) {
  pids <- unique(tail(read_marks(marks)$pid, 200L))
  pids <- Filter(is_alive, pids)
  if (length(pids)) pids[[sample.int(length(pids), 1L)]]
}

# Resets one of the TCP connections at a port.
cut_connection <- function(port) {
  established <- system2("ss", c("-Htn", "state", "established", paste0("'( sport = :", port, " )'")), stdout = TRUE)
  peers <- sub(".*:([0-9]+)\\s*$", "\\1", established)
  if (!length(peers)) return(FALSE)
  peer <- peers[[sample.int(length(peers), 1L)]]
  system2("ss", c("-K", "-tn", "dport", "=", paste0(":", peer)), stdout = FALSE, stderr = FALSE) == 0L
}

can_cut <- function() nzchar(Sys.which("ss")) && Sys.info()[["effective_user"]] == "root"

# Sets daemons for a round. Returns how to launch another, and the port at which they connect.
set_daemons <- function(round, n) {
  dispatcher <- round$policy == "dispatcher"
  retry <- round$retry == "retry"
  if (round$link == "local") {
    daemons(n, dispatcher = dispatcher, retry = retry)
    return(list(launch = function() launch_local(1L), port = NULL))
  }
  if (round$link == "relay") {
    # The relay is a process of its own with its own queue; this host sees it as one daemon.
    daemons(url = "tcp://127.0.0.1:0", dispatcher = FALSE, retry = retry)
    inner <- local_url()
    quoted <- encodeString(c(nextget("url"), inner), quote = "\"")
    code <- sprintf("mirai::dispatcher(%s, %s, retry = %s)", quoted[[1L]], quoted[[2L]], retry)
    rscript <- file.path(R.home("bin"), "Rscript")
    system2(rscript, c("-e", shQuote(code)), wait = FALSE, stdout = FALSE, stderr = FALSE)
    wait_connected(1L)
    launch <- function() launch_local(inner)
    for (i in seq_len(n)) launch()
    return(list(launch = launch, port = NULL))
  }
  url <- switch(
    round$link,
    abstract = local_url(),
    tcp = ,
    `tls+tcp` = paste0(round$link, "://127.0.0.1:0"),
    paste0(round$link, "://127.0.0.1:0/chaos")
  )
  daemons(url = url, dispatcher = dispatcher, retry = retry)
  real <- nextget("url")
  for (i in seq_len(n)) launch_local(1L)
  port <- sub(".*:([0-9]+)(/.*)?$", "\\1", real)
  list(launch = function() launch_local(1L), port = if (round$link != "abstract") port)
}

wait_connected <- function(n, seconds = 60) {
  end <- Sys.time() + seconds
  while (info()[["connections"]] < n) {
    if (Sys.time() > end) stop("only ", info()[["connections"]], " of ", n, " daemons have connected")
    Sys.sleep(0.01)
  }
}

# Waits until the tasks have resolved, or for so many seconds.
wait_for <- function(tasks, seconds) {
  limited <- function() {
    setTimeLimit(elapsed = seconds)
    on.exit(setTimeLimit())
    call_mirai(tasks)
  }
  # Around all of it: the limit may also be reached just before the wait, or just after it.
  tryCatch(limited(), error = function(e) {
    if (!grepl("time limit", conditionMessage(e))) stop(e)
  })
}

# ---- Tasks

# The last two need the value of another task: of an earlier one, or of one that no variable has.
kinds <- c("tiny", "busy", "large", "error", "sleep", "pipe", "chain")

# One task: notes that it has started, then does what its kind says. `needed` is the task that a "pipe" needs, `inner` the
# number that the task notes that a "chain" needs.
submit <- function(i, kind, marks, timeout, needed, inner) {
  if (kind == "chain") {
    needed <- mirai(
      {
        cat(paste0(inner, " ", Sys.getpid(), "\n"), file = marks, append = TRUE)
        i + 0.5
      },
      .args = list(i = i, inner = inner, marks = marks)
    )
  }
  mirai(
    {
      # In one piece: a cancellation may interrupt cat() between two.
      cat(paste0(i, " ", Sys.getpid(), "\n"), file = marks, append = TRUE)
      switch(
        kind,
        tiny = 2 * i,
        busy = {
          end <- proc.time()[["elapsed"]] + 0.003
          while (proc.time()[["elapsed"]] < end) NULL
          2 * i
        },
        large = rep(i, 6e4),
        error = stop("task ", i),
        sleep = {
          Sys.sleep(0.02)
          2 * i
        },
        pipe = ,
        chain = c(2 * i, length(x), x[[1L]])
      )
    },
    .args = list(i = i, kind = kind, marks = marks, x = needed),
    .timeout = timeout
  )
}

# `needed`: the value of the task that a "pipe" needs.
is_right <- function(value, i, kind, needed) {
  switch(
    kind,
    large = identical(value, rep(i, 6e4)),
    error = is_mirai_error(value) && identical(value$message, paste("task", i)),
    pipe = if (is_error_value(needed)) {
      # In a chain, the first that failed is the parent of all.
      is_broken(value) && is_same(value$parent, if (is_broken(needed)) needed$parent else needed)
    } else {
      identical(value, c(2 * i, length(needed), needed[[1L]]))
    },
    chain = identical(value, c(2 * i, 1, i + 0.5)) || is_broken(value) && value$parent[[1L]] %in% c(7L, 19L),
    identical(value, 2 * i)
  )
}

# Of error values that are codes, the reasons may have been told at different times.
is_same <- function(x, y) identical(x, y) || is.integer(x) && is.integer(y) && x[[1L]] == y[[1L]]

# Whether it is the value of a task that has not been started because the one that it needs has failed.
is_broken <- function(value) is_mirai_error(value) && "mirai_error_pipeline" %in% value$condition.class

read_marks <- function(marks) {
  if (!file.exists(marks)) return(data.frame(id = integer(), pid = integer()))
  fields <- scan(marks, list(id = 0L, pid = 0L), quiet = TRUE)
  as.data.frame(fields)
}

# ---- A round

run_round <- function(round, seed, n_tasks) {
  set.seed(seed)
  marks <- tempfile("marks")
  n <- sample(2:4, 1L)
  on.exit({
    daemons(NULL)
    unlink(marks)
  })
  set <- set_daemons(round, n)
  wait_connected(if (round$link == "relay") 1L else n)

  did <- c(kill = 0L, stop = 0L, cut = 0L, cancel = 0L, timeout = 0L, reset = 0L)
  stopped <- integer()
  tasks <- vector("list", n_tasks)
  kind <- sample(kinds, n_tasks, TRUE, c(0.7, 0.1, 0.05, 0.04, 0.01, 0.07, 0.03))
  # Of a "pipe", one of the tasks before it; the first task needs none.
  needs <- pmax(seq_len(n_tasks) - sample.int(20L, n_tasks, TRUE), 1L)
  kind[[1L]] <- "tiny"
  cancelled <- logical(n_tasks)
  i <- 0L
  while (i < n_tasks) {
    burst <- min(sample(c(1L, 10L, 100L, 300L), 1L), n_tasks - i)
    for (j in seq_len(burst)) {
      i <- i + 1L
      timeout <- if (runif(1L) < 0.01) sample.int(50L, 1L)
      if (!is.null(timeout)) did[["timeout"]] <- did[["timeout"]] + 1L
      needed <- if (kind[[i]] == "pipe") tasks[[needs[[i]]]]
      tasks[[i]] <- submit(i, kind[[i]], marks, timeout, needed, n_tasks + i)
    }
    fault <- sample(c("none", "wait", "kill", "stop", "cut", "cancel"), 1L, prob = c(2, 3, 2, 1, 2, 2))
    if (fault == "cut" && (is.null(set$port) || !can_cut())) fault <- "kill"
    switch(
      fault,
      wait = wait_for(tasks[seq_len(i)], 0.2),
      kill = {
        pid <- a_daemon(marks)
        if (!is.null(pid) && tools::pskill(pid, tools::SIGKILL)) {
          did[["kill"]] <- did[["kill"]] + 1L
          set$launch()
        }
      },
      stop = {
        pid <- a_daemon(marks)
        if (!is.null(pid) && tools::pskill(pid, tools::SIGSTOP)) {
          did[["stop"]] <- did[["stop"]] + 1L
          stopped <- c(stopped, pid)
        }
      },
      cut = if (cut_connection(set$port)) {
        did[["cut"]] <- did[["cut"]] + 1L
        set$launch()
      },
      cancel = {
        some <- sample.int(i, min(i, 20L))
        cancelled[some] <- cancelled[some] | unlist(stop_mirai(tasks[some]))
        did[["cancel"]] <- did[["cancel"]] + length(some)
      }
    )
    # Whatever was stopped before goes on, so that at most one daemon stands still.
    if (length(stopped) && (fault != "stop" || length(stopped) > 1L)) {
      tools::pskill(stopped[[1L]], tools::SIGCONT)
      stopped <- stopped[-1L]
    }
  }
  for (pid in stopped) tools::pskill(pid, tools::SIGCONT)
  if (runif(1L) < 0.2) {
    # The end in the middle of the work: what is pending is reset.
    wait_for(tasks, 2)
    did[["reset"]] <- 1L
    daemons(0)
  }
  wait_for(tasks, 120)
  resolved <- sum(!vapply(tasks, unresolved, NA))
  values <- lapply(tasks, function(m) m$data)
  daemons(NULL)
  # What was begun is known once the last daemon is gone.
  end <- Sys.time() + 20
  repeat {
    left <- setdiff(processes(), fork_server())
    if (!length(left) || Sys.time() > end) break
    Sys.sleep(0.02)
  }
  verdict(round, did, tasks, values, kind, needs, resolved, read_marks(marks), left)
}

verdict <- function(round, did, tasks, values, kind, needs, resolved, begun, left) {
  n <- length(tasks)
  # Those of the tasks that a "chain" needs come after the others.
  all_times <- tabulate(begun$id, 2L * n)
  times <- all_times[seq_len(n)]
  code <- vapply(values, function(v) if (is.integer(v) && is_error_value(v)) as.integer(v) else 0L, 0L)
  ended <- code == 0L & !vapply(values, inherits, NA, "unresolvedValue")
  right <- vapply(which(ended), function(i) is_right(values[[i]], i, kind[[i]], values[[needs[[i]]]]), NA)
  broken <- vapply(values, is_broken, NA)
  lost_inside <- vapply(which(broken), function(i) identical(values[[i]]$parent[[1L]], 19L), NA)
  losses <- did[["kill"]] + did[["cut"]] + did[["stop"]]
  faults <- c(
    if (resolved < n) paste(n - resolved, "never resolved"),
    if (!all(right)) paste(sum(!right), "have a wrong value, the first:", which(ended)[!right][[1L]]),
    if (round$retry == "once" && any(all_times > 1L)) paste(sum(all_times > 1L), "were started twice without retry"),
    if (round$retry == "retry" && any(all_times > 1L + losses)) "started more often than daemons were lost",
    if (any(times[ended & !broken] == 0L)) paste(sum(times[ended & !broken] == 0L), "have a value but were never started"),
    if (any(times[broken] > 0L)) paste(sum(times[broken] > 0L), "were started though they lack a value"),
    if (round$retry == "retry" && did[["reset"]] == 0L && any(lost_inside)) paste(sum(lost_inside), "lack a value in spite of retry"),
    if (round$retry == "retry" && did[["reset"]] == 0L && any(code == 19L)) paste(sum(code == 19L), "were lost in spite of retry"),
    if (did[["reset"]] == 0L && losses == 0L && any(code == 19L)) paste(sum(code == 19L), "were lost though nothing was broken"),
    if (length(left)) paste("processes left:", toString(left))
  )
  list(
    faults = faults,
    text = sprintf(
      "%d tasks: %d done, %d broken, %d lost (%d of them never started), %d cancelled, %d timed out; %s",
      n, sum(ended & !broken), sum(broken), sum(code == 19L), sum(code == 19L & times == 0L), sum(code == 20L), sum(code == 5L),
      paste(did[did > 0L], names(did)[did > 0L], collapse = ", ")
    )
  )
}

# ---- What must not grow

# How much more than after the first round of each kind is still no leak. R's pages count as in use, also those that are
# empty: after 486 rounds there were 11 MB more of them.
slack <- c(rss_mb = 20, used_mb = 25, r_mb = 3, threads = 2, descriptors = 4, mappings = 100, files = 0, processes = 0)

# ---- Main

main <- function() {
  args <- read_arguments(commandArgs(TRUE))
  if (length(args$only)) {
    matches <- Reduce(`|`, lapply(args$only, grepl, rounds$name))
    rounds <- rounds[matches, ]
  }
  if (args$list) return(writeLines(rounds$name))
  if (!nrow(rounds)) stop("no round matches", call. = FALSE)
  if (!can_cut()) message("Connections are not cut: that needs root and ss of iproute2.")
  seed <- if (is.null(args$seed)) sample.int(1e9L, 1L) else args$seed
  end <- Sys.time() + 60 * args$minutes
  failed <- done <- 0L
  baseline <- NULL
  repeat {
    for (i in seq_len(nrow(rounds))) {
      if (done >= args$rounds || done > 0L && Sys.time() > end) break
      round <- rounds[i, ]
      result <- tryCatch(
        run_round(round, seed, args$tasks),
        error = function(e) list(faults = paste("error:", conditionMessage(e)), text = "")
      )
      done <- done + 1L
      cat(format(round$name, width = 24), " seed ", seed, "  ", result$text, "\n", sep = "")
      for (fault in result$faults) cat("  FAILED: ", fault, "\n", sep = "")
      if (length(result$faults)) {
        failed <- failed + 1L
        cat("  again by: tools/chaos --rounds 1 --tasks ", args$tasks, " --seed ", seed, " '", round$name, "'\n", sep = "")
      }
      # Each round has a seed of its own, which follows from the first.
      seed <- (seed * 69069 + 1) %% 999999937
      seed <- as.integer(seed)
    }
    if (is.null(baseline)) baseline <- resources()
    if (done >= args$rounds || Sys.time() > end) break
  }
  now <- resources()
  leaks <- grown(baseline, now, slack)
  print(rbind(`after the first of each` = baseline, `at the end` = now), digits = 4)
  if (length(leaks)) {
    cat("FAILED: grown: ", toString(leaks), "\n", sep = "")
    failed <- failed + 1L
  }
  cat(done + 1L - failed, " passed, ", failed, " failed, 0 skipped\n", sep = "")
  quit(status = if (failed) 1L else 0L)
}

main()
