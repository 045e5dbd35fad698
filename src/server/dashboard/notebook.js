// A notebook: statements with their results, and text between them. It is opened by its URL.

import { access, readOnly } from "./access.js";
import { Cell } from "./cell.js";
import { button, errorBox, h, setText, show } from "./dom.js";
import { time } from "./format.js";
import { readNotebook, removeNotebook, saveAsNotebook, writeNotebook } from "./notebooks.js";
import { prose } from "./prose.js";

const MAX_CELLS = 200;

let root;
let name = null;
let version = null;
let title;
/** The element with the cells: null until a notebook is shown, and another for each. */
let list = null;
let cells = [];
let status;
let saveButton;
let isSaving = false;
/** Changes so far, and as of how many of them the server has the notebook. */
let edits = 0;
let stored = 0;
let visit = 0;

const isChanged = () => edits !== stored;

addEventListener("beforeunload", (event) => {
  if (isChanged()) event.preventDefault();
});

export function mount(element) {
  root = element;
  // Another token may do more or less; what is not saved stays as it is.
  access.addEventListener("change", onAccess);
}

function onAccess() {
  if (!root.hidden && !isChanged()) enter([name]);
}

export async function enter([asked = null]) {
  if (isChanged() && asked === name) return;
  if (isChanged() && !confirm("Discard unsaved changes?")) {
    location.replace(`#/notebook${name ? `/${name}` : ""}`);
    return;
  }
  leave();
  const own = visit;
  for (const { cell } of cells) cell?.result.hide();
  list = null;
  cells = [];
  stored = edits;
  name = asked;
  show(root, h("p", { class: "loading" }, "Loading …"));
  try {
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
    if (own !== visit) return;
    version = read.version ?? null;
    build(read);
  } catch (error) {
    if (own !== visit) return;
    show(
      root,
      h("h1", { class: "visually-hidden" }, "Notebook"),
      errorBox(error, error.status === 404 ? null : () => enter([asked])),
      h("p", {}, h("a", { href: "#/sql" }, "Back to SQL")),
    );
  }
}

export function leave() {
  visit += 1;
  for (const { cell } of cells) cell?.cancel();
}

function build(read) {
  const canWrite = !readOnly();
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
  isSaving = false;
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
      button("Run all", () => runAll(), { "data-test": "run-all" }),
      canWrite
        ? [saveButton, name && button("Delete", remove, { "data-test": "notebook-delete" })]
        : h(
            "span",
            { class: "tag", "data-test": "read-only", title: "This token may not save notebooks." },
            "read-only",
          ),
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
  show(status, read.changed && ["saved ", time(read.changed)]);
  runAll();
}

function noteChange() {
  edits += 1;
  saveButton.disabled = isSaving;
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
  entry.cell?.result.hide();
  cells.splice(cells.indexOf(entry), 1);
  entry.root.remove();
  noteChange();
}

/** Runs the cells from one on, one after the other, while they are shown. */
async function runAll(from = 0) {
  const own = visit;
  for (const entry of cells.slice(from)) {
    if (own !== visit) return;
    if (!cells.includes(entry) || !entry.cell) continue;
    await entry.cell.run();
    const { problem } = entry.cell;
    if (problem.resume) {
      problem.resume = () => runAll(cells.indexOf(entry));
      return;
    }
  }
}

async function save() {
  if (isSaving) return;
  const notebook = { title: title.value.trim() || "Untitled", cells: cells.map((entry) => entry.read()) };
  const of = list;
  const at = edits;
  isSaving = true;
  saveButton.disabled = true;
  try {
    if (name) {
      const saved = await writeNotebook(name, notebook, version);
      if (of !== list) return;
      version = saved.version;
      stored = at;
      show(status, isChanged() ? "not saved" : ["saved ", time(saved.changed ?? new Date().toISOString())]);
    } else {
      const saved = await saveAsNotebook(notebook.cells, notebook.title);
      if (!saved) return;
      stored = at;
      location.hash = `#/notebook/${saved}`;
    }
  } catch (error) {
    if (of !== list) return;
    if (error.status === 412) conflict("Overwrite it", save);
    else fail(error);
  } finally {
    if (of === list) {
      isSaving = false;
      saveButton.disabled = !isChanged();
    }
  }
}

function fail({ message, hint }) {
  const text = [message, hint].filter(Boolean).join(" ");
  show(status, h("span", { class: "error-title", role: "alert" }, text));
}

/** Another browser has saved since this one read: `repeat` does all the same what was refused. */
function conflict(label, repeat) {
  const of = list;
  show(
    status,
    h(
      "span",
      { class: "error-title", role: "alert" },
      "This notebook was saved elsewhere since you opened it. ",
    ),
    button("Load that version", () => {
      stored = edits;
      enter([name]);
    }),
    button(label, async () => {
      try {
        const read = await readNotebook(name);
        if (of === list) version = read.version;
      } catch (error) {
        if (of !== list) return;
        if (error.status !== 404) return fail(error);
        version = 0;
      }
      if (of === list) await repeat();
    }),
  );
}

async function remove() {
  if (!confirm(`Delete the notebook “${title.value || name}”?`)) return;
  const of = list;
  const own = visit;
  try {
    await removeNotebook(name, version);
  } catch (error) {
    if (of !== list) return;
    if (error.status === 412) return conflict("Delete it", remove);
    if (error.status !== 404) return fail(error);
  }
  if (of === list) stored = edits;
  if (own === visit) location.hash = "#/sql";
}
