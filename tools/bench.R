# Rscript tools/bench.R DIRECTORY [options]: see tools/bench, which calls this. DIRECTORY has the programs
# that measure without R.
#
# Here is what is measured; bench-measure.R has how, and bench-report.R what becomes of it. It is longer than 500 lines because
# each row of the table stands here, in the table's order.
library(mirai)
options(width = 200, future.globals.maxSize = Inf)

args <- commandArgs(TRUE)
programs <- args[1L]
args <- args[-1L]

take <- function(option) {
  at <- match(option, args)
  if (is.na(at)) return(NULL)
  value <- args[at + 1L]
  args <<- args[-c(at, at + 1L)]
  value
}
flag <- function(option) {
  given <- option %in% args
  args <<- setdiff(args, option)
  given
}
json <- take("--json")
plots <- take("--plot")
from <- take("--from")
quick <- flag("--quick")
only_names <- flag("--list")
patterns <- args

source("tools/bench-measure.R")
source("tools/bench-report.R")

# One of two, the latter for --quick.
or_quick <- function(full, less) if (quick) less else full

# What tasks do. Defined here, as a function takes its environment along, unless that is the global one.
itself <- function(x) x
one <- function() 1
total <- function(x) sum(x)
zeros <- function(n) numeric(n)
changed <- function(x) {
  x[1L] <- 0
  x
}
element <- function(i, x) x[[i]]

# Contenders that need a package, or forks.
with_future <- if (have("future.apply")) identity else function(f) NULL
with_callr <- if (have("callr")) identity else function(f) NULL
with_forks <- if (.Platform$OS.type == "unix") identity else function(f) NULL

## One task
group <- "One task"

trips <- or_quick(5000, 1000)
round_trips <- function() {
  our(1L)
  for (i in 1:200) mirai(1)[]
  seconds(for (i in seq_len(trips)) mirai(1)[]) / trips * 1e6
}
row("roundtrip", "mirai(1)[], one daemon", "us", budget = 1.2, of_raw = TRUE, cran = 296, rounds = 9L, list(
  mirai = round_trips,
  "Unix socket by hand" = raw_us,
  "Unix socket, spinning, by hand" = function() raw_us("spin"),
  "TCP by hand" = function() raw_us("tcp"),
  "parallel clusterCall" = function() {
    cl <- psock(1L)
    seconds(for (i in 1:500) parallel::clusterCall(cl, one)) / 500 * 1e6
  },
  "future" = with_future(function() {
    multisession(2L)
    seconds(for (i in 1:30) future::value(future::future(1))) / 30 * 1e6
  }),
  "callr r_session" = with_callr(function() {
    session <- callr_session()
    seconds(for (i in 1:30) session$run(one)) / 30 * 1e6
  })
))

# All processors but one have something else to do.
while_busy <- function(f) function() {
  cores <- parallel::detectCores()
  pids <- vapply(seq_len(cores - 1L), function(i) {
    as.integer(system("sh -c 'while :; do :; done' >/dev/null & echo $!", intern = TRUE))
  }, 0L)
  on.exit(tools::pskill(pids, tools::SIGKILL))
  f()
}
row("roundtrip-busy", "the same, with all processors but one busy", "us", rounds = 5L,
  limit = function(results) 4 * results$value[results$name == "roundtrip-busy" & startsWith(results$contender, "Unix")], list(
    mirai = with_forks(while_busy(round_trips)),
    "Unix socket by hand" = with_forks(while_busy(raw_us))
  ))

row("submit", "mirai(1), submission only", "us", budget = 3, cran = 46, rounds = 9L, function() {
  our(1L)
  x <- vector("list", trips)
  busy <- mirai(Sys.sleep(60))
  time <- seconds(for (i in seq_len(trips)) x[[i]] <- mirai(1)) / trips * 1e6
  stop_mirai(c(list(busy), x))
  call_mirai(mirai(1))
  time
})

row("oneoff", "mirai(1)[] with no daemons", "ms", budget = 5, cran = 169, list(
  mirai = function() {
    our(0L)
    ms(mirai(1)[])
  },
  "parallel mcparallel" = with_forks(function() ms(parallel::mccollect(parallel::mcparallel(1)))),
  "callr r" = with_callr(function() ms(callr::r(one)))
))

## What the time of a task goes into
group <- "A task, step by step"

# Of `trips` tasks, microseconds for each: the host makes and queues all while the daemon is busy; the daemon does all, its
# processor time; the host reads all values once they are here. So neither waits for the other.
step_by_step <- function() {
  our(1L)
  daemon <- file.path("/proc", mirai(Sys.getpid())[], "schedstat")
  processor_us <- function() as.numeric(strsplit(readLines(daemon), " ")[[1L]][1L]) / 1e3
  x <- vector("list", trips)
  busy <- mirai(Sys.sleep(60))
  submitted <- seconds(for (i in seq_len(trips)) x[[i]] <- mirai(1))
  before <- processor_us()
  stop_mirai(busy)
  call_mirai(x)
  worked <- processor_us() - before
  read <- seconds(for (m in x) m[])
  c(submitted * 1e6, worked, read * 1e6) / trips
}
step_runs <- list()
# Three rows from the same runs: each takes the next, and makes it if it is not there.
step_figure <- function(i) {
  turn <- 0L
  function() {
    turn <<- turn + 1L
    if (length(step_runs) < turn) step_runs[[turn]] <<- step_by_step()
    step_runs[[turn]][i]
  }
}
if (file.exists("/proc/self/schedstat")) {
  row("step-submit", "the host makes the mirai, serializes the expression, queues the task", "us", rounds = 9L, step_figure(1L))
  row("step-daemon", "the daemon reads the task, evaluates it, sends the value, restores R", "us", rounds = 9L, step_figure(2L))
  row("step-read", "the host makes the value of what has come", "us", rounds = 9L, step_figure(3L))
}

## Maps
group <- "Maps"

for (workers in 1:2) local({
  workers <- workers
  n <- or_quick(10000L, 2000L)
  row(paste0("map-", workers), paste0("mirai_map(1:", n, ", f), trivial f, ", workers, " daemon", if (workers > 1L) "s"),
    "tasks/s", budget = c(3e5, 5e5)[workers], cran = c(3900, 6500)[workers], more = TRUE, list(
      mirai = function() {
        our(workers)
        n / seconds(mirai_map(seq_len(n), itself)[])
      },
      "parLapplyLB, one by one" = function() {
        cl <- psock(workers)
        2000 / seconds(parallel::parLapplyLB(cl, 1:2000, itself, chunk.size = 1))
      },
      "parLapplyLB, in chunks" = function() {
        cl <- psock(workers)
        n / seconds(parallel::parLapplyLB(cl, seq_len(n), itself))
      },
      "mclapply, in chunks" = if (workers > 1L) with_forks(function() {
        n / seconds(parallel::mclapply(seq_len(n), itself, mc.cores = workers))
      }),
      "future_lapply, in chunks" = if (workers > 1L) with_future(function() {
        multisession(workers)
        n / seconds(future.apply::future_lapply(seq_len(n), itself))
      })
    ))
})

row("progress", "the same with .progress, 2 daemons", "tasks/s", more = TRUE, function() {
  our(2L)
  1e4 / seconds(suppressMessages(mirai_map(1:10000, itself)[.progress]))
})

# What the system takes for the memory alone: the floor of the row that is the `i`th of three.
by_hand <- function(i, bytes = 1e8) {
  program <- file.path(programs, "shared_memory")
  if (file.exists(program)) function() as.numeric(system2(program, digits(bytes), stdout = TRUE))[i]
}
digits <- function(n) format(n, scientific = FALSE)

constant <- stats::runif(1.25e6)
row("constant", "200 map tasks with a 10 MB constant, 2 daemons", "ms", budget = 5, cran = 1722, list(
  mirai = function() {
    our(2L)
    ms(mirai_map(1:200, element, .args = list(constant))[])
  },
  "memfd and mmap by hand" = by_hand(3L, 1e7),
  "the same map with a constant of 8 bytes" = function() {
    our(2L)
    ms(mirai_map(rep(1L, 200), element, .args = list(1))[])
  },
  "parLapplyLB, in chunks" = function() {
    cl <- psock(2L)
    ms(parallel::parLapplyLB(cl, 1:200, element, constant))
  },
  "mclapply, in chunks" = with_forks(function() ms(parallel::mclapply(1:200, element, constant, mc.cores = 2L))),
  "future_lapply, in chunks" = with_future(function() {
    multisession(2L)
    ms(future.apply::future_lapply(1:200, element, constant))
  })
))

# What a list scheduler that knows nothing of the tasks takes for them, at no cost: each goes to whoever
# is free first.
list_schedule <- function(times, workers) {
  free <- numeric(workers)
  for (time in times) {
    first <- which.min(free)
    free[first] <- free[first] + time
  }
  max(free)
}

uneven <- local({
  set.seed(20)
  stats::runif(or_quick(1000, 250), 0, 0.02)
})
# What is not a scheduler's business: that sleeping takes longer than it should, and a map of nothing much.
fixed <- NULL
uneven_floor <- function() {
  if (is.null(fixed)) {
    our(4L)
    late <- replicate(50L, seconds(Sys.sleep(0.005)) - 0.005)
    empty <- replicate(20L, seconds(mirai_map(1:4, itself)[]))
    fixed <<- c(late = stats::median(late), empty = stats::median(empty))
  }
  list_schedule(uneven + fixed[["late"]], 4L) + fixed[["empty"]]
}
row("uneven", paste(length(uneven), "tasks of 0 to 20 ms, 4 daemons: time beyond the ideal schedule"), "%", budget = 3,
  rounds = 3L, warm = FALSE,
  note = function() {
    sprintf(
      "ideal list schedule %.3f s; with sleeps that end %.2f ms late and an empty map of %.2f ms, which count as fixed: %.3f s",
      list_schedule(uneven, 4L), fixed[["late"]] * 1e3, fixed[["empty"]] * 1e3, uneven_floor()
    )
  },
  lapply(list(
    mirai = function() mirai_map(uneven, Sys.sleep)[],
    "parLapplyLB, one by one" = function() parallel::parLapplyLB(psock(4L), uneven, Sys.sleep, chunk.size = 1),
    "parLapplyLB, in chunks" = function() parallel::parLapplyLB(psock(4L), uneven, Sys.sleep),
    "mclapply, a fork for each" = with_forks(function() {
      parallel::mclapply(uneven, Sys.sleep, mc.cores = 4L, mc.preschedule = FALSE)
    }),
    "mclapply, in chunks" = with_forks(function() parallel::mclapply(uneven, Sys.sleep, mc.cores = 4L)),
    "future_lapply, in chunks" = with_future(function() future.apply::future_lapply(uneven, Sys.sleep))
  ), function(work) {
    if (!is.null(work)) function() {
      floor <- uneven_floor()
      our(4L)
      psock(4L)
      if (have("future.apply")) multisession(4L)
      (seconds(work()) / floor - 1) * 100
    }
  })
)

## Large vectors
group <- "Large vectors"

x <- NULL   # made when first needed
large <- function() {
  if (is.null(x)) x <<- stats::runif(1.25e7)
  x
}
# The same three for each way of having another process work on a vector.
vector_contenders <- function(i, f, argument = large) {
  list(
    mirai = function() {
      our(1L)
      x <- argument()
      ms(mirai(f(x), f = f, x = x)[])
    },
    "memfd and mmap by hand" = by_hand(i),
    "parallel clusterCall" = function() {
      x <- argument()
      cl <- psock(1L)
      ms(parallel::clusterCall(cl, f, x))
    },
    "parallel mcparallel" = with_forks(function() {
      x <- argument()
      ms(parallel::mccollect(parallel::mcparallel(f(x))))
    }),
    "future" = with_future(function() {
      x <- argument()
      multisession(2L)
      ms(future::value(future::future(f(x))))
    }),
    "callr r_session" = with_callr(function() {
      x <- argument()
      session <- callr_session()
      ms(session$run(f, list(x)))
    })
  )
}
# Within a tenth of what it takes by hand.
near_the_hand <- function(name) function(results) 1.1 * results$value[results$name == name & grepl("by hand$", results$contender)]
row("vector-in", "100 MB vector: in and summed", "ms", limit = near_the_hand("vector-in"), cran = 391, vector_contenders(1L, total))
row("vector-out", "100 MB vector: made there and sent out", "ms", limit = near_the_hand("vector-out"), cran = 231,
  vector_contenders(2L, zeros, function() 1.25e7))
row("vector-both", "100 MB vector: in, changed, out", "ms", limit = near_the_hand("vector-both"), cran = 418,
  vector_contenders(3L, changed))

label <- function(n) format(n, big.mark = ",", scientific = FALSE)

how_many <- or_quick(2e5, 2e4)
many_strings <- NULL   # made when first needed
strings <- function() {
  if (is.null(many_strings)) {
    many_strings <<- stats::setNames(as.list(paste("value", seq_len(how_many))), paste("name", seq_len(how_many)))
  }
  many_strings
}
row("strings", paste("list of", label(how_many), "named strings: in"), "ms",
  budget = or_quick(12, 1.2), cran = or_quick(51, NA), rounds = 9L, list(
    mirai = function() {
      our(1L)
      x <- strings()
      ms(mirai(length(x), x = x)[])
    },
    "serialize(), unserialize() by hand" = function() {
      x <- strings()
      ms(unserialize(serialize(x, NULL, xdr = FALSE)))
    },
    # R looks for each string among all that it has, and makes a vector of each value.
    "R's part by hand: the same list from text" = function() {
      x <- strings()
      names <- paste(names(x), collapse = "\n")
      values <- paste(unlist(x), collapse = "\n")
      rm(x)
      ms(stats::setNames(as.list(strsplit(values, "\n", fixed = TRUE)[[1L]]), strsplit(names, "\n", fixed = TRUE)[[1L]]))
    },
    "parallel clusterCall" = function() {
      x <- strings()
      cl <- psock(1L)
      ms(parallel::clusterCall(cl, base::length, x))
    }
  ))

# The process has the vector and then one that came back: how much more did it need in between?
peak <- function(kind) {
  library(mirai)
  gigabyte <- 1.25e8
  if (kind == "mirai") daemons(1) else cl <- parallel::makeCluster(1, "PSOCK")
  x <- stats::runif(gigabyte)
  invisible(gc())
  reset_peak()
  before <- memory_mb("VmRSS")
  time <- seconds(y <- if (kind == "mirai") mirai(x, x = x)[] else parallel::clusterCall(cl, identity, x)[[1L]])
  stopifnot(length(y) == gigabyte, identical(y[gigabyte], x[gigabyte]))
  c((memory_mb("VmHWM") - before) / 1000, time)
}
row("memory-1gb", "1 GB vector there and back: host's peak beyond its own copy", "x data",
  if (!quick) list(mirai = function() fresh(peak, "mirai")[1L], "parallel clusterCall" = function() fresh(peak, "parallel")[1L]),
  budget = 1, rounds = 1L, warm = FALSE)

## Many tasks
group <- "Many tasks"

# Submits so many behind one that runs: seconds for that, MB of the host for that, seconds until all are done,
# and seconds of the first that R's garbage collector took.
queue <- function(n) {
  library(mirai)
  gc.time(TRUE)
  daemons(1)
  for (i in 1:200) mirai(1)[]
  x <- vector("list", n)
  invisible(gc())
  busy <- mirai(Sys.sleep(600))
  before <- memory_mb("VmRSS")
  collector <- gc.time()[[3L]]
  time <- seconds(for (i in seq_along(x)) x[[i]] <- mirai(1))
  collector <- gc.time()[[3L]] - collector
  memory <- memory_mb("VmRSS") - before
  stop_mirai(busy)
  c(time, memory, seconds(call_mirai(x)), collector)
}
# Three rows from the same runs.
queued <- new.env()
queue_figure <- function(n, i) {
  key <- format(n, scientific = FALSE)
  runs <- queued[[key]]
  # Each row takes the next run, and makes it if it is not there.
  at <- paste(key, i)
  turn <- queued[[at]] <- c(queued[[at]], 1L)
  if (length(runs) < length(turn)) queued[[key]] <- runs <- c(runs, list(fresh(queue, n)))
  runs[[length(turn)]][i]
}
if (!quick) {
  row("queue-time", "100,000 tasks queued behind one: time", "s", budget = 0.3, cran = 4.6, rounds = 3L, warm = FALSE,
    function() queue_figure(1e5, 1L))
  row("queue-memory", "100,000 tasks queued behind one: host memory", "MB", budget = 100, cran = 950, rounds = 3L,
    warm = FALSE, function() queue_figure(1e5, 2L))
}

lengths <- if (quick) 10^(2:4) else 10^(2:6)
for (length in lengths) local({
  n <- length
  collector <- numeric()
  row(paste0("length-", digits(n)), paste(label(n), "tasks queued behind one: each"), "us", at = n, warm = FALSE,
    rounds = if (n < 1e6) 3L else 1L, limit = function(results) 1.2 * least_before(results, "length-", n),
    note = function() paste("of which R's garbage collector:", number(stats::median(collector)), "us"), function() {
      runs <- replicate(if (n < 1e4) 3 else 1, fresh(queue, n)) / n * 1e6
      collector <<- c(collector, mean(runs[4L, ]))
      mean(runs[1L, ])
    })
})
for (length in lengths) local({
  n <- length
  times <- max(1, 1e4 / n)   # so that also the short ones take a while
  row(paste0("tasks-", digits(n)), paste0("mirai_map() of ", label(n), " tasks, 1 daemon: each"), "us", at = n,
    rounds = if (n < 1e6) 5L else 1L, warm = n < 1e5, limit = function(results) 1.2 * least_before(results, "tasks-", n),
    list(
      mirai = function() {
        our(1L)
        seconds(for (i in seq_len(times)) mirai_map(seq_len(n), itself)[]) / n / times * 1e6
      },
      "parLapplyLB, one by one" = if (n <= 1e4) function() {
        cl <- psock(1L)
        times <- max(1, 1e3 / n)
        seconds(for (i in seq_len(times)) parallel::parLapplyLB(cl, seq_len(n), itself, chunk.size = 1)) / n / times * 1e6
      }
    ))
})

## Checkpoints
group <- "Checkpoints"

# A task of a millisecond of computation.
for_a_millisecond <- function(x) {
  end <- proc.time()[["elapsed"]] + 0.001
  while (proc.time()[["elapsed"]] < end) NULL
  x
}
checkpointed <- or_quick(1e5, 5e3)
row("checkpoint", paste("map of", label(checkpointed), "tasks of 1 ms, 2 daemons, into a checkpoint"), "s", rounds = 3L, warm = FALSE,
  limit = function(results) 1.05 * results$value[results$contender == "without the checkpoint"], list(
    mirai = function() {
      our(2L)
      file <- tempfile()
      on.exit(unlink(file))
      seconds(mirai_map(seq_len(checkpointed), for_a_millisecond, .checkpoint = file)[])
    },
    "without the checkpoint" = function() {
      our(2L)
      seconds(mirai_map(seq_len(checkpointed), for_a_millisecond)[])
    }
  ))

## Pipelines
group <- "Pipelines"

# So many steps one after the other, each with the value of the one before: that of the last. `pass` passes it on.
chain <- function(n, x, f, pass) {
  m <- mirai(f(x), f = f, x = x)
  for (i in seq_len(n - 1L)) {
    m <- mirai(f(x), f = f, x = pass(m))
  }
  m[]
}
by_value <- function(m) m[]
gathered <- function(xs) sum(unlist(xs))

steps <- or_quick(1000L, 200L)
row("chain", paste(label(steps), "steps one after the other, 1 daemon: each"), "us", list(
  mirai = function() {
    our(1L)
    seconds(chain(steps, 1, itself, itself)) / steps * 1e6
  },
  "m[] and pass on" = function() {
    our(1L)
    seconds(chain(steps, 1, itself, by_value)) / steps * 1e6
  }
))
row("fan-in", paste(label(steps), "tasks and one that needs them all, 2 daemons"), "ms", list(
  mirai = function() {
    our(2L)
    ms(mirai(gathered(xs), gathered = gathered, xs = mirai_map(seq_len(steps), itself))[])
  },
  "m[] and pass on" = function() {
    our(2L)
    ms(mirai(gathered(xs), gathered = gathered, xs = mirai_map(seq_len(steps), itself)[])[])
  }
))
for (count in c(1L, 10L)) local({
  steps <- count
  row(paste0("chain-large-", steps), paste0("100 MB vector through ", steps, " step", if (steps > 1L) "s", ", 2 daemons"), "ms",
    limit = if (steps > 1L) function(results) 2 * least_before(results, "chain-large-", steps), at = steps, list(
      mirai = function() {
        our(2L)
        x <- large()
        ms(chain(steps, x, itself, itself))
      },
      "m[] and pass on" = function() {
        our(2L)
        x <- large()
        ms(chain(steps, x, itself, by_value))
      }
    ))
})
row("diamond", "100 MB made, summed by two daemons, and both sums in a fourth task", "ms", list(
  mirai = function() {
    our(2L)
    ms({
      x <- mirai(numeric(1.25e7))
      sums <- list(mirai(sum(x), x = x), mirai(sum(x), x = x))
      mirai(xs[[1L]] + xs[[2L]], xs = sums)[]
    })
  },
  "m[] and pass on" = function() {
    our(2L)
    ms({
      x <- mirai(numeric(1.25e7))[]
      sums <- list(mirai(sum(x), x = x), mirai(sum(x), x = x))
      sums <- lapply(sums, by_value)
      mirai(xs[[1L]] + xs[[2L]], xs = sums)[]
    })
  }
))

## Daemons
group <- "Daemons"

ready <- function(kind) {
  library(mirai)
  if (kind == "ready") ms(daemons(4)) else ms({daemons(4); mirai(1)[]})
}
again <- function(first_task) {
  our(0L)
  time <- ms({invisible(daemons(4)); if (first_task) mirai(1)[]})
  pools$mirai <- 4L
  time
}
row("ready-first", "daemons(4) ready, first time", "ms", cran = 354, warm = FALSE, list(
  mirai = function() fresh(ready, "ready"),
  "R itself, which the first daemon takes" = function() ms(system2(file.path(R.home("bin"), "Rscript"), c("--no-init-file", "-e", "1"), stdout = FALSE)),
  "parallel makeCluster" = function() {
    time <- ms(cl <- parallel::makeCluster(4L, "PSOCK"))
    parallel::stopCluster(cl)
    time
  },
  "future plan" = with_future(function() {
    future::plan(future::sequential)
    pools$future <- NULL
    ms(multisession(4L))
  }),
  "callr r_session" = with_callr(function() {
    time <- ms({
      sessions <- lapply(1:4, function(i) callr::r_session$new(wait = FALSE))
      for (session in sessions) session$poll_process(10000)
    })
    for (session in sessions) session$close()
    time
  })
))
row("ready-again", "daemons(4) ready, again", "ms", budget = 6, list(
  mirai = function() again(FALSE),
  "parallel mcparallel, four times" = with_forks(function() {
    our(0L)
    ms(parallel::mccollect(lapply(1:4, function(i) parallel::mcparallel(1))))
  })
))
row("task-first", "daemons(4) and the first task's value, first time", "ms", warm = FALSE, function() fresh(ready, "task"))
row("task-again", "daemons(4) and the first task's value, again", "ms", function() again(TRUE))
from_nothing <- function() ms({library(mirai); mirai(1)[]})
row("library", "library(mirai) and mirai(1)[] in a new session, without R's own start", "ms", budget = 60, cran = 199, warm = FALSE, list(
  mirai = function() fresh(from_nothing),
  # Without Rscript and the script R.
  "R itself, for the process of that task" = with_forks(function() {
    ms(system2(file.path(R.home("bin"), "exec", "R"), c("--no-echo", "--no-restore", "-e", "1"), stdout = FALSE))
  })
))

# Starts so many: seconds until the last one has done a task, MB of PSS of each.
crowd <- function(n) {
  library(mirai)
  time <- seconds({
    daemons(n)
    pids <- unlist(everywhere(Sys.getpid())[])
  })
  pss <- vapply(file.path("/proc", pids, "smaps_rollup"), function(file) {
    as.numeric(gsub("[^0-9]", "", grep("^Pss:", readLines(file), value = TRUE))) * 1024 / 1e6
  }, 0)
  daemons(0)
  c(time, mean(pss))
}
# Two rows from one run.
crowds <- new.env()
crowd_figure <- function(i) {
  if (is.null(crowds$figures)) crowds$figures <- fresh(crowd, or_quick(500, 50))
  crowds$figures[i]
}
if (file.exists("/proc/self/smaps_rollup")) {
  row("crowd-time", paste("daemons(", or_quick(500, 50), ") and a task on each", sep = ""), "s", budget = or_quick(5, 0.5), rounds = 1L,
    warm = FALSE, function() crowd_figure(1L))
  row("crowd-memory", paste("PSS of each of", or_quick(500, 50), "daemons"), "MB", budget = 12, rounds = 1L, warm = FALSE,
    function() crowd_figure(2L))
}
row("installed", "the installed package", "MB", budget = 4, rounds = 1L, warm = FALSE, function() {
  sum(file.size(list.files(find.package("mirai"), full.names = TRUE, recursive = TRUE, all.files = TRUE))) / 1e6
})
row("idle", paste("idle for", or_quick(10, 2), "s: CPU of host and 4 daemons"), "ms", budget = 0, rounds = 3L, warm = FALSE, function() {
  our(4L)
  pids <- c(Sys.getpid(), unlist(everywhere(Sys.getpid())[]))
  before <- cpu_ms(pids)
  Sys.sleep(or_quick(10, 2))
  cpu_ms(pids) - before
})

for (count in c(1L, 2L, 4L, 8L)) local({
  workers <- count
  n <- or_quick(10000, 2000)
  row(paste0("daemons-", workers), paste0("mirai_map() of trivial tasks, ", workers, " daemon", if (workers > 1L) "s", ": each"),
    "us", at = workers, list(
      mirai = function() {
        our(workers)
        seconds(mirai_map(seq_len(n), itself)[]) / n * 1e6
      },
      "parLapplyLB, one by one" = function() {
        cl <- psock(workers)
        seconds(parallel::parLapplyLB(cl, 1:1000, itself, chunk.size = 1)) / 1000 * 1e6
      }
    ))
})
for (count in c(1L, 2L, 4L, 8L)) local({
  workers <- count
  n <- 50L * workers
  # Sleeping tasks do not compete for processors: what is lost here is lost between tasks.
  row(paste0("busy-", workers), paste0("tasks of 10 ms, ", workers, " daemon", if (workers > 1L) "s", ": share of time at work"), "%",
    more = TRUE, at = workers, rounds = 3L, lapply(list(
      mirai = function() {
        our(workers)
        seconds(mirai_map(rep(0.01, n), Sys.sleep)[])
      },
      "parLapplyLB, one by one" = function() {
        cl <- psock(workers)
        seconds(parallel::parLapplyLB(cl, rep(0.01, n), Sys.sleep, chunk.size = 1))
      }
    ), function(work) function() 0.5 / work() * 100))
})

## Payloads
group <- "Payloads, there and back"

payload <- list(size = 0)   # one at a time
of_size <- function(bytes) {
  if (payload$size != bytes) {
    payload <<- NULL
    invisible(gc())
    payload <<- list(size = bytes, data = stats::runif(bytes / 8))
  }
  payload$data
}
there_and_back <- function(bytes, profile) {
  x <- of_size(bytes)
  times <- max(1, min(or_quick(300, 50), 2e7 / bytes))
  seconds(for (i in seq_len(times)) mirai(x, x = x, .compute = profile)[]) / times * 1e3
}
for (bytes in if (quick) 10^c(3, 5, 7) else 10^(3:9)) local({
  bytes <- bytes
  size <- if (bytes < 1e6) paste(bytes / 1e3, "KB") else if (bytes < 1e9) paste(bytes / 1e6, "MB") else "1 GB"
  small <- bytes <= 1e8
  row(paste0("size-", sub(" ", "", size)), size, "ms", at = bytes, rounds = if (small) 3L else 1L, warm = small,
    list(
      mirai = function() {
        our(1L)
        there_and_back(bytes, NULL)
      },
      "mirai, tcp" = if (small) function() there_and_back(bytes, networked("tcp")),
      "mirai, tls+tcp" = if (small) function() there_and_back(bytes, networked("tls+tcp")),
      "parallel clusterCall" = function() {
        x <- of_size(bytes)
        cl <- psock(1L)
        times <- max(1, min(30, 2e7 / bytes))
        seconds(for (i in seq_len(times)) parallel::clusterCall(cl, identity, x)) / times * 1e3
      },
      "callr r_session" = if (small) with_callr(function() {
        x <- of_size(bytes)
        session <- callr_session()
        times <- max(1, min(10, 2e7 / bytes))
        seconds(for (i in seq_len(times)) session$run(itself, list(x))) / times * 1e3
      })
    ))
})

## Across the network
group <- "Across the network, on the loopback interface"

# Without R: examples/network.rs, which prints tables.
ask_core <- function(what, ...) {
  program <- file.path(programs, "network")
  if (file.exists(program)) grep("^  ", system2(program, c(what, ...), stdout = TRUE), value = TRUE)
}
in_table <- function(lines, name, column) {
  line <- grep(paste0("  ", name, "  "), lines, fixed = TRUE, value = TRUE)
  as.numeric(strsplit(trimws(sub(name, "", line[1L], fixed = TRUE)), " +")[[1L]][column])
}
nng_pair <- if (file.exists(file.path(programs, "network"))) function() in_table(ask_core("small", "tcp"), "NNG pair, tcp", 1L)

over_network <- function(scheme) function() {
  profile <- networked(scheme)
  seconds(for (i in 1:1000) mirai(1, .compute = profile)[]) / 1000 * 1e6
}
# With TLS, 20 us more.
for (scheme in c("tcp", "tls+tcp")) local({
  name <- paste0("roundtrip-", scheme)
  more <- if (scheme == "tcp") 0 else 20
  row(name, paste0("mirai(1)[], one daemon at ", scheme, "://"), "us", cran = if (scheme == "tcp") 314 else NA,
    limit = function(results) 2.5 * results$value[results$name == name & startsWith(results$contender, "TCP")] + more,
    list(
      mirai = over_network(scheme),
      "TCP by hand" = function() raw_us("tcp"),
      # Each end has a thread that waits for the socket, and one that NNG wakes for what has come.
      "bare pair of NNG sockets" = if (scheme == "tcp") nng_pair
    ))
})
for (length in c(10L, 2000L, 10000L)) local({
  n <- length
  times <- max(1, 2000 / n)
  row(paste0("map-tcp-", n), paste0("mirai_map(1:", n, ", f), trivial f, one daemon at tcp://"), "ms",
    budget = c("10" = 1, "2000" = 40, "10000" = 150)[[as.character(n)]], cran = if (n == 2000L) 525 else NA, rounds = 9L, function() {
      profile <- networked("tcp")
      ms(for (i in seq_len(times)) mirai_map(seq_len(n), itself, .compute = profile)[]) / times
    })
})
# One after the other, as a machine that gives free memory back to another (a balloon, free page reporting) takes long for
# the first after a pause: the median of 5 times that, and the slowest of 50 after 5.
for (scheme in c("tcp", "tls+tcp")) local({
  name <- paste0("10mb-", scheme)
  goal <- c(tcp = 15, "tls+tcp" = 30)[[scheme]]
  what <- paste0("10 MB there and back by ", scheme, "://")
  once <- function() {
    profile <- networked(scheme)
    x <- of_size(1e7)
    ms(mirai(x, x = x, .compute = profile)[])
  }
  row(name, what, "ms", budget = goal, cran = if (scheme == "tcp") 20 else NA, rounds = 9L, list(
    mirai = function() stats::median(replicate(5L, once())),
    "TCP by hand" = if (scheme == "tcp") function() raw_us(c("tcp", digits(1e7)))[1L] / 1e3,
    "R's part by hand: to bytes and back, twice" = function() {
      x <- of_size(1e7)
      stats::median(replicate(5L, ms(for (i in 1:2) unserialize(serialize(x, NULL, xdr = FALSE)))))
    }
  ))
  collected <- numeric()
  row(paste0(name, "-worst"), paste0(what, ", the slowest of 50"), "ms", budget = 2 * goal, rounds = 3L,
    note = function() {
      paste0("in the host, R collected garbage during ", sum(collected > 0), " of ", length(collected), " of these; that took up to ", number(max(collected)), " ms")
    },
    list(
      mirai = function() {
        replicate(5L, once())
        times <- replicate(50L, {
          before <- gc.time()[[3L]]
          time <- once()
          c(time, (gc.time()[[3L]] - before) * 1e3)
        })
        collected <<- c(collected, times[2L, which.max(times[1L, ])])
        max(times[1L, ])
      },
      "TCP by hand" = if (scheme == "tcp") function() raw_us(c("tcp", digits(1e7)))[2L] / 1e3,
      "a full collection of R's" = function() ms(gc())
    ))
})
row("rate-tls", "100 MB there and back by tls+tcp://", "MB/s", budget = 400, more = TRUE, rounds = 3L,
  if (!quick) list(mirai = function() 200 / there_and_back(1e8, networked("tls+tcp")) * 1e3))

# Each table is asked for once.
tables <- new.env()
core_network <- function(what, name, column) {
  if (is.null(tables[[what]])) tables[[what]] <- ask_core(what, if (what == "small") "tcp" else if (what == "large") "tls+tcp")
  in_table(tables[[what]], name, column)
}
if (file.exists(file.path(programs, "network"))) {
  row("core-tcp", "the core alone, tcp://, 512 bytes there and back", "us", rounds = 1L, warm = FALSE,
    limit = function(results) 1.6 * results$value[results$name == "core-tcp" & results$contender == "bare pair of NNG sockets"],
    list(
      mirai = function() core_network("small", "tcp", 1L),
      "bare pair of NNG sockets" = function() core_network("small", "NNG pair, tcp", 1L),
      "bare Unix socket" = function() core_network("small", "Unix socket", 1L)
    ))
  for (column in 1:2) local({
    column <- column
    row(c("core-tls-in", "core-tls-out")[column], paste("the core alone, tls+tcp://, 100 MB", c("to", "from")[column], "a daemon"),
      "MB/s", budget = 400, more = TRUE, rounds = 1L, warm = FALSE, function() core_network("large", "tls+tcp", column))
  })
}

## All of it

rows <- Filter(function(row) any(vapply(row$contenders, is.function, NA)), rows)
if (length(patterns)) {
  chosen <- vapply(rows, function(row) any(vapply(patterns, grepl, NA, row$name)), NA)
  if (!any(chosen)) stop("no row has such a name; see tools/bench --list", call. = FALSE)
  rows <- rows[chosen]
}

if (only_names) {
  writeLines(vapply(rows, function(row) sprintf("%-18s %s: %s", row$name, row$group, row$what), ""))
} else {
  if (is.null(from)) {
    about <- about_machine()
    results <- NULL
    for (row in rows) {
      progress(row)
      results <- rbind(results, measure(row, results))
      # Also when it is interrupted later.
      if (!is.null(json)) write_figures(about, results, json)
    }
    about$seconds <- round(now() - about$started)
    if (!is.null(json)) write_figures(about, results, json)
    end_pools()
  } else {
    figures <- jsonlite::fromJSON(from)
    about <- figures$about
    results <- figures$rows
  }
  print_table(about, results)
  if (!is.null(plots)) plot_figures(about, results, plots)
}
