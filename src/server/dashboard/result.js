// A result as a table or a chart, with the columns that the chart shows.

import { clear, draw, plain } from "./chart.js";
import { empty, h, select, show } from "./dom.js";
import { number } from "./format.js";
import { columnsOf, grid } from "./grid.js";
import { WorldMap } from "./world.js";

const KINDS = [
  ["table", "Table"],
  ["line", "Line"],
  ["bar", "Bar"],
  ["pie", "Pie"],
  ["map", "Map"],
];
const MAX_CHART_ROWS = 20_000;
const MAX_SERIES = 20;
const MAX_SLICES = 12;

export class Result {
  /** `chart` is `{kind, x?, y?, series?}`; `onchart` is called when the reader changes it. */
  constructor({ chart = { kind: "table" }, onchart } = {}) {
    this.chart = { ...chart };
    this.onchart = onchart;
    this.body = h("div", { class: "result-body" });
    this.choices = h("div", { class: "chart-choices" });
    this.tabs = h(
      "div",
      { class: "segments", role: "group", "aria-label": "Show as" },
      KINDS.map(([kind, text]) =>
        h(
          "button",
          { type: "button", "data-test": `as-${kind}`, "data-kind": kind, onclick: () => this.set({ kind }) },
          text,
        ),
      ),
    );
    this.root = h(
      "div",
      { class: "result", hidden: true },
      h("div", { class: "result-bar" }, this.tabs, this.choices),
      this.body,
    );
  }

  set(change) {
    this.chart = { ...this.chart, ...change };
    this.onchart?.(this.chart);
    this.paint();
  }

  showAnswer(answer) {
    this.answer = answer;
    this.columns = columnsOf(answer);
    this.root.hidden = false;
    this.paint();
  }

  hide() {
    this.root.hidden = true;
    this.reset();
  }

  reset() {
    if (this.element) clear(this.element);
    this.element = null;
    show(this.body);
  }

  paint() {
    if (!this.answer) return;
    for (const tab of this.tabs.children)
      tab.setAttribute("aria-pressed", String(tab.dataset.kind === this.chart.kind));
    this.reset();
    show(this.choices);
    const { rows } = this.answer;
    if (rows.length === 0)
      return show(this.body, empty("No rows.", "The statement is valid; its conditions match nothing."));
    if (this.chart.kind === "table") return show(this.body, grid(this.columns, rows));
    if (this.chart.kind === "map") return this.paintMap();
    return this.paintChart();
  }

  /** The columns to draw: as chosen, else those that suggest themselves. */
  chosen() {
    const names = new Set(this.columns.map(({ name }) => name));
    const numbers = this.columns.filter(({ kind }) => kind === "number").map(({ name }) => name);
    const others = this.columns.filter(({ kind }) => kind !== "number");
    const suggestedX = (others.find(({ kind }) => kind === "time") ?? others[0] ?? this.columns[0]).name;
    const x = names.has(this.chart.x) ? this.chart.x : suggestedX;
    const chosen = (this.chart.y ?? []).filter((name) => names.has(name));
    const y = chosen.length ? chosen : numbers.filter((name) => name !== x).slice(0, 1);
    const series = names.has(this.chart.series) && this.chart.series !== x ? this.chart.series : null;
    return { x, y, series, numbers: numbers.filter((name) => name !== x) };
  }

  paintChart() {
    const { x, y, series, numbers } = this.chosen();
    const { kind } = this.chart;
    const names = this.columns.map(({ name }) => [name, name]);
    show(
      this.choices,
      h(
        "label",
        {},
        kind === "pie" ? "Slices" : "X",
        select("Column of the x axis", names, x, (value) => this.set({ x: value })),
      ),
      h(
        "label",
        {},
        kind === "pie" ? "Size" : "Y",
        select(
          "Column of the y axis",
          numbers.map((name) => [name, name]),
          y[0],
          (value) => this.set({ y: [value] }),
        ),
      ),
      kind !== "pie" &&
        h(
          "label",
          {},
          "Split by",
          select("Column whose values become series", [["", "–"], ...names], series ?? "", (value) =>
            this.set({ series: value || undefined }),
          ),
        ),
    );
    if (y.length === 0)
      return show(
        this.body,
        empty("No column has numbers.", "A chart needs at least one, such as count(*) as n."),
      );
    this.element = h("div", { class: "chart chart-result", "data-test": "chart" });
    show(this.body, this.element);
    const rows = this.answer.rows.slice(0, MAX_CHART_ROWS);
    const { traces, left } =
      kind === "pie" ? { traces: [slices(rows, x, y[0])], left: 0 } : lines(rows, kind, x, y, series);
    const omitted = notDrawn(this.answer.rows.length, traces.length, left, series);
    if (omitted) this.body.prepend(h("p", { class: "muted small", "data-test": "not-drawn" }, omitted));
    const more =
      kind === "pie"
        ? { hovermode: "closest" }
        : {
            showlegend: traces.length > 1,
            xaxis: { title: { text: plain(x), standoff: 8 } },
            margin: { l: 52, r: 12, t: 16, b: 56 },
            barmode: "stack",
          };
    const label = `${kind} chart of ${y.join(", ")} by ${x}`;
    return draw(this.element, label, traces, more).catch((error) =>
      show(this.body, empty("The chart could not be drawn.", error.message)),
    );
  }

  paintMap() {
    const find = (pattern) =>
      this.columns.find(({ name, kind }) => kind === "number" && pattern.test(name))?.name;
    const lat = find(/^lat(itude)?$|_lat$/i);
    const lon = find(/^(lon|lng|long|longitude)$|_(lon|lng)$/i);
    if (!lat || !lon)
      return show(this.body, empty("No coordinates.", "A map needs columns named lat and lon, in degrees."));
    const isText = ({ name, kind }) => kind === "text" && name !== lat && name !== lon;
    const label = this.columns.find(isText)?.name;
    const size = this.columns.find(
      ({ name, kind }) =>
        kind === "number" && ![lat, lon].includes(name) && /^(n|count|.*count)$/i.test(name),
    )?.name;
    const map = new WorldMap({ label: "Rows of the result on a map" });
    show(this.body, h("div", { class: "result-map" }, map.root));
    map.setPoints(
      this.answer.rows
        .filter(
          (row) =>
            Math.abs(row[lat]) <= 90 && Math.abs(row[lon]) <= 180 && row[lat] !== null && row[lon] !== null,
        )
        .map((row) => ({
          lat: row[lat],
          lon: row[lon],
          n: Math.max(1, row[size] ?? 1),
          label: label && row[label],
        })),
    );
    return requestAnimationFrame(() => requestAnimationFrame(() => map.fit()));
  }
}

function lines(rows, kind, x, y, series) {
  const base =
    kind === "bar"
      ? { type: "bar" }
      : { type: "scatter", mode: rows.length > 200 ? "lines" : "lines+markers", marker: { size: 4 } };
  const trace = (of, name, column) => ({
    ...base,
    name: plain(name),
    x: of.map((row) => plain(local(row[x]))),
    y: of.map((row) => plain(row[column])),
  });
  const ordered = kind === "line" ? [...rows].sort((a, b) => (a[x] > b[x] ? 1 : a[x] < b[x] ? -1 : 0)) : rows;
  if (!series) return { traces: y.map((column) => trace(ordered, column, column)), left: 0 };
  const groups = new Map();
  for (const row of ordered) {
    if (!groups.has(row[series])) groups.set(row[series], []);
    groups.get(row[series]).push(row);
  }
  const traces = [...groups]
    .slice(0, MAX_SERIES)
    .map(([value, of]) => trace(of, String(value ?? "(none)").slice(0, 60), y[0]));
  return { traces, left: groups.size - traces.length };
}

/** What a chart leaves out, if anything. `left` is the number of further series. */
function notDrawn(rows, series, left, column) {
  const texts = [];
  if (rows > MAX_CHART_ROWS)
    texts.push(`Drawn are the first ${number(MAX_CHART_ROWS)} of ${number(rows)} rows.`);
  if (left > 0)
    texts.push(`Drawn are the first ${number(series)} of ${number(series + left)} values of ${column}.`);
  return texts.join(" ");
}

/** Times are drawn in the reader's zone, as they are in tables. */
const local = (value) =>
  typeof value === "string" && /^\d{4}-\d\d-\d\dT.*Z$/.test(value) ? new Date(value) : value;

function slices(rows, x, y) {
  const sorted = [...rows].sort((a, b) => b[y] - a[y]);
  const shown = sorted.slice(0, MAX_SLICES);
  const rest = sorted.slice(MAX_SLICES).reduce((sum, row) => sum + (row[y] ?? 0), 0);
  const labels = shown.map((row) => plain(String(row[x] ?? "(none)").slice(0, 60)));
  const values = shown.map((row) => row[y]);
  if (rest > 0) {
    labels.push("others");
    values.push(rest);
  }
  return {
    type: "pie",
    labels,
    values,
    hole: 0.5,
    sort: false,
    textinfo: "percent",
    hoverinfo: "label+value+percent",
  };
}
