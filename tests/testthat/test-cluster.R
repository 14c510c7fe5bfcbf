local_cluster <- function(..., frame = parent.frame()) {
  cl <- make_cluster(...)
  defer(function() stop_cluster(cl), frame)
  cl
}

local_psock <- function(n, frame = parent.frame()) {
  cl <- parallel::makePSOCKcluster(n)
  defer(function() parallel::stopCluster(cl), frame)
  cl
}

pids <- function(cl) unlist(parallel::clusterCall(cl, Sys.getpid))

library(parallel, warn.conflicts = FALSE)

test_that("package parallel works on it as on a cluster of its own", {
  cl <- local_cluster(2)
  ps <- local_psock(2)
  square <- function(x, y = 1) x^2 * y
  same <- function(f) expect_identical(f(cl), f(ps))
  same(function(cl) parLapply(cl, 1:7, square, y = 3))
  same(function(cl) parLapplyLB(cl, 1:7, square))
  same(function(cl) parSapply(cl, c(a = 1, b = 2), square))
  same(function(cl) parSapplyLB(cl, letters[1:3], toupper))
  same(function(cl) parApply(cl, matrix(1:6, 2), 1, sum))
  same(function(cl) parRapply(cl, matrix(1:6, 2), sum))
  same(function(cl) parCapply(cl, matrix(1:6, 2), sum))
  same(function(cl) clusterApply(cl, 1:5, square))
  same(function(cl) clusterApplyLB(cl, 1:9, square))
  same(function(cl) clusterMap(cl, function(a, b) a + b, 1:5, 5:1))
  same(function(cl) clusterMap(cl, function(a, b) a + b, 1:5, 5:1, .scheduling = "dynamic"))
  same(function(cl) clusterSplit(cl, 1:7))
  same(function(cl) clusterCall(cl, square, 4))
  same(function(cl) clusterEvalQ(cl, 1 + 1))
  same(function(cl) parLapply(cl, integer(), square))
  same(function(cl) clusterApply(cl, list(quote(a), quote(b + c)), class))
  same(function(cl) clusterCall(cl, function() NULL))
  # an error on some nodes, on all, and an error object as a value
  failure <- function(f) function(cl) tryCatch(f(cl), error = conditionMessage)
  same(failure(function(cl) clusterApply(cl, list(1, "a"), log)))
  same(failure(function(cl) parLapply(cl, 1:4, function(i) stop("message ", i))))
  same(failure(function(cl) clusterEvalQ(cl, not_there)))
  same(function(cl) clusterApply(cl, list(1, "a"), function(x) conditionMessage(tryCatch(stop(x), error = identity))))
})

test_that("a node is a daemon, and keeps what it is given", {
  cl <- local_cluster(3)
  first <- pids(cl)
  expect_length(unique(first), 3)
  expect_identical(pids(cl), first)
  expect_identical(unlist(clusterApplyLB(cl[2], 1:2, function(i) Sys.getpid())), first[c(2, 2)])
  value <- 42
  clusterExport(cl, "value", environment())
  expect_identical(clusterEvalQ(cl, value), list(42, 42, 42))
  clusterEvalQ(cl, {
    library(tools)
    options(mirai_test = "set")
    NULL
  })
  expect_true(all(unlist(clusterEvalQ(cl, "package:tools" %in% search()))))
  expect_identical(clusterEvalQ(cl, getOption("mirai_test")), list("set", "set", "set"))
  clusterApply(cl, 1:3, function(i) assign("own", i, globalenv()))
  expect_identical(clusterEvalQ(cl, own), list(1L, 2L, 3L))
  expect_identical(clusterEvalQ(cl[c(3, 1)], own), list(3L, 1L))
  # the arguments of a call do not stay on the node
  expect_identical(clusterEvalQ(cl, exists("args", globalenv(), inherits = FALSE)), list(FALSE, FALSE, FALSE))
  # and the daemons belong to no other profile
  expect_false(daemons_set())
})

test_that("random numbers are those of a PSOCK cluster", {
  cl <- local_cluster(3)
  ps <- local_psock(3)
  draw <- function(cl, iseed) {
    clusterSetRNGStream(cl, iseed)
    list(
      parSapply(cl, 1:7, function(i) c(rnorm(1), runif(1), sample(100L, 1L))),
      clusterEvalQ(cl, rexp(2)),
      clusterEvalQ(cl, .Random.seed)
    )
  }
  old <- RNGkind()
  defer(function() RNGkind(old[1L], old[2L], old[3L]), environment())
  first <- draw(cl, 123)
  expect_identical(first, draw(ps, 123))
  expect_identical(first, draw(cl, 123))
  expect_false(identical(first, draw(cl, 124)))
})

test_that("without a seed, each node has its own random number stream", {
  cl <- local_cluster(2)
  seeds <- clusterEvalQ(cl, .Random.seed)
  expect_identical(seeds[[2L]], nextRNGStream(seeds[[1L]]))
})

test_that("with more tasks than nodes, a free node takes the next task", {
  cl <- local_cluster(2)
  dir <- local_file()
  dir.create(dir)
  # the first task waits for the last, so the other node must run all others
  done <- clusterApplyLB(
    cl,
    1:6,
    function(i, dir) {
      last <- file.path(dir, "6")
      deadline <- Sys.time() + 20
      if (i == 1) {
        while (!file.exists(last) && Sys.time() < deadline) {
          Sys.sleep(0.005)
        }
      }
      file.create(file.path(dir, i))
      Sys.getpid()
    },
    dir
  )
  done <- unlist(done)
  expect_identical(done[-1L], rep(done[2L], 5L))
  expect_false(done[1L] == done[2L])
})

test_that("the example of the documents", {
  cl <- make_cluster(4)
  vec <- c(1, 1, 4, 4, 1, 1, 1, 1) / 20
  all <- pids(cl)
  elapsed <- system.time(out <- parLapply(cl, vec, Sys.sleep))[["elapsed"]]
  expect_identical(out, vector("list", 8))
  expect_gte(elapsed, 0.4)
  stop_cluster(cl)
  for (pid in all) {
    expect_true(ends(pid))
  }
})

test_that("a cluster prints, and its subsets are clusters and its elements nodes", {
  cl <- make_cluster(3)
  expect_s3_class(cl, c("miraiCluster", "cluster"), exact = TRUE)
  expect_length(cl, 3)
  expect_s3_class(cl[2:3], c("miraiCluster", "cluster"), exact = TRUE)
  expect_s3_class(cl[[2]], "miraiNode")
  expect_identical(cl[[2]]$host, "localhost")
  expect_identical(cl[[2]]$rank, 2L)
  show <- function(x) sub("ID: [0-9]+ ", "ID: <id> ", sub("ID: [0-9]+$", "ID: <id>", capture.output(print(x))))
  expect_snapshot({
    writeLines(show(cl))
    writeLines(show(cl[2:3]))
    writeLines(show(cl[0]))
    writeLines(show(cl[[2]]))
  })
  expect_identical(nrow(status(cl)$daemons), 3L)
  expect_identical(unname(status(cl)$daemons[, "online"]), c(1L, 1L, 1L))
  expect_identical(rownames(status(cl)$daemons)[2], cl[[2]]$url)
  expect_identical(info(cl)[["connections"]], 3L)
  stop_cluster(cl)
  expect_snapshot({
    writeLines(show(cl))
    writeLines(show(cl[[1]]))
  })
  expect_identical(status(cl), status(test_profile()))
})

test_that("each cluster has its own id, also one that is made on a node", {
  one <- local_cluster(1)
  two <- local_cluster(2)
  id <- function(cl) sub(".*ID: ([^ ]+) .*", "\\1", capture.output(print(cl)))
  expect_identical(as.integer(id(two)), as.integer(id(one)) + 1L)
  nested <- clusterEvalQ(two, {
    inner <- mirai::make_cluster(1)
    out <- list(capture.output(print(inner)), parallel::parSapply(inner, 1:3, sqrt))
    mirai::stop_cluster(inner)
    out
  })
  expect_match(nested[[1]][[1]], paste0("ID: ", id(two), ".1.1 "), fixed = TRUE)
  expect_match(nested[[2]][[1]], paste0("ID: ", id(two), ".2.1 "), fixed = TRUE)
  expect_identical(nested[[1]][[2]], sqrt(1:3))
})

test_that("stopping a cluster ends all its processes, busy or idle", {
  for (stop in list(stop_cluster, stopCluster)) {
    cl <- make_cluster(3)
    all <- pids(cl)
    m <- mirai(Sys.sleep(60), .compute = cl[[1L]]$cluster$profile)
    stop(cl)
    for (pid in all) {
      expect_true(ends(pid))
    }
    expect_reset(m[])
    # again
    expect_silent(stop(cl))
  }
})

test_that("a part of a cluster can be stopped", {
  local_tmpdir()
  cl <- make_cluster(3)
  all <- pids(cl)
  stop_cluster(cl[2:3])
  for (pid in all[2:3]) {
    expect_true(ends(pid))
  }
  expect_error(pids(cl), "stopped")
  expect_identical(pids(cl[1]), all[1])
  stop_cluster(cl[2])
  stop_cluster(cl[1])
  expect_true(ends(all[1]))
  expect_match(capture.output(print(cl)), "active: FALSE")
})

test_that("a node that dies is an error that names it, and the others go on", {
  local_tmpdir()
  cl <- make_cluster(3)
  defer(function() stop_cluster(cl), environment())
  all <- pids(cl)
  lost <- paste0("node 2 of cluster [0-9.]+ \\(process ", all[2], "\\) has been lost: Connection reset")
  # a node ends during a call, while others are busy
  expect_error(
    clusterApply(cl, 1:3, function(i) {
      if (i == 2) {
        tools::pskill(Sys.getpid(), tools::SIGKILL)
      } else if (i == 3) {
        Sys.sleep(60)
      }
    }),
    lost
  )
  # the lost node is used again
  expect_error(clusterApplyLB(cl, 1:10, identity), lost)
  expect_error(clusterCall(cl, Sys.getpid), lost)
  # the other nodes are free, and their tasks of that call were cancelled
  expect_identical(pids(cl[c(1, 3)]), all[c(1, 3)])
  expect_identical(parLapply(cl[c(3, 1)], 1:4, sqrt), lapply(1:4, sqrt))
  expect_match(capture.output(print(cl)), "nodes: 3 active: TRUE")
  stop_cluster(cl)
  for (pid in all) {
    expect_true(ends(pid))
  }
})

test_that("a node that dies during a load-balanced call is an error, too", {
  local_tmpdir()
  cl <- local_cluster(2)
  expect_error(
    clusterApplyLB(cl, 1:10, function(i) if (i == 5) tools::pskill(Sys.getpid(), tools::SIGKILL) else i),
    "node [12] of cluster [0-9.]+ \\(process [0-9]+\\) has been lost"
  )
})

test_that("a call that ended by an error leaves no tasks behind", {
  cl <- local_cluster(2)
  # parallel has sent a task to the first node when the second argument fails
  x <- structure(list(1, 2), class = "mirai_test_broken")
  registerS3method("[[", "mirai_test_broken", function(x, i) if (i == 2) stop("broken") else 1, envir = globalenv())
  defer(function() rm("[[.mirai_test_broken", envir = get(".__S3MethodsTable__.", baseenv())), environment())
  expect_error(clusterApply(cl, x, function(i) Sys.sleep(60)), "broken")
  expect_identical(clusterApply(cl, 3:4, identity), list(3L, 4L))
})

test_that("an interrupt leaves the cluster usable", {
  skip_on_os("windows")
  p <- r_process(c(
    "library(mirai); library(parallel)",
    "cl <- make_cluster(2)",
    "pids <- unlist(clusterCall(cl, Sys.getpid))",
    "f <- function(i, pid) { if (i == 1) tools::pskill(pid, tools::SIGINT); Sys.sleep(60) }",
    "tryCatch(parLapply(cl, 1:4, f, Sys.getpid()), interrupt = function(e) cat('interrupted\\n'))",
    "cat(identical(unlist(clusterCall(cl, Sys.getpid)), pids), '\\n')",
    "cat(identical(parLapply(cl, 1:4, sqrt), lapply(1:4, sqrt)), '\\n')",
    "stop_cluster(cl)",
    "cat('end\\n')"
  ))
  p$wait(20000)
  expect_identical(trimws(p$read_all_output_lines()), c("interrupted", "TRUE", "TRUE", "end"))
})

test_that("an error of the evaluation is an error of the call, and the node stays usable", {
  cl <- local_cluster(2)
  # an error value that the function returns is a value
  expect_identical(
    clusterCall(cl, function() structure(19L, class = "errorValue")),
    rep(list(structure(19L, class = "errorValue")), 2)
  )
  expect_error(clusterCall(cl[1], function() getNamespace("no.such.package")), "one node produced an error: ")
  expect_error(
    clusterCall(cl[1], function() {
      f <- function() f()
      f()
    }),
    "one node produced an error: "
  )
  expect_error(
    clusterCall(cl[1], function() tools::pskill(Sys.getpid(), tools::SIGINT) && is.null(Sys.sleep(60))),
    "interrupt"
  )
  expect_identical(clusterCall(cl, function() 1), list(1, 1))
})

test_that("large data are sent to a node and back", {
  cl <- local_cluster(2)
  x <- runif(1e6)
  expect_identical(clusterCall(cl, identity, x), list(x, x))
})

test_that("a cluster can be the default cluster", {
  cl <- make_cluster(2)
  setDefaultCluster(cl)
  expect_identical(getDefaultCluster(), cl)
  expect_identical(parSapply(X = 1:4, FUN = sqrt), sqrt(1:4))
  expect_identical(clusterEvalQ(expr = 1), list(1, 1))
  stop_cluster(cl)
  expect_null(getDefaultCluster())
})

test_that("with() makes it the default cluster while the expression is evaluated", {
  all <- with(make_cluster(2), unlist(clusterCall(fun = Sys.getpid)))
  expect_length(unique(all), 2)
  for (pid in all) {
    expect_true(ends(pid))
  }
  expect_null(getDefaultCluster())
  outer <- local_cluster(1)
  setDefaultCluster(outer)
  expect_error(with(make_cluster(1), stop("inside")), "inside")
  expect_identical(getDefaultCluster(), outer)
  setDefaultCluster(NULL)
})

test_that("foreach through doParallel", {
  skip_if_not_installed("doParallel")
  library(foreach, warn.conflicts = FALSE)
  cl <- local_cluster(2)
  doParallel::registerDoParallel(cl)
  defer(registerDoSEQ, environment())
  expect_identical(getDoParWorkers(), 2L)
  offset <- 10
  f <- function(x) x + offset
  expect_identical(foreach(i = 1:5, .combine = c) %dopar% f(i), 1:5 + 10)
  expect_identical(foreach(i = 1:4, .packages = "tools") %dopar% file_ext(paste0("a.", i)), as.list(as.character(1:4)))
  expect_error(foreach(i = 1:4) %dopar% if (i == 3) stop("third"), "task 3 failed - \"third\"")
  out <- foreach(i = 1:4, .errorhandling = "pass") %dopar% if (i == 3) stop("third") else i
  expect_identical(conditionMessage(out[[3]]), "third")
  nested <- foreach(i = 1:2, .combine = "+") %:% foreach(j = 1:3, .combine = "+") %dopar% (i * j)
  expect_identical(nested, 18L)
})

test_that("with URLs, daemons become nodes as they connect", {
  url <- c(local_url(), local_url())
  cl <- local_cluster(url = url)
  expect_length(cl, 2)
  expect_identical(nextget("urls", .compute = cl), url)
  p <- lapply(url, daemon_process, frame = environment())
  # with the daemons' own clean-up
  clusterExport(cl, "url", environment())
  clusterEvalQ(cl, library(tools))
  expect_identical(clusterEvalQ(cl, url), list(url, url))
  expect_true(all(unlist(clusterEvalQ(cl, "package:tools" %in% search()))))
  stop_cluster(cl)
  for (i in p) {
    expect_identical(end_code(i), 0L)
  }

  cl <- local_cluster(2, url = local_url())
  expect_identical(unique(nchar(nextget("urls", .compute = cl))), nchar(local_url()) + 2L)
  expect_identical(launch_local(1:2, .compute = cl), 2L)
  expect_identical(parSapply(cl, 1:4, sqrt), sqrt(1:4))
})

test_that("remote_config() without a command leaves launching nodes to the user", {
  cl <- local_cluster(2, url = local_url(), remote = remote_config())
  expect_length(cl, 2L)
  expect_length(launch_remote(cl), 2L)
  expect_identical(launch_local(n = 2, .compute = cl), 2L)
  expect_identical(parLapply(cl, 1:4, sqrt), lapply(1:4, sqrt))
})

test_that("the id is an attribute, also of a subset", {
  cl <- local_cluster(2)
  id <- attr(cl, "id")
  expect_type(id, "character")
  expect_output(print(cl), paste("ID:", id, "nodes: 2"), fixed = TRUE)
  expect_identical(attr(cl[1], "id"), id)
  expect_s3_class(cl[1], c("miraiCluster", "cluster"), exact = TRUE)
  expect_identical(clusterCall(cl[2], function() 1), list(1))
  other <- local_cluster(1)
  expect_false(identical(attr(other, "id"), id))
})

test_that("options are passed to the nodes", {
  expect_warning(cl <- local_cluster(1, maxtasks = 1, cleanup = TRUE, unknown = 1), "'unknown' is ignored")
  clusterEvalQ(cl, x <- 1)
  expect_identical(clusterEvalQ(cl, x), list(1))
})

test_that("bad arguments and wrong use are errors", {
  cl <- make_cluster(1)
  node <- cl[[1]]
  mask <- function(lines) gsub("cluster [0-9]+", "cluster <id>", lines)
  expect_snapshot(
    transform = mask,
    show_errors({
      make_cluster()
      make_cluster(0)
      make_cluster("a")
      make_cluster(c(1, 2))
      make_cluster(2, url = 1)
      make_cluster(3, url = c(local_url(), local_url()))
      make_cluster(url = "nonsense")
      make_cluster(1, remote = list())
      stop_cluster(1)
      stop_cluster()
      parallel:::recvData(node)
      parallel:::recvOneData(cl)
      register_cluster(NA)
    })
  )
  stop_cluster(cl)
  expect_snapshot(
    transform = mask,
    show_errors({
      clusterCall(cl, Sys.getpid)
      parLapply(cl, 1:2, sqrt)
      clusterApplyLB(cl, 1:2, sqrt)
      clusterExport(cl, "cl", environment())
    })
  )
})

test_that("a cluster that cannot start leaves no process and no profile", {
  local_envvar(R_LIBS = "", R_PROFILE_USER = r_script("stop('no start')", environment()))
  expect_error(make_cluster(2), "no start")
})

test_that("the cluster type can be registered in R 4.5 and later", {
  if (getRversion() < "4.5") {
    expect_error(register_cluster(), "R 4.5")
  }
  registered <- NULL
  register <- function(type, starter, make.default) registered <<- list(type, starter, make.default)
  local_binding("parallel_function", function(name) register)
  expect_identical(withVisible(register_cluster()), list(value = NULL, visible = FALSE))
  expect_identical(registered, list("MIRAI", make_cluster, TRUE))
  register_cluster(default = FALSE)
  expect_identical(registered[[3]], FALSE)
})

test_that("using a cluster in a forked process is an error", {
  skip_on_os("windows")
  cl <- local_cluster(1)
  out <- mclapply(1:2, function(i) tryCatch(clusterCall(cl, Sys.getpid), error = conditionMessage), mc.cores = 2)
  expect_match(out[[1]], "forked")
  expect_length(pids(cl), 1)
})

test_that("a cluster across the network, in TLS, is launched and works", {
  here <- remote_config("sh -c", c("."), rscript = file.path(R.home("bin"), "Rscript"), quote = TRUE)
  local_envvar(R_LIBS = paste(.libPaths(), collapse = ":"))
  local_tmpdir()
  cl <- make_cluster(2, url = "wss://127.0.0.1:0", remote = here)
  defer(function() stop_cluster(cl), environment())
  expect_identical(parallel::parSapply(cl, 1:4, function(x) x^2), (1:4)^2)
  pids <- parallel::clusterCall(cl, Sys.getpid)
  expect_length(unique(unlist(pids)), 2L)
  expect_match(rownames(status(cl)$daemons), "^wss://127.0.0.1:[0-9]+/[12]$")
  commands <- launch_remote(cl)
  expect_length(commands, 2L)
  expect_match(unclass(commands), "BEGIN CERTIFICATE")
  one <- launch_remote(cl[[2L]])
  expect_match(unclass(one), "/2\"", fixed = TRUE)
})

test_that("a node that there is not cannot be chosen", {
  cl <- make_cluster(2)
  defer(function() stop_cluster(cl), environment())
  expect_length(cl[-1], 1L)
  expect_error(cl[3], "'x' must be indexed by the numbers of its 2 nodes", class = "mirai_error_argument")
})

test_that("an element of a map cannot start local daemons, in whichever way", {
  local_test_daemons(1)
  start <- list(
    function() mirai::daemons(1),
    function() mirai::make_cluster(1),
    function() {
      mirai::daemons(url = mirai::local_url())
      on.exit(mirai::daemons(0))
      mirai::launch_local(1)
    }
  )
  for (value in mirai_map(start, function(f) f())[]) {
    expect_match(value, "local daemons cannot be set on a daemon from within mirai_map()", fixed = TRUE)
  }
})
