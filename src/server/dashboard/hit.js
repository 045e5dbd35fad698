// One hit of a search: its title with what matched, its values, and the record as it was received.

import { sql } from "./api.js";
import { errorBox, h, link, show } from "./dom.js";
import { isTime, number, text, time, valueNode } from "./format.js";
import { highlight } from "./highlights.js";
import { facetColumns } from "./find.js";

const FIXED = new Set([
  "lsn",
  "event_time",
  "received_at",
  "source",
  "is_duplicate",
  "year",
  "month",
  "day",
  "hour",
]);
const MAX_TAGS = 6;

/** The first searched column that has text. */
function titleColumn(event, { search, key }) {
  const named = (search?.text ?? []).map((column) => column.replace(/\.\*$/, ""));
  const isText = (column) => typeof event[column] === "string" && event[column] !== "";
  return (
    named.find(isText) ??
    Object.keys(event).find((column) => !FIXED.has(column) && isText(column) && !isTime(event[column])) ??
    key
  );
}

export function hitElement(hit, { declaration, columns }, filterBy) {
  const { event, highlights } = hit;
  const title = titleColumn(event, declaration);
  const marked = (column) => highlights?.[column] ?? highlights?.[`${column}.*`];
  const others = Object.keys(highlights ?? {}).filter((column) => column.replace(/\.\*$/, "") !== title);
  const details = h("div", { class: "hit-details", hidden: true });
  const toggle = link(
    "Details",
    () => {
      const isOpen = details.hidden;
      details.hidden = !isOpen;
      toggle.setAttribute("aria-expanded", String(isOpen));
      if (isOpen && !details.firstChild) fill(details, hit, columns, filterBy);
    },
    { class: "link hit-toggle", "aria-expanded": "false", "data-test": "details" },
  );
  return h(
    "article",
    { class: "hit" },
    h(
      "header",
      { class: "hit-head" },
      h("h3", {}, marked(title) ? highlight(marked(title)) : text(event[title]) || `record ${hit.lsn}`),
      event.is_duplicate && h("span", { class: "tag" }, "duplicate"),
      h("span", { class: "spacer" }),
      time(hit.event_time),
      toggle,
    ),
    others.length > 0 &&
      h(
        "dl",
        { class: "hit-marks" },
        others.map((column) => h("div", {}, h("dt", {}, column), h("dd", {}, highlight(highlights[column])))),
      ),
    tags(event, declaration, columns, title, filterBy),
    details,
  );
}

/** Values that events are grouped by, as filters. */
function tags(event, declaration, columns, title, filterBy) {
  const pairs = facetColumns(declaration, columns)
    .filter((column) => column !== title)
    .flatMap((column) => [event[column]].flat().map((value) => [column, value]))
    .filter(([, value]) => value !== null && value !== undefined && value !== "")
    .slice(0, MAX_TAGS);
  return h(
    "p",
    { class: "tags" },
    pairs.map(([column, value]) =>
      h(
        "button",
        {
          type: "button",
          class: "tag",
          title: `Show ${column}: ${value}`,
          onclick: () => filterBy(column, value),
        },
        h("span", { class: "tag-name" }, column),
        String(value),
      ),
    ),
  );
}

function fill(details, { lsn, event }, columns, filterBy) {
  const order = columns.length
    ? columns.map(({ name }) => name).filter((name) => name in event)
    : Object.keys(event);
  const scalar = (value) => ["string", "number", "boolean"].includes(typeof value) && !isTime(value);
  const received = h(
    "div",
    { class: "received" },
    link("Show the record as received", () => showReceived(received, lsn), { "data-test": "received" }),
  );
  show(
    details,
    h(
      "table",
      { class: "data fields" },
      h(
        "tbody",
        {},
        order.map((name) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, name),
            h(
              "td",
              {},
              scalar(event[name]) && !["lsn"].includes(name)
                ? link(text(event[name]), () => filterBy(name, event[name]), {
                    title: `Show ${name}: ${event[name]}`,
                  })
                : valueNode(event[name]),
            ),
          ),
        ),
      ),
    ),
    received,
  );
}

async function showReceived(element, lsn) {
  show(element, h("p", { class: "loading" }, "Loading …"));
  try {
    const { rows } = await sql(
      `select received_at, source, "partition", source_offset, bytes from raw where lsn = ${Number(lsn)} limit 1`,
    );
    if (rows.length === 0) {
      show(
        element,
        h("p", { class: "muted" }, "Retention of raw has removed the record as it was received."),
      );
      return;
    }
    const [row] = rows;
    show(
      element,
      h(
        "p",
        { class: "muted small" },
        `Record ${number(lsn)}, received `,
        time(row.received_at),
        ` from ${row.source}`,
      ),
      h("pre", { class: "code", tabindex: 0, "aria-label": "Record as received" }, pretty(row.bytes)),
    );
  } catch (error) {
    show(
      element,
      errorBox(error, () => showReceived(element, lsn)),
    );
  }
}

/** Indents JSON without changing a number or text of it; anything else stays as it is. */
export function pretty(bytes) {
  try {
    JSON.parse(bytes);
  } catch {
    return bytes;
  }
  const tokens = bytes.match(/"(?:\\.|[^"\\])*"|[{}[\],:]|[^\s{}[\],:"]+/g) ?? [];
  let depth = 0;
  let out = "";
  const line = () => `\n${"  ".repeat(depth)}`;
  tokens.forEach((token, at) => {
    const isEmpty = tokens[at + 1] === "}" || tokens[at + 1] === "]";
    if (token === "{" || token === "[") {
      depth += 1;
      out += isEmpty ? token : token + line();
    } else if (token === "}" || token === "]") {
      depth -= 1;
      const wasEmpty = tokens[at - 1] === "{" || tokens[at - 1] === "[";
      out += (wasEmpty ? "" : line()) + token;
    } else if (token === ",") out += token + line();
    else if (token === ":") out += ": ";
    else out += token;
  });
  return out;
}
