// An editor of SQL: a text area over its own coloured text, with line numbers and completion.

import { h, show } from "./dom.js";
import { FUNCTIONS, keywords, offsetOf, tablesIn, tokens, wordAt } from "./sqltext.js";
import { catalog } from "./state.js";

const MAX_OFFERS = 10;
/** Keys after which the caret is elsewhere. */
const MOVES = new Set([
  "ArrowLeft",
  "ArrowRight",
  "ArrowUp",
  "ArrowDown",
  "Home",
  "End",
  "PageUp",
  "PageDown",
]);
let editors = 0;

export class Editor {
  /** `onrun()` is called for Ctrl+Enter, `oninput()` for every change. */
  constructor({ value = "", label = "SQL", onrun, oninput, rows = 8 }) {
    const id = `editor-${++editors}`;
    this.listId = `${id}-offers`;
    this.mark = null;
    this.asked = 0;
    this.area = h("textarea", {
      class: "editor-text",
      id,
      spellcheck: "false",
      autocomplete: "off",
      autocapitalize: "off",
      wrap: "off",
      rows,
      "aria-label": label,
      "aria-autocomplete": "list",
      "aria-controls": this.listId,
      "data-test": "editor",
    });
    this.numbers = h("div", { class: "editor-numbers", "aria-hidden": "true" });
    this.colored = h("pre", { class: "editor-colors", "aria-hidden": "true" });
    this.offers = h("ul", {
      class: "offers",
      id: this.listId,
      role: "listbox",
      "aria-label": "Completions",
      hidden: true,
    });
    this.root = h(
      "div",
      { class: "editor" },
      this.numbers,
      h("div", { class: "editor-body" }, this.colored, this.area, this.offers),
    );
    this.onrun = onrun;
    this.oninput = oninput;
    this.listen();
    this.value = value;
  }

  get value() {
    return this.area.value;
  }

  set value(text) {
    this.area.value = text;
    this.close();
    this.clearError();
  }

  /** The chosen part of the text if there is one, else all of it. */
  get statement() {
    const { selectionStart, selectionEnd, value } = this.area;
    const chosen = value.slice(selectionStart, selectionEnd).trim();
    return chosen || value;
  }

  focus() {
    this.area.focus();
  }

  insert(text) {
    this.area.setRangeText(text, this.area.selectionStart, this.area.selectionEnd, "end");
    this.changed();
    this.focus();
  }

  /** Replaces the text by another version of it. */
  edit({ text, caret }) {
    this.value = text;
    this.area.setSelectionRange(caret, caret);
    this.changed();
    this.focus();
  }

  /** Marks the word at a place of the text. */
  markError(place, shift = 0) {
    this.mark = offsetOf(this.value.slice(shift), place) + shift;
    this.paint();
  }

  clearError() {
    this.mark = null;
    this.paint();
  }

  paint() {
    const text = this.value;
    const nodes = tokens(text).map(({ kind, text: word, at }) => {
      const isMarked =
        this.mark !== null && kind !== "space" && at <= this.mark && this.mark < at + word.length;
      if (!isMarked && (kind === "space" || kind === "sign" || kind === "word")) return word;
      return h("span", { class: `sql-${kind}${isMarked ? " sql-error" : ""}` }, word);
    });
    // A last line without characters has no height otherwise.
    show(this.colored, nodes, "\n");
    const lines = text.split("\n").length;
    if (this.numbers.childElementCount !== lines) {
      show(
        this.numbers,
        Array.from({ length: lines }, (_, at) => h("div", {}, String(at + 1))),
      );
    }
    this.scroll();
  }

  scroll() {
    this.colored.scrollTop = this.area.scrollTop;
    this.colored.scrollLeft = this.area.scrollLeft;
    this.numbers.scrollTop = this.area.scrollTop;
  }

  changed() {
    this.mark = null;
    this.paint();
    this.oninput?.();
  }

  listen() {
    this.area.addEventListener("input", () => {
      this.changed();
      this.offer(false);
    });
    this.area.addEventListener("scroll", () => this.scroll());
    for (const name of ["blur", "pointerdown"]) this.area.addEventListener(name, () => this.close());
    this.area.addEventListener("keydown", (event) => this.onkey(event));
    new ResizeObserver(() => this.scroll()).observe(this.area);
  }

  onkey(event) {
    const isOpen = !this.offers.hidden;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.close();
      this.onrun?.();
    } else if (event.key === " " && event.ctrlKey) {
      event.preventDefault();
      this.offer(true);
    } else if (isOpen && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      event.preventDefault();
      this.choose(this.chosen + (event.key === "ArrowDown" ? 1 : -1));
    } else if (isOpen && (event.key === "Enter" || event.key === "Tab")) {
      event.preventDefault();
      this.take(this.chosen);
    } else if (isOpen && event.key === "Escape") {
      event.preventDefault();
      this.close();
    } else if (MOVES.has(event.key)) this.close();
  }

  /** Offers completions of the word at the caret; without a word only where they are asked for. */
  async offer(isAsked) {
    const own = ++this.asked;
    const tables = await catalog().catch(() => []);
    if (own !== this.asked || document.activeElement !== this.area) return null;
    const { selectionStart: caret, value } = this.area;
    const { word, owner, start } = wordAt(value, caret);
    if (!isAsked && word.length < 1 && !owner) return this.close();
    const found = completions(tables, value, word, owner).slice(0, MAX_OFFERS);
    if (found.length === 0 || (found.length === 1 && found[0].text === word)) return this.close();
    this.start = start;
    this.caret = caret;
    this.found = found;
    show(
      this.offers,
      found.map(({ text, note }, at) =>
        h(
          "li",
          {
            role: "option",
            id: `${this.listId}-${at}`,
            onmousedown: (event) => {
              event.preventDefault();
              this.take(at);
            },
          },
          h("span", {}, text),
          h("span", { class: "muted" }, note),
        ),
      ),
    );
    this.offers.hidden = false;
    this.place(start);
    return this.choose(0);
  }

  /** Puts the offers below the line of an offset. */
  place(offset) {
    const before = this.value.slice(0, offset);
    const line = before.split("\n").length;
    const column = before.length - before.lastIndexOf("\n") - 1;
    const style = getComputedStyle(this.area);
    const lineHeight = parseFloat(style.lineHeight);
    this.offers.style.top = `${line * lineHeight + parseFloat(style.paddingTop) - this.area.scrollTop + 2}px`;
    const left =
      parseFloat(style.paddingLeft) + column * parseFloat(style.fontSize) * 0.602 - this.area.scrollLeft;
    this.offers.style.left = `${Math.max(0, Math.min(left, this.area.clientWidth - 240))}px`;
  }

  choose(at) {
    const options = [...this.offers.children];
    this.chosen = (at + options.length) % options.length;
    options.forEach((option, index) => option.setAttribute("aria-selected", String(index === this.chosen)));
    this.area.setAttribute("aria-activedescendant", `${this.listId}-${this.chosen}`);
  }

  take(at) {
    this.area.setRangeText(this.found[at].text, this.start, this.caret, "end");
    this.close();
    this.changed();
  }

  close() {
    this.asked += 1;
    this.offers.hidden = true;
    this.area.removeAttribute("aria-activedescendant");
  }
}

const quoted = (name) => (/^[a-z_][a-z0-9_]*$/.test(name) ? name : `"${name}"`);

/** What may follow: columns of the tables that the statement names, tables, functions, keywords. */
function completions(tables, statement, word, owner) {
  const named = tablesIn(statement);
  const byName = new Map(tables.map((table) => [table.name, table]));
  const start = word.toLowerCase();
  const begins = ({ text }) => text.replace(/^"/, "").toLowerCase().startsWith(start);
  const columnsOf = (table) =>
    (byName.get(table)?.columns ?? []).map(({ name, type }) => ({ text: quoted(name), note: type }));
  if (owner) {
    const inSchema = tables
      .filter(({ name }) => name.startsWith(`${owner}.`))
      .map(({ name, kind }) => ({ text: quoted(name.slice(owner.length + 1)), note: kind || "table" }));
    return [...columnsOf(named[owner] ?? owner), ...inSchema].filter(begins);
  }
  const columns = [...new Set(Object.values(named))].flatMap(columnsOf);
  const all = [
    ...columns,
    ...tables.map(({ name, kind }) => ({
      text: name.split(".").map(quoted).join("."),
      note: kind || "table",
    })),
    ...(word ? FUNCTIONS.map((text) => ({ text, note: "function" })) : []),
    ...(word ? keywords.map((text) => ({ text, note: "" })) : []),
  ];
  const seen = new Set();
  return all.filter(begins).filter(({ text }) => !seen.has(text) && seen.add(text));
}
