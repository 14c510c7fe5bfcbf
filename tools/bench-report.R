# Sourced by bench.R: what becomes of the figures. A table for terminals, JSON, and plots.

about_machine <- function() {
  field <- function(file, key) {
    line <- grep(paste0("^", key), readLines(file), value = TRUE)[1L]
    trimws(sub("^[^:]*:", "", line))
  }
  commit <- suppressWarnings(system2("git", c("rev-parse", "--short", "HEAD"), stdout = TRUE, stderr = FALSE))
  release <- if (file.exists("/etc/os-release")) sub('^PRETTY_NAME="?([^"]*)"?$', "\\1", grep("^PRETTY_NAME", readLines("/etc/os-release"), value = TRUE))
  versions <- c("future.apply", "callr")
  versions <- versions[vapply(versions, have, NA)]
  list(
    date = format(Sys.time(), "%Y-%m-%d"), started = now(),
    processor = field("/proc/cpuinfo", "model name"), cores = parallel::detectCores(),
    memory_gb = round(as.numeric(gsub("[^0-9]", "", field("/proc/meminfo", "MemTotal"))) / 1e6),
    system = paste0(release[1L], ", Linux ", Sys.info()[["release"]]), r = as.character(getRversion()),
    mirai = as.character(utils::packageVersion("mirai")), commit = if (length(commit)) commit else "",
    others = paste(c(sprintf("parallel of R %s", getRversion()), sprintf("%s %s", versions, vapply(versions, function(p) as.character(utils::packageVersion(p)), ""))), collapse = ", "),
    raw_us = stats::median(replicate(5L, raw_us())), load = as.numeric(strsplit(readLines("/proc/loadavg"), " ")[[1L]][1L]),
    quick = quick
  )
}

progress <- function(row) message(format(Sys.time(), "%H:%M:%S "), row$name)

## Table

# 3 digits, and never 1e+05.
number <- function(x) {
  text <- function(x) {
    if (is.na(x)) return("")
    digits <- if (abs(x) >= 100) 0L else if (abs(x) >= 10) 1L else if (abs(x) >= 0.1 || x == 0) 2L else 4L
    formatC(if (abs(x) >= 1e4) signif(x, 3L) else x, format = "f", digits = digits, big.mark = ",")
  }
  vapply(x, text, "", USE.NAMES = FALSE)
}

with_unit <- function(x, unit) ifelse(is.na(x), "", paste(number(x), unit))

verdict <- function(over) {
  if (is.na(over)) return("")
  if (over <= 1) return("met")
  if (is.infinite(over)) return("not met")
  if (over < 1.1) "just over" else paste(number(over), "x over")
}

print_table <- function(about, results) {
  line <- function(what, median, range, raw, budget, cran, end) {
    cat(sub(" +$", "", sprintf("%-47s %14s %17s %6s %7s %8s  %s", substr(what, 1L, 47L), median, range, raw, budget, cran, end)), "\n", sep = "")
  }
  cat(
    about$date, ": mirai ", about$mirai, if (nzchar(about$commit)) c(" (", about$commit, ")"), ", R ", about$r, ", ", about$system, "\n",
    about$processor, ", ", about$cores, " processors, ", about$memory_gb, " GB, load ", about$load, " at the start",
    if (about$quick) "; --quick, so rough", "\n",
    "x is the raw ping-pong of a Unix socket measured along with each row: ", number(about$raw_us), " us\n\n",
    sep = ""
  )
  line("", "median", "range", "x", "budget", "CRAN 2.7", "")
  for (group in unique(results$group)) {
    cat(group, "\n", sep = "")
    for (i in which(results$group == group)) {
      r <- results[i, ]
      budget <- if (r$of_raw) with_unit(r$budget, "x") else number(r$budget)
      range <- if (r$rounds > 1 && !is.na(r$value)) paste(number(r$low), "-", number(r$high)) else ""
      median <- if (is.na(r$value)) "failed" else with_unit(r$value, r$unit)
      if (r$contender == "mirai") {
        # Long names on a line of their own.
        what <- paste0("  ", r$what)
        if (nchar(what) > 47L) {
          cat(what, "\n", sep = "")
          what <- "    mirai"
        }
        line(what, median, range, number(r$x_raw), budget, number(r$cran), verdict(r$over))
        if (!is.na(r$note)) cat(strwrap(r$note, 110L, prefix = "    "), sep = "\n")
      } else {
        ratio <- if (is.na(r$times_ours)) "" else paste(number(r$times_ours), "x ours")
        line(paste0("      ", r$contender), median, range, number(r$x_raw), "", "", if (r$unit == "%") "" else ratio)
      }
    }
  }
  judged <- !is.na(results$over)
  over <- judged & results$over > 1
  cat("\n", sum(judged & !over), " of ", sum(judged), " budgets met", sep = "")
  if (any(over)) cat("; over: ", paste(results$name[over], collapse = ", "), sep = "")
  cat("\n")
}

## JSON

write_figures <- function(about, results, file) {
  figures <- jsonlite::toJSON(list(about = about, rows = results), auto_unbox = TRUE, na = "null", digits = I(5), pretty = FALSE)
  # A row a line, so that versions can be compared.
  lines <- gsub('},{"name"', '},\n{"name"', gsub('"rows":[', '"rows":[\n', figures, fixed = TRUE), fixed = TRUE)
  temporary <- paste0(file, ".part")
  writeLines(lines, temporary)
  invisible(file.rename(temporary, file))
}

## Plots

colours <- c(
  mirai = "#1b6ca8", "CRAN mirai 2.7" = "#7fb2d6", parallel = "#d1495b", forks = "#e8a33d", future = "#6a994e",
  callr = "#8d6a9f", "by hand" = "grey55", "mirai, tcp" = "#3f9c9c", "mirai, tls+tcp" = "#5b5f97"
)

# Which of the colours a contender has.
kind <- function(contender) {
  found <- rep(NA_character_, length(contender))
  for (known in c("future", "callr")) found[startsWith(contender, known)] <- known
  found[grepl("^mclapply|mcparallel", contender)] <- "forks"
  found[grepl("by hand$", contender)] <- "by hand"
  found[is.na(found) & grepl("^par", contender)] <- "parallel"
  ifelse(is.na(found), contender, found)
}

plot_figures <- function(about, results, directory) {
  dir.create(directory, FALSE, TRUE)
  draw <- function(name, width, height, plot) {
    for (type in c("png", "svg")) {
      if (!capabilities(if (type == "png") "png" else "cairo")) next
      file <- file.path(directory, paste0(name, ".", type))
      if (type == "png") {
        # Few colours: a small file.
        grDevices::png(file, width, height, "in", res = 110, type = if (capabilities("cairo")) "cairo" else "Xlib", antialias = "gray")
      } else {
        grDevices::svg(file, width, height)
      }
      tryCatch(plot(), finally = grDevices::dev.off())
      message("wrote ", file)
    }
  }
  compared <- c("roundtrip", "oneoff", "map-2", "constant", "vector-in", "vector-out", "vector-both", "ready-first")
  if (any(compared %in% results$name)) draw("performance-compared", 8, 5.5, function() plot_compared(about, results, compared))
  if (all(c("roundtrip", "step-submit") %in% results$name)) draw("performance-steps", 8, 2.4, function() plot_steps(results))
  if (any(!is.na(results$at))) draw("performance-scaling", 8, 6.5, function() plot_scaling(results))
}

# Each row a line, on which the contenders stand at their multiple of mirai's time.
plot_compared <- function(about, results, names) {
  names <- rev(names[names %in% results$name])
  rows <- results[results$name %in% names, ]
  ours <- rows[rows$contender == "mirai", ]
  cran <- ours[!is.na(ours$cran), ]
  cran$times_ours <- ifelse(cran$more, cran$value / cran$cran, cran$cran / cran$value)
  if (nrow(cran)) cran$contender <- "CRAN mirai 2.7"
  rows <- rbind(rows, cran)
  rows$kind <- kind(rows$contender)
  rows <- rows[!is.na(rows$times_ours) & rows$kind %in% names(colours), ]
  graphics::par(mar = c(4, 21, 3.5, 1), las = 1, cex = 0.8, mgp = c(2.5, 0.7, 0))
  reach <- range(rows$times_ours, 0.5, 2)
  plot(NA, xlim = reach, ylim = c(0.6, length(names) + 0.4), log = "x", xlab = "time as a multiple of mirai's (logarithmic)", ylab = "",
    yaxt = "n", xaxt = "n", bty = "n")
  ticks <- 10^seq(floor(log10(reach[1L])), ceiling(log10(reach[2L])))
  graphics::axis(1L, ticks, format(ticks, drop0trailing = TRUE, scientific = FALSE, trim = TRUE, big.mark = ","))
  graphics::abline(v = ticks, col = "grey92")
  graphics::abline(h = seq_along(names), col = "grey85")
  graphics::abline(v = 1, col = colours[["mirai"]])
  labels <- ours$what[match(names, ours$name)]
  values <- with_unit(ours$value, ours$unit)[match(names, ours$name)]
  graphics::mtext(paste0(labels, "\n", values), 2L, at = seq_along(names), line = 0.5, cex = 0.75)
  chunks <- grepl("in chunks", rows$contender)
  graphics::points(rows$times_ours, match(rows$name, names), pch = ifelse(chunks, 1L, 19L), lwd = 2, cex = 1.5, col = colours[rows$kind])
  # A legend across the whole width, which legend() cannot do.
  shown <- intersect(names(colours), rows$kind)
  widths <- graphics::strwidth(shown, "figure") + 0.05
  x <- graphics::grconvertX(0.03 + cumsum(widths) - widths, "ndc")
  y <- graphics::grconvertY(c(0.97, 0.93), "ndc")
  graphics::points(x, rep(y[1L], length(shown)), pch = 19, cex = 1.4, col = colours[shown], xpd = NA)
  graphics::text(x, y[1L], shown, pos = 4L, xpd = NA)
  if (any(chunks)) graphics::text(x[1L], y[2L], "circles: the work is cut into chunks beforehand", pos = 4L, offset = 0, xpd = NA, col = "grey40")
}

# The round trip of a task as a bar, cut into what each step takes. What is left is on the way, or waiting to be woken.
plot_steps <- function(results) {
  of <- function(name, contender = "mirai") results$value[results$name == name & results$contender == contender]
  wire <- of("roundtrip", "Unix socket, spinning, by hand") / 2
  steps <- c(
    "host: make, queue" = of("step-submit"), "socket" = wire, "daemon: read, evaluate, send, restore" = of("step-daemon"),
    "back" = wire, "host: read" = of("step-read")
  )
  steps <- c(steps, "waiting, waking" = max(0, of("roundtrip") - sum(steps)))
  shades <- c(colours[["mirai"]], "grey70", colours[["parallel"]], "grey70", colours[["CRAN mirai 2.7"]], "grey90")
  graphics::par(mar = c(3.2, 1, 4, 1), cex = 0.8, mgp = c(2, 0.6, 0))
  until <- cumsum(steps)
  plot(NA, xlim = c(0, max(until)), ylim = c(0, 1), xlab = "microseconds", ylab = "", yaxt = "n", bty = "n")
  graphics::rect(until - steps, 0.1, until, 0.9, col = shades, border = "white")
  wide <- steps > max(until) / 30
  graphics::text((until - steps / 2)[wide], 0.5, number(steps[wide]), col = c("white", "black", "white", "black", "black", "black")[wide], cex = 0.85)
  shown <- c(1L, 2L, 3L, 5L, 6L)
  labels <- sub("socket", "socket, there and back", names(steps)[shown])
  graphics::legend("top", inset = c(0, -0.5), xpd = NA, ncol = 3L, bty = "n", cex = 0.85, fill = shades[shown], border = NA, legend = labels)
}

plot_scaling <- function(results) {
  graphics::par(mfrow = c(2L, 2L), mar = c(4, 4.5, 2.5, 2.5), las = 1, cex = 0.75, mgp = c(3, 0.7, 0))
  panel <- function(prefix, title, xlab, ylab, log, zero = FALSE) {
    rows <- results[startsWith(results$name, prefix) & !is.na(results$value), ]
    if (!nrow(rows)) return(invisible())
    plain <- function(x) format(x, scientific = FALSE, trim = TRUE, drop0trailing = TRUE, big.mark = ",")
    size <- function(x) ifelse(x < 1e6, paste(x / 1e3, "KB"), ifelse(x < 1e9, paste(x / 1e6, "MB"), "1 GB"))
    plot(rows$at, rows$value, type = "n", log = log, xlab = xlab, ylab = ylab, main = title, font.main = 1, xaxt = "n",
      yaxt = if (grepl("y", log)) "n" else "s", bty = "l", ylim = if (zero) c(0, max(rows$value)) else 10^c(floor(log10(min(rows$value))), ceiling(log10(max(rows$value)))))
    at <- sort(unique(rows$at))
    graphics::axis(1L, at, if (prefix == "size-") size(at) else plain(at))
    if (grepl("y", log)) {
      ticks <- 10^seq(-3, 5)
      graphics::axis(2L, ticks, plain(ticks))
      graphics::abline(h = ticks, col = "grey92")
    }
    rows$kind <- kind(rows$contender)
    for (who in intersect(names(colours), rows$kind)) {
      line <- rows[rows$kind == who, ]
      graphics::lines(line$at, line$value, type = "b", pch = 19, col = colours[[who]])
    }
    shown <- intersect(names(colours), rows$kind)
    if (length(shown) > 1L) graphics::legend(if (prefix == "size-") "bottomright" else "topright", bty = "n", lwd = 1, pch = 19, col = colours[shown], legend = shown)
  }
  panel("tasks-", "A map, 1 daemon", "tasks in the map", "microseconds for each", "xy")
  panel("length-", "Tasks queued behind one that runs", "tasks queued", "microseconds for each", "x", zero = TRUE)
  panel("daemons-", "A map of trivial tasks", "daemons", "microseconds for each", "xy")
  panel("size-", "A vector, there and back", "size", "milliseconds", "xy")
}
