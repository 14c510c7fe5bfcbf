# The schemes of network URLs, and a URL on the loopback interface for a scheme.
schemes <- c("tcp", "ws", "tls+tcp", "wss")

loopback <- function(scheme, port = 0, path = "/a") {
  paste0(scheme, "://127.0.0.1:", port, if (scheme %in% c("ws", "wss")) path)
}

# The argument `tls` for daemons of a profile, as code. Empty if the URL is not secure.
tls_argument <- function(.compute = NULL) {
  text <- nextget("tls", .compute)
  if (is.null(text)) "" else paste0(", tls = c(", encodeString(text, quote = "\""), ", \"\")")
}

# For snapshots: replaces the names of this machine, ports and random parts.
mask_network <- function(lines) {
  lines <- gsub(Sys.info()[["nodename"]], "hostname", lines, fixed = TRUE)
  lines <- gsub("(hostname|127\\.0\\.0\\.1|localhost):[0-9]+", "\\1:<port>", lines)
  gsub("/[0-9a-f]{24}", "/<random>", lines)
}

free_port <- function() {
  for (port in sample(20000:29999, 100L)) {
    socket <- tryCatch(suppressWarnings(serverSocket(port)), error = function(e) NULL)
    if (!is.null(socket)) {
      close(socket)
      return(port)
    }
  }
  stop("no free port")
}

# Makes certificates in a directory, as an administrator would: of an authority, of an intermediate authority, and those
# that they have signed.
local_certificates <- function(frame = parent.frame()) {
  if (!nzchar(Sys.which("openssl"))) {
    skip("openssl is not installed")
  }
  dir <- local_file("certificates", frame = frame)
  dir.create(dir)
  file <- function(name) file.path(dir, name)
  run <- function(...) {
    out <- suppressWarnings(system2("openssl", shQuote(c(...)), stdout = TRUE, stderr = TRUE))
    if (!is.null(attr(out, "status"))) stop(paste(out, collapse = "\n"))
  }
  key <- function(name) run("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", file(name))
  authority <- function(name, issuer = NULL) {
    key(paste0(name, ".key"))
    run(
      "req",
      "-new",
      "-key",
      file(paste0(name, ".key")),
      "-subj",
      paste0("/CN=mirai test ", name),
      "-out",
      file("csr")
    )
    writeLines(c("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"), file("ext"))
    sign(name, if (is.null(issuer)) NULL else issuer)
  }
  sign <- function(name, issuer, days = "2") {
    by <- if (is.null(issuer)) {
      c("-signkey", file(paste0(name, ".key")))
    } else {
      c("-CA", file(paste0(issuer, ".pem")), "-CAkey", file(paste0(issuer, ".key")), "-CAcreateserial")
    }
    run(
      "x509",
      "-req",
      "-in",
      file("csr"),
      by,
      "-days",
      days,
      "-extfile",
      file("ext"),
      "-out",
      file(paste0(name, ".pem"))
    )
  }
  server <- function(name, issuer, host = "IP:127.0.0.1,DNS:localhost", days = "2") {
    key(paste0(name, ".key"))
    run("req", "-new", "-key", file(paste0(name, ".key")), "-subj", "/CN=127.0.0.1", "-out", file("csr"))
    writeLines(c("basicConstraints=CA:FALSE", paste0("subjectAltName=", host)), file("ext"))
    sign(name, issuer, days)
  }
  authority("root")
  authority("intermediate", "root")
  server("server", "intermediate")
  server("elsewhere", "intermediate", host = "DNS:elsewhere.example")
  server("self", NULL)
  read <- function(...) {
    names <- c(...)
    paste0(vapply(names, function(name) paste0(readLines(file(name)), "\n", collapse = ""), ""), collapse = "")
  }
  list(file = file, read = read, run = run)
}
