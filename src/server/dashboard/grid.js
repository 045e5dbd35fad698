// Rows of an answer as a table: sorted by a click on a column, shown a part at a time.

import { button, h, show } from "./dom.js";
import { number, valueNode } from "./format.js";

const STEP = 200;

/** Columns of an answer with the kind of their values: number, time, or text. */
export function columnsOf({ columns, rows }) {
  const names = columns?.map(({ name }) => name) ?? Object.keys(rows[0] ?? {});
  return names.map((name) => ({ name, kind: kindOf(rows, name) }));
}

function kindOf(rows, name) {
  const values = rows
    .slice(0, 200)
    .map((row) => row[name])
    .filter((value) => value !== null && value !== undefined);
  if (values.length === 0) return "text";
  if (values.every((value) => typeof value === "number")) return "number";
  return values.every((value) => /^\d{4}-\d\d-\d\d(T[\d:.]+Z?)?$/.test(value)) ? "time" : "text";
}

const compare = (a, b) => {
  if (a === null || a === undefined) return 1;
  if (b === null || b === undefined) return -1;
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
};

/** A table of rows. */
export function grid(columns, rows) {
  let sorted = rows;
  let order = null;
  let shown = STEP;
  const body = h("tbody");
  const more = h("p", { class: "more" });
  const paint = () => {
    show(
      body,
      sorted.slice(0, shown).map((row) =>
        h(
          "tr",
          {},
          columns.map(({ name, kind }) =>
            h("td", { class: kind === "number" ? "number" : "" }, valueNode(row[name])),
          ),
        ),
      ),
    );
    show(
      more,
      sorted.length > shown && [
        h("span", { class: "muted" }, `${number(shown)} of ${number(sorted.length)} rows shown. `),
        button(`Show ${number(Math.min(STEP * 5, sorted.length - shown))} more`, () => {
          shown += STEP * 5;
          paint();
        }),
      ],
    );
  };
  const heads = columns.map(({ name, kind }) => {
    const head = h(
      "th",
      { scope: "col", class: kind === "number" ? "number" : "", "aria-sort": "none" },
      h("button", { type: "button", class: "sort", onclick: () => sortBy(name, head) }, name),
    );
    return head;
  });
  const sortBy = (name, head) => {
    order = { name, sign: order?.name === name ? -order.sign : 1 };
    sorted = [...rows].sort((a, b) => order.sign * compare(a[name], b[name]));
    for (const other of heads) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", order.sign > 0 ? "ascending" : "descending");
    paint();
  };
  paint();
  return h(
    "div",
    {},
    h(
      "div",
      { class: "table-wrap result-table", tabindex: 0, role: "region", "aria-label": "Rows of the result" },
      h("table", { class: "data", "data-test": "result" }, h("thead", {}, h("tr", {}, heads)), body),
    ),
    more,
  );
}
