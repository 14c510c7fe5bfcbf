#' Make a cluster for package parallel
#'
#' `make_cluster()` makes a cluster whose nodes are daemons. It works with the functions of package parallel, such as
#' [parallel::parLapply()], and with packages that use these clusters, such as doParallel (for foreach).
#' `stop_cluster()` ends the cluster and its daemons.
#'
#' @param n number of nodes. Not needed if `url` has one URL for each node.
#' @param url `NULL` to start the nodes on this machine. Otherwise the URLs at which to listen for daemons: one for
#'   each node, or a single URL, which is extended to `n` URLs as [daemons()] does it.
#' @param remote how to launch the nodes on other machines, with `url`: a value of [remote_config()], [ssh_config()],
#'   [cluster_config()] or [http_config()]. `NULL`, or `remote_config()` without a command, launches nothing: run the
#'   commands that [launch_remote()] returns for the cluster.
#' @param ... options for the daemons, see [daemon()].
#' @param tls,pass,tlscert for secure URLs: see [daemons()].
#'
#' @returns `make_cluster()`: a list of nodes, of class `c("miraiCluster", "cluster")`. Its attribute `id` is unique.
#'   `stop_cluster()`: `NULL`, invisibly.
#' @details
#' Each node is one daemon. A cluster has a compute profile of its own. Functions that take the name of a compute
#' profile, such as [status()], also take a cluster.
#'
#' A node keeps exported variables, attached packages and its random number stream until the cluster is stopped.
#'
#' If a node ends during a call, the call is an error that names the node. So is every later use of that node. When a
#' call ends by an error or an interrupt, its evaluations on the other nodes are cancelled.
#'
#' With `url`, a call waits for nodes that have not connected yet. [status()] shows the URLs.
#'
#' `with(cluster, expr)` evaluates `expr` with the cluster as the default cluster of package parallel, then stops it.
#' @seealso [daemons()] for daemons without a cluster; [register_cluster()] for `parallel::makeCluster()`;
#'   `vignette("parallel", "mirai")`.
#' @examples
#' cl <- make_cluster(2)
#' cl
#' parallel::clusterExport(cl, "cl")
#' parallel::parLapply(cl, 1:4, sqrt)
#' stop_cluster(cl)
#'
#' with(make_cluster(2), parallel::parSapply(X = 1:4, FUN = sqrt))
#' @export
make_cluster <- function(n, url = NULL, remote = NULL, ..., tls = NULL, pass = NULL, tlscert = NULL) {
  call <- sys.call()
  tls <- either_tls(tls, tlscert, call)
  check_identity(tls, pass, call)
  if (!is.null(remote)) {
    check_remote(remote, call)
    if (is.null(url)) stop_argument("url", "the URL at which to listen for nodes launched by 'remote'", call)
  }
  if (!missing(n) && !is_positive_count(n)) {
    stop_argument("n", "a single whole number, one or greater", call)
  }
  settings <- daemons_settings(...)
  # Nodes keep variables, packages and options between calls: no clean-up.
  settings$daemon$cleanup <- FALSE
  # A node that is replaced would have lost them.
  settings$respawn <- FALSE
  settings$max <- NULL
  if (is.null(url)) {
    if (missing(n)) {
      stop_argument("n", "the number of nodes, unless there is 'url'", call)
    }
    check_not_in_map(call)
    cluster <- new_cluster_state()
    set_local(cluster$profile, as.integer(n), TRUE, settings, NULL, NULL, call, own_urls = TRUE)
  } else {
    check_urls(url)
    if (missing(n)) {
      n <- if (length(url) == 1L && !is.null(remote)) remote_places(remote)
    }
    if (!is.null(n) && n != length(url)) {
      if (length(url) > 1L) {
        stop_argument("url", "a single URL, or one for each of 'n' nodes", call)
      }
      url <- extend_urls(url, n, call)
    }
    cluster <- new_cluster_state()
    url <- open_profile(cluster$profile, url, TRUE, settings, NULL, NULL, call, tls, pass)
    if (launches(remote)) {
      ready <- FALSE
      on.exit(if (!ready) .Call(rs_close_profile, cluster$profile, TRUE))
      launch_remotes(cluster$profile, url, remote, settings, NULL, call)
      ready <- TRUE
    }
  }
  new_cluster(cluster)
}

#' @param cl a cluster.
#' @rdname make_cluster
#' @export
stop_cluster <- function(cl) {
  if (missing(cl) || !inherits(cl, "miraiCluster")) {
    stop_argument("cl", "a cluster made by make_cluster()", sys.call())
  }
  parallel::stopCluster(cl)
}

# The state that all nodes of a cluster share. Its id is a counter of this session. On a node of another cluster, that
# node's id is its prefix. So ids are unique across processes.
new_cluster_state <- function() {
  repeat {
    the$clusters <- the$clusters + 1L
    id <- paste(c(the$node_id, the$clusters), collapse = ".")
    profile <- paste0("cluster-", id)
    if (!daemons_set(profile)) break
  }
  list2env(list(id = id, profile = profile), parent = emptyenv())
}

new_cluster <- function(cluster) {
  # Loading parallel registers our methods for its generics.
  loadNamespace("parallel")
  urls <- .Call(rs_profile_status, cluster$profile)$urls
  the$numbers[[cluster$profile]] <- length(urls)
  cluster$nodes <- lapply(seq_along(urls), function(i) new_node(cluster, i, urls[[i]]))
  as_cluster(cluster$nodes, cluster$id)
}

as_cluster <- function(nodes, id) structure(nodes, class = c("miraiCluster", "cluster"), id = id)

#' @export
`[.miraiCluster` <- function(x, ...) {
  nodes <- unclass(x)[...]
  if (any(vapply(nodes, is.null, NA))) {
    stop_argument("x", paste("indexed by the numbers of its", length(x), "nodes"), sys.call())
  }
  as_cluster(nodes, attr(x, "id"))
}

# A node. Nodes of package parallel have the fields `host` and `rank`, too. `pending` is the call that was sent and not
# yet received: a list of its mirai `m` and its `tag`.
new_node <- function(cluster, i, url) {
  node <- list2env(
    list(cluster = cluster, rank = i, host = "localhost", url = url, open = TRUE, pending = NULL),
    parent = emptyenv()
  )
  id <- paste0(cluster$id, ".", i)
  node$pid <- .Call(rs_submit_to, be_node_call, list(id = id), i, cluster$profile)
  structure(node, class = "miraiNode")
}

# Evaluated on a daemon: makes it a node of this id. Returns its process id.
be_node <- function(id) {
  the$node_id <- id
  Sys.getpid()
}
be_node_call <- quote(get("be_node", asNamespace("mirai"))(id))

cluster_profile <- function(cl) if (length(cl)) cl[[1L]]$cluster$profile else NA_character_

is_active <- function(node) node$open && daemons_set(node$cluster$profile)

#' @export
print.miraiCluster <- function(x, ...) {
  id <- if (length(x)) x[[1L]]$cluster$id else "none"
  active <- any(vapply(x, is_active, NA))
  cat(paste0("< miraiCluster | ID: ", id, " nodes: ", length(x), " active: ", active, " >\n"))
  invisible(x)
}

#' @export
print.miraiNode <- function(x, ...) {
  cat(paste0("< miraiNode | node: ", x$rank, " cluster ID: ", x$cluster$id, " active: ", is_active(x), " >\n"))
  invisible(x)
}

#' @export
with.miraiCluster <- function(data, expr, ...) {
  before <- parallel::getDefaultCluster()
  on.exit({
    stop_cluster(data)
    parallel::setDefaultCluster(before)
  })
  parallel::setDefaultCluster(data)
  expr
}

# Methods for generics of package parallel. Some versions of R do not export these, so NAMESPACE registers the methods
# when parallel is loaded.

# The call that a node evaluates, as parallel's own workers do. The value is wrapped in a list: so a function that
# returns an error value is not mistaken for a node that failed.
node_call <- quote(list(base::do.call(fun, args, quote = TRUE)))

#' @exportS3Method parallel::sendData
sendData.miraiNode <- function(node, data) {
  if (data$type != "EXEC") {
    return(invisible())
  }
  # Cancels an earlier call whose reply was never received.
  abandon(node)
  m <- if (node$open) {
    .Call(rs_submit_to, node_call, data$data[c("fun", "args")], node$rank, node$cluster$profile)
  }
  if (is.null(m)) {
    stop_error(paste0("cluster ", node$cluster$id, " has been stopped"))
  }
  node$pending <- list(m = m, tag = data$data$tag)
  invisible()
}

#' @exportS3Method parallel::recvData
recvData.miraiNode <- function(node) {
  on.exit(lapply(node$cluster$nodes, abandon))
  if (is.null(node$pending)) {
    stop_not_called()
  }
  call_mirai(node$pending$m)
  reply <- take_reply(node)
  on.exit()
  reply
}

#' @exportS3Method parallel::recvOneData
recvOneData.miraiCluster <- function(cl) {
  on.exit(if (length(cl)) lapply(cl[[1L]]$cluster$nodes, abandon))
  i <- .Call(rs_race, lapply(cl, function(node) node$pending$m))
  if (i == 0L) {
    stop_not_called()
  }
  reply <- take_reply(cl[[i]])
  on.exit()
  list(node = i, value = reply)
}

stop_not_called <- function() stop_error("no call has been sent to wait for")

abandon <- function(node) {
  if (!is.null(node$pending)) {
    stop_mirai(node$pending$m)
  }
  node$pending <- NULL
}

# The reply to the pending call, in the form that parallel's own workers send.
take_reply <- function(node) {
  value <- node$pending$m$data
  tag <- node$pending$tag
  node$pending <- NULL
  success <- !is_error_value(value)
  value <- if (success) {
    value[[1L]]
  } else if (is.integer(value)) {
    stop_lost(node, value)
  } else {
    structure(conditionMessage(value_condition(value)), class = c("snow-try-error", "try-error"))
  }
  list(type = "VALUE", value = value, success = success, time = NULL, tag = tag)
}

stop_lost <- function(node, value) {
  pid <- node$pid$data
  process <- if (is.integer(pid) && !is_error_value(pid)) paste0(" (process ", pid, ")")
  text <- paste0("node ", node$rank, " of cluster ", node$cluster$id, process, " has been lost: ", error_text(value))
  stop_error(text)
}

# `cl` may be a part of the cluster: then the other nodes stay.
#' @rawNamespace S3method(parallel::stopCluster, miraiCluster)
stopCluster.miraiCluster <- function(cl = NULL) {
  if (!length(cl)) {
    return(invisible())
  }
  cluster <- cl[[1L]]$cluster
  others <- setdiff(which(vapply(cluster$nodes, is_active, NA)), vapply(cl, function(node) node$rank, 0L))
  if (length(others)) {
    for (node in cl) {
      closeNode.miraiNode(node)
    }
  } else {
    for (node in cl) {
      node$open <- FALSE
    }
    .Call(rs_close_profile, cluster$profile, TRUE)
  }
  invisible()
}

# Sends the node a task that quits its process. It runs after what the node is evaluating.
#' @exportS3Method parallel::closeNode
closeNode.miraiNode <- function(node) {
  if (is_active(node)) {
    .Call(rs_submit_to, quote(base::quit("no")), NULL, node$rank, node$cluster$profile)
  }
  node$open <- FALSE
  invisible()
}

#' Register the cluster type with package parallel
#'
#' After this, `parallel::makeCluster(n, type = "MIRAI")` calls [make_cluster()]. Needs R 4.5 or later.
#'
#' @param default `TRUE` to make `"MIRAI"` the default type of `parallel::makeCluster()`.
#' @returns `NULL`, invisibly.
#' @seealso [make_cluster()]; `vignette("parallel", "mirai")`.
#' @examples
#' if (getRversion() >= "4.5") register_cluster(default = FALSE)
#' @export
register_cluster <- function(default = TRUE) {
  check_flag(default, "default")
  register <- parallel_function("registerClusterType")
  if (is.null(register)) {
    stop_error("cluster types can be registered in R 4.5 and later only", sys.call())
  }
  register("MIRAI", make_cluster, make.default = default)
  invisible()
}

parallel_function <- function(name) get0(name, asNamespace("parallel"), mode = "function", inherits = FALSE)
