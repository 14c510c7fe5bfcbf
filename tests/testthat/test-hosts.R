# Several machines, made as network namespaces: see helper-namespaces.R.

# Code that launches one daemon on each of the other machines.
launch <- '
  library(mirai)
  options(mirai.keepalive = 1500)
  elsewhere <- function(...) {
    args <- lapply(names[-1L], function(name) c("netns exec", name, "."))
    remote_config("ip", args, file.path(R.home("bin"), "Rscript"))
  }
  url <- paste0("tls+tcp://", addresses[[1L]], ":0")
  connections <- function(n) {
    # R has no event for a new connection
    deadline <- Sys.time() + 20
    while (info()[["connections"]] != n) {
      if (Sys.time() > deadline) stop("still ", info()[["connections"]])
      Sys.sleep(0.01)
    }
  }
  cut <- function(i) system2("ip", c("-n", names[[1L]], "link set", paste0("to", i), "down"))
  heal <- function(i) system2("ip", c("-n", names[[1L]], "link set", paste0("to", i), "up"))
  # the address of the machine that a task runs on
  where <- quote(system2("ip", c("-4 -o addr show dev eth0"), stdout = TRUE))
'

test_that("daemons on three machines share the work over TLS", {
  hosts <- local_hosts(3)
  out <- output_on_host(
    hosts,
    c(
      launch,
      '
    print(daemons(url = url, remote = elsewhere()))
    connections(3)
    address <- function(i, where) {
      Sys.sleep(0.05)
      sub(".*inet ([0-9.]+).*", "\\\\1", eval(where))
    }
    there <- mirai_map(1:30, address, .args = list(where = where))[.flat]
    cat(sort(unique(there)) == sort(addresses[-1L]), "\n")
    large <- runif(1e6)
    cat(identical(mirai(rev(x), x = large)[], rev(large)), "\n")
    print(unname(status()$daemons[, "online"]))
    invisible(daemons(0))
  '
    )
  )
  expect_identical(out, c("[1] 3", "TRUE TRUE TRUE ", "TRUE ", "[1] 3"))
})

test_that("a machine that is cut off loses its task, or hands it on, and comes back", {
  hosts <- local_hosts(3)
  out <- output_on_host(
    hosts,
    c(
      launch,
      '
    print(daemons(url = url, remote = elsewhere(), autoexit = FALSE))
    connections(3)
    ms <- lapply(1:3, function(i) mirai({ Sys.sleep(6); eval(where) }, where = where))
    while (status()$mirai[["executing"]] < 3) Sys.sleep(0.01)
    cut(2)
    # the host has given it up by silence alone
    connections(2)
    values <- lapply(ms, function(m) m[])
    lost <- vapply(values, is_error_value, NA)
    cat(sum(lost), "lost:", format(values[lost][[1L]]), "\n")
    cat(mirai("the others go on")[], "\n")
    heal(2)
    connections(3)
    again <- mirai_map(1:30, function(i, where) { Sys.sleep(0.05); eval(where) }, .args = list(where = where))[.flat]
    cat(length(unique(again)), "machines again\n")
    invisible(daemons(NULL))
  '
    )
  )
  expect_identical(out, c("[1] 3", "1 lost: 19 ", "the others go on ", "3 machines again"))
})

test_that("with retry, the task of a machine that is cut off runs elsewhere", {
  hosts <- local_hosts(2)
  out <- output_on_host(
    hosts,
    c(
      launch,
      '
    print(daemons(url = url, remote = elsewhere(), retry = TRUE))
    connections(2)
    # the first two that connect
    ms <- lapply(1:2, function(i) mirai({ Sys.sleep(4); eval(where) }, where = where))
    while (status()$mirai[["executing"]] < 2) Sys.sleep(0.01)
    cut(1)
    there <- unlist(lapply(ms, function(m) m[]))
    cat(length(there), "values from", length(unique(there)), "machine\n")
    heal(1)
    invisible(daemons(0))
  '
    )
  )
  expect_identical(out, c("[1] 2", "2 values from 1 machine"))
})
