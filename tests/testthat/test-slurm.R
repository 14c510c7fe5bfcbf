test_that("daemons are launched by sbatch and run a map to its end", {
  local_tmpdir()
  slurm <- local_slurm()
  profile <- local_test_daemons(
    n = 2,
    url = "tcp://127.0.0.1:0",
    remote = cluster_config("sbatch", c("#SBATCH --job-name=mirai", "#SBATCH --mem=64", slurm$options))
  )
  expect_true(connected(2))
  expect_identical(unlist(mirai_map(1:20, function(i) i^2)[]), (1:20)^2)
  expect_setequal(unlist(everywhere(Sys.getenv("SLURM_JOB_NAME"))[]), "mirai")
  daemons(0, .compute = profile)
  expect_true(wait_until(function() !length(slurm$jobs()), 20))
  # an option that Slurm refuses
  bad <- cluster_config("sbatch", "#SBATCH --mem=1000000")
  expect_error(
    daemons(1, url = local_url(), remote = bad, .compute = profile),
    "sbatch .exit status 1.*Memory specification"
  )
  expect_false(daemons_set(profile))
})

test_that("daemons are launched by srun; the task of a cancelled job is lost, or run again with retry", {
  local_tmpdir()
  slurm <- local_slurm()
  remote <- function(args = "--mem 64") {
    remote_config("srun", c(args, "-n 1", "."), rscript = file.path(R.home("bin"), "Rscript"))
  }
  profile <- local_test_daemons(n = 2, url = "ws://127.0.0.1:0", remote = remote())
  expect_true(connected(2))
  expect_identical(unlist(mirai_map(1:20, function(i) i^2)[]), (1:20)^2)
  started <- local_file()
  m <- mirai(
    {
      writeLines(Sys.getenv("SLURM_JOB_ID"), started)
      Sys.sleep(600)
    },
    started = started
  )
  job <- function() if (file.exists(started)) readLines(started)
  expect_true(wait_until(function() length(job()) == 1L))
  system2("scancel", job())
  expect_identical(as.integer(m[]), 19L)
  expect_true(connected(1))
  warned <- launch_warning()
  expect_match(warned, "srun .*CANCELLED")

  daemons(n = 2, url = "ws://127.0.0.1:0", remote = remote(), retry = TRUE, .compute = profile)
  expect_true(connected(2))
  again <- local_file()
  first <- mirai(
    {
      if (file.exists(again)) {
        Sys.getenv("SLURM_JOB_ID")
      } else {
        writeLines(Sys.getenv("SLURM_JOB_ID"), again)
        Sys.sleep(600)
      }
    },
    again = again
  )
  expect_true(wait_until(function() file.exists(again) && length(readLines(again)) == 1L))
  system2("scancel", readLines(again))
  expect_type(first[], "character")
  expect_false(first[] == readLines(again))

  # an option that Slurm refuses
  bad <- remote("--mem 1000000")
  expect_error(daemons(1, url = local_url(), remote = bad, .compute = profile), "srun .exit status 1.*Memory")
  expect_false(daemons_set(profile))
})

test_that("daemons by sbatch come as the queue asks, also after scancel, and leave when they are idle", {
  local_tmpdir()
  slurm <- local_slurm()
  profile <- local_test_daemons(
    n = 1,
    max = 3,
    url = "tcp://127.0.0.1:0",
    remote = cluster_config("sbatch", c("#SBATCH --mem=64", slurm$options)),
    idletime = 500,
    retry = TRUE
  )
  expect_true(connected(1))
  expect_length(slurm$jobs(), 1L)
  dir <- local_file()
  dir.create(dir)
  run <- function(i, dir) {
    job <- Sys.getenv("SLURM_JOB_ID")
    writeLines(job, file.path(dir, paste(i, job)))
    while (!file.exists(file.path(dir, "go"))) {
      Sys.sleep(0.01)
    }
    job
  }
  map <- mirai_map(1:5, run, .args = list(dir = dir))
  started <- function() sub(".* ", "", list.files(dir))
  expect_true(wait_until(function() length(started()) == 3L, 30))
  expect_length(unique(started()), 3L)
  # one of them is cancelled: another job takes its place and its task
  gone <- started()[[2L]]
  system2("scancel", gone)
  expect_true(wait_until(function() length(started()) == 4L, 30))
  expect_lte(length(slurm$jobs()), 4L)
  file.create(file.path(dir, "go"))
  by <- unlist(map[])
  expect_length(by, 5L)
  expect_false(gone %in% by)
  # the first one stays
  expect_true(wait_until(function() length(slurm$jobs()) == 1L, 30))
  expect_true(connected(1))
  daemons(0, .compute = profile)
  expect_true(wait_until(function() !length(slurm$jobs()), 20))
})
