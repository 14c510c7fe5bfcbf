// The monitor's page. Shiny hands each snapshot over as a line of JSON; `mirai_monitor()` describes its fields.
// Text of others is only ever set as textContent.
(() => {
  "use strict";

  // What the timeline keeps: pieces in all, and seconds.
  const MOST_PIECES = 50000;
  const MOST_SECONDS = 600;
  // Seconds that the small curves show.
  const CURVE = 60;
  const SPANS = [[30, "30 s"], [120, "2 min"], [600, "10 min"]];
  const STATES = ["done", "running", "cancelled", "timed_out", "failed", "lost"];

  let snapshot = null;
  let ended = false;
  let span = 30;
  // By the names of profiles: what is kept beyond a snapshot, and the parts of the page.
  const profiles = new Map();

  const element = (name, className, text) => {
    const e = document.createElement(name);
    if (className) e.className = className;
    if (text !== undefined) e.textContent = text;
    return e;
  };
  const set = (e, text) => { if (e.textContent !== text) e.textContent = text; };
  const colour = (state) => getComputedStyle(document.documentElement).getPropertyValue("--" + state).trim();
  // Both sessions are on one machine, and so have one clock with this page's server. The browser may have another one.
  let offset = 0;
  const now = () => (ended ? snapshot.time : Math.max(snapshot.time, Date.now() / 1000 + offset));

  const count = (n) => Math.round(n).toLocaleString("en");
  const bytes = (n) => {
    if (n === null) return "";
    const units = ["B", "kB", "MB", "GB", "TB"];
    let i = 0;
    while (n >= 1000 && i < units.length - 1) { n /= 1000; i++; }
    return (i ? n.toFixed(1) : n) + " " + units[i];
  };
  const duration = (s) => {
    s = Math.max(s, 0);
    if (s < 60) return s.toFixed(1) + " s";
    if (s < 3600) return Math.floor(s / 60) + " min " + String(Math.floor(s % 60)).padStart(2, "0") + " s";
    return Math.floor(s / 3600) + " h " + String(Math.floor((s % 3600) / 60)).padStart(2, "0") + " min";
  };
  const rate = (n) => (n < 10 && n % 1 ? n.toFixed(1) : count(n));

  function numberBox(label, curve) {
    const box = element("div", "box");
    const number = element("div", "number", "0");
    const canvas = curve ? element("canvas", "spark") : null;
    const more = element("div", "label");
    box.append(number, element("div", "label", label), canvas || more);
    return { box, number, canvas, more };
  }

  function tableBox(title, columns, wide) {
    const box = element("div", wide ? "box wide" : "box");
    const heading = element("h3", "", title);
    const note = element("span", "note");
    heading.append(note);
    const scroll = element("div", "scroll");
    const table = element("table");
    const head = element("tr");
    for (const [name, kind] of columns) head.append(element("th", kind, name));
    const body = element("tbody");
    const thead = element("thead");
    thead.append(head);
    table.append(thead, body);
    scroll.append(table);
    const none = element("div", "none", "None");
    box.append(heading, scroll, none);
    return { box, note, scroll, body, none, columns };
  }

  // Rows are lists of texts. A text in a list with a state has a mark of its colour.
  function fill(table, rows, more, noun) {
    table.scroll.hidden = !rows.length;
    table.none.hidden = rows.length > 0;
    set(table.note, rows.length ? count(rows.length + more) + (noun ? " " + noun : "") + (more ? ", " + count(rows.length) + " shown" : "") : "");
    const body = table.body;
    while (body.rows.length > rows.length) body.deleteRow(-1);
    rows.forEach((row, i) => {
      const tr = body.rows[i] || body.insertRow();
      row.forEach((value, j) => {
        let td = tr.cells[j];
        if (!td) {
          td = tr.insertCell();
          td.className = table.columns[j][1];
        }
        const [text, state] = Array.isArray(value) ? value : [value, null];
        const key = text + "\u0000" + state;
        if (td.dataset.key === key) return;
        td.dataset.key = key;
        td.textContent = "";
        if (state) td.append(element("span", "mark " + state));
        td.append(text);
      });
    });
  }

  function section(name) {
    const root = element("section");
    root.append(element("h2", "", name));
    const numbers = element("div", "numbers");
    const boxes = {};
    for (const [key, label, curve] of [["queued", "queued", true], ["running", "running", true], ["rate", "tasks a second", true], ["done", "done", false], ["bad", "failures", false]]) {
      boxes[key] = numberBox(label, curve);
      numbers.append(boxes[key].box);
    }
    const timeline = element("div", "box");
    const heading = element("h3", "", "Timeline");
    const note = element("span", "note");
    const spans = element("span", "spans");
    for (const [seconds, label] of SPANS) {
      const button = element("button", seconds === span ? "on" : "", label);
      button.type = "button";
      button.dataset.seconds = seconds;
      button.addEventListener("click", () => {
        span = seconds;
        document.querySelectorAll(".spans button").forEach((b) => b.classList.toggle("on", Number(b.dataset.seconds) === span));
        draw();
      });
      spans.append(button);
    }
    heading.append(note, spans);
    const canvas = element("canvas", "timeline");
    const legend = element("div", "legend");
    for (const state of STATES) {
      const item = element("span");
      const swatch = element("i");
      swatch.style.background = "var(--" + state + ")";
      item.append(swatch, state.replace("_", " "));
      legend.append(item);
    }
    timeline.append(heading, canvas, legend);
    const tables = element("div", "tables");
    const running = tableBox("Running", [["task", "n"], ["name", ""], ["daemon", "n"], ["for", "n"]]);
    const daemons = tableBox("Daemons", [["daemon", "n"], ["state", ""], ["tasks", "n"], ["busy", "n"], ["memory", "n"], ["pid", "n"], ["host", ""]]);
    const failures = tableBox("Failures", [["what", ""], ["name", ""], ["daemon", "n"], ["ago", "n"], ["why", "text"]], true);
    tables.append(running.box, daemons.box, failures.box);
    root.append(numbers, timeline, tables);
    return { root, boxes, canvas, note, running, daemons, failures, pieces: new Map(), points: [], ended: null };
  }

  // Keeps what the timeline and the curves need of a snapshot.
  function keep(view, profile) {
    const t = profile.tasks;
    const total = t.done + t.failed + t.cancelled + t.timed_out + t.lost;
    let fresh = 0;
    for (const task of profile.recent) {
      if (task.daemon === null || task.started === null) { fresh++; continue; }
      const key = task.daemon + ":" + task.ended + ":" + task.id;
      if (!view.pieces.has(key)) {
        view.pieces.set(key, task);
        fresh++;
      }
    }
    // More have ended since the last snapshot than it lists.
    view.partial = view.ended !== null && total - view.ended > fresh ? snapshot.time : view.partial;
    view.ended = total;
    for (const [key, task] of view.pieces) {
      if (view.pieces.size <= MOST_PIECES && task.ended > snapshot.time - MOST_SECONDS) break;
      view.pieces.delete(key);
    }
    view.points.push({ time: snapshot.time, values: [t.queued, t.running, profile.throughput.last_1s] });
    // One from before the first second shown stays, where the curve comes from.
    while (view.points.length > 1 && view.points[1].time < snapshot.time - CURVE) view.points.shift();
  }

  function context(canvas, height) {
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    canvas.style.height = height + "px";
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const c = canvas.getContext("2d");
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.clearRect(0, 0, width, height);
    return [c, width];
  }

  // A value holds until the next snapshot.
  function curve(canvas, points, which) {
    const height = 22;
    const [c, width] = context(canvas, height);
    const to = now();
    const most = Math.max(1, ...points.map((p) => p.values[which]));
    const x = (time) => Math.max(0, (1 - (to - time) / CURVE) * width);
    const y = (v) => height - 1 - (v / most) * (height - 3);
    c.beginPath();
    points.forEach((p, i) => {
      const end = i + 1 < points.length ? points[i + 1].time : to;
      c.lineTo(x(p.time), y(p.values[which]));
      c.lineTo(x(end), y(p.values[which]));
    });
    c.strokeStyle = colour("done");
    c.lineWidth = 1.5;
    c.stroke();
  }

  function drawTimeline(view, profile) {
    const to = now();
    const from = to - span;
    const lanes = new Map();
    const shown = [...view.pieces.values()].filter((task) => task.ended > from);
    const ids = new Set(profile.daemons.map((d) => d.daemon));
    for (const task of shown) ids.add(task.daemon);
    [...ids].sort((a, b) => a - b).forEach((id) => lanes.set(id, lanes.size));
    const lane = Math.max(3, Math.min(20, 420 / Math.max(lanes.size, 1)));
    const axis = 20;
    const left = 34;
    const [c, width] = context(view.canvas, Math.max(lanes.size, 1) * lane + axis);
    const x = (time) => left + ((time - from) / span) * (width - left - 4);
    const bottom = Math.max(lanes.size, 1) * lane;
    c.font = "11px system-ui, sans-serif";
    c.textBaseline = "middle";
    // Names of lanes, as many as there is room for.
    c.fillStyle = colour("faint");
    c.textAlign = "right";
    const every = Math.ceil(13 / lane);
    for (const [id, i] of lanes) if (i % every === 0) c.fillText(id, left - 6, (i + 0.5) * lane);
    c.textAlign = "center";
    c.strokeStyle = colour("line");
    c.lineWidth = 1;
    const step = span / 6;
    for (let i = 0; i <= 6; i++) {
      const at = Math.round(x(to - i * step)) + 0.5;
      c.beginPath();
      c.moveTo(at, 0);
      c.lineTo(at, bottom + 4);
      c.stroke();
      const label = i === 0 ? "now" : span > 60 ? "-" + duration(i * step).replace(" 00 s", "") : "-" + i * step + " s";
      c.fillText(label, Math.min(Math.max(at, left + 16), width - 16), bottom + 13);
    }
    const gap = lane > 6 ? 1.5 : 0.25;
    const bar = (id, start, end, state) => {
      let x0 = Math.max(x(start), left);
      let x1 = Math.min(x(end), width - 4);
      // Short ones are to be seen, too.
      if (x1 - x0 < 2) {
        x0 = Math.min(Math.floor(x0), width - 6);
        x1 = x0 + 2;
      }
      c.fillStyle = colours[state] || colours.done;
      c.fillRect(x0, lanes.get(id) * lane + gap, x1 - x0, lane - 2 * gap);
    };
    const colours = {};
    for (const state of STATES) colours[state] = colour(state);
    // The worst on top.
    for (const state of STATES) {
      if (state === "running") {
        for (const task of profile.running) if (lanes.has(task.daemon)) bar(task.daemon, task.started, to, state);
      } else {
        for (const task of shown) if (task.state === state) bar(task.daemon, task.started, task.ended, state);
      }
    }
    const partial = view.partial && view.partial > from;
    set(view.note, partial ? "more tasks end than are drawn" : "");
  }

  function show(view, profile) {
    const t = profile.tasks;
    const at = now();
    const bad = t.failed + t.timed_out + t.lost;
    set(view.boxes.queued.number, count(t.queued));
    set(view.boxes.running.number, count(t.running));
    set(view.boxes.rate.number, rate(profile.throughput.last_1s));
    set(view.boxes.done.number, count(t.done));
    set(view.boxes.bad.number, count(bad));
    view.boxes.bad.number.classList.toggle("bad", bad > 0);
    ["queued", "running", "rate"].forEach((key, i) => curve(view.boxes[key].canvas, view.points, i));
    set(view.boxes.done.more, t.cancelled ? count(t.cancelled) + " cancelled" : "");
    const badly = [[t.failed, "failed"], [t.timed_out, "timed out"], [t.lost, "lost"]].filter(([n]) => n > 0);
    set(view.boxes.bad.more, badly.map(([n, how]) => count(n) + " " + how).join(", "));
    drawTimeline(view, profile);
    fill(
      view.running,
      profile.running.map((r) => [r.id === null ? "-" : String(r.id), r.name || "", String(r.daemon), duration(at - r.started)]),
      profile.running_more,
      ""
    );
    const running = new Map();
    for (const r of profile.running) running.set(r.daemon, (running.get(r.daemon) || 0) + Math.max(at - r.started, 0));
    fill(
      view.daemons,
      profile.daemons.map((d) => {
        const share = Math.min((d.busy + (running.get(d.daemon) || 0)) / Math.max(at - d.since, 0.001), 1);
        return [String(d.daemon), [d.state, d.state], count(d.tasks), Math.round(100 * share) + " %", bytes(d.memory), d.pid === null ? "" : String(d.pid), d.host || ""];
      }),
      profile.daemons_more,
      "connected"
    );
    const failures = profile.failures.map((f) => ({
      at: f.ended,
      row: [[f.id === null ? "task" : "task " + f.id, f.state], f.name || "", f.daemon === null ? "" : String(f.daemon), duration(at - f.ended), [f.state.replace("_", " "), f.error].filter(Boolean).join(": ")],
    }));
    for (const d of profile.gone) {
      if (d.state !== "lost") continue;
      failures.push({ at: d.since, row: [["daemon", "lost"], "", String(d.daemon), duration(at - d.since), ["lost", d.reason].filter(Boolean).join(": ")] });
    }
    failures.sort((a, b) => b.at - a.at);
    view.failures.box.hidden = !failures.length;
    fill(view.failures, failures.map((f) => f.row), 0, "of late");
  }

  function draw() {
    if (!snapshot) return;
    set(
      document.getElementById("session"),
      "session " + snapshot.pid + " on " + snapshot.host + (snapshot.memory === null ? "" : ", " + bytes(snapshot.memory))
    );
    for (const profile of snapshot.profiles) show(profiles.get(profile.name), profile);
  }

  function state(kind, text, notice) {
    const e = document.getElementById("state");
    e.className = kind;
    set(e, text);
    const n = document.getElementById("notice");
    n.hidden = !notice;
    set(n, notice || "");
  }

  function take(line) {
    snapshot = JSON.parse(line);
    offset = snapshot.time - Date.now() / 1000;
    const root = document.getElementById("profiles");
    const names = new Set(snapshot.profiles.map((p) => p.name));
    for (const [name, view] of profiles) {
      if (!names.has(name)) {
        view.root.remove();
        profiles.delete(name);
      }
    }
    for (const profile of snapshot.profiles) {
      if (!profiles.has(profile.name)) {
        const view = section(profile.name);
        profiles.set(profile.name, view);
        root.append(view.root);
      }
      keep(profiles.get(profile.name), profile);
    }
    state("live", "live", snapshot.profiles_more ? snapshot.profiles_more + " more profiles are not shown." : snapshot.profiles.length ? "" : "No daemons are set in this session.");
    draw();
  }

  Shiny.addCustomMessageHandler("mirai", (message) => {
    if (message.kind === "snapshot") {
      take(message.text);
    } else {
      ended = true;
      state("ended", "ended", "The session has ended. This is what was seen last.");
      Shiny.setInputValue("ended", true);
    }
  });
  $(document).on("shiny:disconnected", () => {
    if (ended) return;
    ended = true;
    state("ended", "not connected", "The monitor has been stopped. This is what was seen last.");
    draw();
  });
  // Ages and the timeline move on between two snapshots.
  setInterval(() => { if (!document.hidden && !ended) draw(); }, 1000);
  window.addEventListener("resize", draw);
})();
