// The picture of the pipeline: sources, log, streams with their operators, views and sinks, each
// with its rate, lag and errors, and lines along which records flow.

import { writing } from "./access.js";
import { post } from "./api.js";
import { button, h, setText, show } from "./dom.js";
import { bytes, compact, number, rate, time } from "./format.js";
import { Rates, value } from "./metrics.js";
import { configuration } from "./state.js";

const COLUMNS = ["Sources", "Log", "Streams and operators", "Views", "Sinks"];
const rates = new Rates();

export function flowTab() {
  const notice = h("div", { id: "readiness", role: "status" });
  const lists = COLUMNS.map(() => h("div", { class: "flow-nodes" }));
  const lines = h("svg", { class: "flow-lines", "aria-hidden": "true" });
  const picture = h(
    "div",
    { class: "flow", id: "flow" },
    lines,
    COLUMNS.map((title, at) => h("section", { class: "flow-column" }, h("h2", {}, title), lists[at])),
  );
  const notes = h("div", { id: "notes" });
  const root = h("div", {}, notice, picture, notes);
  const refresh = async (all) => {
    const configured = await configuration().catch(() => ({}));
    const nodes = graph(all, configured);
    nodes.forEach((list, at) => place(lists[at], list));
    showReadiness(notice, all.ready);
    showNotes(notes, all.status);
    connect(picture, lines, nodes);
  };
  new ResizeObserver(() => connect(picture, lines, null)).observe(picture);
  return { root, refresh };
}

/** Nodes by column: `{id, title, kind, state, facts, reason, advice, actions, to}`. */
function graph({ status, metrics }, configured) {
  const log = {
    id: "log",
    title: "Log",
    state: "running",
    to: Object.keys(status.streams).map((name) => `stream/${name}`),
    facts: [
      ["records", number(status.synced_lsn)],
      ["rate", perSecond(rates.of("log", status.synced_lsn))],
      ["size", sized(value(metrics, "weir_log_bytes"))],
    ],
    reason:
      status.gaps > 0
        ? `Gaps in sources: ${number(status.gaps)}. Records may have been lost at these times.`
        : null,
    more: status.gaps > 0 ? ["#/sql?q=select%20*%20from%20weir.gaps&run=1", "See gaps"] : null,
  };
  return [
    sources(status, metrics, configured),
    [log],
    streams(status, metrics, configured),
    views(status),
    sinks(status),
  ];
}

const perSecond = (n) => (n === null ? "–" : `${rate(n)}/s`);
const sized = (n) => (n === null ? "–" : bytes(n));

/** What a source has read since the server started, and how fast. */
function sourceFacts(source, metrics) {
  const received = value(metrics, "weir_source_received_total", { source }) ?? 0;
  const rejected = value(metrics, "weir_source_rejected_total", { source }) ?? 0;
  return [
    ["rate", perSecond(rates.of(`source/${source}`, received))],
    ["records", compact(received)],
    ["rejected", compact(rejected), rejected > 0 && "#/pipeline/dead-letters"],
  ];
}

function sources({ sources: running }, metrics, configured) {
  const declared = new Map((configured.sources ?? []).map((source) => [source.name, source]));
  const nodes = (running ?? []).map(({ source, state, reason, waiting, lag, files }) => ({
    id: `source/${source}`,
    title: source,
    kind: declared.get(source)?.type,
    state,
    to: ["log"],
    facts: [
      ...sourceFacts(source, metrics),
      lag !== null && lag !== undefined && ["lag", compact(lag)],
      waiting > 0 && ["waiting", number(waiting)],
    ],
    reason,
    advice: sourceAdvice(state, reason ?? ""),
    files,
  }));
  return [
    ...nodes,
    {
      id: "source/http",
      title: "HTTP",
      kind: "POST /api/v1/streams/…",
      state: "running",
      to: ["log"],
      facts: sourceFacts("http", metrics),
    },
  ];
}

/** What to do about a source that does not read, where its reason does not say it. */
function sourceAdvice(state, reason) {
  if (state !== "halted" || !/retrying/.test(reason)) return null;
  return "Repair the cause. The source then continues by itself; what it has stored is not read again.";
}

function streams({ streams: all, views: checkpoints }, metrics, configured) {
  return Object.entries(all).map(([name, { watermark, events, duplicates, late, dead_letters }]) => {
    const declared = configured.streams?.[name] ?? {};
    const windows = windowsOf(name, configured, metrics);
    const records = events + dead_letters;
    return {
      id: `stream/${name}`,
      title: name,
      state: records > 0 ? "running" : "empty",
      to: (checkpoints ?? [])
        .filter(({ view }) => streamOf(view, Object.keys(all), configured) === name)
        .map(({ view }) => `view/${view}`),
      facts: [
        ["events", compact(events)],
        ["rate", perSecond(rates.of(`stream/${name}`, records))],
        ["late", compact(late)],
        declared.duplicates && ["duplicates", compact(duplicates)],
        ["dead letters", compact(dead_letters), dead_letters > 0 && "#/pipeline/dead-letters"],
        declared.session && [
          "open sessions",
          compact(value(metrics, "weir_open_sessions", { stream: name }) ?? 0),
        ],
        ["watermark", watermark ? time(watermark) : "–"],
      ],
      parts: windows,
    };
  });
}

/** Windows over a stream, with what is wrong with them. */
function windowsOf(stream, configured, metrics) {
  return Object.entries(configured.windows ?? {})
    .filter(([, window]) => readsStream(window, stream))
    .map(([name]) => {
      const failed = value(metrics, "weir_window_failed_total", { window: name }) ?? 0;
      const abandoned = value(metrics, "weir_window_abandoned_total", { window: name }) ?? 0;
      const groups = value(metrics, "weir_window_groups", { window: name });
      return {
        title: name,
        kind: "window",
        isWrong: failed > 0,
        text: [
          groups !== null && `${compact(groups)} groups`,
          abandoned > 0 && `${compact(abandoned)} abandoned`,
          failed > 0 && `${compact(failed)} failed`,
        ]
          .filter(Boolean)
          .join(" · "),
      };
    });
}

/** Whether a window's declaration reads a stream: it states it, or its SQL names it. */
function readsStream(window, stream) {
  if (typeof window === "object" && window.stream) return window.stream === stream;
  const statement = typeof window === "string" ? window : (window?.sql ?? "");
  return new RegExp(`\\((\\s*)"?${stream.replace(/[^\w]/g, "\\$&")}"?\\s*,`).test(statement);
}

/** The stream that a view belongs to; null for those of all streams, such as raw. */
function streamOf(view, streams, configured) {
  const table = declaredName(view);
  const own = streams.find((stream) => table === stream || table.startsWith(`${stream}.`));
  if (own) return own;
  const window = configured.windows?.[table];
  return streams.find((stream) => window && readsStream(window, stream)) ?? null;
}

function views({ views: all, sinks: sending }) {
  const readers = new Map();
  for (const { sink, tables } of sending ?? []) {
    for (const table of tables.map(declaredName))
      readers.set(table, [...(readers.get(table) ?? []), `sink/${sink}`]);
  }
  return all.map(({ view, lsn, lag, state, reason }) => {
    const [kind] = view.split("/", 1);
    const table = declaredName(view);
    return {
      id: `view/${view}`,
      title: table,
      kind: kind === "lake" ? null : kind,
      state: state ?? "running",
      facts: [
        ["rate", perSecond(rates.of(`view/${view}`, lsn))],
        ["lag", compact(lag)],
      ],
      to: kind === "lake" ? (readers.get(table) ?? []) : [],
      isSmall: (state ?? "running") === "running",
      reason,
      advice: VIEW_ADVICE[state] ?? null,
    };
  });
}

const VIEW_ADVICE = {
  catching_up: "It reads from the log what it lacks. Until then its answers are older.",
  retrying: "It is tried again from its last commit, at most every 30 seconds. No record is lost.",
};

/** The table of a view, by the name that it is declared with. */
const declaredName = (view) => view.replace(/^[^/]*\//, "").replace(/_versions$/, "");

function sinks({ sinks: all }) {
  return (all ?? []).map(({ sink, type, tables, state, lag, rows, retries, dead_letters, last_error }) => ({
    id: `sink/${sink}`,
    title: sink,
    kind: `${type} · ${tables.join(", ")}`,
    state,
    facts: [
      ["rows", compact(rows)],
      ["rate", perSecond(rates.of(`sink/${sink}`, rows))],
      ["lag", compact(lag)],
      retries > 0 && ["retries", compact(retries)],
      dead_letters > 0 && ["dead letters", compact(dead_letters), "#/pipeline/dead-letters"],
    ],
    reason: state === "running" ? null : last_error,
    advice: SINK_ADVICE[state] ?? null,
    actions: state === "running" || state === "retrying" ? ["pause"] : ["resume"],
  }));
}

const SINK_ADVICE = {
  paused: "It was paused. Resume it when its target is ready.",
  retrying: "It is tried again by itself, at most every 30 seconds. No row is lost.",
};

const STATE_TEXTS = {
  running: "running",
  empty: "no records yet",
  waiting: "waiting",
  catching_up: "catching up",
  halted: "halted",
  ended: "ended",
  retrying: "retrying",
  paused: "paused",
};

/** Shows nodes; those that exist are filled again, so that focus stays. */
function place(list, nodes) {
  const before = new Map([...list.children].map((element) => [element.dataset.node, element]));
  const elements = nodes.map((node) => {
    const element = before.get(node.id) ?? h("article", { class: "node", "data-node": node.id });
    element.dataset.state = node.state;
    element.classList.toggle("is-small", Boolean(node.isSmall));
    const key = JSON.stringify([
      node.state,
      node.reason,
      node.advice,
      node.files,
      node.actions,
      node.facts.map((fact) => fact && [fact[0], Boolean(fact[2])]),
    ]);
    if (element.dataset.key === key) fillFacts(element, node);
    else fill(element, node, key);
    return element;
  });
  if (
    elements.some((element, at) => list.children[at] !== element) ||
    list.children.length !== elements.length
  )
    show(list, elements);
  if (nodes.length === 0) show(list, h("p", { class: "muted small" }, "none configured"));
}

function fill(element, node, key) {
  element.dataset.key = key;
  show(
    element,
    h(
      "header",
      {},
      h("span", { class: "dot", "aria-hidden": "true" }),
      h("h3", { title: node.title }, node.title),
      node.state !== "running" && h("span", { class: "node-state" }, STATE_TEXTS[node.state] ?? node.state),
    ),
    node.kind && h("p", { class: "muted small node-kind" }, node.kind),
    h(
      "dl",
      { class: "facts" },
      node.facts
        .filter(Boolean)
        .map(([name, , href]) =>
          h("div", { "data-fact": name }, h("dt", {}, name), h("dd", {}, href ? h("a", { href }) : null)),
        ),
    ),
    node.parts?.length > 0 && h("ul", { class: "parts" }),
    node.reason && h("p", { class: "node-reason" }, node.reason),
    node.advice && h("p", { class: "node-advice muted small" }, node.advice),
    node.files?.length > 0 &&
      h(
        "ul",
        { class: "node-files" },
        node.files.slice(0, 5).map(({ path, reason }) => h("li", {}, `${path}: ${reason}`)),
      ),
    node.more && h("p", {}, h("a", { href: node.more[0] }, node.more[1])),
    node.actions &&
      h(
        "p",
        { class: "node-actions" },
        node.actions.map((action) => actionButton(node, action)),
      ),
  );
  fillFacts(element, node);
}

function fillFacts(element, node) {
  const cells = element.querySelectorAll(".facts dd");
  node.facts.filter(Boolean).forEach(([, text], at) => {
    const cell = cells[at].firstElementChild?.tagName === "A" ? cells[at].firstElementChild : cells[at];
    if (text instanceof Node) show(cell, text);
    else setText(cell, text);
  });
  const parts = element.querySelector(".parts");
  if (parts) {
    show(
      parts,
      node.parts.map(({ title, kind, text, isWrong }) =>
        h(
          "li",
          { class: isWrong ? "is-wrong" : "" },
          h("span", {}, title),
          h("span", { class: "muted small" }, [kind, text].filter(Boolean).join(" · ")),
        ),
      ),
    );
  }
}

function actionButton(node, action) {
  const name = node.title;
  const element = button(
    action === "pause" ? "Pause" : "Resume",
    async () => {
      element.disabled = true;
      try {
        await post(`/api/v1/sinks/${encodeURIComponent(name)}/${action}`, {});
      } catch (error) {
        element.after(h("span", { class: "panel-error", role: "alert" }, error.message));
      }
      element.disabled = false;
    },
    { "aria-label": `${action} sink ${name}`, "data-test": `sink-${action}` },
  );
  return writing(element);
}

function showReadiness(notice, ready) {
  const waiting = ready.waiting ?? [];
  notice.className = ready.isReady ? "" : "error-box";
  if (!ready.isReady) {
    return show(
      notice,
      h("p", { class: "error-title" }, `Not ready: ${ready.reason}`),
      h("p", {}, "Halted parts below say what to do. The log of weir run has the details."),
    );
  }
  return show(
    notice,
    waiting.length > 0 &&
      h("p", { class: "notice" }, `Ready. These are still catching up: ${waiting.join(", ")}.`),
  );
}

function showNotes(notes, { notes: texts }) {
  show(
    notes,
    texts?.length > 0 &&
      h(
        "section",
        { class: "panel" },
        h("header", { class: "panel-head" }, h("h2", {}, "Advice")),
        h(
          "ul",
          { class: "advice panel-body" },
          texts.map((text) => h("li", {}, text)),
        ),
      ),
  );
}

let edges = [];

/** Draws the lines between nodes, from where they are on the page. */
function connect(picture, lines, nodes) {
  if (nodes)
    edges = nodes
      .flat()
      .flatMap(({ id, to = [], state }) => to.map((target) => ({ from: id, target, state })));
  const frame = picture.getBoundingClientRect();
  if (frame.width === 0) return;
  const find = (id) => picture.querySelector(`[data-node="${CSS.escape(id)}"]`)?.getBoundingClientRect();
  const paths = edges.map(({ from, target, state }) => {
    const [a, b] = [find(from), find(target)];
    if (!a || !b || b.left <= a.right) return null;
    const [x1, y1] = [a.right - frame.left, a.top + Math.min(a.height / 2, 22) - frame.top];
    const [x2, y2] = [b.left - frame.left, b.top + Math.min(b.height / 2, 22) - frame.top];
    const middle = (x1 + x2) / 2;
    return h("path", {
      class: `flow-line is-${state}`,
      d: `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`,
    });
  });
  lines.setAttribute("width", frame.width);
  lines.setAttribute("height", picture.scrollHeight);
  show(lines, paths);
}
