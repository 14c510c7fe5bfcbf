# Makes machines with a network of their own, as network namespaces. The first has a bridge with address 10.231.<net>.1.
# The others have .2, .3, ... on their interface `eth0`. The namespace of the tests is not changed.
local_hosts <- function(n, frame = parent.frame()) {
  skip_on_os(c("mac", "windows", "solaris"))
  ip <- Sys.which("ip")
  if (!nzchar(ip)) {
    skip("Debian's iproute2 is not installed")
  }
  run <- function(...) {
    out <- suppressWarnings(system2(ip, c(...), stdout = TRUE, stderr = TRUE))
    if (!is.null(attr(out, "status"))) stop("ip ", paste(c(...), collapse = " "), ": ", paste(out, collapse = "\n"))
  }
  names <- paste0("mirai", Sys.getpid(), "-", seq_len(n + 1L))
  net <- Sys.getpid() %% 250L
  made <- tryCatch(run("netns", "add", names[[1L]]), error = conditionMessage)
  if (is.character(made)) {
    skip(paste0("network namespaces cannot be made here (", made, ")"))
  }
  defer(
    function() {
      for (name in names) {
        suppressWarnings(system2(ip, c("netns", "del", name), stdout = FALSE, stderr = FALSE))
      }
    },
    frame
  )
  hub <- names[[1L]]
  run("-n", hub, "link add bridge type bridge")
  run("-n", hub, "link set lo up")
  for (i in seq_len(n)) {
    name <- names[[i + 1L]]
    run("netns", "add", name)
    run("-n", hub, "link add", paste0("to", i), "type veth peer name eth0 netns", name)
    run("-n", hub, "link set", paste0("to", i), "master bridge up")
    run("-n", name, "link set lo up")
    run("-n", name, "addr add", paste0("10.231.", net, ".", i + 1L, "/24 dev eth0"))
    run("-n", name, "link set eth0 up")
  }
  run("-n", hub, "addr add", paste0("10.231.", net, ".1/24 dev bridge"))
  run("-n", hub, "link set bridge up")
  list(names = names, addresses = paste0("10.231.", net, ".", seq_len(n + 1L)))
}

# Runs R code on the first of these machines, and returns its output. The code finds the others in `hosts`.
output_on_host <- function(hosts, code, seconds = 60, frame = parent.frame()) {
  given <- paste0(
    "hosts <- ",
    paste(deparse(hosts), collapse = ""),
    "; addresses <- hosts$addresses; names <- hosts$names"
  )
  dir <- local_file("tmp", frame = frame)
  dir.create(dir)
  local_envvar(TMPDIR = dir, R_LIBS = paste(.libPaths(), collapse = ":"), frame = frame)
  args <- c("netns", "exec", hosts$names[[1L]], file.path(R.home("bin"), "Rscript"), r_script(c(given, code), frame))
  suppressWarnings(system2("ip", args, stdout = TRUE, stderr = TRUE, timeout = seconds))
}

# Runs R code in a process for which a directory is a file system of its own, in memory, of a size such as "1m". Returns its
# output. Other processes do not see the file system, which ends with the last process that does.
output_with_disk <- function(dir, size, code, seconds = 60, frame = parent.frame()) {
  skip_on_os(c("mac", "windows", "solaris"))
  if (!nzchar(Sys.which("unshare"))) {
    skip("unshare of util-linux is not installed")
  }
  mount <- paste("mount -t tmpfs -o", paste0("size=", size), "tmpfs", shQuote(dir))
  within <- function(command) c("--mount", "sh", "-c", shQuote(paste(mount, "&&", command)))
  if (suppressWarnings(system2("unshare", within("true"), stdout = FALSE, stderr = FALSE)) != 0L) {
    skip("file systems cannot be mounted here")
  }
  tmp <- local_file("tmp", frame = frame)
  dir.create(tmp)
  local_envvar(TMPDIR = tmp, R_LIBS = paste(.libPaths(), collapse = ":"), frame = frame)
  rscript <- paste("exec", file.path(R.home("bin"), "Rscript"), r_script(code, frame))
  suppressWarnings(system2("unshare", within(rscript), stdout = TRUE, stderr = TRUE, timeout = seconds))
}
