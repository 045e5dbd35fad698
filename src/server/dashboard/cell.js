// A statement with its result: editor, run and cancel, error with its place, downloads.

import { blob, post, sql } from "./api.js";
import { button, h, setText, show } from "./dom.js";
import { Editor } from "./editor.js";
import { duration, number, time } from "./format.js";
import { Result } from "./result.js";
import { positionOf } from "./sqltext.js";

const running = new Set();

/** Ends what still runs when the page is left. */
addEventListener("pagehide", () => running.forEach((cell) => cell.cancel()));

const newId = () => `page-${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 10)}`;

export class Cell {
  constructor({ statement = "", chart, rows, onrun, onchange, isReadOnly } = {}) {
    this.onrun = onrun;
    this.editor = new Editor({
      value: statement,
      rows,
      onrun: () => this.run(),
      oninput: () => {
        // What is being written is not run by itself.
        this.problem.resume = null;
        onchange?.();
      },
    });
    this.editor.area.readOnly = Boolean(isReadOnly);
    this.result = new Result({ chart, onchart: () => onchange?.() });
    this.runButton = button("Run", () => this.run(), {
      class: "button primary",
      "data-test": "run",
      title: "Ctrl+Enter",
    });
    this.cancelButton = button("Cancel", () => this.cancel(), { "data-test": "cancel", hidden: true });
    this.status = h("span", { class: "muted", role: "status", "data-test": "sql-status" });
    this.downloads = h(
      "span",
      { class: "downloads", hidden: true },
      ["csv", "parquet"].map((format) =>
        button(format === "csv" ? "CSV" : "Parquet", () => this.download(format), {
          "data-test": `download-${format}`,
          title: `Download all rows as ${format === "csv" ? "CSV" : "Parquet"}; runs the statement again`,
        }),
      ),
    );
    this.problem = h("div", { class: "sql-problem", role: "alert", "data-test": "sql-error", hidden: true });
    this.bar = h(
      "div",
      { class: "cell-bar" },
      this.runButton,
      this.cancelButton,
      this.status,
      h("span", { class: "spacer" }),
      this.downloads,
    );
    this.root = h("div", { class: "cell" }, this.editor.root, this.bar, this.problem, this.result.root);
  }

  async run() {
    const statement = this.editor.statement.trim().replace(/;\s*$/, "");
    if (!statement || this.abort) return;
    const shift = Math.max(0, this.editor.value.indexOf(statement));
    this.begin();
    const started = performance.now();
    const clock = setInterval(
      () => setText(this.status, `Running for ${duration(performance.now() - started)} …`),
      500,
    );
    try {
      const answer = await sql(statement, { id: this.id, signal: this.abort.signal });
      const took = performance.now() - started;
      this.ran = statement;
      this.result.showAnswer(answer);
      this.downloads.hidden = false;
      this.showStatus(answer, took);
      this.onrun?.({ statement, rows: answer.rows.length, ms: took });
    } catch (error) {
      this.fail(error, shift);
      this.onrun?.({ statement });
      if (error.status === 0) this.problem.resume = () => this.run();
    } finally {
      clearInterval(clock);
      this.end();
    }
  }

  begin() {
    this.id = newId();
    this.abort = new AbortController();
    running.add(this);
    this.problem.hidden = true;
    this.problem.resume = null;
    this.editor.clearError();
    this.runButton.disabled = true;
    this.cancelButton.hidden = false;
    setText(this.status, "Running …");
  }

  end() {
    running.delete(this);
    this.abort = null;
    this.runButton.disabled = false;
    this.cancelButton.hidden = true;
  }

  showStatus({ rows, as_of }, took) {
    const freshness = as_of?.pending ? `${number(as_of.pending)} newer records not included` : "up to date";
    show(
      this.status,
      `${number(rows.length)} ${rows.length === 1 ? "row" : "rows"} in ${duration(took)} · `,
      as_of?.lsn !== undefined && `as of record ${number(as_of.lsn)}, ${freshness}`,
      as_of?.watermark && [", watermark ", time(as_of.watermark)],
    );
  }

  fail(error, shift) {
    if (error.name === "AbortError" || error.status === 409) return setText(this.status, "Cancelled.");
    setText(this.status, "");
    const place = positionOf(error.message);
    if (place) this.editor.markError(place, shift);
    this.problem.hidden = false;
    show(
      this.problem,
      h("p", { class: "error-title" }, error.message),
      error.hint && !/^see \/docs/.test(error.hint) && h("p", {}, error.hint),
    );
    return null;
  }

  /**
   * Ends the statement by giving up its request: the server ends a query whose client has left. A
   * request to end it by its id would fail if it had just ended by itself.
   */
  cancel() {
    this.abort?.abort();
  }

  /** Runs the statement again, for a file; it is ended like any other. */
  async download(format) {
    if (this.abort) return;
    const statement = this.ran;
    this.begin();
    setText(this.status, `Preparing ${format} …`);
    try {
      const { signal } = this.abort;
      const response = await post("/api/v1/sql", { sql: statement, format, id: this.id }, { signal });
      const url = URL.createObjectURL(await blob(response));
      h("a", {
        href: url,
        download: `weir-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.${format}`,
      }).click();
      setTimeout(() => URL.revokeObjectURL(url), 60_000);
      setText(this.status, "Downloaded.");
    } catch (error) {
      this.fail(error, 0);
    } finally {
      this.end();
    }
  }
}
