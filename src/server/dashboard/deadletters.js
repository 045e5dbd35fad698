// Dead letters: rejected records by reason, each with its bytes, and retries.

import { writing } from "./access.js";
import { identifier, literal, post, sql } from "./api.js";
import { button, empty, errorBox, h, link, setText, show } from "./dom.js";
import { compact, number, time } from "./format.js";
import { pretty } from "./hit.js";

const MAX_REASONS = 200;
const PAGE = 20;
/** The least time between two readings, and how many times as long as one takes. */
const EVERY_MS = 5000;
const PAUSE_FACTOR = 10;
let visit = 0;

export function deadLettersTab() {
  const newer = h("p", { class: "notice", role: "status", "data-test": "newer-dead-letters", hidden: true });
  const reasons = h("div", { id: "dead-letter-reasons" });
  const letters = h("div", { id: "dead-letter-list" });
  const refused = h("div", { id: "sink-dead-letters" });
  const root = h("div", {}, newer, reasons, letters, refused);
  const read = async () => {
    newer.hidden = true;
    try {
      await showReasons(reasons, letters, load);
      showRefused(refused, await readRefused());
    } catch (error) {
      show(reasons, errorBox(error, load));
    }
  };
  let loading = null;
  const load = () => {
    loading ??= read().finally(() => {
      loading = null;
    });
    return loading;
  };
  show(newer, "There are newer records. ", link("Show them", load, { class: "link" }));
  let [seen, due, nextAt] = [null, 0, 0];
  /** Numbers follow the server. Records stay, as they may be being read: newer ones are offered. */
  const refresh = async ({ status }) => {
    const counts = countsOf(status);
    // Twice, as the table may not have yet what is counted.
    if (counts !== seen) due = 2;
    seen = counts;
    const started = performance.now();
    if (due === 0 || started < nextAt) return;
    due -= 1;
    if (!letters.firstChild && !refused.firstChild) await load();
    else if (await update(reasons, refused)) newer.hidden = false;
    const now = performance.now();
    nextAt = now + Math.max(EVERY_MS, (now - started) * PAUSE_FACTOR);
  };
  return { root, enter: load, refresh };
}

/** Numbers of dead letters by stream and sink; while they stay, nothing is read again. */
const countsOf = ({ streams, sinks }) =>
  JSON.stringify([...Object.values(streams), ...(sinks ?? [])].map(({ dead_letters: n }) => n));

/** Updates the numbers of the reasons that are listed; true if there are records that are not. */
async function update(reasons, refused) {
  const listed = new Map([...reasons.querySelectorAll("tr")].map((row) => [row.dataset.reason, row]));
  let isNewer = false;
  const rows = await readReasons();
  const total = reasons.querySelector("[data-test=rejected-total]");
  if (total) setText(total, totalOf(rows));
  for (const row of rows) {
    const element = listed.get(keyOf(row));
    if (element) fillNumbers(element, row);
    isNewer ||= !element || row.n > Number(element.dataset.n);
  }
  return isNewer || newestOf(await readRefused()) !== refused.dataset.newest;
}

const totalOf = (rows) => `${number(rows.reduce((sum, { n }) => sum + n, 0))} rejected records`;
const keyOf = ({ stream, reason }) => JSON.stringify([stream, reason]);

function fillNumbers(element, { n, retried, last_at: last }) {
  const [records, again, at] = [...element.children].slice(2);
  setText(records, compact(n));
  setText(again, compact(retried));
  show(at, time(last));
}

const readReasons = async () =>
  (
    await sql(
      "select stream, reason, count(*) as n, count(retried_lsn) as retried, max(received_at) as last_at " +
        `from dead_letters group by 1, 2 order by last_at desc limit ${MAX_REASONS}`,
    )
  ).rows;

async function showReasons(element, letters, reload) {
  const rows = await readReasons();
  if (rows.length === 0) {
    visit += 1;
    show(letters);
    show(
      element,
      empty(
        "No dead letters.",
        "Records that a schema or a rule rejects would be listed here with the reason.",
      ),
    );
    return;
  }
  const body = rows.map((row) => reasonRow(row, letters, reload));
  show(
    element,
    h(
      "section",
      { class: "panel" },
      h(
        "header",
        { class: "panel-head" },
        h("h2", {}, "Reasons"),
        h("span", { class: "panel-meta", "data-test": "rejected-total" }, totalOf(rows)),
      ),
      h(
        "div",
        { class: "table-wrap", tabindex: 0, role: "region", "aria-label": "Reasons" },
        h(
          "table",
          { class: "data", "data-test": "reasons" },
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              ["Stream", "Reason", "Records", "Retried", "Last", "Retry"].map((text) =>
                h("th", { scope: "col", class: ["Records", "Retried"].includes(text) ? "number" : "" }, text),
              ),
            ),
          ),
          h("tbody", {}, body),
        ),
      ),
    ),
  );
  await showLetters(letters, rows[0], false);
}

function reasonRow(row, letters, reload) {
  const { stream, reason, n } = row;
  const outcome = h("span", { class: "muted small", role: "status" });
  const retry = button(
    "Retry",
    async () => {
      retry.disabled = true;
      setText(outcome, "Retrying …");
      try {
        const done = await (await post("/api/v1/dead-letters/retry", { stream, reason })).json();
        const still = Object.values(done.still_refused ?? {}).reduce((sum, count) => sum + count, 0);
        setText(outcome, `${number(done.retried)} became events, ${number(still)} still rejected`);
        if (done.retried > 0) outcome.append(". ", link("Reload", reload, { class: "link small" }));
      } catch (error) {
        setText(outcome, error.message);
      }
      retry.disabled = false;
    },
    { "data-test": "retry", "aria-label": `Retry records rejected by: ${reason}` },
  );
  const element = h(
    "tr",
    { "data-reason": keyOf(row), "data-n": n },
    h("td", {}, stream),
    h(
      "td",
      { class: "wrap" },
      link(reason, () => showLetters(letters, row, true), { title: "Show these records" }),
    ),
    h("td", { class: "number" }),
    h("td", { class: "number" }),
    h("td"),
    h("td", {}, h("div", { class: "row" }, writing(retry), outcome)),
  );
  fillNumbers(element, row);
  return element;
}

/** The newest records of a reason, in front of the reader if they were asked for. */
async function showLetters(element, { stream, reason }, isAsked) {
  const own = ++visit;
  show(element, h("p", { class: "loading" }, "Loading …"));
  try {
    const { rows } = await sql(
      `select lsn, received_at, source, bytes, retried_lsn from dead_letters where stream = ${literal(stream)} and reason = ${literal(reason)} ` +
        `order by lsn desc limit ${PAGE}`,
    );
    if (own !== visit) return;
    show(
      element,
      h(
        "section",
        { class: "panel", "aria-label": "Records" },
        h(
          "header",
          { class: "panel-head" },
          h("h2", {}, reason),
          h("span", { class: "panel-meta" }, `newest ${number(rows.length)}`),
        ),
        h(
          "p",
          { class: "panel-body muted" },
          `A retry sends these bytes through the declaration of ${stream} as it is now. Correct the schema or rule in weir.toml and restart, then retry; or correct what sends the records.`,
        ),
        h(
          "ol",
          { class: "letters" },
          rows.map((row) =>
            h(
              "li",
              { "data-test": "dead-letter" },
              h(
                "p",
                { class: "muted small" },
                `record ${number(row.lsn)} · `,
                time(row.received_at),
                ` · ${row.source}`,
                row.retried_lsn !== null && ` · became record ${number(row.retried_lsn)}`,
              ),
              h(
                "pre",
                { class: "code", tabindex: 0, "aria-label": `Record ${row.lsn}` },
                pretty(row.bytes ?? ""),
              ),
            ),
          ),
        ),
      ),
    );
    if (isAsked) element.scrollIntoView({ block: "nearest" });
  } catch (error) {
    if (own !== visit) return;
    show(
      element,
      errorBox(error, () => showLetters(element, { stream, reason }, isAsked)),
    );
  }
}

const readRefused = async () =>
  (
    await sql(
      `select sink, ${identifier("table")}, lsn, refused_at, reason, ${identifier("row")} ` +
        "from weir.sink_dead_letters order by refused_at desc limit 100",
    )
  ).rows;

const newestOf = ([row]) => JSON.stringify([row?.sink, row?.lsn, row?.refused_at]);

/** Rows that the targets of sinks refuse. */
function showRefused(element, rows) {
  element.dataset.newest = newestOf(rows);
  show(
    element,
    rows.length > 0 &&
      h(
        "section",
        { class: "panel" },
        h(
          "header",
          { class: "panel-head" },
          h("h2", {}, "Rows that sinks could not deliver"),
          h("span", { class: "panel-meta" }, number(rows.length)),
        ),
        h(
          "ol",
          { class: "letters" },
          rows.map((row) =>
            h(
              "li",
              {},
              h(
                "p",
                {},
                h("strong", {}, row.sink),
                ` · ${row.table} · record ${number(row.lsn)} · `,
                time(row.refused_at),
              ),
              h("p", { class: "panel-error" }, row.reason),
              h("pre", { class: "code", tabindex: 0 }, pretty(row.row ?? "")),
            ),
          ),
        ),
      ),
  );
}
