#' Next random number stream
#'
#' Takes the next L'Ecuyer-CMRG stream of a compute profile, as the profile's tasks or daemons do. The
#' streams are those of [parallel::nextRNGStream()], in order from the `seed` that was given to
#' [daemons()], or from a random one.
#'
#' @inheritParams status
#' @returns An integer vector of length 7, to be assigned to `.Random.seed`.
#' @seealso [daemons()] and its argument `seed`.
#' @examples
#' nextstream()
#' @export
nextstream <- function(.compute = NULL) .Call(rs_next_stream, check_profile(.compute))

#' Look up a compute profile
#'
#' For packages and advanced use.
#'
#' @param x what to look up. `"urls"`: all URLs at which the profile listens. `"url"`: the first of
#'   them. `"n"`: the number of daemons set, which is the number of URLs unless more have been asked for.
#'   `"pid"`: id of the process in which the dispatcher is, that is, of this session.
#'   `"stream"`: the stream that [nextstream()] would return, without taking it. `"tls"`: what daemons are
#'   given as the first part of `tls` to know this host by, `NULL` if it has no secure URLs.
#' @inheritParams status
#' @returns As above. `NULL` for anything else, and if no daemons are set.
#' @seealso [daemons()], [status()].
#' @examples
#' daemons(1)
#' nextget("urls")
#' daemons(0)
#' @export
nextget <- function(x, .compute = NULL) {
  profile <- check_profile(.compute)
  check_string(x, "x")
  status <- .Call(rs_profile_status, profile)
  if (is.null(status)) {
    return(NULL)
  }
  switch(
    x,
    urls = status$urls,
    url = status$urls[1L],
    n = the$numbers[[profile]],
    pid = Sys.getpid(),
    tls = .Call(rs_profile_tls, profile),
    stream = .Call(rs_peek_stream, profile)
  )
}
