#' URL on this machine
#'
#' Makes a fresh URL for connections on this machine: an abstract socket on Linux, whose name is not
#' in the file system, and a socket in the temporary directory elsewhere. Only processes of the
#' same user can connect.
#'
#' @returns A character string, different each time.
#' @examples
#' local_url()
#' @export
local_url <- function() .Call(rs_fresh_local_url)
