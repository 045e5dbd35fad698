// The overview of one stream, live: panels that the server derives from the stream's declaration.

import { follow } from "./api.js";
import { errorBox, h, select, setText, show } from "./dom.js";
import { duration, setTime } from "./format.js";
import { followFiltered } from "./filtered.js";
import { PANELS } from "./panels.js";
import { changed, place, stream } from "./state.js";

let root;
let grid;
let minutes = "5";
let stop = null;
let stopFiltered = null;
let clock = null;
let panels = new Map();
let isShown = false;
let isBalanced = false;

export function mount(element) {
  root = element;
  grid = h("div", { class: "grid", id: "overview-panels" });
  const range = select(
    "Time range",
    [
      ["5", "Last 5 minutes"],
      ["30", "Last 30 minutes"],
      ["180", "Last 3 hours"],
    ],
    minutes,
    (value) => {
      minutes = value;
      restart();
    },
    { id: "overview-range", "data-test": "range" },
  );
  show(
    root,
    h(
      "div",
      { class: "section-head" },
      h("h1", {}, "Overview"),
      h("span", { class: "section-name", id: "overview-stream" }),
      h("span", { class: "spacer" }),
      range,
    ),
    grid,
  );
  changed.addEventListener("stream", restart);
  changed.addEventListener("place", restart);
}

export function enter() {
  isShown = true;
  restart();
}

export function leave() {
  isShown = false;
  end();
}

function end() {
  stop?.();
  stopFiltered?.();
  clearInterval(clock);
  stop = null;
  stopFiltered = null;
}

/** Removes the panels with what they listen to. */
function clear() {
  for (const own of panels.values()) own.end?.();
  panels = new Map();
}

function restart() {
  if (!isShown) return;
  end();
  clear();
  show(grid, h("p", { class: "loading" }, "Loading …"));
  setText(document.getElementById("overview-stream"), stream ?? "");
  const query = new URLSearchParams({ minutes });
  if (stream) query.set("stream", stream);
  stop = follow(`/api/v1/overview?${query}`, receive, fail);
  clock = setInterval(showAges, 1000);
}

/** The server refuses the stream of events; its next layout builds the panels again. */
function fail(error) {
  clear();
  show(grid, errorBox(error, restart));
}

function receive(event, message, isFiltered = false) {
  if (event === "layout") return lay(message);
  const own = panels.get(message.id);
  // Under a place filter the server's panels of the whole stream do not replace the filtered ones.
  if (!own || (place && !isFiltered && own.kind.canFilter)) return null;
  own.age = Math.max(0, new Date(message.now) - new Date(message.at));
  own.at = message.at;
  own.received = performance.now();
  if (message.error) own.showError(message.error);
  else own.showData(message.data);
  showAge(own);
  return balance();
}

/** Builds the panels; those that are there already stay, as after a reconnection. */
function lay(layout) {
  const names = layout.panels.map(({ id }) => id).join("\n");
  if (names === [...panels.keys()].join("\n")) return;
  clear();
  isBalanced = false;
  for (const panel of layout.panels.filter(({ kind }) => kind in PANELS)) {
    const kind = PANELS[panel.kind];
    panels.set(panel.id, {
      ...kind.build({ ...panel, minutes: layout.minutes }),
      panel,
      kind,
      received: null,
    });
  }
  // Windows are of the whole stream.
  const all = [...panels.values()].filter(({ kind }) => !place || kind !== PANELS.rows);
  const others = all.filter(({ place: own }) => !own);
  show(
    grid,
    ORDER.flatMap((own) => all.filter((panel) => panel.place === own)).map((panel) => panel.root),
    others.length > 0 && h("div", { class: "columns" }, inColumns(others)),
    all.filter((panel) => panel.place === "latest").map((panel) => panel.root),
  );
  stopFiltered?.();
  const listed = all.map(({ panel }) => panel);
  stopFiltered = place && followFiltered(listed, Number(minutes), receive);
}

/** Panels with a row of their own above the columns, in their order. */
const ORDER = ["rate", "health", "line", "types"];
const COLUMNS = 3;

/** Deals panels out to columns in turn; once their heights are known, `balance` fills the gaps. */
function inColumns(others) {
  const columns = Array.from({ length: Math.min(COLUMNS, others.length) }, () =>
    h("div", { class: "column" }),
  );
  others.forEach((panel, at) => columns[at % columns.length].append(panel.root));
  return columns;
}

/** Puts each panel into the column that is shortest so far: once, when all have shown something. */
function balance() {
  const all = [...panels.values()].filter((own) => !own.place && own.root.isConnected);
  const columns = [...grid.querySelectorAll(".column")];
  if (isBalanced || columns.length < 2 || all.some((own) => own.received === null)) return;
  isBalanced = true;
  const dealt = columns.map((column) => ({ column, height: 0 }));
  const heights = all.map((own) => own.root.offsetHeight);
  all.forEach((own, at) => {
    const shortest = dealt.reduce((best, next) => (next.height < best.height ? next : best));
    shortest.column.append(own.root);
    shortest.height += heights[at];
  });
}

function showAge(own) {
  if (own.received === null) return;
  const age = own.age + performance.now() - own.received;
  const text = age < 1500 ? "now" : `${duration(Math.floor(age / 1000) * 1000)} ago`;
  setText(own.ageText, text);
  setTime(own.ageText, own.at);
  own.ageText.textContent = text;
  own.ageText.classList.toggle("is-old", age > 15_000);
}

const showAges = () => panels.forEach(showAge);
