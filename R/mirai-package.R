#' mirai: asynchronous, parallel and distributed evaluation
#'
#' [mirai()] evaluates an expression in another R process. [daemons()] keeps processes ready for that. [mirai_map()]
#' maps a function over a vector, one task for each element. [everywhere()] prepares all daemons, and [status()] shows
#' what they do.
#'
#' `vignette("mirai", "mirai")` shows all of this, with examples. For code that was written for the 2.x releases, see
#' `vignette("coming-from-2x", "mirai")` and [mirai-edition].
#'
#' Arguments that are times are in milliseconds, unless their help says otherwise.
#'
#' @section Options: These are set by [options()]:
#'
#' | option | default | what it does |
#' |---|---|---|
#' | `mirai.edition` | 1 | 2 for the interface of the 2.x releases: see [mirai-edition] |
#' | `mirai.relay` | `FALSE` | `TRUE` is `.relay` in all brackets: see [mirai_conditions()] |
#' | `mirai.keepalive` | 30000 | ms of silence after which a peer across the network is given up; read by [daemons()] |
#' | `mirai.launch_timeout` | 3600 | seconds until a launch is given up: see section *Scaling* of [daemons()] |
#' | `mirai.spin` | `TRUE` | looks again for 50 microseconds before a wait sleeps (Linux); read by [daemons()] |
#' | `mirai.fork_server` | `TRUE` | `FALSE` starts every process by `Rscript`, also on Linux: see [daemons()] |
#'
#' @seealso [mirai()], [daemons()], [mirai_map()], [make_cluster()], [as.promise()][as.promise.mirai].
#' @examples
#' m <- mirai(x + 1, x = 41)
#' m[]
#' @useDynLib mirai, .registration = TRUE, .fixes = "rs_"
#' @importFrom utils .DollarNames
#' @docType package
#' @name mirai-package
NULL

# What the package remembers between calls. Fields that hold one value for each compute profile are lists, named by
# profile.
the <- new.env(parent = emptyenv())

# By profile: the options that daemons() was given in `...`, as daemons_settings() returns them. launch_local() and
# launch_remote() use them.
the$settings <- list()
# By profile: the number of daemons set. nextget("n") returns it.
the$numbers <- list()
# By profile, with `sync = TRUE`: the objects that everywhere() has left in the global environment, and the state of the
# random number generator.
the$globals <- list()
# By profile, with a `seed`: the random number stream for the next call of everywhere().
the$setup_streams <- list()
# By profile: the launch commands that were still running when they were last checked. status() warns if one fails.
the$launches <- list()
# By profile: how daemons are launched as the queue asks, a list of `remote` and `settings`. See fleet.R.
the$fleets <- list()

# By profile: the value of serial_config() that daemons() was given as `serial`.
the$serial <- list()
# The functions registered by serialization(), as a list of one hook, or NULL.
the$serialization <- NULL
# The hooks registered by register_serial(), as a list.
the$registered <- NULL

# The edition that daemons were told last. It decides which kind of stack trace they record.
the$told_edition <- 1L
# On a daemon: the edition of its host, or NULL if the host has not told it.
the$host_edition <- NULL

# The number of clusters made so far. It makes the next cluster's id.
the$clusters <- 0L
# On a node of a cluster: the node's id. It is the prefix of the ids of clusters made there.
the$node_id <- NULL

# What startup_settings() returned when the fork server was started. NULL if it has not been started.
the$fork_server <- NULL

# Of the task that runs here: its conditions, the bytes of their messages, and the number of those that were dropped.
the$noted <- list()
the$noted_text <- 0
the$noted_dropped <- 0L
# How many evaluations with `sync = TRUE` are within one another now.
the$sync_depth <- 0L
# On a daemon: whether warnings are printed, for `output = TRUE`.
the$prints_warnings <- FALSE

# On a daemon: what the clean-up could not restore. Each is reported once.
the$not_cleaned <- character()

# The tracer of package otel, or NULL if nothing is traced.
the$tracer <- NULL
# By profile, if there is a tracer: the span of the last call of daemons().
the$daemons_spans <- list()

# Whether find_tracer() has looked.
the$tracer_sought <- FALSE

.onLoad <- function(libname, pkgname) {
  # Deletes the sockets in the file system when R quits.
  reg.finalizer(environment(.onLoad), function(e) .Call(rs_close_session), onexit = TRUE)
}
