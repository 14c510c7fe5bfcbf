# The commands that launch daemons, by SSH, a job script, HTTP or any other way. run_jobs() runs them.

# The jobs for run_jobs() that launch daemons. `commands` are the daemons' own shell commands. The host listens at
# `urls`, and the daemons dial `dialled`.
remote_jobs <- function(remote, commands, urls, dialled) {
  switch(
    remote$type,
    # Elements of `args` are used again, in turn, if there are more daemons.
    command = if (!is.null(remote$command)) {
      Map(command_job, list(remote), commands, rep_len(remote$args, length(commands)))
    },
    ssh = ssh_jobs(remote, commands, urls, dialled),
    job = lapply(commands, cluster_job, remote = remote),
    http = lapply(commands, http_job, remote = remote)
  )
}

command_job <- function(remote, command, args) {
  args[args == "."] <- if (remote$quote) sh_quote(command) else command
  shell_job(remote$command, args[nzchar(args)])
}

cluster_job <- function(remote, command) {
  # In R code, lines may be indented. Resource managers want their options at the start of a line.
  options <- sub("^[[:space:]]+#", "#", unlist(strsplit(remote$options, "\n", fixed = TRUE)))
  script <- c("#!/bin/sh", options, command, "")
  shell_job(remote$command, character(), paste(script, collapse = "\n"))
}

# A job that runs a command with arguments, which are shell code. `exec` replaces the shell by the command, so that the
# process ends when the command does.
shell_job <- function(command, args, input = NULL) {
  found <- nzchar(Sys.which(command))
  name <- if (found) command else sub("^([^[:space:]]*).*$", "\\1", command)
  if (!found && !nzchar(Sys.which(name))) {
    text <- paste0("the launch of daemons has failed: there is no command '", name, "'")
    stop_error(text, class = "mirai_error_launch")
  }
  line <- paste(c("exec", if (found) sh_quote(command) else command, args), collapse = " ")
  list(name = basename(name), path = "/bin/sh", args = c("-c", line), input = input, service = NULL)
}

# Matches "ssh://user@host:port", and captures the three parts. User and host do not begin with "-", which would make
# them options of ssh.
ssh_pattern <- paste0(
  "^(?:ssh://)?([^-@:/\\s][^@:/\\s]*@)?",
  "(\\[[0-9A-Fa-f:.]+(?:%\\w+)?\\]|[^-@:/\\s\\[][^@:/\\s\\[]*)",
  "(:[0-9]+)?/?$"
)

ssh_jobs <- function(remote, commands, urls, dialled) {
  remotes <- rep_len(remote$remotes, length(commands))
  lapply(unique(remotes), function(target) {
    here <- remotes == target
    part <- function(i) sub(ssh_pattern, paste0("\\", i), target, perl = TRUE)
    args <- c("-o", paste0("ConnectTimeout=", format(remote$timeout, scientific = FALSE)), "-T")
    # Not with -f, which would hide error messages of the other machine. The command runs in the background anyway.
    if (nzchar(part(3L))) {
      args <- c(args, "-p", sub(":", "", part(3L)))
    }
    if (remote$tunnel) {
      args <- c(args, tunnel_args(urls[here], dialled[here]))
    }
    machine <- paste0(part(1L), gsub("[][]", "", part(2L)))
    shell_job(remote$command, sh_quote(c(args, machine, at_once(commands[here]))))
  })
}

tunnel_args <- function(urls, dialled) {
  forward <- paste(url_parts(dialled)$port, url_parts(urls)$host, url_parts(urls)$port, sep = ":")
  c("-o", "ExitOnForwardFailure=yes", rbind("-R", unique(forward)))
}

# Shell code that runs all commands at the same time, and fails if one of them does. By sh, because the user's login
# shell may have another syntax.
at_once <- function(commands) {
  if (length(commands) == 1L) {
    return(commands)
  }
  i <- seq_along(commands)
  waits <- paste0("wait $p", i, collapse = " && ")
  paste("exec sh -c", sh_quote(paste(c(paste0(commands, " & p", i, "=$!"), waits), collapse = "; ")))
}

http_job <- function(remote, command) {
  if (!nzchar(Sys.which("curl"))) {
    stop_error("the launch of daemons has failed: there is no command 'curl'", class = "mirai_error_launch")
  }
  data <- if (is.function(remote$data)) {
    paste(remote$data(command), collapse = "\n")
  } else {
    gsub("%s", json_escape(command), remote$data, fixed = TRUE)
  }
  headers <- remote$headers
  if (!"content-type" %in% tolower(names(headers))) {
    headers <- c(headers, "Content-Type" = "application/json")
  }
  options <- c(
    list(url = remote$url, request = remote$method),
    structure(as.list(paste0(names(headers), ": ", headers)), names = rep("header", length(headers))),
    list("data-raw" = data, silent = TRUE, "show-error" = TRUE, globoff = TRUE, "connect-timeout" = 10),
    remote$options,
    list("write-out" = "\n%{http_code}")
  )
  list(
    name = "curl",
    path = Sys.which("curl")[[1L]],
    args = c("--config", "-"),
    input = paste(unlist(Map(curl_option, names(options), options)), collapse = "\n"),
    service = remote$url
  )
}

# A line of curl's configuration file.
curl_option <- function(name, value) {
  if (isTRUE(value)) {
    return(name)
  }
  if (identical(value, FALSE)) {
    return(NULL)
  }
  value <- gsub("([\\\\\"])", "\\\\\\1", enc2utf8(as.character(value)))
  for (i in seq_along(escapes)) {
    value <- gsub(escapes[[i]], names(escapes)[[i]], value, fixed = TRUE)
  }
  paste0(name, " = \"", value, "\"")
}

escapes <- c("\\n" = "\n", "\\r" = "\r", "\\t" = "\t")

json_escape <- function(text) {
  text <- gsub("([\\\\\"])", "\\\\\\1", enc2utf8(text))
  for (i in seq_along(escapes)) {
    text <- gsub(escapes[[i]], names(escapes)[[i]], text, fixed = TRUE)
  }
  text
}
