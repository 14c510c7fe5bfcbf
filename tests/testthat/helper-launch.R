# Servers that launch daemons: SSH, Slurm and HTTP, on free ports of this machine. Their files are in a directory of
# their own. They end with the test.

# Environment variables for daemons that are launched here: they need the library path, and the mark by which tools/test
# finds processes that are left behind.
launch_env <- function() {
  run <- Sys.getenv()
  run <- run[grepl("^(PATH|TMPDIR|HOME|LANG|MIRAI_TEST_RUN)$", names(run))]
  c(run, R_LIBS = paste(.libPaths(), collapse = ":"))
}

need_command <- function(...) {
  for (name in c(...)) {
    if (!nzchar(find_command(name))) skip(paste("there is no", name))
  }
}

# The path of a command. Servers are in directories that may not be on PATH.
find_command <- function(name) {
  found <- Sys.which(c(name, file.path(c("/usr/sbin", "/sbin"), name)))
  c(found[nzchar(found)], "")[[1L]]
}

# Starts a server in the foreground. It ends with the test.
local_program <- function(name, args, frame, env = character()) {
  skip_if_not_installed("processx")
  log <- local_file("log", frame = frame)
  p <- processx::process$new(find_command(name), args, stdout = log, stderr = "2>&1", env = c("current", env))
  defer(
    function() {
      p$signal(tools::SIGTERM)
      p$wait(5000)
      p$kill_tree()
    },
    frame
  )
  list(process = p, log = function() paste(readLines(log), collapse = "\n"))
}

# Waits for a server to be ready.
server_ready <- function(server, ready) {
  done <- wait_until(function() ready() || !server$process$is_alive(), 20)
  if (!done || !server$process$is_alive()) stop("the server has not started:\n", server$log())
}

# Starts an SSH server that accepts a key of this user. `remotes` are two addresses of this machine. `command` is a
# client with the key, `refused` a client with another key, and `words` a client command that includes the address.
local_ssh <- function(frame = parent.frame()) {
  skip_on_os(c("windows", "mac", "solaris"))
  need_command("sshd", "ssh", "ssh-keygen")
  root <- Sys.info()[["effective_user"]] == "root"
  if (root && !dir.exists("/run/sshd")) {
    dir.create("/run/sshd", mode = "0755")
    defer(function() unlink("/run/sshd", recursive = TRUE), frame)
  }
  dir <- local_file("ssh", frame = frame)
  dir.create(dir, mode = "0700")
  path <- function(name) file.path(dir, name)
  for (key in c("host", "user", "other")) {
    system2("ssh-keygen", c("-q -t ed25519 -N ''", "-f", shQuote(path(key))))
  }
  file.copy(path("user.pub"), path("authorized"))
  port <- free_port()
  env <- launch_env()
  writeLines(
    c(
      paste("Port", port),
      "ListenAddress 127.0.0.1",
      "ListenAddress 127.0.0.2",
      paste("HostKey", path("host")),
      paste("AuthorizedKeysFile", path("authorized")),
      "PidFile none",
      "StrictModes no",
      "PermitRootLogin yes",
      "PasswordAuthentication no",
      "KbdInteractiveAuthentication no",
      "UsePAM no",
      # A test fails to log in on purpose. After a few such failures, sshd from OpenSSH 9.8 on closes all connections
      # from that address for a while, and tells ssh nothing.
      if (sshd_knows("PerSourcePenalties no")) "PerSourcePenalties no",
      paste0("SetEnv ", paste0("\"", names(env), "=", env, "\"", collapse = " "))
    ),
    path("sshd_config")
  )
  # sshd starts itself again for each connection, and needs its full path for that.
  server <- local_program("sshd", c("-D", "-e", "-f", path("sshd_config")), frame)
  server_ready(server, function() grepl("127.0.0.1 port", server$log()))
  client <- function(key) {
    config <- path(paste0("config-", key))
    writeLines(
      c(
        paste("IdentityFile", path(key)),
        "IdentitiesOnly yes",
        "StrictHostKeyChecking no",
        "UserKnownHostsFile /dev/null",
        "LogLevel ERROR"
      ),
      config
    )
    paste("ssh -F", config)
  }
  user <- Sys.info()[["effective_user"]]
  list(
    remotes = paste0("ssh://", user, "@127.0.0.", 1:2, ":", port),
    words = paste(client("user"), "-p", port, paste0(user, "@127.0.0.1")),
    command = client("user"),
    refused = client("other"),
    log = server$log
  )
}

# Whether this version of sshd knows a line of its configuration.
sshd_knows <- function(line) {
  said <- suppressWarnings(system2(
    find_command("sshd"),
    c("-t", "-f", "/dev/null", "-o", shQuote(line)),
    stdout = TRUE,
    stderr = TRUE
  ))
  !any(grepl("Bad configuration option", said))
}

# Starts a Slurm cluster that consists of this machine.
local_slurm <- function(frame = parent.frame()) {
  skip_on_os(c("windows", "mac", "solaris"))
  need_command("slurmctld", "slurmd", "munged", "sbatch", "srun", "scancel", "squeue")
  if (Sys.info()[["effective_user"]] != "root") {
    skip("Slurm's servers need root")
  }
  dir <- local_file("slurm", frame = frame)
  dir.create(dir, mode = "0755")
  path <- function(name) file.path(dir, name)
  for (name in c("state", "spool")) {
    dir.create(path(name))
  }
  writeBin(as.raw(sample(0:255, 128L, replace = TRUE)), path("key"))
  Sys.chmod(path("key"), "0400")
  munge <- paste0(
    "--",
    c("key-file", "socket", "pid-file", "log-file", "seed-file"),
    "=",
    path(c("key", "munge", "munge.pid", "munge.log", "seed"))
  )
  munged <- local_program("munged", c("--foreground", "--force", "--num-threads=1", munge), frame)
  server_ready(munged, function() file.exists(path("munge")))

  node <- sub("[.].*", "", Sys.info()[["nodename"]])
  writeLines(
    c(
      "ClusterName=mirai",
      paste0("SlurmctldHost=", node, "(127.0.0.1)"),
      paste0("SlurmctldPort=", free_port()),
      paste0("SlurmdPort=", free_port()),
      "SlurmUser=root",
      "SlurmdUser=root",
      "AuthType=auth/munge",
      paste0("AuthInfo=socket=", path("munge")),
      "CredType=cred/munge",
      paste0("StateSaveLocation=", path("state")),
      paste0("SlurmdSpoolDir=", path("spool")),
      paste0("SlurmctldPidFile=", path("slurmctld.pid")),
      paste0("SlurmdPidFile=", path("slurmd.pid")),
      paste0("SlurmctldLogFile=", path("slurmctld.log")),
      paste0("SlurmdLogFile=", path("slurmd.log")),
      # Without control groups, which containers may lack.
      "ProctrackType=proctrack/linuxproc",
      "TaskPlugin=task/none",
      "JobAcctGatherType=jobacct_gather/none",
      "MpiDefault=none",
      "SelectType=select/cons_tres",
      "SelectTypeParameters=CR_CPU_Memory",
      "SlurmdParameters=config_overrides",
      "SchedulerParameters=batch_sched_delay=0,sched_min_interval=0",
      "PropagateResourceLimits=NONE",
      "KillWait=2",
      "ReturnToService=2",
      paste0("NodeName=", node, " NodeAddr=127.0.0.1 CPUs=4 RealMemory=4096 State=UNKNOWN"),
      paste0("PartitionName=all Nodes=", node, " Default=YES MaxTime=INFINITE State=UP")
    ),
    path("slurm.conf")
  )
  local_envvar(
    SLURM_CONF = path("slurm.conf"),
    R_LIBS = paste(.libPaths(), collapse = ":"),
    frame = frame
  )
  local_program("slurmctld", c("-D", "-f", path("slurm.conf")), frame)
  slurmd <- local_program("slurmd", c("-D", "-f", path("slurm.conf")), frame)
  slurm <- list(
    dir = dir,
    jobs = function() slurm_output("squeue", "-h -o %i"),
    options = paste0("#SBATCH --output=", path("job-%j"))
  )
  server_ready(slurmd, function() identical(slurm_output("sinfo", "-h -o %T"), "idle"))
  defer(
    function() {
      system2("scancel", c("-u", "root"))
      wait_until(function() !length(slurm$jobs()), 20)
    },
    frame
  )
  slurm
}

slurm_output <- function(command, args) {
  suppressWarnings(system2(command, args, stdout = TRUE, stderr = FALSE))
}

# Starts a web service that answers each request with `status` and a body. It prints what it receives: the request line,
# the headers, and the body as one line of R code, which `body()` reads.
local_http <- function(status, frame = parent.frame()) {
  port <- free_port()
  code <- c(
    sprintf("server <- serverSocket(%d)", port),
    "cat('ready\\n')",
    "repeat {",
    "  con <- socketAccept(server, blocking = TRUE, open = 'r+b')",
    "  length <- 0",
    "  repeat {",
    "    line <- readLines(con, 1L)",
    "    if (!length(line) || line == '') break",
    "    cat(line, '\\n')",
    "    if (grepl('^content-length', tolower(line))) length <- as.integer(sub('.*: *', '', line))",
    "  }",
    "  body <- rawToChar(readBin(con, 'raw', length))",
    "  cat('body', deparse(body, width.cutoff = 500L), '\\n')",
    sprintf("  reply <- 'HTTP/1.1 %s\\r\\nContent-Length: 9\\r\\nConnection: close\\r\\n\\r\\nthe reply'", status),
    "  writeChar(reply, con, eos = NULL)",
    "  close(con)",
    "}"
  )
  p <- r_process(code, frame)
  wait_for_line(p, "ready")
  body <- function() {
    key <- as.character(p$get_pid())
    found <- function() {
      p$poll_io(100)
      unread[[key]] <- c(unread[[key]], p$read_output_lines())
      grep("^body ", unread[[key]], value = TRUE)
    }
    wait_until(function() length(found()) > 0L)
    line <- found()[[1L]]
    unread[[key]] <- character()
    eval(parse(text = sub("^body ", "", line)))
  }
  list(url = sprintf("http://127.0.0.1:%d/jobs", port), process = p, body = body)
}

# Waits until a launch command has failed. Returns the warning of status().
launch_warning <- function() {
  text <- NULL
  tell <- function(w) {
    text <<- conditionMessage(w)
    invokeRestart("muffleWarning")
  }
  wait_until(function() {
    withCallingHandlers(status(), warning = tell)
    !is.null(text)
  })
  text
}
