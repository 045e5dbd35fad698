// Panels of the overview, by kind. Each has `build(panel)`, which returns its elements and the
// functions that show data and errors.

import { h, panel as frame, setText, show, update } from "./dom.js";
import { clear, draw, palette, plain } from "./chart.js";
import { bytes, compact, duration, number, rate, setTime, time, valueNode } from "./format.js";
import { openSearch } from "./links.js";
import { stream } from "./state.js";
import { bars, meter, sparkline } from "./spark.js";

/** A framed panel with its age, and an error in place of its data. `place` is a row of its own in
 * the overview; without one the panel joins the columns. */
function framed(panel, place) {
  const ageText = h("time", { class: "age" });
  const { root, body, meta } = frame(panel.title, { id: panel.id, place });
  const content = h("div", { class: "panel-content" });
  const problem = h("p", { class: "panel-error", role: "alert", hidden: true });
  body.append(problem, content);
  const detail = h("span");
  meta.append(detail, ageText);
  const showError = ({ message, hint }) => {
    problem.hidden = false;
    setText(problem, [message, hint].filter(Boolean).join(" "));
  };
  const clearError = () => {
    problem.hidden = true;
  };
  return { root, content, detail, ageText, place, showError, clearError };
}

function nothing(text) {
  return h("p", { class: "muted nothing" }, text);
}

const rateKind = {
  build(panel) {
    const own = framed({ ...panel, title: panel.title || "Records per second" }, "rate");
    const value = h("span", { class: "figure", "data-test": "rate" }, "–");
    const { svg, set } = sparkline("Records per second in the last minute");
    own.content.append(
      h("p", { class: "figure-line" }, value, h("span", { class: "unit" }, "per second")),
      svg,
    );
    own.root.classList.add("panel-figure");
    const showData = ({ per_second, history }) => {
      own.clearError();
      setText(value, rate(per_second));
      set(history.map(([, n]) => n));
    };
    return { ...own, showData };
  },
};

const countsKind = {
  canFilter: true,
  build(panel) {
    const isTotal = panel.id === "types";
    const own = framed(panel, isTotal ? "types" : null);
    const list = h("ol", { class: "bars" });
    const rest = nothing("");
    own.content.append(list, rest);
    const onvalue = panel.column && ((value) => openSearch({ column: panel.column, value }));
    const showData = ({ total, values, span, complete, max_error: maxError }) => {
      own.clearError();
      const listed = values.reduce((sum, { n }) => sum + n, 0);
      setText(own.detail, `${compact(total)} ${span ? `in ${span}` : "in total"}`);
      own.detail.title = number(total);
      bars(list, values, total, onvalue);
      const others = total - listed;
      rest.hidden = values.length > 0 && (others <= 0 || complete === true);
      const low = maxError ? `; numbers may be too low by up to ${compact(maxError)}` : "";
      setText(rest, values.length === 0 ? "No events yet." : `${compact(others)} with other values${low}`);
    };
    return { ...own, showData };
  },
};

const lineKind = {
  canFilter: true,
  /** `end` removes the chart with its listeners. */
  build(panel) {
    const own = framed(panel, "line");
    const chart = h("div", { class: "chart chart-line", "data-test": "line" });
    const none = nothing("No events in this time.");
    none.hidden = true;
    own.content.append(none, chart);
    let last = 0;
    let pending = null;
    const render = ({ start, bucket_s, series, rest }) => {
      last = performance.now();
      const from = new Date(start).getTime();
      const colors = palette();
      const sum = (list) => list.reduce((total, n) => total + n, 0);
      const ordered = [...series].sort((a, b) => sum(b.n) - sum(a.n));
      if (rest) ordered.push({ value: "others", n: rest });
      const traces = ordered.map(({ value, n }, at) => ({
        type: "scatter",
        mode: "lines",
        name: value === null ? "(none)" : plain(String(value).slice(0, 40)),
        stackgroup: "all",
        line: { width: 1.5, color: colors[at % colors.length] },
        x: n.map((_, bucket) => new Date(from + bucket * bucket_s * 1000)),
        y: n,
        hovertemplate: "%{y}",
      }));
      setText(own.detail, `per ${bucket_s} s`);
      draw(chart, `${panel.title}: events over time by type`, traces, {
        xaxis: { type: "date", hoverformat: "%H:%M:%S", tickangle: 0 },
        showlegend: true,
      }).catch(() => own.showError({ message: "The chart could not be drawn.", hint: "Reload the page." }));
    };
    // Once a second is enough for a line of minutes.
    const showData = (data) => {
      own.clearError();
      const isEmpty = data.series.every(({ n }) => n.every((count) => count === 0));
      none.hidden = !isEmpty;
      chart.hidden = isEmpty;
      clearTimeout(pending);
      if (isEmpty) return;
      pending = setTimeout(() => render(data), Math.max(0, 1000 - (performance.now() - last)));
    };
    const end = () => {
      clearTimeout(pending);
      clear(chart);
    };
    return { ...own, showData, end };
  },
};

/** Cells of a table's row, reused while their number stays. */
function fillRow(row, cells) {
  update(
    row,
    cells,
    () => h("td"),
    (cell, value) => {
      const key = JSON.stringify(value ?? null);
      if (cell.dataset.value === key) return;
      cell.dataset.value = key;
      cell.className = typeof value === "number" ? "number" : "";
      show(cell, valueNode(value));
    },
  );
}

function tableOf(title, columns, first) {
  const body = h("tbody");
  const head = h(
    "tr",
    {},
    columns.map((name, at) =>
      h("th", { scope: "col", class: typeof first[at] === "number" ? "number" : "" }, name),
    ),
  );
  return {
    body,
    element: h(
      "div",
      { class: "table-wrap", tabindex: 0, role: "region", "aria-label": `Rows of ${title}` },
      h("table", { class: "data" }, h("thead", {}, head), body),
    ),
  };
}

const HIDDEN = new Set(["window_start", "window_end", "status", "lsn", "year", "month", "day", "hour"]);

const rowsKind = {
  build(panel) {
    const own = framed(panel, null);
    let table = null;
    let shown = "";
    const showData = ({ window_start, window_end, status, columns, rows }) => {
      own.clearError();
      if (rows.length === 0) {
        table = null;
        return show(own.content, nothing("No window has rows yet."));
      }
      const places = columns.map((name, at) => [name, at]).filter(([name]) => !HIDDEN.has(name));
      if (!table || shown !== columns.join("\n")) {
        table = tableOf(
          panel.title,
          places.map(([name]) => name),
          places.map(([, at]) => rows[0]?.[at]),
        );
        shown = columns.join("\n");
        show(own.content, table.element);
      }
      show(own.detail, time(window_start), " to ", time(window_end), status ? ` · ${status}` : "");
      return update(
        table.body,
        rows,
        () => h("tr"),
        (row, values) =>
          fillRow(
            row,
            places.map(([, at]) => values[at]),
          ),
      );
    };
    return { ...own, showData };
  },
};

/** While a stream has no events: how to send the first ones. */
const firstSteps = () =>
  h(
    "div",
    { class: "empty" },
    h("p", { class: "empty-title" }, "No events yet."),
    h("p", {}, "Send records as lines of JSON, or declare a source in weir.toml:"),
    h(
      "pre",
      { class: "code" },
      `curl --data-binary @events.ndjson ${location.origin}/api/v1/streams/${stream}/events`,
    ),
  );

const latestKind = {
  canFilter: true,
  build(panel) {
    const own = framed(panel, "latest");
    own.root.id = "latest";
    let table = null;
    let shown = "";
    const showData = ({ columns, rows }) => {
      own.clearError();
      if (rows.length === 0) {
        table = null;
        return show(own.content, firstSteps());
      }
      if (!table || shown !== columns.join("\n")) {
        table = tableOf(
          panel.title,
          columns,
          columns.map((name) => rows[0][name]),
        );
        shown = columns.join("\n");
        show(own.content, table.element);
      }
      return update(
        table.body,
        rows,
        () => h("tr"),
        (row, values) => {
          row.dataset.lsn = values.lsn;
          fillRow(
            row,
            columns.map((name) => values[name]),
          );
        },
      );
    };
    return { ...own, showData };
  },
};

function tile(name, test) {
  const value = h("dd", { "data-test": test }, "–");
  const note = h("dd", { class: "tile-note" });
  return { root: h("div", { class: "tile" }, h("dt", {}, name), value, note), value, note };
}

const healthKind = {
  build(panel) {
    const own = framed({ ...panel, title: panel.title || "Health" }, "health");
    own.root.classList.add("panel-health");
    const watermark = h("time");
    const tiles = {
      watermark: tile("Watermark", "watermark"),
      lag: tile("Lag", "lag"),
      late: tile("Late", "late"),
      dead: tile("Dead letters", "dead-letters"),
      disk: tile("Disk", "disk"),
      memory: tile("Memory", "memory"),
    };
    tiles.watermark.value.replaceChildren(watermark);
    const reasons = h("ul", { class: "reasons", hidden: true });
    own.content.append(
      h(
        "dl",
        { class: "tiles" },
        Object.values(tiles).map((t) => t.root),
      ),
      reasons,
    );
    const used = (of, name, bytesUsed, limit) => {
      setText(of.value, bytes(bytesUsed));
      show(of.note, limit ? [meter(`${name} used`, bytesUsed, limit), `of ${bytes(limit)}`] : "no limit");
    };
    const dead = {
      why: h("a", { href: "#/pipeline/dead-letters", hidden: true }, "see why"),
      unit: h("span", {}, "records"),
    };
    tiles.dead.note.append(dead.why, dead.unit);
    const showData = (health) => {
      own.clearError();
      if (health.watermark) {
        setTime(watermark, health.watermark);
        const behind = Date.now() - new Date(health.watermark);
        setText(
          tiles.watermark.note,
          behind >= 0 ? `${duration(behind)} behind the clock` : "ahead of the clock",
        );
      } else setText(tiles.watermark.note, "no events yet");
      setText(tiles.lag.value, compact(health.lag_records));
      setText(tiles.lag.note, `records · log at ${compact(health.synced_lsn)}`);
      setText(tiles.late.value, compact(health.late));
      setText(tiles.late.note, "events");
      setText(tiles.dead.value, compact(health.dead_letters));
      dead.unit.hidden = health.dead_letters > 0;
      dead.why.hidden = !dead.unit.hidden;
      used(tiles.disk, "Disk", health.disk_bytes, health.disk_limit_bytes);
      used(tiles.memory, "Memory", health.memory_bytes, health.memory_limit_bytes);
      setText(own.detail, health.ready === false ? "not ready" : "ready");
      own.root.classList.toggle("is-unready", health.ready === false);
      reasons.hidden = !health.reasons?.length;
      show(
        reasons,
        (health.reasons ?? []).map((reason) => h("li", {}, reason)),
      );
    };
    return { ...own, showData };
  },
};

export const PANELS = {
  rate: rateKind,
  counts: countsKind,
  line: lineKind,
  rows: rowsKind,
  latest: latestKind,
  health: healthKind,
};
