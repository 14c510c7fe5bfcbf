#' Errors raised by mirai
#'
#' Errors that mirai raises have class `"mirai_error"`, so that code can catch them. Most of them also have a finer
#' class, which says what kind of error it is.
#'
#' @details
#' | class | raised when | by, for example |
#' |---|---|---|
#' | `mirai_error_argument` | an argument or an option is not valid | every function |
#' | `mirai_error_no_daemons` | no daemons are set for the profile | [require_daemons()], [launch_local()] |
#' | `mirai_error_connect` | a URL cannot be listened at, or the host cannot be reached | [daemons()], [daemon()] |
#' | `mirai_error_launch` | a daemon cannot be started | [daemons()], [launch_remote()] |
#' | `mirai_error_map` | an element of a map has failed, by `.stop` or `.flat` | [mirai_map()] |
#' | `mirai_error_pipeline` | an argument is a mirai that has failed | [everywhere()] |
#'
#' `conditionMessage()` says what happened. `conditionCall()` is the call of the function that you called.
#'
#' Errors in an evaluated expression are not raised. They are values: see [is_mirai_error()].
#' @seealso [is_error_value()] for errors of tasks; [require_daemons()]; [tryCatch()].
#' @examples
#' tryCatch(
#'   daemons(-1),
#'   mirai_error_argument = function(e) conditionMessage(e)
#' )
#' tryCatch(
#'   require_daemons(),
#'   mirai_error_no_daemons = function(e) "set daemons first"
#' )
#' @name mirai-errors
#' @aliases mirai_error mirai_error_argument mirai_error_no_daemons mirai_error_connect mirai_error_launch
#'   mirai_error_pipeline
NULL

# For errors of native code (error.rs). The call is that of the function in which `.Call()` is.
raise <- function(message, class) stop_error(message, if (sys.nframe() > 1L) sys.call(-1L), class)

# Raises a mirai_error. `call` is the call of the function that the user called, or NULL. `class` is the finer class, or
# NULL.
stop_error <- function(message, call = NULL, class = NULL) {
  stop(errorCondition(message, class = c(class, "mirai_error"), call = call))
}
