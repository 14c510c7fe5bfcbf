# Makes a program to use instead of Rscript. It stores the arguments of each call, unchanged.
local_rscript <- function(frame = parent.frame()) {
  dir <- local_file("fake", frame = frame)
  dir.create(dir)
  path <- file.path(dir, "Rscript")
  # Writes to another name first, and renames: so a file that exists is complete.
  writeLines(
    c(
      "#!/bin/sh",
      sprintf("out=$(mktemp '%s/part.XXXXXX')", dir),
      "printf '%s\\0' \"$@\" >\"$out\"",
      sprintf("mv \"$out\" \"%s/args.${out##*.}\"", dir)
    ),
    path
  )
  Sys.chmod(path, "0755")
  # Waits for `n` calls `Rscript -e <code>`, and returns the code of each.
  code <- function(n) {
    calls <- function() list.files(dir, "^args", full.names = TRUE)
    if (!wait_until(function() length(calls()) >= n)) {
      stop("called ", length(calls()), " times")
    }
    out <- vapply(
      calls(),
      function(file) {
        args <- readBin(file, "raw", file.size(file))
        ends <- which(args == 0)
        stopifnot(length(ends) == 2L, rawToChar(args[seq_len(ends[1L] - 1L)]) == "-e")
        text <- rawToChar(args[seq(ends[1L] + 1L, ends[2L] - 1L)])
        Encoding(text) <- "UTF-8"
        text
      },
      "",
      USE.NAMES = FALSE
    )
    unlink(calls())
    out
  }
  list(path = path, dir = dir, code = code)
}

# The code that a command passes to Rscript: undoes the quoting, as a POSIX shell does.
code_of <- function(cmd, rscript = "Rscript") {
  code <- substring(cmd, nchar(rscript) + 6L, nchar(cmd) - 1L)
  gsub("'\\''", "'", code, fixed = TRUE)
}

nasty_urls <- c(
  "ipc:///tmp/it's \"$HOME\" `id` $(id) \\ \\n \\\\ 'a' ''b'' * ? ~ ! # % & ; | < > { } [a-z] ~+~",
  "ipc:///tmp/line one\nline two\n\n  indented\ttab ",
  "ipc:///tmp/\u00fcml\u00e4ut \u65e5\u672c \U1f600 -e --args"
)
