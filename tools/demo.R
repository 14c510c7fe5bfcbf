# The main job: real work on data that comes with R, done by daemons and checked against the
# same work done here. Run by tools/demo.
library(mirai)

heading <- function(...) cat("\n", ..., "\n", sep = "")
timed <- function(expr) {
  time <- system.time(value <- expr)[["elapsed"]]
  list(value = value, seconds = time)
}
cores <- max(2L, parallel::detectCores())

heading("Which model of fuel consumption predicts best? (mtcars, ", nrow(mtcars), " cars)")

formulas <- list(
  weight = mpg ~ wt,
  power = mpg ~ wt + hp,
  curved = mpg ~ wt + I(wt^2) + hp,
  gears = mpg ~ wt + hp + factor(cyl) + am
)
for (i in seq_along(formulas)) environment(formulas[[i]]) <- globalenv()

# 10-fold cross-validation (the kind of random numbers is said, as daemons have another one), many times over with other folds: root mean squared error.
cross_validate <- function(formula, data, times, seed) {
  set.seed(seed, kind = "Mersenne-Twister")
  errors <- replicate(times, {
    fold <- sample(rep_len(1:10, nrow(data)))
    residuals <- lapply(1:10, function(k) {
      fit <- lm(formula, data[fold != k, ])
      data$mpg[fold == k] - suppressWarnings(predict(fit, data[fold == k, ]))
    })
    sqrt(mean(unlist(residuals)^2))
  })
  mean(errors)
}

# Bootstrap of the coefficients: standard errors.
bootstrap <- function(formula, data, times, seed) {
  set.seed(seed, kind = "Mersenne-Twister")
  draws <- replicate(times, coef(lm(formula, data[sample(nrow(data), replace = TRUE), ])))
  apply(as.matrix(draws), 1L, sd, na.rm = TRUE)
}

jobs <- rep(seq_along(formulas), each = 4L)
work <- function(i) {
  cross_validate(formulas[[jobs[i]]], mtcars, times = 10L, seed = i)
}

cat("Here, one after the other: ")
here <- timed(vapply(seq_along(jobs), work, 0))
cat(round(here$seconds, 2), "s\n")

cat("On", cores, "daemons: ")
invisible(daemons(cores))
there <- timed({
  ms <- lapply(seq_along(jobs), function(i) {
    mirai(
      work(i),
      work = work, cross_validate = cross_validate, formulas = formulas, jobs = jobs,
      .args = list(i = i)
    )
  })
  vapply(collect_mirai(ms), identity, 0)
})
cat(round(there$seconds, 2), "s\n")
stopifnot(identical(here$value, there$value))
cat("The results are identical.\n\n")
scores <- tapply(there$value, names(formulas)[jobs], mean)
print(round(sort(scores), 3))
best <- names(which.min(scores))

heading("How sure are its coefficients? A bootstrap whose runs sometimes fail, and are tried again")

unreliable <- function(formula, data, seed, attempt) {
  # The first attempt of every third one fails, as a flaky resource would.
  if (seed %% 3L == 0L && attempt == 1L) stop("random error\n", call. = FALSE)
  bootstrap(formula, data, times = 100L, seed = seed)
}
retried <- 0L
collect_resiliently <- function(seed) {
  attempt <- 1L
  submit <- function() {
    mirai(
      unreliable(formula, data, seed, attempt),
      unreliable = unreliable, bootstrap = bootstrap,
      .args = list(formula = formulas[[best]], data = mtcars, seed = seed, attempt = attempt)
    )
  }
  m <- submit()
  while (is_error_value(call_mirai(m)$data)) {
    cat("  run ", seed, ": ", m$data, sep = "")
    retried <<- retried + 1L
    attempt <- attempt + 1L
    m <- submit()
  }
  m$data
}
seeds <- 1:6
booted <- vapply(seeds, collect_resiliently, numeric(length(coef(lm(formulas[[best]], mtcars)))))
expected <- vapply(seeds, function(s) bootstrap(formulas[[best]], mtcars, 100L, s), booted[, 1])
stopifnot(identical(booted, expected), retried == 2L)
cat("All", length(seeds), "runs are done,", retried, "of them at the second attempt; checked against the same here.\n\n")
print(round(cbind(coefficient = coef(lm(formulas[[best]], mtcars)), std.error = rowMeans(booted)), 3))

heading("Meanwhile, results are written to a file, in the background")

file <- tempfile(fileext = ".csv")
waits <- 0L
for (batch in 1:3) {
  results <- data.frame(batch = batch, job = seq_along(jobs), rmse = there$value)
  m <- mirai(
    write.table(results, file, append = file.exists(file), col.names = !file.exists(file), row.names = FALSE, sep = ","),
    .args = environment()
  )
  # The session is free; here it only looks in from time to time.
  while (unresolved(m)) waits <- waits + 1L
  cat("Write ", batch, " complete: ", is.null(m$data), "\n", sep = "")
}
stopifnot(nrow(read.csv(file)) == 3L * length(jobs))
cat("Read back:", nrow(read.csv(file)), "rows.\n")
unlink(file)

heading("Daemons")
print(status())
print(daemons(0))
