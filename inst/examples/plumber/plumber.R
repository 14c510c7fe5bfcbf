# An API that answers asynchronously: daemons compute, and requests do not wait for each other.
# Start it by
#
#   library(mirai)
#   api <- system.file("examples", "plumber", "plumber.R", package = "mirai")
#   with(daemons(4), plumber::pr_run(plumber::pr(api), port = 8000))
#
# and ask it: curl 'localhost:8000/simulate?n=1e6'

library(mirai)
library(promises)

#* Quantiles of a simulated sum, computed by a daemon
#* @param n how many draws
#* @param seconds how much longer to take
#* @serializer unboxedJSON list(digits = NA)
#* @get /simulate
function(res, n = 1e5, seconds = 0) {
  n <- as.numeric(n)
  seconds <- as.numeric(seconds)
  if (is.na(n) || n < 1 || is.na(seconds) || seconds < 0) {
    res$status <- 400L
    return(list(error = "'n' has to be 1 or greater, 'seconds' 0 or greater"))
  }
  m <- mirai(
    {
      start <- Sys.time()
      sums <- runif(n) + runif(n)
      Sys.sleep(seconds)
      list(
        quantiles = as.list(quantile(sums, c(0.05, 0.5, 0.95))),
        daemon = Sys.getpid(),
        start = as.double(start),
        end = as.double(Sys.time())
      )
    },
    n = n,
    seconds = seconds,
    .timeout = 30000
  )
  # An error value rejects the promise. Then the client gets this answer.
  as.promise(m) %...!% (function(cnd) {
    res$status <- 503L
    list(error = conditionMessage(cnd))
  })
}

#* The status of the daemons, answered at once
#* @serializer unboxedJSON
#* @get /status
function() as.list(info())
