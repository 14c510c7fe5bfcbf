# Without retry, no task runs twice. Each task appends its index to a file, which would show it.

marks <- function(file) as.integer(readLines(file))

# A map of tiny tasks during which daemons are killed and replaced. Each task appends its index to a file, as one
# string: so it is a single write, which other writes cannot divide.
map_with_kills <- function(file, n, kills) {
  file.create(file)
  pids <- function() unlist(everywhere(Sys.getpid())[])
  victims <- pids()
  map <- mirai_map(
    seq_len(n),
    function(i, file) {
      cat(paste0(i, "\n"), file = file, append = TRUE)
      i
    },
    .args = list(file = file)
  )
  for (kill in seq_len(kills)) {
    done <- file.size(file)
    wait_until(function() file.size(file) > done)
    tools::pskill(victims[[kill]], tools::SIGKILL)
    launch_local(1L)
  }
  map[]
}

for (scheme in c("tcp", "ws")) {
  for (dispatcher in c(TRUE, FALSE)) {
    test_that(
      paste("without retry no task runs twice over", scheme, "when daemons are killed, dispatcher =", dispatcher),
      {
        local_test_daemons(url = loopback(scheme), dispatcher = dispatcher)
        for (round in 1:3) {
          launch_local(1L)
          launch_local(1L)
          launch_local(1L)
          expect_true(wait_until(function() info()[["connections"]] >= 3L))
          file <- local_file()
          n <- 2000L
          results <- map_with_kills(file, n, 3L)
          ran <- marks(file)
          expect_false(anyDuplicated(ran) > 0L)
          replied <- !vapply(results, is_error_value, NA)
          expect_identical(unlist(results[replied]), which(replied))
          expect_true(all(which(replied) %in% ran))
          lost <- results[!replied]
          expect_true(all(vapply(lost, function(x) unclass(x) == 19L, NA)))
          # At most the tasks that may be begun before a reply, for each daemon that was killed.
          expect_lte(length(lost), 3L * 64L)
        }
      }
    )
  }
}
