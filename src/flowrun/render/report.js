(() => {
"use strict";
const SVG = "http://www.w3.org/2000/svg";
const WORDS = {SUCCESS: "succeeded", FAILED: "failed", SKIPPED: "skipped", OMITTED: "omitted", RUNNING: "running", PENDING: "pending"};
const URGENCY = {FAILED: 0, RUNNING: 1, SUCCESS: 2, SKIPPED: 2, OMITTED: 2, PENDING: 2};
const WHOLE = 200; // rows up to which a list is built at once
const byId = id => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const tasks = data.tasks;
const boxes = data.boxes ?? tasks.map((_, index) => [index]); // the tasks of each node of the graph
const boxOf = [];
for (const [place, members] of boxes.entries()) for (const index of members) boxOf[index] = place;

// Text reaches the page through textContent and setAttribute only: nothing is ever parsed.
function make(tag, options = {}, ...children) {
  const node = options.svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(options)) {
    if (key === "svg") continue;
    if (key === "text") node.textContent = value;
    else if (value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
}
const draw = (tag, options, ...children) => make(tag, {...options, svg: true}, ...children);
const sign = status => draw("svg", {class: "sign", "aria-hidden": "true"}, draw("use", {href: `#flowrun-${status}`}));

function duration(s) {
  if (s === null) return "";
  if (s < 0.9995) return `${(Math.max(s, 0) * 1000).toFixed(0)} ms`;
  if (s < 9.995) return `${s.toFixed(2)} s`;
  if (s < 59.95) return `${s.toFixed(1)} s`;
  const whole = Math.round(s), two = value => String(value).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${two(Math.floor(whole % 3600 / 60))} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor(whole % 86400 / 3600)} h`;
}

// What the rows, the bars and the details read of a task, computed once.
const span = (start, end) => start === null || end === null ? null : Math.max(end - start, 0);
const sum = values => {
  const known = values.filter(value => value !== null);
  return known.length ? known.reduce((total, value) => total + value, 0) : null;
};
for (const [index, task] of tasks.entries()) {
  task.index = index;
  task.deps ??= [];
  task.attempt ??= 0;
  task.why ??= task.kept ? "kept from the earlier run" : "";
  if (task.mapped) task.why = [task.mapped, task.why].filter(Boolean).join("; ");
  task.children = [];
  task.attempts = (task.attempts ?? []).map(([number, ready, started, finished, error = null, reason = "", abandoned = 0]) =>
    ({number, ready, started, finished, error, reason, abandoned}));
  const logs = new Map(task.logs ?? []);
  for (const attempt of task.attempts) attempt.logs = logs.get(attempt.number);
  for (const [place, attempt] of task.attempts.entries()) attempt.waited = task.waits?.[place] ?? span(attempt.ready, attempt.started);
  task.waited = sum(task.attempts.map(attempt => attempt.waited));
  task.ran = sum(task.attempts.map(attempt => attempt.reason === "OWNER_DIED" ? null : span(attempt.started, attempt.finished)));
  task.first = task.attempts[0]?.started ?? task.started ?? null;
  for (const parent of task.deps) tasks[parent].children.push(index);
}

/* ---- long lists: only the rows on screen exist ---- */
class Rows {
  constructor(scroller, body, height, blank, build) {
    Object.assign(this, {scroller, body, height, build, list: [], shown: "", built: new Map()});
    this.before = blank();
    this.after = blank();
    this.printing = false;
    scroller.addEventListener("scroll", () => requestAnimationFrame(() => this.draw()), {passive: true});
    new ResizeObserver(() => this.draw()).observe(scroller);
    for (const [name, printing] of [["beforeprint", true], ["afterprint", false]]) {
      addEventListener(name, () => { this.printing = printing; this.draw(); });
    }
  }
  show(list) { this.list = list; this.shown = ""; this.scroller.scrollTop = 0; this.draw(); }
  draw() {
    const count = this.list.length, whole = this.printing || count <= WHOLE;
    const first = whole ? 0 : Math.max(0, Math.floor(this.scroller.scrollTop / this.height) - 12);
    const last = whole ? count : Math.min(count, first + Math.ceil(this.scroller.clientHeight / this.height) + 24);
    const shown = `${first} ${last} ${count}`;
    if (shown === this.shown) return;
    this.shown = shown;
    const kept = new Map();
    for (let place = first; place < last; place += 1) {
      const index = this.list[place];
      const row = this.built.get(index) ?? this.build(tasks[index]);
      if (row.tagName === "TR") row.setAttribute("aria-rowindex", place + 2);
      kept.set(index, row);
    }
    this.built = kept;
    this.size(this.before, first);
    this.size(this.after, count - last);
    const focused = this.body.contains(document.activeElement) ? document.activeElement : null;
    this.body.replaceChildren(this.before, ...kept.values(), this.after);
    if (focused?.isConnected) focused.focus({preventScroll: true});
  }
  reveal(index, head) {
    const top = this.list.indexOf(index) * this.height, {scrollTop, clientHeight} = this.scroller;
    if (top < 0 || (top >= scrollTop && top + this.height + head <= scrollTop + clientHeight)) return;
    this.scroller.scrollTop = top - clientHeight / 2;
    this.draw();
  }
  size(blank, rows) {
    blank.hidden = rows === 0;
    (blank.firstChild ?? blank).style.height = `${rows * this.height}px`;
  }
}

/* ---- details of one task ---- */
const detail = byId("detail");
let opener = null, chosen = null, revealLane = () => {};

function panel(index, from, status, name, ...parts) {
  if (from && !detail.contains(from)) opener = from;
  chosen = index;
  const close = make("button", {type: "button", class: "close", "aria-label": "Close", text: "✕"});
  close.addEventListener("click", shut);
  detail.replaceChildren(make("div", {class: "head"}, sign(status), make("h2", {text: name}), close), ...parts);
  detail.setAttribute("aria-label", `Task ${name}`);
  detail.hidden = false;
  detail.scrollTop = 0;
  document.body.classList.add("open");
  detail.focus({preventScroll: true});
  graph?.light(index);
}

function open(index, from = null) {
  const task = tasks[index];
  panel(index, from, task.status, task.name, facts(task), ...links("Depends on", task.deps),
    ...links("Needed by", task.children), ...outcome(task), ...(task.mapped ? items(task) : attempts(task)));
  revealLane(index);
}

function openBox(place, node) {
  const members = [...boxes[place]];
  if (members.length === 1) { open(members[0], node); return; }
  members.sort((a, b) => URGENCY[tasks[a].status] - URGENCY[tasks[b].status] || tasks[b].attempt - tasks[a].attempt || a - b);
  const worst = members[0], times = members.map(index => tasks[index].ran).filter(ran => ran !== null).sort((a, b) => a - b);
  panel(worst, node, tasks[worst].status, node.querySelector(".name").textContent, pairs([
    ...Object.entries(WORDS).map(([status, word]) => [word, members.filter(index => tasks[index].status === status).length]),
    ["retries", members.reduce((total, index) => total + Math.max(tasks[index].attempt - 1, 0), 0)],
    ["ran", times.length ? `${duration(times[0])} to ${duration(times.at(-1))}, half of them at most ${duration(times[Math.floor((times.length - 1) / 2)])}` : ""],
  ]), ...links("Tasks", members));
}

function shut() {
  if (chosen === null) return;
  detail.hidden = true;
  document.body.classList.remove("open");
  graph?.light(null);
  chosen = null;
  if (opener?.isConnected) opener.focus({preventScroll: true});
  opener = null;
}

const pairs = rows => make("dl", {}, ...rows.filter(([, value]) => value).flatMap(([name, value]) => [make("dt", {text: name}), make("dd", {text: value})]));
const facts = task => pairs([
  ["Status", WORDS[task.status] + (task.reason ? ` (${task.reason.toLowerCase().replaceAll("_", " ")})` : "")],
  ["Result", task.kept ? "kept from the run that this one resumes" : ""],
  ["Started", task.first !== null && !task.kept ? `${duration(task.first)} after the run began` : ""],
  ...task.kept ? [] : (task.spent ?? []).map(([words, spent]) => [words.replace("waiting", "Waited").replace("saving", "Saving"), duration(spent)]),
  ["Ran", duration(task.ran)],
  ["Progress", task.progress],
  ["Critical path", task.critical ? "yes" : ""],
]);

function links(title, indexes) {
  if (!indexes.length) return [];
  const box = make("div", {class: "links"});
  for (const index of indexes.slice(0, 60)) {
    const to = make("button", {type: "button", class: "to"}, sign(tasks[index].status), make("span", {text: tasks[index].name}));
    to.addEventListener("click", () => open(index, to));
    box.append(to);
  }
  if (indexes.length > 60) box.append(make("span", {class: "hint", text: `and ${indexes.length - 60} more`}));
  return [make("h3", {text: title}), box];
}

/* Python marks the place below a line of code: such text is scrolled and not wrapped. */
const isShort = text => text.split("\n").every(line => line.length <= 400);

const RESULTS = {
  released: "Released after its last consumer (retain_result=False).",
  stored: "In the store; it was not loaded for this report.",
  hidden: "Not shown in this report.",
  absent: "None.",
};
function outcome(task) {
  if (task.status === "SUCCESS") {
    const shown = task.result === undefined ? make("p", {class: "hint", text: RESULTS[task.state] ?? ""}) : make("pre", {text: task.result, tabindex: "0"});
    return [make("h3", {text: "Result"}), shown];
  }
  if (["SKIPPED", "OMITTED"].includes(task.status) && task.error !== undefined) {
    return [make("h3", {text: `Why it was ${WORDS[task.status]}`}), make("pre", {text: data.texts[task.error], tabindex: "0"})];
  }
  return [];
}

const endOf = attempt => attempt.error === null ? "SUCCESS" : attempt.reason === "SKIP_TASK" ? "OMITTED" : "FAILED";
function attempts(task) {
  const blocks = task.attempts.map((attempt, place) => {
    const failed = attempt.error !== null, status = endOf(attempt);
    const last = place === task.attempts.length - 1;
    const head = make("p", {}, sign(status), make("b", {text: `Attempt ${attempt.number}`}),
      make("span", {class: "hint", text: duration(span(attempt.started, attempt.finished))}));
    const waited = attempt.waited;
    const notes = [
      attempt.started !== null && !task.kept ? `started at ${duration(attempt.started)}` : "",
      waited !== null ? `waited ${duration(waited)}` : "",
      attempt.reason ? attempt.reason.toLowerCase().replaceAll("_", " ") : "",
      attempt.abandoned ? "went on unseen after it was given up" : "",
    ].filter(Boolean).join(" · ");
    const block = make("div", {class: "attempt"}, head, make("p", {class: "hint", text: notes}));
    if (failed) {
      const text = data.texts[attempt.error];
      block.append(make("details", {open: last}, make("summary", {text: "Error"}), make("pre", {class: isShort(text) ? "trace" : "", text, tabindex: "0"})));
    }
    if (attempt.logs !== undefined) block.append(log("Log", attempt.logs, last));
    return block;
  });
  return blocks.length ? [make("h3", {text: blocks.length === 1 ? "Attempt" : `${blocks.length} attempts`}), ...blocks] : [];
}

function log(title, text, open) {
  return make("details", {open}, make("summary", {text: title}), make("pre", {class: "log", text, tabindex: "0"}));
}

function items(task) {
  const rows = (task.items ?? []).flatMap(([number, status, started, finished, attempt, why, logs = []]) => {
    const notes = [duration(span(started, finished)), attempt > 1 ? `${attempt} attempts` : "", why].filter(Boolean).join(" · ");
    const line = make("p", {}, sign(status), make("b", {text: `${number}`}), make("span", {class: "spoken", text: `, ${WORDS[status]}`}), make("span", {class: "hint", text: ` ${notes}`}));
    const of = nth => attempt > 1 ? `, attempt ${nth}` : "";
    return [line, ...logs.map(([nth, text]) => log(`Log of item ${number}${of(nth)}`, text, status === "FAILED"))];
  });
  const open = rows.length > 0 && (task.items.length <= 12 || task.status === "FAILED");
  return [make("details", {open}, make("summary", {text: task.mapped}), make("div", {class: "attempt"}, ...rows))];
}

document.addEventListener("keydown", event => { if (event.key === "Escape") shut(); });
document.addEventListener("click", event => {
  const from = event.target.closest?.("[data-open]");
  if (from) open(Number(from.dataset.open), from);
});

/* ---- table ---- */
const COLUMNS = [
  {title: "Task", kind: "c-task", key: task => task.name.toLowerCase()},
  {title: "Status", kind: "c-status", key: task => task.status, text: task => WORDS[task.status]},
  {title: "Attempts", kind: "c-attempt number", key: task => task.attempt, text: task => task.attempt || ""},
  {title: "Started", kind: "c-started c-number number", key: task => task.kept ? null : task.first,
    text: task => task.kept || task.first === null ? "" : `+${duration(task.first)}`},
  {title: "Waited", kind: "c-waited c-number number", key: task => task.waited, text: task => duration(task.waited)},
  {title: "Ran", kind: "c-number number", key: task => task.ran, text: task => duration(task.ran)},
  {title: "Why", kind: "c-why why", key: task => task.why.toLowerCase(), text: task => task.why},
];
const table = (() => {
  const scroller = document.querySelector(".rows");
  const head = make("tr", {"aria-rowindex": 1}), body = make("tbody");
  const sheet = make("table", {"aria-labelledby": "h-tasks", class: tasks.some(task => task.why) ? undefined : "calm"}, make("thead", {}, head), body);
  const state = {column: null, down: false, query: "", statuses: new Set()};
  const empty = make("p", {class: "empty", text: "No task matches the filter.", hidden: true});
  scroller.append(sheet, empty);
  if (tasks.length > WHOLE) {
    scroller.classList.add("long");
    scroller.tabIndex = 0;
    scroller.setAttribute("role", "group");
    scroller.setAttribute("aria-label", "Tasks, scrollable");
  }
  for (const [place, column] of COLUMNS.entries()) {
    const button = make("button", {type: "button", text: column.title});
    head.append(make("th", {scope: "col", class: column.kind.replace(" why", "")}, button));
    button.addEventListener("click", () => sort(place));
  }
  const rows = new Rows(scroller, body, 38, () => make("tr", {class: "blank", "aria-hidden": "true"}, make("td")), row);

  function row(task) {
    const name = make("button", {type: "button", text: task.name, title: task.name});
    const line = make("tr", {class: `item ${task.status}${task.kept ? " kept" : ""}`});
    line.append(make("td", {class: "c-task"}, make("div", {class: "cell"}, sign(task.status), name)));
    for (const column of COLUMNS.slice(1)) line.append(make("td", {class: column.kind, text: column.text(task)}));
    line.addEventListener("click", () => open(task.index, name));
    return line;
  }
  function sort(place) {
    if (state.column === place && state.down) Object.assign(state, {column: null, down: false});
    else if (state.column === place) state.down = true;
    else Object.assign(state, {column: place, down: false});
    for (const [other, cell] of [...head.children].entries()) {
      if (other === state.column) cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
    refresh();
  }
  function refresh() {
    const query = state.query.toLowerCase();
    const kinds = task => [task.status, task.kept ? "kept" : "", task.attempt > 1 && !task.kept ? "retried" : ""];
    const list = tasks.filter(task => (!state.statuses.size || kinds(task).some(kind => state.statuses.has(kind)))
      && (!query || task.name.toLowerCase().includes(query) || task.why.toLowerCase().includes(query)));
    if (state.column === null) list.sort((a, b) => URGENCY[a.status] - URGENCY[b.status] || a.index - b.index);
    else {
      const {key} = COLUMNS[state.column], turn = state.down ? -1 : 1;
      list.sort((a, b) => {
        const x = key(a), y = key(b);
        if (x === y) return a.index - b.index;
        if (x === null || x === "") return 1;
        if (y === null || y === "") return -1;
        return (x < y ? -1 : 1) * turn;
      });
    }
    sheet.setAttribute("aria-rowcount", list.length + 1);
    byId("shown").textContent = list.length === tasks.length ? `${tasks.length.toLocaleString("en")} in all` : `${list.length.toLocaleString("en")} of ${tasks.length.toLocaleString("en")} shown`;
    empty.hidden = list.length > 0;
    rows.show(list.map(task => task.index));
  }
  byId("search").addEventListener("input", event => { state.query = event.target.value.trim(); refresh(); });
  for (const button of document.querySelectorAll("[data-filter]")) {
    button.addEventListener("click", () => {
      const {filter} = button.dataset, on = !state.statuses.has(filter);
      if (on) state.statuses.add(filter); else state.statuses.delete(filter);
      button.setAttribute("aria-pressed", String(on));
      refresh();
    });
  }
  refresh();
  return {refresh};
})();

/* ---- timeline ---- */
const lanes = document.querySelector(".lanes");
if (lanes) {
  let total = data.finished ?? 0;
  for (const task of tasks) for (const attempt of task.kept ? [] : task.attempts) total = Math.max(total, attempt.finished ?? 0);
  // A run that goes on has no end yet: what is running reaches a little past what is known.
  if (data.finished === null) total = 1.06 * tasks.reduce((most, task) => Math.max(most, task.started ?? 0), total);
  total = total || 0.001;
  const percent = value => `${(100 * Math.min(Math.max(value / total, 0), 1)).toFixed(3)}%`;
  const width = (start, end) => `${(100 * Math.max(end - start, 0) / total).toFixed(3)}%`;
  const timed = tasks.filter(task => !task.kept && (task.attempts.length || task.started !== undefined));
  timed.sort((a, b) => (a.attempts[0]?.ready ?? a.ready ?? 0) - (b.attempts[0]?.ready ?? b.ready ?? 0) || a.first - b.first || a.index - b.index);
  const body = make("div", {class: "lane-rows"});
  lanes.append(axis(), body);
  if (timed.length > 18) {
    lanes.tabIndex = 0;
    lanes.setAttribute("role", "group");
    lanes.setAttribute("aria-label", "Timeline, scrollable");
  }
  const rows = new Rows(lanes, body, 28, () => make("div"), lane);
  const choices = [...document.querySelectorAll("[data-rows]")];
  const which = {all: () => true, critical: task => task.critical, worst: task => task.critical || task.status === "FAILED"};
  function choose(kind) {
    for (const button of choices) button.setAttribute("aria-pressed", String(button.dataset.rows === kind));
    rows.show(timed.filter(which[kind]).map(task => task.index));
  }
  for (const button of choices) button.addEventListener("click", () => choose(button.dataset.rows));
  // A long one opens at what went wrong, or made the run as long as it was.
  choose(timed.length > WHOLE && choices.length ? choices[0].dataset.rows === "worst" ? "worst" : "critical" : "all");
  revealLane = index => rows.reveal(index, 28);

  function axis() {
    const box = make("div", {class: "axis", "aria-hidden": "true"});
    const rough = total / 6, unit = 10 ** Math.floor(Math.log10(rough));
    const minutes = [60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400];
    const step = rough > 30 ? minutes.find(value => value >= rough) ?? Math.ceil(rough / 86400) * 86400 : [1, 2, 5, 10].map(value => value * unit).find(value => value >= rough);
    for (let at = 0; at <= total * 1.0001; at += step) {
      const label = make("span", {text: at ? tick(at, step) : "0"}), line = make("i");
      label.style.left = line.style.left = percent(at);
      if (at + step > total && 1 - at / total < 0.06 && at) label.style.transform = "translateX(-100%)";
      box.append(label);
      box.append(line);
    }
    return box;
  }
  function tick(at, step) {
    if (step < 1) return total < 1 ? `${Math.round(at * 1e6) / 1e3} ms` : `${at.toFixed(Math.min(3, Math.ceil(-Math.log10(step))))} s`;
    if (total < 120) return `${Math.round(at)} s`;
    const hours = Math.floor(at / 3600), rest = Math.round(at % 3600 / 60);
    return hours ? `${hours} h${rest ? ` ${rest} min` : ""}` : `${rest} min`;
  }
  function lane(task) {
    const bars = draw("svg", {class: "bars", "aria-hidden": "true"});
    let previous = null;
    for (const attempt of task.attempts) {
      if (attempt.started === null) continue;
      const ready = attempt.ready ?? attempt.started, end = attempt.finished ?? total;
      if (previous !== null && ready > previous) bars.append(draw("line", {class: "gap", x1: percent(previous), x2: percent(ready), y1: 14, y2: 14}));
      if (attempt.waited > 0) bars.append(bar("wait", ready, Math.min(ready + attempt.waited, attempt.started), 9, 10, `waited ${duration(attempt.waited)}`));
      const status = endOf(attempt), failed = status === "FAILED";
      const kind = status + (task.critical ? " critical" : "");
      bars.append(bar(kind, attempt.started, end, 7, 14, `attempt ${attempt.number}: ${failed ? "failed after" : "ran"} ${duration(end - attempt.started)}`));
      if (failed) bars.append(draw("svg", {x: percent(end), y: 14, width: 1, height: 1, overflow: "visible"},
        draw("circle", {class: "cross-ground", r: 6.5}), draw("path", {class: "cross", d: "M-3.4-3.4 3.4 3.4M3.4-3.4-3.4 3.4"})));
      previous = end;
    }
    if (task.status === "RUNNING") bars.append(bar("RUNNING", task.started, total, 7, 14, "still running"));
    const spoken = [WORDS[task.status], task.attempt > 1 ? `${task.attempt} attempts` : "", task.waited === null ? "" : `waited ${duration(task.waited)}`,
      task.ran === null ? "" : `ran ${duration(task.ran)}`, task.critical ? "on the critical path" : ""].filter(Boolean).join(", ");
    const row = make("button", {type: "button", class: `lane${task.critical ? " critical" : ""}`},
      make("span", {class: "label", title: task.name}, sign(task.status), make("span", {text: task.name})),
      make("span", {class: "spoken", text: `, ${spoken}`}), bars);
    row.addEventListener("click", () => open(task.index, row));
    return row;
  }
  function bar(kind, start, end, y, height, title) {
    return draw("rect", {class: kind, x: percent(start), width: width(start, end), y, height, rx: 2.5}, draw("title", {text: title}));
  }
}

/* ---- graph ---- */
const graph = (() => {
  const canvas = document.querySelector(".canvas"), svg = canvas?.querySelector("svg");
  if (!svg) return null;
  const [, , wide, high] = svg.getAttribute("viewBox").split(" ").map(Number);
  const nodes = [...svg.querySelectorAll(".node")], marks = data.marks;
  const view = {x: 0, y: 0, scale: 1, width: 0, height: 0};
  const overlay = draw("g", {});
  svg.append(overlay);
  const edges = nodes.map(node => node.getAttribute("transform").match(/([-\d.]+) ([-\d.]+)/).slice(1).map(Number));
  const places = marks ?? nodes.map((node, place) => {
    const [x, y] = edges[place], box = node.querySelector("rect");
    return [x + box.getAttribute("width") / 2, y + box.getAttribute("height") / 2];
  });
  let lit = null, near = null, moved = false, last = null;

  function apply() {
    const across = view.width / view.scale, down = view.height / view.scale;
    view.x = across >= wide ? (wide - across) / 2 : Math.min(Math.max(view.x, 0), wide - across);
    view.y = down >= high ? (high - down) / 2 : Math.min(Math.max(view.y, 0), high - down);
    svg.setAttribute("viewBox", `${view.x} ${view.y} ${across} ${down}`);
    if (marks) requestAnimationFrame(name);
  }
  function fit(whole) {
    // Whole when it can be read so; else as big as one of its sides allows, at the first failure.
    const room = Math.max(180, innerHeight * 0.68), most = marks ? 2 : 1;
    view.width = canvas.clientWidth;
    const fits = Math.min(view.width / wide, room / high, most), widest = Math.max(view.width / wide, room / high);
    const scale = whole ? fits : marks ? (fits < 0.1 ? Math.min(widest, 1.8) : fits) : Math.max(fits, 0.75);
    view.scale = scale;
    view.height = Math.min(Math.max(high * scale, marks ? 280 : 64), room);
    svg.setAttribute("width", view.width);
    svg.setAttribute("height", view.height);
    view.x = view.y = 0;
    if (scale === fits) apply();
    else centre(boxOf[Math.max(tasks.findIndex(task => task.status === "FAILED"), 0)]);
  }
  function centre(place) {
    const [x, y] = places[place];
    view.x = x - view.width / view.scale / 2;
    view.y = y - view.height / view.scale / 2;
    apply();
  }
  function reveal(place) {
    const [x, y] = places[place], across = view.width / view.scale, down = view.height / view.scale;
    const inside = x > view.x + 60 && x < view.x + across - 60 && y > view.y + 20 && y < view.y + down - 20;
    if (!inside) centre(place);
  }
  function zoom(factor, x = view.width / 2, y = view.height / 2) {
    const scale = Math.min(Math.max(view.scale * factor, 0.01), 4);
    view.x += x / view.scale - x / scale;
    view.y += y / view.scale - y / scale;
    view.scale = scale;
    apply();
  }
  // Marks have no names of their own: those that are on screen get one when there is room.
  function name() {
    overlay.replaceChildren();
    const across = view.width / view.scale, down = view.height / view.scale;
    const named = new Set([lit, near].filter(index => index !== null));
    if (view.scale > 1.7) {
      for (let index = 0; index < marks.length && named.size < 400; index += 1) {
        const [x, y] = marks[index];
        if (x > view.x - 80 && x < view.x + across && y > view.y && y < view.y + down) named.add(index);
      }
    }
    if (lit !== null) {
      const from = (a, b) => `M${marks[a][0] + 5} ${marks[a][1]}C${(marks[a][0] + marks[b][0]) / 2} ${marks[a][1]} ${(marks[a][0] + marks[b][0]) / 2} ${marks[b][1]} ${marks[b][0] - 5} ${marks[b][1]}`;
      const path = [...tasks[lit].deps.map(parent => from(parent, lit)), ...tasks[lit].children.map(child => from(lit, child))].join("");
      overlay.append(draw("path", {class: "edges lit", d: path}));
      overlay.append(draw("circle", {class: "ring", cx: marks[lit][0], cy: marks[lit][1], r: Math.max(9, 9 / view.scale)}));
    }
    for (const index of named) {
      const close = index === lit || index === near, text = tasks[index].name;
      const tag = draw("text", {class: close ? "tag near" : "tag", x: marks[index][0] + (close ? 11 / view.scale : -5), y: marks[index][1] + (close ? -9 / view.scale : 10), text: close || text.length < 17 ? text.slice(0, 60) : `${text.slice(0, 15)}…`});
      if (close) { tag.style.fontSize = `${Math.max(5, 13 / view.scale)}px`; tag.style.strokeWidth = `${3 / view.scale}px`; }
      overlay.append(tag);
    }
  }
  function at(event) {
    const box = svg.getBoundingClientRect(), reach = Math.max(9, 14 / view.scale);
    const x = view.x + (event.clientX - box.left) / view.scale, y = view.y + (event.clientY - box.top) / view.scale;
    let best = null, least = reach * reach;
    for (let index = 0; index < marks.length; index += 1) {
      const across = marks[index][0] - x, down = marks[index][1] - y, far = across * across + down * down;
      if (far < least) { best = index; least = far; }
    }
    return best;
  }
  function light(index) {
    lit = index === null ? null : boxOf[index];
    for (const path of svg.querySelectorAll(".edges path")) path.classList.toggle("lit", lit !== null && (Number(path.dataset.from) === lit || Number(path.dataset.to) === lit));
    for (const [place, node] of nodes.entries()) node.classList.toggle("lit", place === lit);
    if (lit !== null) reveal(lit);
    if (marks) name();
  }
  function step(from, key) {
    // Left edges, not middles: those of one layer stand exactly below each other.
    const [x, y] = edges[from];
    let best = null, least = Infinity;
    for (let index = 0; index < edges.length; index += 1) {
      const across = edges[index][0] - x, down = edges[index][1] - y;
      const [along, aside] = {ArrowRight: [across, down], ArrowLeft: [-across, down], ArrowDown: [down, across], ArrowUp: [-down, across]}[key];
      if (index === from || along <= 4) continue;
      const cost = along + 2.5 * Math.abs(aside);
      if (cost < least) { best = index; least = cost; }
    }
    return best;
  }
  function focus(index) {
    for (const [place, node] of nodes.entries()) node.setAttribute("tabindex", place === index ? "0" : "-1");
    nodes[index].focus({preventScroll: true});
    reveal(index);
  }
  svg.addEventListener("keydown", event => {
    const node = event.target.closest(".node");
    if (!node || event.ctrlKey || event.metaKey || event.altKey) return;
    const place = Number(node.dataset.box);
    if (event.key === "Enter" || event.key === " ") openBox(place, node);
    else if (event.key.startsWith("Arrow")) { const next = step(place, event.key); if (next !== null) focus(next); }
    else if (event.key === "+") zoom(1.25);
    else if (event.key === "-") zoom(0.8);
    else if (event.key === "0") fit(true);
    else return;
    event.preventDefault();
  });
  svg.addEventListener("pointerdown", event => { last = [event.clientX, event.clientY]; moved = false; });
  addEventListener("pointermove", event => {
    if (last === null || !event.buttons) return;
    const [x, y] = last, across = event.clientX - x, down = event.clientY - y;
    if (!moved && Math.abs(across) + Math.abs(down) < 5) return;
    moved = true;
    last = [event.clientX, event.clientY];
    view.x -= across / view.scale;
    if (event.pointerType === "mouse") view.y -= down / view.scale;
    apply();
  });
  addEventListener("pointerup", () => { last = null; });
  svg.addEventListener("click", event => {
    if (moved) return;
    const node = event.target.closest(".node");
    if (node) { focus(Number(node.dataset.box)); openBox(Number(node.dataset.box), node); return; }
    const index = marks ? at(event) : null;
    if (index !== null) open(index, document.querySelector("[data-zoom=fit]"));
  });
  if (marks) svg.addEventListener("pointermove", event => {
    const found = event.buttons ? near : at(event);
    if (found !== near) { near = found; requestAnimationFrame(name); }
  });
  svg.addEventListener("wheel", event => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const box = svg.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top);
  }, {passive: false});
  for (const button of document.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => ({in: () => zoom(1.4), out: () => zoom(1 / 1.4), fit: () => fit(true)})[button.dataset.zoom]());
  }
  let known = 0, printing = false;
  new ResizeObserver(() => {
    if (printing || canvas.clientWidth === known) return;
    known = canvas.clientWidth;
    fit(false);
    if (lit !== null) reveal(lit);
  }).observe(canvas);
  addEventListener("beforeprint", () => {
    printing = true;
    svg.setAttribute("viewBox", `0 0 ${wide} ${high}`);
    svg.setAttribute("width", wide);
    svg.removeAttribute("height");
  });
  addEventListener("afterprint", () => { printing = false; fit(false); });
  return {light};
})();
/* ---- the reader's own clock beside UTC ---- */
for (const time of document.querySelectorAll("time")) {
  const moment = new Date(time.dateTime);
  if (moment.getTimezoneOffset()) time.after(make("span", {class: "local", text: ` (${moment.toLocaleString(undefined, {dateStyle: "medium", timeStyle: "medium"})} here)`}));
}

/* ---- paper has no clicks: failures are printed unfolded ---- */
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("#failures details:not([open])")];
  for (const fold of folded) fold.open = true;
});
addEventListener("afterprint", () => { for (const fold of folded) fold.open = false; });
document.documentElement.dataset.ready = "true";
})();
