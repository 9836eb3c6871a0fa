"use strict";
// Labels are reviewed by keyboard: each decision is stored before the next example is shown.

const content = JSON.parse(document.getElementById("content").textContent);
const element = (id) => document.getElementById(id);
const SHEET = 24; // tiles
const isStatic = content.token === null;
const storageKey = `famus_hf ${content.data} ${content.title}`;

const decided = new Map(content.decided); // example → label
const past = content.decided.map(([place]) => [place, null]); // [example, what was decided of it before]
const shown = new Map(); // example → promise of whether it can be seen
let queue = []; // examples of the chosen group
let current = null;
let isSheet = false;
let work = Promise.resolve(); // keys are answered one after the other

// ---- Decisions ----

/** Store a label of an example, or null to take it back. Returns an error's sentence, or null. */
async function store(place, label) {
  const before = decided.get(place) ?? null;
  if (!isStatic) {
    const error = await send(place, label, before);
    if (error !== null) return error;
  }
  decided.delete(place); // the order is that of decisions
  if (label !== null) decided.set(place, label);
  if (isStatic) localStorage.setItem(storageKey, JSON.stringify([...decided]));
  return null;
}

async function send(place, label, before) {
  let answer;
  try {
    answer = await fetch(`decisions?token=${content.token}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Review-Token": content.token },
      body: JSON.stringify({ place, label, before }),
    });
  } catch {
    return "Not saved, as the server does not answer: start famus-hf review again and open its page; all earlier decisions are kept.";
  }
  if (answer.ok) return null;
  const { error, present } = await answer.json();
  if (answer.status === 409) {
    decided.delete(place);
    if (present !== null) decided.set(place, present);
  }
  return error;
}

async function decide(label) {
  const place = current;
  if (place === null || label === undefined || label === "") return say("There is no such label here.");
  if (!(await shown.get(place))) {
    return say(`${content.examples[place].example} can't be read any more, so that it is not decided: → goes on, or put the file back and load this page again.`);
  }
  const before = decided.get(place) ?? null;
  const error = await store(place, label);
  if (error === null) {
    past.push([place, before]);
    advance();
  }
  draw();
  say(error);
}

async function undo() {
  if (!past.length) return say("There is nothing to undo.");
  const [place, before] = past[past.length - 1];
  const error = await store(place, before);
  if (error === null) {
    past.pop();
    if (!queue.includes(place)) choose("all");
    current = place;
  }
  draw();
  say(error);
}

// ---- Which example ----

const pairOf = ({ label, suggested_label }) => `${label} → ${suggested_label}`;

function groups() {
  const counts = new Map();
  for (const example of content.examples) {
    if (!example.drawn) counts.set(pairOf(example), (counts.get(pairOf(example)) ?? 0) + 1);
  }
  const pairs = [...counts].sort(([, a], [, b]) => b - a).map(([pair, n]) => [pair, `${pair} (${n})`]);
  const drawn = content.examples.filter((example) => example.drawn).length;
  const random = drawn ? [["drawn", `drawn at random (${drawn})`]] : [];
  return [["all", `all (${content.examples.length})`], ...random, ...pairs];
}

function choose(group) {
  element("group").value = group;
  queue = content.examples.flatMap((example, place) => {
    const fits = group === "all" || (group === "drawn" ? example.drawn : !example.drawn && pairOf(example) === group);
    return fits ? [place] : [];
  });
  current = queue.find((place) => !decided.has(place)) ?? null;
}

/** Go to the next example that is not decided, those behind first. */
function advance() {
  const place = queue.indexOf(current);
  const order = [...queue.slice(place + 1), ...queue.slice(0, place + 1)];
  current = order.find((other) => !decided.has(other)) ?? null;
}

function move(steps) {
  const place = current === null ? queue.length : queue.indexOf(current);
  current = queue[Math.min(Math.max(place + steps, 0), queue.length - 1)] ?? null;
  draw();
}

// ---- Drawing ----

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const perCent = (share) => `${(100 * share).toFixed(share > 0.995 && share < 1 ? 2 : 0)} %`;

/** Return what shows an example; `shown` then tells whether it can be seen. */
function media(place) {
  const example = content.examples[place];
  if (content.kind === "text") {
    shown.set(place, Promise.resolve(true));
    return make("div", {}, ...example.texts.map((text) => make("blockquote", { textContent: text })));
  }
  const isImage = content.kind === "image";
  const node = make(isImage ? "img" : "audio", isImage ? { alt: example.example } : { controls: true });
  shown.set(place, new Promise((resolve) => {
    node.addEventListener(isImage ? "load" : "loadedmetadata", () => resolve(true));
    node.addEventListener("error", () => resolve(false));
    if (example.media === null) resolve(false);
  }));
  if (example.media !== null) node.src = isStatic ? example.media : `${example.media}?token=${content.token}`;
  return node;
}

function labels(example, place) {
  const now = decided.get(place);
  const suggestion = example.suggested_label && example.suggested_label !== example.label;
  const lines = [make("p", {}, "given ", make("b", { className: "given", textContent: example.label }))];
  if (suggestion) {
    const chance = example.suggestion_probability === null ? "" : ` (${perCent(example.suggestion_probability)})`;
    lines.push(make("p", {}, "suggested ", make("b", { className: "other", textContent: example.suggested_label }), chance));
  }
  if (now !== undefined) lines.push(make("p", {}, "decided: ", make("b", { textContent: now })));
  return lines;
}

function drawOne() {
  const example = content.examples[current];
  const right = example.clean_probability;
  const words = [
    right === null ? "" : `chance that the given label is right: ${perCent(right)}`,
    example.reason,
    example.drawn ? "drawn at random" : "",
    example.example,
  ];
  const notes = words.filter(Boolean).map((text) => make("p", { className: "note", textContent: text }));
  const isWide = content.kind !== "image";
  element("main").replaceChildren(
    make("div", { className: isWide ? "one wide" : "one" }, media(current), make("div", {}, ...labels(example, current), ...notes)),
  );
  const next = content.examples[queue[queue.indexOf(current) + 1]];
  if (next && next.media && !isStatic && content.kind === "image") new Image().src = `${next.media}?token=${content.token}`;
}

function drawSheet() {
  const start = Math.floor(Math.max(queue.indexOf(current), 0) / SHEET) * SHEET;
  const tiles = queue.slice(start, start + SHEET).map((place) => {
    const tile = make("li", {}, media(place), ...labels(content.examples[place], place));
    tile.classList.toggle("decided", decided.has(place));
    tile.setAttribute("aria-current", String(place === current));
    tile.addEventListener("click", () => { current = place; draw(); });
    return tile;
  });
  element("main").replaceChildren(make("ol", { className: "sheet" }, ...tiles));
}

function draw() {
  say(null);
  drawProgress();
  element("answers").hidden = current === null;
  element("view").textContent = isSheet ? "One by one (s)" : "Sheet (s)";
  if (current === null) {
    element("main").replaceChildren(make("p", { id: "end", textContent: queue.length ? "All of these are reviewed." : "There is nothing to review." }));
    return;
  }
  (isSheet ? drawSheet : drawOne)();
  const { label, suggested_label } = content.examples[current];
  element("accept").hidden = !suggested_label || suggested_label === label;
  element("accept").lastElementChild.textContent = `it is ${suggested_label}`;
  element("keep").lastElementChild.textContent = `keep ${label}`;
}

function drawProgress() {
  const total = content.examples.length;
  const changed = [...decided].filter(([place, label]) => label !== content.examples[place].label).length;
  element("bar").max = Math.max(total, 1);
  element("bar").value = decided.size;
  element("progress").textContent = `${decided.size} of ${total} reviewed: ${changed} changed, ${decided.size - changed} kept`;
}

function say(sentence) {
  element("message").textContent = sentence ?? "";
  element("message").hidden = !sentence;
}

// ---- Keys and buttons ----

const queued = (action) => { work = work.then(action).catch((error) => say(`Not saved: ${error.message}`)); };
const example = () => content.examples[current] ?? {};
const accept = () => {
  const { label, suggested_label } = example();
  return suggested_label === label ? decide(undefined) : decide(suggested_label);
};
const keep = () => decide(example().label);
const toggle = () => { isSheet = !isSheet; draw(); };

const KEYS = {
  Enter: accept,
  " ": keep,
  z: undo,
  s: toggle,
  ArrowLeft: () => move(-1),
  ArrowRight: () => move(1),
};

function filtered() {
  const part = element("filter").value.trim().toLowerCase();
  return content.classes.filter((name) => name.toLowerCase().includes(part));
}

function drawClasses() {
  const buttons = filtered().map((name) => {
    const number = content.classes.indexOf(name) + 1;
    const button = make("button", { type: "button" }, ...(number > 10 ? [] : [make("kbd", { textContent: number % 10 }), " "]), name);
    button.addEventListener("click", () => { button.blur(); queued(() => decide(name)); });
    return button;
  });
  element("classes").replaceChildren(...buttons.flatMap((button) => [button, " "]));
}

function leaveFilter() {
  element("filter").value = "";
  element("filter").blur();
  drawClasses();
}

function typed(event) {
  if (event.key === "Escape") leaveFilter();
  if (event.key !== "Enter") return;
  event.preventDefault();
  const [name] = filtered();
  leaveFilter();
  queued(() => decide(name));
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
  if (event.target === element("filter")) return typed(event);
  const isNumber = /^[0-9]$/.test(event.key);
  if (event.key !== "/" && !isNumber && !(event.key in KEYS)) return;
  event.preventDefault();
  if (event.repeat && !event.key.startsWith("Arrow")) return; // a key that is held down decides once
  if (event.key === "/") element("filter").focus();
  else if (isNumber) queued(() => decide(content.classes[(Number(event.key) + 9) % 10]));
  else queued(KEYS[event.key]);
});

for (const [id, action] of [["accept", accept], ["keep", keep], ["undo", undo], ["view", toggle]]) {
  element(id).addEventListener("click", () => { element(id).blur(); queued(action); });
}
element("filter").addEventListener("input", drawClasses);
element("group").addEventListener("change", () => {
  choose(element("group").value);
  element("group").blur();
  draw();
});

// ---- Decisions of the browser alone ----

function asCsv() {
  const text = (value) => (/^['=+\-@\t\r]/.test(value) ? `'${value}` : value);
  const cell = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const rows = [...decided].map(([place, label]) => {
    const row = { ...content.examples[place], reviewed_label: label };
    return [...content.columns.slice(0, -1).map((name) => text(String(row[name]))), content.data];
  });
  return [content.columns, ...rows].map((row) => `${row.map(cell).join(",")}\n`).join("");
}

function download() {
  const link = make("a", { download: "decisions.csv", href: URL.createObjectURL(new Blob([asCsv()], { type: "text/csv" })) });
  link.click();
  URL.revokeObjectURL(link.href);
}

if (isStatic) {
  for (const [place, label] of JSON.parse(localStorage.getItem(storageKey) ?? "[]")) {
    if (!decided.has(place)) past.push([place, null]);
    decided.set(place, label);
  }
  element("download").hidden = false;
  element("download").addEventListener("click", download);
}
element("kept").textContent = isStatic ? "This browser keeps them until then." : `Decisions are saved as they are made, in ${content.file}.`;
element("group").append(...groups().map(([value, text]) => make("option", { value, textContent: text })));
choose("all");
drawClasses();
draw();
