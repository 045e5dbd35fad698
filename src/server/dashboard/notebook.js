// A notebook: statements with their results, and text between them. It is opened by its URL.

import { Cell } from "./cell.js";
import { button, errorBox, h, setText, show } from "./dom.js";
import { time } from "./format.js";
import {
  isReadOnly,
  listNotebooks,
  readNotebook,
  removeNotebook,
  saveAsNotebook,
  writeNotebook,
} from "./notebooks.js";
import { prose } from "./prose.js";

const MAX_CELLS = 200;

let root;
let name = null;
let version = null;
let title;
let list;
let cells = [];
let status;
let saveButton;
let isChanged = false;

addEventListener("beforeunload", (event) => {
  if (isChanged) event.preventDefault();
});

export function mount(element) {
  root = element;
}

export async function enter([asked]) {
  if (isChanged && asked === name && root.firstChild) return;
  leave();
  name = asked ?? null;
  show(root, h("p", { class: "loading" }, "Loading …"));
  try {
    await listNotebooks();
    const read = name
      ? await readNotebook(name)
      : {
          title: "",
          version: null,
          cells: [
            { kind: "text", text: "" },
            { kind: "sql", sql: "" },
          ],
        };
    version = read.version ?? null;
    build(read);
  } catch (error) {
    show(
      root,
      h("h1", { class: "visually-hidden" }, "Notebook"),
      errorBox(error, error.status === 404 ? null : () => enter([asked])),
      h("p", {}, h("a", { href: "#/sql" }, "Back to SQL")),
    );
  }
}

export function leave() {
  for (const { cell } of cells) cell?.cancel();
}

function build(read) {
  const canWrite = !isReadOnly();
  title = h("input", {
    class: "notebook-title",
    "aria-label": "Title",
    placeholder: "Title",
    maxlength: 200,
    value: read.title,
    readonly: !canWrite,
    oninput: noteChange,
    "data-test": "notebook-title",
  });
  list = h("div", { class: "notebook-cells" });
  status = h("span", { class: "muted", role: "status", "data-test": "notebook-status" });
  saveButton = button("Save", save, {
    class: "button primary",
    "data-test": "notebook-save",
    disabled: true,
  });
  cells = [];
  show(
    root,
    h("h1", { class: "visually-hidden" }, "Notebook"),
    h(
      "div",
      { class: "section-head notebook-head" },
      h("a", { href: "#/sql" }, "SQL"),
      h("span", { class: "muted" }, "/"),
      title,
      h("span", { class: "spacer" }),
      status,
      button("Run all", runAll, { "data-test": "run-all" }),
      canWrite
        ? [saveButton, name && button("Delete", remove, { "data-test": "notebook-delete" })]
        : h("span", { class: "tag", "data-test": "read-only" }, "read-only"),
    ),
    list,
    canWrite &&
      h(
        "div",
        { class: "notebook-add" },
        button("Add SQL", () => add({ kind: "sql", sql: "" }), { "data-test": "add-sql" }),
        button("Add text", () => add({ kind: "text", text: "" }), { "data-test": "add-text" }),
      ),
  );
  for (const cell of read.cells) insert(cell, canWrite);
  isChanged = false;
  show(status, read.changed && ["saved ", time(read.changed)]);
  runAll();
}

function noteChange() {
  isChanged = true;
  saveButton.disabled = false;
  setText(status, "not saved");
}

function add(cell) {
  if (cells.length >= MAX_CELLS) return setText(status, `A notebook has at most ${MAX_CELLS} cells.`);
  insert(cell, true, true);
  return noteChange();
}

/** Appends a cell of either kind, with buttons that move and remove it. */
function insert(read, canWrite, isNew = false) {
  const entry = read.kind === "text" ? textCell(read.text, canWrite, isNew) : sqlCell(read, canWrite);
  const tools =
    canWrite &&
    h(
      "span",
      { class: "cell-tools" },
      button("↑", () => move(entry, -1), { "aria-label": "Move cell up" }),
      button("↓", () => move(entry, 1), { "aria-label": "Move cell down" }),
      button("×", () => drop(entry), { "aria-label": "Remove cell" }),
    );
  if (tools) entry.foot.append(tools);
  entry.root = h("div", { class: `notebook-cell is-${read.kind}`, "data-test": "cell" }, entry.body);
  cells.push(entry);
  list.append(entry.root);
  if (isNew) entry.focus();
}

function sqlCell({ sql, chart }, canWrite) {
  const lines = Math.min(20, Math.max(2, sql.split("\n").length));
  const cell = new Cell({
    statement: sql,
    chart,
    rows: lines,
    isReadOnly: !canWrite,
    onchange: canWrite ? noteChange : null,
  });
  const read = () => ({ kind: "sql", sql: cell.editor.value, chart: cell.result.chart });
  return { cell, body: cell.root, foot: cell.bar, read, focus: () => cell.editor.focus() };
}

function textCell(text, canWrite, isNew) {
  const area = h("textarea", {
    class: "text-editor",
    rows: 4,
    "aria-label": "Text",
    value: text,
    hidden: true,
    placeholder: "Text. # heading, - list, **bold**, `code`",
    oninput: noteChange,
    "data-test": "text-editor",
  });
  const view = h("div", { class: "prose" });
  const paint = () =>
    show(view, prose(area.value), canWrite && !area.value.trim() && h("p", { class: "muted" }, "Empty text"));
  const edit = () => {
    area.hidden = false;
    view.hidden = true;
    area.rows = Math.max(3, area.value.split("\n").length + 1);
    area.focus();
  };
  const close = () => {
    area.hidden = true;
    view.hidden = false;
    paint();
  };
  area.addEventListener("blur", close);
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape" || (event.key === "Enter" && event.ctrlKey)) {
      close();
    }
  });
  paint();
  const foot = h(
    "div",
    { class: "text-foot" },
    canWrite && button("Edit text", edit, { class: "link small", "data-test": "edit-text" }),
  );
  const body = h("div", { class: "text-cell" }, view, area, foot);
  if (canWrite) view.addEventListener("dblclick", edit);
  return { body, foot, read: () => ({ kind: "text", text: area.value }), focus: () => isNew && edit() };
}

function move(entry, by) {
  const from = cells.indexOf(entry);
  const to = from + by;
  if (to < 0 || to >= cells.length) return;
  cells.splice(from, 1);
  cells.splice(to, 0, entry);
  list.insertBefore(entry.root, cells[to + 1]?.root ?? null);
  noteChange();
}

function drop(entry) {
  entry.cell?.cancel();
  cells.splice(cells.indexOf(entry), 1);
  entry.root.remove();
  noteChange();
}

async function runAll() {
  for (const { cell } of [...cells]) await cell?.run();
}

async function save() {
  const notebook = { title: title.value.trim() || "Untitled", cells: cells.map((entry) => entry.read()) };
  if (!name) {
    const saved = await saveAsNotebook(notebook.cells, notebook.title);
    if (!saved) return;
    isChanged = false;
    location.hash = `#/notebook/${saved}`;
    return;
  }
  try {
    const stored = await writeNotebook(name, notebook, version);
    version = stored.version;
    isChanged = false;
    saveButton.disabled = true;
    show(status, "saved ", time(stored.changed ?? new Date().toISOString()));
  } catch (error) {
    if (error.status === 412) conflict();
    else
      show(
        status,
        h(
          "span",
          { class: "error-title", role: "alert" },
          [error.message, error.hint].filter(Boolean).join(" "),
        ),
      );
  }
}

/** Another browser has saved since this one read. */
function conflict() {
  show(
    status,
    h(
      "span",
      { class: "error-title", role: "alert" },
      "This notebook was saved elsewhere since you opened it. ",
    ),
    button("Load that version", () => {
      isChanged = false;
      enter([name]);
    }),
    button("Overwrite it", async () => {
      version = (await readNotebook(name)).version;
      await save();
    }),
  );
}

async function remove() {
  if (!confirm(`Delete the notebook “${title.value || name}”?`)) return;
  try {
    await removeNotebook(name);
    isChanged = false;
    location.hash = "#/sql";
  } catch (error) {
    setText(status, error.message);
  }
}
