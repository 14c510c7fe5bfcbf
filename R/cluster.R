#' Make a cluster for package parallel
#'
#' Makes a cluster for package parallel (and what is built upon it, such as foreach through
#' doParallel) whose nodes are daemons, with a compute profile of its own.
#'
#' @param n number of nodes. Not needed if `url` has one URL for each.
#' @param url `NULL` to start the nodes on this machine. Or URLs to listen at for daemons that are
#'   started otherwise, one for each node; a single one is extended for `n` nodes as it is by
#'   [daemons()].
#' @param remote how to launch the nodes, with `url`: a value of [remote_config()], [ssh_config()],
#'   [cluster_config()] or [http_config()]. `NULL`, or `remote_config()` without a command, to launch them by
#'   hand: [launch_remote()] of the cluster has the commands.
#' @param ... options for the daemons, see [daemon()].
#' @param tls,pass,tlscert for secure URLs: see [daemons()].
#'
#' @returns `make_cluster()`: a list of nodes of class `c("miraiCluster", "cluster")`, with an attribute `id`
#'   that no other cluster has.
#'   `stop_cluster()`: `NULL`, invisibly.
#' @details
#' Each node is one daemon. Variables exported to it, packages attached there and its random
#' number stream stay until the cluster is stopped. If a node ends in the middle of a call, that
#' is an error which names the node, as is the use of this node from then on. Whenever a call is
#' given up, by such an error or by an interrupt, what it has left running on the other nodes is
#' cancelled, so these are ready for the next.
#'
#' With `url`, a call waits for nodes that have not connected yet. [status()] has their URLs.
#'
#' `with()` makes the cluster the default one of package parallel for the evaluation of an
#' expression, and stops it afterwards. Functions that take the name of a compute profile, such as
#' [status()], take a cluster, too.
#' @seealso [daemons()], [register_cluster()]; `vignette("parallel", "mirai")`.
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
  # Nodes keep what there is: to compare it with what there was would be a waste of time.
  settings$daemon$cleanup <- FALSE
  if (is.null(url)) {
    if (missing(n)) {
      stop_argument("n", "the number of nodes, unless there is 'url'", call)
    }
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

# What the nodes of a cluster have in common. Ids count up through the session; those made on
# a node begin with its own, so that they differ everywhere.
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
  # It has the generics, and the `[` that keeps the class.
  loadNamespace("parallel")
  urls <- .Call(rs_profile_status, cluster$profile)$urls
  the$numbers[[cluster$profile]] <- length(urls)
  cluster$nodes <- lapply(seq_along(urls), function(i) new_node(cluster, i, urls[[i]]))
  as_cluster(cluster$nodes, cluster$id)
}

as_cluster <- function(nodes, id) structure(nodes, class = c("miraiCluster", "cluster"), id = id)

#' @export
`[.miraiCluster` <- function(x, ...) as_cluster(unclass(x)[...], attr(x, "id"))

# A node. `host` and `rank` are what nodes of package parallel have, too. `pending` is the
# call that has been sent, as a list of its mirai and its tag.
new_node <- function(cluster, i, url) {
  node <- list2env(
    list(cluster = cluster, rank = i, host = "localhost", url = url, open = TRUE, pending = NULL),
    parent = emptyenv()
  )
  id <- paste0(cluster$id, ".", i)
  node$pid <- .Call(rs_submit_to, be_node_call, list(id = id), i, cluster$profile)
  structure(node, class = "miraiNode")
}

# Called on a daemon.
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

# Methods for generics of package parallel, which are internal in some versions of R:
# NAMESPACE has them registered once that package is loaded.

# Its calls are evaluated as its own workers do it. In a list, so that whatever is a value of
# the function cannot be taken for a failure of the node.
node_call <- quote(list(base::do.call(fun, args, quote = TRUE)))

#' @exportS3Method parallel::sendData
sendData.miraiNode <- function(node, data) {
  if (data$type != "EXEC") {
    return(invisible())
  }
  # Of a call that was given up.
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

# The reply to a call, as workers of package parallel send it.
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

# All nodes that are left, or some of them.
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

# The process is told to quit, once it has done what it does.
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
#' Makes `parallel::makeCluster(n, type = "MIRAI")` the same as [make_cluster()]. Needs R 4.5 or
#' later.
#'
#' @param default whether `makeCluster()` shall make such clusters also if no `type` is given.
#' @returns `NULL`, invisibly.
#' @seealso [make_cluster()].
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
