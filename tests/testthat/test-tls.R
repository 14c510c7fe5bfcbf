test_that("without configuration, daemons get a certificate and a secret, but not the host's key", {
  local_test_daemons(url = loopback("tls+tcp"))
  text <- nextget("tls")
  expect_match(text, "^-----BEGIN CERTIFICATE-----\n")
  expect_no_match(text, "PRIVATE KEY")
  command <- launch_remote(1)
  expect_match(command, text, fixed = TRUE)
  expect_no_match(command, "PRIVATE KEY")
  # No key is in the command line or environment of this process.
  for (file in c("cmdline", "environ")) {
    bytes <- readBin(file.path("/proc/self", file), "raw", 1e6)
    expect_no_match(rawToChar(bytes[bytes != 0]), "PRIVATE KEY")
  }
  # The certificate alone is not enough: the host refuses a daemon without the secret.
  certificate <- sub("(-----END CERTIFICATE-----\n).*", "\\1", text)
  p <- daemon_process(nextget("url"), paste0(", tls = c(", encodeString(certificate, quote = "\""), ", '')"))
  said <- words(p)
  expect_match(said, "launch_remote", all = FALSE)
  # The secret of another host is refused, too.
  expect_identical(info()[["cumulative"]], 0L)
  p <- daemon_process(nextget("url"), tls_argument())
  expect_true(connected(1))
  expect_identical(mirai("secure")[], "secure")
  daemons(0)
  expect_identical(end_code(p), 0L)
})

test_that("a daemon refuses a host with another certificate", {
  local_test_daemons(url = loopback("wss"))
  others <- tls_argument()
  local_test_daemons(url = loopback("wss"))
  # Even with asyncdial = TRUE the daemon refuses it, and does not try again.
  p <- daemon_process(nextget("url"), paste0(others, ", asyncdial = TRUE"))
  said <- words(p)
  expect_match(said, "certificate", all = FALSE)
  expect_identical(info()[["cumulative"]], 0L)
})

test_that("the user's own certificates", {
  pem <- local_certificates()
  chain <- pem$read("server.pem", "intermediate.pem")
  everything <- pem$read("server.pem", "intermediate.pem", "root.pem")
  for (scheme in c("tls+tcp", "wss")) {
    local_test_daemons(url = loopback(scheme), tls = c(chain, pem$read("server.key")))
    launch_local(1, tls = c(everything, ""))
    expect_identical(mirai("signed")[], "signed", info = scheme)
    daemons(0)
  }
  # Files. The daemon has the root certificate only.
  both <- pem$file("both.pem")
  writeLines(c(chain, pem$read("server.key")), both)
  local_test_daemons(url = loopback("tls+tcp"), tls = both)
  launch_local(1, tls = pem$file("root.pem"))
  expect_identical(mirai("files")[], "files")
  # With argument `tlscert`.
  local_test_daemons(url = loopback("tls+tcp"), tlscert = c(chain, pem$read("server.key")))
  launch_local(1, tlscert = pem$file("root.pem"))
  expect_identical(mirai("tlscert")[], "tlscert")
  expect_match(launch_remote(1, tlscert = "/path/to/file"), "tls=\"/path/to/file\"", fixed = TRUE)
  p <- daemon_process(nextget("url"), paste0(", tlscert = ", encodeString(pem$file("root.pem"), quote = "\"")))
  expect_true(connected(2))
  daemons(0)
  expect_identical(end_code(p), 0L)
  cl <- make_cluster(1, url = loopback("tls+tcp"), tlscert = c(chain, pem$read("server.key")))
  expect_false(grepl("BEGIN PRIVATE", nextget("tls", cl)))
  expect_match(nextget("tls", cl), chain, fixed = TRUE)
  launch_local(1, tlscert = pem$file("root.pem"), .compute = cl)
  expect_identical(parallel::clusterCall(cl, function() "node"), list("node"))
  stop_cluster(cl)
  expect_error(daemons(1, tls = "a", tlscert = "b"), "'tlscert' must be left out where there is 'tls'")
  # Self-signed: the certificate itself is the authority.
  local_test_daemons(url = loopback("tls+tcp"), tls = c(pem$read("self.pem"), pem$read("self.key")))
  launch_local(1, tls = c(pem$read("self.pem"), ""))
  expect_identical(mirai("self")[], "self")
})

test_that("a wrong certificate is an error on the side that can correct it", {
  pem <- local_certificates()
  key <- pem$read("server.key")
  said <- function(url, tls) {
    p <- daemon_process(url, paste0(", tls = ", encodeString(tls, quote = "\"")))
    paste(words(p), collapse = "\n")
  }
  # The certificate does not have the name in the URL.
  local_test_daemons(
    url = loopback("tls+tcp"),
    tls = c(pem$read("elsewhere.pem", "intermediate.pem"), pem$read("elsewhere.key"))
  )
  expect_match(said(nextget("url"), pem$file("root.pem")), "not valid for the name '127.0.0.1'", fixed = TRUE)
  # Signed by another authority.
  local_test_daemons(url = loopback("tls+tcp"), tls = c(pem$read("server.pem", "intermediate.pem"), key))
  expect_match(said(nextget("url"), pem$file("self.pem")), "not signed by")
  expect_identical(info()[["cumulative"]], 0L)
  # The key of another certificate; a key with a password.
  pem$run(
    "pkcs8",
    "-topk8",
    "-in",
    pem$file("server.key"),
    "-passout",
    "pass:secret",
    "-out",
    pem$file("encrypted.key")
  )
  encrypted <- c(pem$read("server.pem", "intermediate.pem"), pem$read("encrypted.key"))
  url <- "tls+tcp://127.0.0.1:0"
  expect_snapshot(show_errors({
    daemons(url = url, tls = c(pem$read("server.pem"), pem$read("self.key")), .compute = "another")
    daemons(url = url, tls = encrypted, .compute = "another")
    daemons(url = url, tls = encrypted, pass = "wrong", .compute = "another")
  }))
  local_test_daemons(url = url, tls = encrypted, pass = "secret")
  launch_local(1, tls = pem$file("root.pem"))
  expect_identical(mirai("opened")[], "opened")
})

test_that("openssl sees the chain and both versions of TLS", {
  pem <- local_certificates()
  local_test_daemons(
    url = loopback("tls+tcp"),
    tls = c(pem$read("server.pem", "intermediate.pem"), pem$read("server.key"))
  )
  seen <- function(version, ...) {
    args <- c("s_client", "-connect", sub("^.*//", "", nextget("url")), version, "-CAfile", pem$file("root.pem"), ...)
    suppressWarnings(system2("openssl", args, stdout = TRUE, stderr = TRUE, input = ""))
  }
  for (version in c("-tls1_2", "-tls1_3")) {
    out <- seen(version)
    expect_match(out, "Verify return code: 0 (ok)", fixed = TRUE, all = FALSE)
    expect_match(out, "mirai test intermediate", all = FALSE)
    expect_match(out, paste0("TLSv1.", substr(version, 7, 7)), fixed = TRUE, all = FALSE)
  }
  # openssl offers the old versions only at a lower security level
  old <- seen("-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0")
  expect_match(old, "alert", all = FALSE)
  expect_match(old, "no peer certificate available", all = FALSE)
})
