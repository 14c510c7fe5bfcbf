# Peers that send invalid data: serialized values of all kinds, mutants of them, and a daemon that answers with any
# bytes. tools/mutate.R uses this file, too.

# Values of every kind that R can serialize.
many_kinds <- function() {
  env <- new.env()
  env$self <- env
  local(
    {
      a <- 1
      f <- function(x, ...) x + a
      delayedAssign("later", stop("not evaluated"))
      makeActiveBinding("active", function() a, environment())
      g <- function(...) environment()
      dots <- g(a, b = 2)
      lockBinding("a", environment())
    },
    env
  )
  compiled <- compiler::cmpfun(function(x, y = 2) {
    z <- x + y
    for (i in 1:3) {
      z <- z * i
    }
    z
  })
  setClass("HostilePoint", representation(x = "numeric", y = "numeric"), where = env)
  point <- methods::new(methods::getClass("HostilePoint", where = env), x = 1, y = 2)
  list(
    NULL,
    NA,
    1:10,
    c(1.5, NA),
    1i,
    as.raw(1:9),
    c("a", NA, "\u00fc"),
    letters,
    list(1, "a", NULL),
    expression(a + b, 1),
    quote(f(x, y = 2)[[1]]),
    as.name("a"),
    as.pairlist(list(a = 1, 2)),
    function(x, y = 1, ...) x,
    sum,
    `if`,
    compiled,
    list(compiled, sum, compiled),
    compiler::compile(quote(x + 1)),
    globalenv(),
    baseenv(),
    emptyenv(),
    asNamespace("stats"),
    as.environment("package:stats"),
    env,
    list(env, env),
    y ~ x,
    iris[c(1, 51, 101), ],
    factor(c("a", "b", NA)),
    matrix(1:6, 2, dimnames = list(c("a", "b"), NULL)),
    array(1:8, c(2, 2, 2)),
    ts(1:10, frequency = 4),
    as.POSIXlt(Sys.time(), "UTC"),
    Sys.Date(),
    structure(list(), class = "x"),
    structure(1, attribute = quote(a)),
    1:1e6,
    as.numeric(1:300) + 0,
    as.character(1:1000),
    seq(2, 1000),
    sort(c(3L, 1L, 2L)),
    point,
    structure(function() 1, class = "f"),
    lapply(1:3, function(i) function(x) x + i),
    numeric_version("1.2.3"),
    try(stop("a"), silent = TRUE),
    tryCatch(stop("a"), error = identity),
    setNames(as.list(1:40), paste0("n", 1:40)),
    list(quote(expr = ), 1)
  )
}

payloads <- function() lapply(many_kinds(), function(x) suppressWarnings(.Call(mirai:::rs_encode, x)))

# Makes a few changes to the bytes: other bytes, other numbers, parts removed, repeated, or taken from other values.
mutate <- function(bytes, others) {
  for (i in seq_len(sample.int(3L, 1L))) {
    n <- length(bytes)
    if (n < 40L) {
      return(bytes)
    }
    # The header is mostly left unchanged.
    at <- if (runif(1) < 0.02) sample.int(n, 1L) else 23L + sample.int(n - 23L, 1L)
    word <- max(1L, min(24L + 4L * ((at - 24L) %/% 4L), n - 3L))
    switch(
      sample.int(7L, 1L),
      bytes[at] <- as.raw(sample.int(256L, 1L) - 1L),
      bytes[at] <- xor(bytes[at], as.raw(2L^(sample.int(8L, 1L) - 1L))),
      bytes[at + 0:3 - max(0L, at + 3L - n)] <- writeBin(strange_number(), raw(), endian = .Platform$endian),
      bytes[word + 0:3] <- writeBin(strange_number(), raw(), endian = .Platform$endian),
      bytes <- bytes[-(at:min(n, at + sample.int(12L, 1L)))],
      {
        other <- others[[sample.int(length(others), 1L)]]
        from <- sample.int(length(other), 1L)
        part <- other[from:min(length(other), from + sample.int(60L, 1L))]
        bytes <- append(bytes, part, at)
      },
      bytes <- append(bytes, bytes[at:min(n, at + sample.int(24L, 1L))], at)
    )
  }
  bytes
}

# Integers that may be types, flags, references or lengths.
strange_number <- function() {
  switch(
    sample.int(6L, 1L),
    sample.int(256L, 1L) - 1L,
    sample.int(30L, 1L) + 256L * (sample.int(8L, 1L) - 1L),
    255L + 256L * sample.int(12L, 1L),
    sample(c(-1L, -2L, 0L, 1L, 2L, 3L, .Machine$integer.max, -.Machine$integer.max, 65536L, 1e6L, NA), 1L),
    sample.int(26L, 1L) + as.integer(2^(11L + sample.int(16L, 1L))),
    sample.int(.Machine$integer.max, 1L)
  )
}

# Reads mutants of real payloads. Returns how many of them were valid. The test is that it does not crash.
read_mutants <- function(n, seed) {
  set.seed(seed)
  all <- payloads()
  read <- 0L
  for (i in seq_len(n)) {
    bytes <- mutate(all[[sample.int(length(all), 1L)]], all)
    value <- tryCatch(suppressWarnings(list(.Call(mirai:::rs_decode, bytes))), error = function(e) NULL)
    if (is.null(value)) {
      next
    }
    read <- read + 1L
    # Serializing it visits all parts of the value.
    tryCatch(suppressWarnings(serialize(value, NULL)), error = function(e) NULL)
  }
  gc()
  read
}

# The protocol's version that the peers below speak by hand: VERSION in core/src/protocol/message.rs.
protocol_version <- 8L

# Starts an evil_daemon() for a profile, and waits until the host has taken it. An error with what the process has
# written if it has not: tasks would wait for ever.
start_evil_daemon <- function(profile, files, frame = parent.frame()) {
  p <- r_process(evil_daemon(nextget("url", .compute = profile), files), frame)
  wait_until(function() info(profile)[["connections"]] == 1L || !p$is_alive(), 60)
  if (info(profile)[["connections"]] != 1L) {
    stop_evil_daemon(p)
  }
  p
}

# The values of mirai, of which the evil daemon `p` has to answer all. An error if it ends before.
answers_of <- function(p, x) {
  wait_until(function() !unresolved(x) || !p$is_alive(), 60)
  # Its last answers may be on their way.
  if (!wait_until(function() !unresolved(x), 2)) {
    stop_evil_daemon(p)
  }
  collect_mirai(x)
}

stop_evil_daemon <- function(p) {
  state <- if (p$is_alive()) "does not answer" else "has ended"
  p$kill(close_connections = FALSE)
  stop("the evil daemon ", state, ": ", paste(p$read_all_output_lines(), collapse = "\n"))
}

# Code for a process that connects to `url` as a daemon, and answers tasks with the contents of `files`, one after the
# other. It implements the protocol of core/src/protocol.
evil_daemon <- function(url, files) {
  port <- sub(".*:", "", url)
  files <- paste(encodeString(files, quote = "\""), collapse = ", ")
  paste0(
    "
    con <- socketConnection('127.0.0.1', ",
    port,
    ", blocking = TRUE, open = 'r+b', timeout = 60)
    number <- function(x) writeBin(as.integer(x), raw(), endian = 'little')
    send <- function(meta, body = raw()) {
      writeBin(c(charToRaw('mira'), number(c(length(meta), length(body), 0L)), meta, body), con)
    }
    varint <- function(x) {
      out <- raw()
      while (x > 127L) { out <- c(out, as.raw(x %% 128L + 128L)); x <- x %/% 128L }
      c(out, as.raw(x))
    }
    # The number at the start of bytes, and the rest.
    number_in <- function(bytes) {
      n <- which(bytes < 128)[1]
      list(sum(as.integer(bytes[seq_len(n)]) %% 128 * 128^(seq_len(n) - 1)), bytes[-seq_len(n)])
    }
    # Hello: version, process id, directory, slots
    send(as.raw(c(0, ",
    protocol_version,
    ", 1, 0, 1)))
    arrived <- granted <- answered <- 0
    for (file in c(",
    files,
    ")) {
      while (answered >= min(arrived, granted)) {
        head <- readBin(con, 'raw', 16)
        if (length(head) < 16) quit()
        lengths <- readBin(head[5:16], 'integer', 2, endian = 'little')
        meta <- readBin(con, 'raw', lengths[1])
        body <- readBin(con, 'raw', lengths[2])
        if (meta[1] == 2) stop('the host has refused this daemon: ', rawToChar(meta[-(1:2)]))
        if (meta[1] == 8) send(as.raw(2)) # a ping
        if (meta[1] == 3) { # a task: its number, kind, stream, constants, up to which number they may begin
          rest <- number_in(meta[-1])[[2]]
          stopifnot(rest[2] == 0)
          rest <- if (rest[3] == 1) number_in(rest[-(1:3)])[[2]] else rest[-(1:3)]
          arrived <- arrived + 1
          granted <- max(granted, number_in(rest)[[1]])
        }
        if (meta[1] == 7 && meta[2] == 2) granted <- max(granted, number_in(meta[-(1:2)])[[1]])
      }
      answered <- answered + 1
      # Done: number, value, time, no notes, no error
      send(c(as.raw(3), varint(answered), as.raw(c(0, 0, 0, 0))), readBin(file, 'raw', file.size(file)))
    }
    # Waits until the host closes the connection.
    while (length(readBin(con, 'raw', 16))) {}
  "
  )
}

# A host that speaks the protocol by hand, and the daemon of another process that has connected to it. `send()` sends a
# task: the bytes of its payload, values that are attached to it, and what is said of their number and sizes. It returns
# what the daemon answers, or NULL if the daemon closes the connection.
evil_host <- function(frame = parent.frame()) {
  port <- free_port()
  server <- serverSocket(port)
  defer(function() close(server), frame)
  daemon <- r_process(paste0("cat(mirai::daemon('tcp://127.0.0.1:", port, "', autoexit = TRUE))"), frame)
  con <- socketAccept(server, blocking = TRUE, open = "r+b", timeout = 60)
  defer(function() close(con), frame)
  number <- function(x) writeBin(as.integer(x), raw(), endian = "little")
  varint <- function(x) {
    out <- raw()
    while (x > 127) {
      out <- c(out, as.raw(x %% 128 + 128))
      x <- x %/% 128
    }
    c(out, as.raw(x))
  }
  # The numbers at the start of bytes.
  numbers_in <- function(bytes, n) {
    ends <- which(bytes < 128)[seq_len(n)]
    starts <- c(1L, ends[-n] + 1L)
    mapply(function(from, to) sum(as.integer(bytes[from:to]) %% 128 * 128^(0:(to - from))), starts, ends)
  }
  frame_out <- function(meta, body = raw()) {
    writeBin(c(charToRaw("mira"), number(c(length(meta), length(body), 0L)), meta, body), con)
  }
  frame_in <- function() {
    head <- readBin(con, "raw", 16L)
    if (length(head) < 16L) {
      return(NULL)
    }
    lengths <- readBin(head[5:16], "integer", 2L, endian = "little")
    list(meta = readBin(con, "raw", lengths[[1L]]), body = readBin(con, "raw", lengths[[2L]]))
  }
  # Hello, version
  hello <- as.integer(frame_in()$meta[1:2])
  if (!identical(hello, c(0L, protocol_version))) {
    stop("the daemon speaks version ", hello[[2L]], " of the protocol, not ", protocol_version)
  }
  frame_out(as.raw(c(1, 0, 1))) # Welcome, no keep-alive, may spin
  sent <- 0
  size <- function(n) c(number(n), number(0L))
  send <- function(payload, values = list(), sizes = lengths(values), attached = length(sizes)) {
    sent <<- sent + 1
    # A task: its number, kind, no stream, no constants, up to which number they may begin, values attached, no id
    meta <- c(as.raw(3), varint(sent), as.raw(c(0, 0, 0)), varint(sent), varint(attached), as.raw(0))
    frame_out(meta, c(payload, unlist(values), unlist(lapply(sizes, size))))
    repeat {
      answer <- frame_in()
      if (is.null(answer)) {
        return(NULL)
      }
      if (answer$meta[[1L]] == 3) {
        # Done: its number, value or error, time, size of notes
        notes <- numbers_in(answer$meta[-1L], 4L)[[4L]]
        return(.Call(mirai:::rs_decode, answer$body[seq_len(length(answer$body) - notes)]))
      }
    }
  }
  list(send = send, daemon = daemon)
}
