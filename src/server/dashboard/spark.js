// Small charts of our own: a line of the last minutes, and bars behind values.

import { h, link, setText, update } from "./dom.js";
import { compact, number, percent } from "./format.js";

const WIDTH = 240;
const HEIGHT = 44;

/** A line with its area; `set(values)` redraws it. */
export function sparkline(label) {
  const area = h("path", { class: "spark-area" });
  const line = h("path", { class: "spark-line" });
  const svg = h(
    "svg",
    {
      class: "spark",
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      preserveAspectRatio: "none",
      role: "img",
      "aria-label": label,
    },
    area,
    line,
  );
  const set = (values) => {
    if (values.length < 2) return;
    const most = Math.max(1, ...values);
    const x = (at) => ((at * WIDTH) / (values.length - 1)).toFixed(1);
    const y = (value) => (HEIGHT - 2 - (value * (HEIGHT - 6)) / most).toFixed(1);
    const path = values.map((value, at) => `${at ? "L" : "M"}${x(at)} ${y(value)}`).join("");
    line.setAttribute("d", path);
    area.setAttribute("d", `${path}L${WIDTH} ${HEIGHT}L0 ${HEIGHT}Z`);
  };
  return { svg, set };
}

function createBar(onvalue) {
  const bar = h("span", { class: "bar", "aria-hidden": "true" });
  const name = onvalue ? link("", () => onvalue(row.value)) : h("span", { class: "bar-name" });
  const n = h("span", { class: "bar-n" });
  const share = h("span", { class: "bar-share" });
  const row = h("li", { class: "bar-row" }, bar, name, n, share);
  Object.assign(row, { bar, name, n, share });
  return row;
}

/** Bars of `[{value, n}]` in a list, longest first; a click on a value calls `onvalue`. */
export function bars(list, values, total, onvalue) {
  const most = Math.max(1, ...values.map(({ n }) => n));
  update(
    list,
    values,
    () => createBar(onvalue),
    (row, { value, n }) => {
      row.value = value;
      const text = value === null || value === "" ? "(none)" : String(value);
      setText(row.name, text);
      row.name.title = onvalue ? `Show events with ${text}` : text;
      row.classList.toggle("is-none", text === "(none)");
      setText(row.n, compact(n));
      row.n.title = number(n);
      setText(row.share, percent(n, total));
      row.bar.style.width = `${(100 * n) / most}%`;
    },
  );
}

/** A bar of what is used of a limit; without a limit only the text is shown. */
export function meter(label, used, limit) {
  const share = limit ? Math.min(1, used / limit) : 0;
  const level = share > 0.9 ? "high" : share > 0.75 ? "raised" : "normal";
  const fill = h("span", { class: "meter-fill", "data-level": level });
  fill.style.width = `${100 * share}%`;
  return h(
    "span",
    {
      class: "meter",
      role: "meter",
      "aria-label": label,
      "aria-valuemin": 0,
      "aria-valuemax": 100,
      "aria-valuenow": Math.round(100 * share),
    },
    fill,
  );
}
