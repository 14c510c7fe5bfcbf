# The text view of a snapshot: lines for a terminal. mirai_monitor() shows them.

# Functions that colour text, and one that cuts it to a width; without `colours` they only cut.
monitor_style <- function(colours) {
  if (!colours) {
    plain <- function(x) x
    return(list(strong = plain, faint = plain, good = plain, bad = plain, busy = plain, cut = cut_to_width))
  }
  list(
    strong = function(x) as.character(cli::style_bold(x)),
    faint = function(x) as.character(cli::col_grey(x)),
    good = function(x) as.character(cli::col_green(x)),
    bad = function(x) as.character(cli::col_red(x)),
    busy = function(x) as.character(cli::col_cyan(x)),
    cut = function(x, width) as.character(cli::ansi_strtrim(x, width, ellipsis = "..."))
  )
}

cut_to_width <- function(x, width) {
  long <- nchar(x, "width") > width
  x[long] <- paste0(strtrim(x[long], max(width - 3L, 0L)), "...")
  x
}

# Rows of each table if the screen has no end.
table_rows <- c(running = 10L, daemons = 20L, failures = 5L)

# The lines of a snapshot, at most `rows` of at most `width` columns.
monitor_lines <- function(x, rows, width, style, now = max(as.numeric(Sys.time()), x$time)) {
  title <- paste0(
    style$strong(paste("mirai session", x$pid, "on", plain_text(x$host))),
    style$faint(paste0("  ", format(as_time(now), "%H:%M:%S"), if (!is.na(x$memory)) paste0("  ", as_bytes(x$memory))))
  )
  profiles <- x$profiles
  if (!length(profiles)) {
    return(style$cut(c(title, "No daemons are set."), width))
  }
  # The screen is shared out: each profile needs a line for its name and one for its numbers.
  more <- x$profiles_more
  each <- (rows - 1 - (more > 0)) / length(profiles)
  lines <- lapply(names(profiles), function(name) profile_lines(name, profiles[[name]], each, style, now))
  lines <- c(title, unlist(lines), if (more > 0) style$faint(paste("and", as_number_text(more), "more profiles")))
  style$cut(utils::head(lines, if (is.finite(rows)) rows else length(lines)), width)
}

profile_lines <- function(name, x, rows, style, now) {
  head <- c(
    paste0(style$strong(plain_text(name)), "  ", counts_text(x, style)),
    paste0("  ", queue_text(x, style))
  )
  tables <- list(
    running = running_table(x, now),
    daemons = daemons_table(x, now),
    failures = failures_table(x, now)
  )
  tables <- Filter(function(table) length(table$rows), tables)
  allowed <- share_rows(vapply(tables, function(table) length(table$rows), 0L), rows - length(head))
  lines <- lapply(names(tables), function(kind) {
    table <- tables[[kind]]
    table_lines(table, allowed[[kind]], style)
  })
  c(head, unlist(lines))
}

# Numbers of rows for tables that want `wanted`, each of which takes a line for its head and may take one to say how
# many more there are. What the smaller ones do not need is for the others.
share_rows <- function(wanted, lines) {
  if (!is.finite(lines)) {
    return(pmin(wanted, table_rows[names(wanted)]))
  }
  left <- lines
  smallest_first <- order(wanted)
  for (k in seq_along(wanted)) {
    i <- smallest_first[[k]]
    fair <- floor(left / (length(wanted) - k + 1)) - 2
    wanted[[i]] <- as.integer(max(min(wanted[[i]], fair), 0))
    left <- left - wanted[[i]] - 2
  }
  wanted
}

table_lines <- function(table, n, style) {
  total <- length(table$rows) + table$more
  if (n < 1L) {
    return(NULL)
  }
  shown <- utils::head(table$rows, n)
  colours <- utils::head(table$style, n)
  shown <- paste0("  ", ifelse(colours == "bad", style$bad(shown), ifelse(colours == "busy", style$busy(shown), shown)))
  more <- total - n
  c(
    paste0("  ", style$faint(table$head)),
    shown,
    if (more > 0) paste0("  ", style$faint(paste("and", as_number_text(more), "more")))
  )
}

counts_text <- function(x, style) {
  counts <- x$tasks
  names(counts) <- c("queued", "running", "done", "failed", "cancelled", "timed out", "lost")
  text <- paste(as_number_text(counts), names(counts))
  kinds <- c(running = "busy", done = "good", failed = "bad", `timed out` = "bad", lost = "bad")
  shown <- counts > 0 | names(counts) %in% c("queued", "running", "done")
  for (name in names(kinds)[counts[names(kinds)] > 0]) {
    text[names(counts) == name] <- style[[kinds[[name]]]](text[names(counts) == name])
  }
  paste(text[shown], collapse = ", ")
}

queue_text <- function(x, style) {
  rate <- x$throughput / c(1, 10)
  queue <- x$queue
  style$faint(paste0(
    as_rate(rate[[1L]]),
    "/s in the last second, ",
    as_rate(rate[[2L]]),
    "/s in the last 10",
    if (queue[[1L]] > 0 || is.finite(queue[[3L]])) paste0("; ", as_bytes(queue[[1L]]), " queued"),
    if (is.finite(queue[[3L]])) paste0(" of ", as_bytes(queue[[3L]]))
  ))
}

running_table <- function(x, now) {
  x_running <- x$running
  columns <- list(
    task = as_id(x_running$id),
    daemon = format(x_running$daemon),
    `runs for` = as_duration(now - x_running$started),
    name = plain_text(x_running$name)
  )
  as_table(columns, x$running_more, rep("busy", length(x_running$id)))
}

daemons_table <- function(x, now) {
  d <- x$daemons
  running <- tapply(pmax(now - x$running$started, 0), factor(x$running$daemon, d$daemon), sum, default = 0)
  share <- pmin((d$busy + as.numeric(running)) / pmax(now - d$since, 1e-3), 1)
  columns <- list(
    daemon = format(d$daemon),
    state = d$state,
    tasks = as_number_text(d$tasks),
    busy = sprintf("%.0f %%", 100 * share),
    memory = ifelse(is.na(d$memory), "", as_bytes(d$memory)),
    pid = ifelse(is.na(d$pid), "", d$pid),
    host = plain_text(d$host)
  )
  as_table(columns, x$daemons_more, ifelse(d$state == "busy", "busy", ""))
}

# Tasks that did not end well, and daemons that were lost.
failures_table <- function(x, now) {
  f <- x$failures
  gone <- lapply(x$gone, `[`, x$gone$state == "lost")
  what <- c(paste("task", as_id(f$id)), paste("daemon", gone$daemon)[seq_along(gone$daemon)])
  what <- what[seq_len(length(f$id) + length(gone$daemon))]
  why <- c(ifelse(is.na(f$error), "", f$error), ifelse(is.na(gone$reason), "", gone$reason))
  when <- c(f$ended, gone$since)
  columns <- list(
    failures = what,
    ago = as_duration(now - when),
    state = c(sub("_", " ", f$state, fixed = TRUE), gone$state),
    name = c(plain_text(f$name), rep("", length(gone$daemon))),
    why = plain_text(why)
  )
  newest <- order(when, decreasing = TRUE)
  if (!any(nzchar(columns$name))) {
    columns$name <- NULL
  }
  as_table(lapply(columns, `[`, newest), 0, rep("bad", length(when)))
}

# A head and rows, of columns that are as wide as their widest text.
as_table <- function(columns, more, style) {
  rows <- length(columns[[1L]])
  if (!rows) {
    return(list(head = "", rows = character(), more = more, style = character()))
  }
  numbers <- c("task", "daemon", "runs for", "tasks", "busy", "memory", "pid", "ago")
  padded <- lapply(names(columns), function(name) {
    text <- c(name, columns[[name]])
    formatC(text, width = max(nchar(text, "width")), flag = if (name %in% numbers) "" else "-")
  })
  lines <- sub(" +$", "", do.call(paste, c(padded, sep = "  ")))
  list(head = lines[[1L]], rows = lines[-1L], more = more, style = style)
}

# Text of others for the terminal: without the control characters by which it could be changed.
plain_text <- function(x) ifelse(is.na(x), "", gsub("[[:cntrl:]]+", " ", x))

as_id <- function(x) ifelse(is.na(x), "-", x)

as_number_text <- function(x) format(x, big.mark = ",", scientific = FALSE, trim = TRUE)

as_rate <- function(x) if (x < 10 && x != trunc(x)) sprintf("%.1f", x) else as_number_text(round(x))

as_bytes <- function(x) {
  unit <- pmin(pmax(floor(log(pmax(x, 1), 1000)), 0), 4)
  text <- ifelse(unit == 0, sprintf("%.0f", x), sprintf("%.1f", x / 1000^unit))
  paste(text, c("B", "kB", "MB", "GB", "TB")[unit + 1])
}

as_duration <- function(seconds) {
  seconds <- pmax(seconds, 0)
  ifelse(
    seconds < 60,
    sprintf("%.1f s", seconds),
    ifelse(
      seconds < 3600,
      sprintf("%d min %02d s", seconds %/% 60, as.integer(seconds %% 60)),
      sprintf("%d h %02d min", seconds %/% 3600, as.integer(seconds %% 3600 %/% 60))
    )
  )
}
