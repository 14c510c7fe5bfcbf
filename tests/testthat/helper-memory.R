# A numeric vector of this size in bytes.
real <- function(bytes = 1e6) seq_len(bytes / 8) + 0.5

# `n` different strings.
text <- function(n = 1e5) sprintf("string %06d", seq_len(n))

# Strings of all encodings, empty strings and NA.
of_all_encodings <- function(n = 1e5) {
  x <- text(n)
  i <- seq(1L, n, by = 10L)
  x[i] <- paste0("fa\u00e7ile \u6771\u4eac ", i)
  x[i + 1L] <- `Encoding<-`(paste0("fa\xE7ile ", i), "latin1")
  x[i + 2L] <- `Encoding<-`(paste0("\xff\xfe ", i), "bytes")
  x[i + 3L] <- ""
  x[i + 4L] <- NA
  x[i + 5L] <- "\xE7"
  x
}

mappings <- function(pid = "self") sum(grepl("memfd:mirai ", readLines(file.path("/proc", pid, "maps"))))

# The number of open descriptors that are segments.
descriptors <- function(pid = "self") {
  links <- suppressWarnings(Sys.readlink(list.files(file.path("/proc", pid, "fd"), full.names = TRUE)))
  sum(grepl("memfd:mirai ", links))
}

nothing_left <- function(pid = "self") {
  wait_until(function() {
    gc()
    mappings(pid) == 0L && descriptors(pid) == 0L
  })
}

is_shared <- function(x) {
  # What is shown of strings may be in any encoding.
  any(grepl("shared memory", utils::capture.output(.Internal(inspect(x))), fixed = TRUE, useBytes = TRUE))
}

echo <- function(x) mirai(x, x = x)[]
