# What tools/r-for-windows checks of the package on R for Windows.
library(mirai)

passed <- 0L
failed <- 0L

check <- function(what, condition) {
  wrong <- tryCatch(if (isTRUE(condition)) NULL else "FALSE", error = conditionMessage)
  if (is.null(wrong)) {
    passed <<- passed + 1L
  } else {
    failed <<- failed + 1L
    cat("FAILED: ", what, ": ", wrong, "\n", sep = "")
  }
}

# The value of a task, or an error value after a minute.
value <- function(...) mirai(..., .timeout = 60000)[]

# Waits until a task has made the file, and so runs.
runs <- function(file) {
  while (!file.exists(file)) {
    Sys.sleep(0.01)
  }
}

# The value, and what was said on stderr meanwhile.
listen <- function(expr) {
  said <- character()
  connection <- textConnection("said", "w", local = TRUE)
  sink(connection, type = "message")
  value <- tryCatch(expr, finally = {
    sink(type = "message")
    close(connection)
  })
  list(value = value, said = said)
}

# Without daemons
check("a task without daemons", value(Sys.getpid()) != Sys.getpid())
check("its surroundings", {
  place <- tempfile("\u00e4 b")
  dir.create(place)
  old <- setwd(place)
  Sys.setenv(MIRAI_CHECK = "a \u00e4 \u4e2d % ^ \" \\")
  here <- value(list(getwd(), Sys.getenv("MIRAI_CHECK"), .libPaths()))
  setwd(old)
  identical(here, list(normalizePath(place, "/"), Sys.getenv("MIRAI_CHECK"), .libPaths()))
})
check("its process ends", {
  file <- tempfile()
  m <- mirai(file.create(file) && Sys.sleep(600), file = file)
  runs(file)
  stop_mirai(m)
  m[] == 20L
})
check("an error of a call", inherits(tryCatch(mirai(), error = identity), "mirai_error"))

# Daemons of this machine
check("with(daemons(2), ...)", with(daemons(2), value(6) == 6) && !daemons_set())
check("daemons()", daemons(2) == 2L && status()$connections == 1L && sum(status()$daemons[, "online"]) == 2L)
check("a task", value(1 + 1) == 2)
check("an error of a task", {
  m <- value(stop("boom"))
  is_mirai_error(m) && m$message == "boom" && is_error_value(m)
})
check("text", {
  text <- c("\u00e4", "\u4e2d", NA, "\U1F600")
  identical(value(text, text = text), text)
})
check("arguments", {
  identical(value(a + b + c, a = 1, .args = list(b = 2, c = 3)), 6)
})
check("a large vector there and back", {
  x <- runif(1e6)
  identical(value(x, x = x), x)
})
check("100 MB there and back", {
  x <- seq_len(12.5e6) + 0.5
  identical(value(x, x = x), x)
})
check("everywhere()", {
  everywhere(a <<- 42)
  all(mirai_map(1:4, function(i) a)[.flat] == 42)
})
check("a mirai as argument of another", {
  a <- mirai(20)
  b <- mirai(a + 1, a = a)
  b[] == 21
})
check("1,000 tasks in order", {
  tasks <- lapply(1:1000, function(i) mirai(i, i = i))
  identical(unlist(collect_mirai(tasks)), 1:1000)
})
check("info()", {
  identical(unname(info()[c("awaiting", "executing")]), c(0L, 0L)) && info()[["completed"]] >= 1000L
})

# Maps
check("a map", identical(mirai_map(1:10, sqrt)[.flat], sqrt(1:10)))
check("a map of names", identical(mirai_map(c(a = 1, b = 4), sqrt)[.flat], c(a = 1, b = 2)))
check("a map over a data frame", {
  rows <- data.frame(x = 1:3, y = c(4.5, 5, 6), row.names = c("a", "b", "c"))
  identical(mirai_map(rows, function(x, y) x * y)[.flat], c(a = 4.5, b = 10, c = 18))
})
check(".progress", {
  x <- listen(mirai_map(1:10, sqrt)[.progress, .flat])
  identical(x$value, sqrt(1:10)) && any(grepl("10 / 10", x$said, fixed = TRUE))
})
check(".stop", {
  map <- mirai_map(1:2, function(i) if (i == 2L) stop("bad") else Sys.sleep(600))
  error <- tryCatch(map[.stop], error = identity)
  inherits(error, "mirai_error_map") && error$location == 2L && value(7) == 7
})
check(".flat of different types", {
  inherits(tryCatch(mirai_map(list(1, "a"), identity)[.flat], error = identity), "mirai_error_map")
})
check("a map with a failure in its place", {
  x <- mirai_map(1:3, function(i) if (i == 2L) stop("bad") else i)[]
  x[[1L]] == 1L && is_mirai_error(x[[2L]]) && x[[3L]] == 3L
})
check("a checkpoint", {
  file <- tempfile()
  log <- tempfile()
  f <- function(i, log) {
    cat(i, "\n", file = log, append = TRUE)
    i^2
  }
  map <- function() suppressMessages(mirai_map(1:5, f, .args = list(log = log), .checkpoint = file)[.flat])
  a <- map()
  b <- map()
  identical(a, (1:5)^2) && identical(a, b) && length(readLines(log)) == 5L
})

# Waiting, cancelling, time limits
check("unresolved()", {
  m <- mirai(Sys.sleep(600))
  pending <- unresolved(m) && is.na(m$data)
  pending && stop_mirai(m) && !unresolved(m) && !stop_mirai(m)
})
check("race_mirai()", {
  slow <- mirai(Sys.sleep(600))
  first <- race_mirai(list(slow, mirai(1)))
  stop_mirai(slow)
  first == 2L && race_mirai(list()) == 0L
})
for (how in c("evaluates", "sleeps")) {
  check(paste("cancelling a task that", how), {
    file <- tempfile()
    m <- mirai(
      {
        file.create(file)
        if (how == "sleeps") Sys.sleep(600) else repeat {}
      },
      file = file,
      how = how
    )
    runs(file)
    stop_mirai(m) && m$data == 20L && value(3) == 3
  })
}
check("a time limit of a task", mirai(Sys.sleep(600), .timeout = 200)[] == 5L && value(4) == 4)
check("a time limit of a task in the queue", {
  slow <- lapply(1:2, function(i) mirai(Sys.sleep(600)))
  late <- mirai(1, .timeout = 200)[]
  stop_mirai(slow)
  late == 5L && value(8) == 8
})
check("a time limit of R", {
  setTimeLimit(elapsed = 1, transient = TRUE)
  m <- mirai(Sys.sleep(600))
  error <- tryCatch(m[], error = conditionMessage)
  setTimeLimit()
  stop_mirai(m)
  grepl("elapsed time limit", error)
})

# Promises
check("a promise", {
  got <- list()
  promises::then(mirai(1 + 1), function(x) got$value <<- x)
  promises::then(mirai(stop("no")), onRejected = function(cnd) got$error <<- conditionMessage(cnd))
  promises::then(mirai_map(1:3, sqrt), function(x) got$map <<- x)
  while (length(got) < 3L) {
    later::run_now(Inf)
  }
  got$value == 2 && got$error == "no" && identical(got$map, as.list(sqrt(1:3)))
})
check("a promise wakes R, which uses no processor time meanwhile", {
  before <- proc.time()
  done <- FALSE
  promises::then(mirai(Sys.sleep(2)), function(x) done <<- TRUE)
  while (!done) {
    later::run_now(Inf)
  }
  sum((proc.time() - before)[c("user.self", "sys.self")]) < 0.5
})
check("a report", {
  got <- list()
  m <- mirai(
    {
      mirai::mirai_report("half")
      1
    },
    .on_report = function(x) got <<- c(got, x)
  )
  m[] == 1 && identical(got, list("half"))
})

# What comes beside a value
check("a condition", {
  m <- mirai({
    warning("w")
    1
  })
  m[] == 1 && conditionMessage(mirai_conditions(m)[[1L]]) == "w"
})
check("a warning that is signalled again", {
  m <- mirai(warning("w"))
  warned <- FALSE
  withCallingHandlers(m[.relay], warning = function(w) {
    warned <<- conditionMessage(w) == "w"
    invokeRestart("muffleWarning")
  })
  warned
})
check("what Windows lacks", {
  if (.Platform$OS.type == "windows") {
    error <- function(expr) tryCatch(expr, error = conditionMessage)
    a <- error(mirai_monitor(n = 1))
    b <- error(daemons(1, output = "task", .compute = "printing"))
    daemons(0, .compute = "printing")
    grepl("cannot be monitored", a) && grepl("what tasks print cannot be kept", b)
  } else {
    TRUE
  }
})
check("logs", nrow(task_log()) > 0L && nrow(daemon_log()) > 0L)
check("clean-up after a task", {
  value({
    left <<- 1
    options(mirai.left = 1)
    library(splines)
  })
  all(mirai_map(1:4, function(i) {
    !exists("left") && is.null(getOption("mirai.left")) && !"package:splines" %in% search()
  })[.flat])
})

# Daemons that end
check("a daemon that quits, and another in its place", is_error_value(value(quit("no", 3))) && value(4) == 4)
check("a daemon that is terminated", {
  m <- mirai(tools::pskill(Sys.getpid()) && Sys.sleep(600))
  m[] == 19L && is.character(attr(m[], "reason")) && value(9) == 9
})
check("a retry", {
  file <- tempfile()
  daemons(1, retry = TRUE)
  m <- mirai(if (file.exists(file)) "second" else file.create(file) && quit("no"), file = file, .timeout = 60000)
  m[] == "second"
})
check("maxtasks", {
  daemons(2, maxtasks = 1)
  value(Sys.getpid()) != value(Sys.getpid())
})
check("daemons(0) while tasks run", {
  daemons(2)
  file <- tempfile()
  m <- mirai(file.create(file) && Sys.sleep(600), file = file)
  runs(file)
  daemons(0) == 0L && m[] == 19L && !daemons_set()
})
check("a daemon that cannot start", {
  error <- tryCatch(daemons(1, rscript = "no-such-program"), error = conditionMessage, warning = conditionMessage)
  daemons(0)
  is.character(error)
})

# Profiles and settings
check("two profiles", {
  daemons(1, .compute = "a")
  daemons(1, .compute = "b")
  pids <- c(value(Sys.getpid(), .compute = "a"), value(Sys.getpid(), .compute = "b"))
  daemons(0, .compute = "a")
  daemons(0, .compute = "b")
  length(unique(pids)) == 2L
})
check("without dispatcher", {
  daemons(2, dispatcher = FALSE)
  length(unique(mirai_map(1:4, function(i) Sys.getpid())[.flat])) == 2L
})
check("sync = TRUE", {
  daemons(sync = TRUE)
  value(Sys.getpid()) == Sys.getpid()
})
invisible(daemons(0))
check("a seed", {
  draw <- function(n) {
    daemons(n, seed = 42L)
    on.exit(daemons(0), add = TRUE)
    mirai_map(1:6, function(i) runif(1))[.flat]
  }
  identical(draw(1), draw(2))
})
check("nextstream()", {
  one <- function() {
    daemons(1, seed = 1L)
    on.exit(daemons(0), add = TRUE)
    list(nextstream(), nextstream())
  }
  x <- one()
  identical(x, one()) && length(x[[1L]]) == 7L && !identical(x[[1L]], x[[2L]])
})
check("serial_config()", {
  to_raw <- function(x) serialize(x$n, NULL)
  from_raw <- function(x) structure(list2env(list(n = unserialize(x), arrived = TRUE)), class = "counter")
  daemons(1, serial = serial_config("counter", to_raw, from_raw))
  counter <- structure(list2env(list(n = 5L)), class = "counter")
  back <- value(list(counter$arrived, counter), counter = counter)
  isTRUE(back[[1L]]) && isTRUE(back[[2L]]$arrived) && back[[2L]]$n == 5L
})
check("serialization()", {
  serialization(list(function(x) charToRaw(x$name), function(x) list2env(list(name = rawToChar(x)))), "named")
  back <- value(object$name, object = structure(list2env(list(name = "\u00e4")), class = "named"))
  serialization(NULL)
  back == "\u00e4"
})
invisible(daemons(0))

# Daemons that connect
check("launch_local() of two", {
  daemons(url = local_url())
  n <- launch_local(n = 2)
  ids <- lapply(1:2, function(i) {
    mirai({
      Sys.sleep(2)
      Sys.getpid()
    })
  })
  n == 2L && length(unique(unlist(collect_mirai(ids)))) == 2L
})
invisible(daemons(0))
for (url in c("tcp://127.0.0.1:0", "ws://127.0.0.1:0", "tls+tcp://127.0.0.1:0", "wss://127.0.0.1:0")) {
  check(url, {
    daemons(url = url)
    launch_local(1)
    x <- runif(1e6)
    value(5) == 5 && identical(value(x, x = x), x)
  })
  daemons(0)
}
check("TLS without daemons that trust it", {
  daemons(url = host_url(tls = TRUE))
  command <- launch_remote(1)
  daemons(0)
  grepl("BEGIN CERTIFICATE", command) && grepl("tls+tcp://", command, fixed = TRUE)
})
check("a relay", {
  daemons(url = "tcp://127.0.0.1:0", dispatcher = FALSE)
  relay <- tempfile(fileext = ".R")
  writeLines(sprintf("mirai::dispatcher('%s', n = 2)", nextget("url")), relay)
  system2(file.path(R.home("bin"), "Rscript"), c("--vanilla", shQuote(relay)), wait = FALSE)
  mirai_map(1:4, function(i) i^2)[.flat][[4L]] == 16
})
invisible(daemons(0))
check("a library with blanks and other characters in its path", {
  place <- file.path(tempfile(), "a (1) & %b%")
  dir.create(place, recursive = TRUE)
  file.copy(getNamespaceInfo("mirai", "path"), place, recursive = TRUE)
  old <- .libPaths()
  .libPaths(c(place, old))
  on.exit(.libPaths(old), add = TRUE)
  daemons(1)
  value(.libPaths()[[1L]]) == normalizePath(place, "/")
})
invisible(daemons(0))

# Clusters
check("a cluster", {
  cl <- make_cluster(2)
  sums <- parallel::clusterApply(cl, 1:2, function(i) i + 1)
  stop_cluster(cl)
  identical(sums, list(2, 3))
})
check("parallel::parLapply()", {
  cl <- make_cluster(2)
  parallel::clusterExport(cl, "rows", list2env(list(rows = 3)))
  products <- parallel::parLapply(cl, 1:4, function(i) i * rows)
  balanced <- parallel::parLapplyLB(cl, 1:4, function(i) i * rows)
  stop_cluster(cl)
  identical(products, list(3, 6, 9, 12)) && identical(balanced, products)
})
check("parallel::clusterSetRNGStream()", {
  draw <- function() {
    cl <- make_cluster(2)
    on.exit(stop_cluster(cl), add = TRUE)
    parallel::clusterSetRNGStream(cl, 7)
    parallel::clusterCall(cl, runif, 2)
  }
  identical(draw(), draw())
})

# In the global environment, as example() does it
grDevices::pdf(NULL)
own <- c("check", "failed", "own", "page", "passed")
for (page in list.files("man", "[.]Rd$", full.names = TRUE)) {
  rm(list = setdiff(ls(), own))
  check(paste("the examples of", page), {
    examples <- tempfile()
    tools::Rd2ex(page, examples)
    if (file.exists(examples)) {
      utils::capture.output(source(examples))
    }
    TRUE
  })
  daemons(0)
}

cat(passed, " passed, ", failed, " failed\n", sep = "")
quit("no", as.integer(failed > 0L))
