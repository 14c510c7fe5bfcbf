#' Next random number stream
#'
#' Returns the next L'Ecuyer-CMRG stream of a compute profile, and advances it, as the profile's tasks or daemons do.
#' Streams follow each other as by [parallel::nextRNGStream()]. The first comes from the `seed` that was given to
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
#' Returns a property of a compute profile, by name. For packages and advanced use.
#'
#' @param x what to look up:
#'
#'   * `"urls"`: all URLs at which the profile listens.
#'   * `"url"`: the first of them.
#'   * `"n"`: the number of daemons set, or if they come from elsewhere the number of URLs.
#'   * `"pid"`: the id of the process that has the dispatcher, which is this session.
#'   * `"stream"`: the stream that [nextstream()] would return, without advancing it.
#'   * `"tls"`: the certificate by which daemons verify this host, for their argument `tls`. `NULL` if the profile has
#'     no secure URL.
#' @inheritParams status
#' @returns The property. `NULL` for another name, and if no daemons are set.
#' @seealso [daemons()], [status()], [nextstream()].
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
