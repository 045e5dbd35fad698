// SQL: an editor with tables and completion, results as table and chart, history, and notebooks.

import { access, readOnly, writing } from "./access.js";
import { Cell } from "./cell.js";
import { button, empty, errorBox, h, link, setText, show } from "./dom.js";
import { duration, number, time } from "./format.js";
import { forget, history, remember } from "./history.js";
import { listNotebooks, saveAsNotebook } from "./notebooks.js";
import { withCondition } from "./sqltext.js";
import { catalog, changed, KINDS, place, placeCondition, stream } from "./state.js";

let cell;
let browser;
let past;
let offer;
let notebooks;

export function mount(root) {
  cell = new Cell({
    rows: 9,
    onrun: (entry) => {
      remember(entry);
      showHistory();
    },
  });
  cell.bar.insertBefore(
    writing(button("Save", save, { "data-test": "save-query", title: "Save as a notebook" })),
    cell.downloads,
  );
  offer = button("Insert place filter", insertPlace, { "data-test": "insert-place", hidden: true });
  cell.bar.insertBefore(offer, cell.downloads);
  browser = h("div", { id: "tables" });
  past = h("div", { id: "history" });
  notebooks = h("div", { id: "notebooks" });
  show(
    root,
    h(
      "div",
      { class: "section-head" },
      h("h1", {}, "SQL"),
      h("span", { class: "muted" }, "Ctrl+Enter runs, Ctrl+Space completes"),
    ),
    h(
      "div",
      { class: "sql-layout" },
      h(
        "aside",
        { class: "sql-side", "aria-label": "Tables, notebooks and history" },
        fold("Tables", browser, true),
        fold("Notebooks", notebooks, true),
        fold("History", past, false),
      ),
      h("div", { class: "sql-main" }, cell.root),
    ),
  );
  changed.addEventListener("place", offerPlace);
  changed.addEventListener("server", showTables);
  access.addEventListener("change", showNotebooks);
}

const fold = (title, body, isOpen) =>
  h("details", { class: "fold", open: isOpen }, h("summary", {}, title), body);

export async function enter(_, query) {
  const asked = query.get("q");
  if (asked !== null) cell.editor.value = asked;
  else if (!cell.editor.value) cell.editor.value = history()[0]?.statement ?? example();
  showHistory();
  showTables();
  showNotebooks();
  offerPlace();
  if (asked !== null && query.get("run") === "1") cell.run();
}

export function leave() {
  cell.cancel();
}

const example = () =>
  stream
    ? `select *\nfrom ${/^[a-z_][a-z0-9_]*$/.test(stream) ? stream : `"${stream}"`}\norder by lsn desc\nlimit 20`
    : "show tables";

async function showTables() {
  try {
    const tables = await catalog();
    const groups = new Map();
    for (const table of tables) {
      const title = KINDS[table.kind] ?? "Tables";
      groups.set(title, [...(groups.get(title) ?? []), table]);
    }
    show(
      browser,
      [...groups].map(([title, list]) =>
        h("section", {}, groups.size > 1 && h("h2", {}, title), list.map(tableItem)),
      ),
    );
  } catch (error) {
    show(browser, errorBox(error, showTables));
  }
}

function tableItem({ name, columns }) {
  const columnList = h("ul", { class: "column-list" });
  const item = h("details", { class: "table-item", "data-table": name }, h("summary", {}, name), columnList);
  item.addEventListener("toggle", () => {
    if (!item.open || columnList.firstChild) return;
    show(
      columnList,
      h(
        "li",
        {},
        link("select * …", () => preview(name)),
      ),
      columns.map((column) =>
        h(
          "li",
          {},
          link(column.name, () => cell.editor.insert(column.name), { title: "Insert into the statement" }),
          h("span", { class: "muted" }, shortType(column.type)),
        ),
      ),
    );
  });
  return item;
}

const shortType = (type) =>
  String(type)
    .replace(/^Timestamp\(.*/, "timestamp")
    .replace(/^(Utf8|Utf8View)$/, "text")
    .replace(/^List\(.*/, "list")
    .toLowerCase();

function preview(name) {
  const quoted = name
    .split(".")
    .map((part) => (/^[a-z_][a-z0-9_]*$/.test(part) ? part : `"${part}"`))
    .join(".");
  cell.editor.value = `select *\nfrom ${quoted}\nlimit 100`;
  cell.run();
}

function showHistory() {
  const entries = history();
  if (entries.length === 0)
    return show(
      past,
      h("p", { class: "muted small" }, "Statements that you run are listed here, in this browser only."),
    );
  return show(
    past,
    h(
      "ol",
      { class: "history" },
      entries.map(({ statement, at, rows, ms }) =>
        h(
          "li",
          {},
          link(
            statement.replace(/\s+/g, " ").slice(0, 120),
            () => {
              cell.editor.value = statement;
              cell.editor.focus();
            },
            { title: statement },
          ),
          h(
            "span",
            { class: "muted small" },
            time(at),
            rows === undefined ? " · failed" : ` · ${number(rows)} rows · ${duration(ms)}`,
          ),
        ),
      ),
    ),
    button("Forget all", () => {
      forget();
      showHistory();
    }),
  );
}

async function showNotebooks() {
  try {
    const list = await listNotebooks();
    show(
      notebooks,
      list.length === 0 &&
        h(
          "p",
          { class: "muted small" },
          "Saved statements and notebooks are listed here, for all users of this server.",
        ),
      h(
        "ul",
        { class: "plain-list" },
        list.map(({ name, title, changed: at }) =>
          h(
            "li",
            {},
            h("a", { href: `#/notebook/${name}`, "data-test": "notebook-link" }, title || name),
            at && h("span", { class: "muted small" }, time(at)),
          ),
        ),
      ),
      !readOnly() &&
        h("p", {}, h("a", { href: "#/notebook", "data-test": "new-notebook" }, "New notebook")),
    );
  } catch (error) {
    show(
      notebooks,
      error.status === 404 ? empty("This server stores no notebooks.") : errorBox(error, showNotebooks),
    );
  }
}

async function save() {
  const saved = await saveAsNotebook([{ kind: "sql", sql: cell.editor.value, chart: cell.result.chart }]);
  if (saved) location.hash = `#/notebook/${saved}`;
}

/** While a place is chosen, its condition can be put into the statement. */
function offerPlace() {
  offer.hidden = !place;
}

async function insertPlace() {
  const { editor, status } = cell;
  try {
    const condition = await placeCondition();
    if (!condition) return;
    const next = withCondition(editor.value, editor.area.selectionStart, condition);
    if (next) editor.edit(next);
    else setText(status, "The statement has no `from` whose rows could be filtered.");
  } catch (error) {
    setText(status, error.message);
  }
}
