test_that("commands survive a shell byte for byte", {
  profile <- local_test_daemons(url = local_url())
  rscript <- local_rscript()
  urls <- nasty_urls
  check <- function(cmd) {
    code <- rscript$code(length(cmd))
    expect_setequal(code, code_of(cmd, rscript$path))
    found <- vapply(code, function(x) as.list(parse(text = x, encoding = "UTF-8")[[1L]])[[2L]], "")
    expect_setequal(enc2utf8(unname(found)), enc2utf8(rep_len(urls, length(cmd))))
  }
  # pasted
  cmd <- launch_remote(urls, remote_config(rscript = rscript$path))
  script <- local_file(fileext = ".sh")
  writeLines(enc2utf8(cmd), script, useBytes = TRUE)
  system2("sh", script)
  check(cmd)
  # by each kind of command
  check(launch_remote(urls, remote_config("env", c("-u NOTHING", "."), rscript$path)))
  check(launch_remote(urls, remote_config("sh", c("-c", "."), rscript$path, quote = TRUE)))
  check(launch_remote(urls, cluster_config("sh", "set -e", rscript$path)))
  # and by its name alone, as it is by default
  local_envvar(PATH = paste0(rscript$dir, ":", Sys.getenv("PATH")))
  cmd <- launch_remote(urls, remote_config("env"))
  expect_setequal(rscript$code(length(cmd)), code_of(cmd))
})

test_that("R itself reads a command as it is meant", {
  local_test_daemons(url = local_url())
  cmd <- launch_remote("ipc:///tmp/it's \"a\" $HOME `b`\nand \\ more")
  script <- local_file(fileext = ".sh")
  # Prints the call that Rscript would evaluate.
  lines <- sub("mirai::daemon", "dput((function(x, ...) x)", sub("rs=.*'", "1))'", cmd), fixed = TRUE)
  writeLines(lines, script)
  expect_identical(
    eval(parse(text = system2("sh", script, stdout = TRUE))),
    "ipc:///tmp/it's \"a\" $HOME `b`\nand \\ more"
  )
})
