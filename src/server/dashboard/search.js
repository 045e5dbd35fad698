// Search: one box, filters, facets over the hits shown, pages, and each record as it was received.

import { parse } from "./api.js";
import { button, empty, errorBox, h, link, select, setText, show } from "./dom.js";
import { localTime, number } from "./format.js";
import { hitElement } from "./hit.js";
import { absolute, facetColumns, Search } from "./find.js";
import { changed, place, setPlace, stream } from "./state.js";

const SPANS = [
  ["", "Any time"],
  ["now-5m", "Last 5 minutes"],
  ["now-1h", "Last hour"],
  ["now-1d", "Last day"],
  ["now-7d", "Last 7 days"],
  ["custom", "From … to …"],
];
const MAX_FACET_VALUES = 8;

let root;
const parts = {};
/** What is asked: text, times, sort, and `where`, a list of [column, value]. */
let asked = { q: "", from: "", to: "", sort: "time", where: [] };
let search = null;
let visit = 0;

export function mount(element) {
  root = element;
  parts.text = h("input", {
    type: "search",
    id: "search-text",
    placeholder: 'Words, "a phrase", prefix*, column:value',
    "aria-label": "Search",
    autocomplete: "off",
    spellcheck: "false",
    maxlength: 4000,
    "data-test": "search-text",
  });
  parts.span = select("Time", SPANS, "", (value) => chooseSpan(value), { "data-test": "search-span" });
  parts.from = h("input", {
    type: "datetime-local",
    "aria-label": "From, local time",
    step: 1,
    hidden: true,
    onchange: () => go({ from: utc(parts.from) }),
  });
  parts.to = h("input", {
    type: "datetime-local",
    "aria-label": "To, local time",
    step: 1,
    hidden: true,
    onchange: () => go({ to: utc(parts.to) }),
  });
  parts.sort = select(
    "Order",
    [
      ["time", "Newest first"],
      ["rank", "Best match first"],
    ],
    "time",
    (value) => go({ sort: value }),
    { "data-test": "search-sort" },
  );
  parts.chips = h("div", { class: "chips", id: "search-filters" });
  parts.status = h("p", { class: "muted", role: "status", id: "search-status" });
  parts.facets = h("aside", { class: "facets", "aria-label": "Values in the hits shown", id: "facets" });
  parts.hits = h("ol", { class: "hits", id: "hits" });
  parts.more = h("div", { class: "more" });
  const form = h(
    "form",
    {
      class: "search-form",
      role: "search",
      onsubmit: (event) => {
        event.preventDefault();
        go({ q: parts.text.value });
      },
    },
    parts.text,
    h("button", { type: "submit", class: "button primary", "data-test": "search-go" }, "Search"),
    parts.span,
    parts.from,
    parts.to,
    parts.sort,
  );
  show(
    root,
    h("h1", { class: "visually-hidden" }, "Search"),
    form,
    parts.chips,
    parts.status,
    h("div", { class: "search-layout" }, parts.facets, h("div", {}, parts.hits, parts.more)),
  );
  for (const name of ["place", "stream"]) changed.addEventListener(name, runShown);
}

const runShown = () => !root.hidden && run();

export function enter(_, query) {
  const where = query
    .getAll("where")
    .map(parse)
    .filter((pair) => Array.isArray(pair));
  asked = {
    q: query.get("q") ?? "",
    from: query.get("from") ?? "",
    to: query.get("to") ?? "",
    sort: query.get("sort") === "rank" ? "rank" : "time",
    where,
  };
  return run();
}

export function leave() {
  visit += 1;
}

/** Searches with some of what is asked changed; the URL states all of it. */
function go(change) {
  const next = { ...asked, ...change };
  const query = new URLSearchParams();
  for (const name of ["q", "from", "to"]) if (next[name]) query.set(name, next[name]);
  if (next.sort === "rank") query.set("sort", "rank");
  for (const pair of next.where) query.append("where", JSON.stringify(pair));
  if (stream) query.set("stream", stream);
  const hash = `#/search?${query}`;
  if (location.hash === hash) run();
  else location.hash = hash;
}

function chooseSpan(value) {
  const isCustom = value === "custom";
  parts.from.hidden = parts.to.hidden = !isCustom;
  if (!isCustom) go({ from: value, to: "" });
}

const utc = (input) => (input.value ? new Date(input.value).toISOString() : "");

/** Shows a time that is asked for, except where the reader is writing it. */
function showTime(input, text) {
  if (input === document.activeElement) return;
  const date = new Date(absolute(text));
  input.value = Number.isNaN(date.getTime()) ? "" : localTime(date).replace(" ", "T");
}

function showAsked() {
  parts.text.value = asked.q;
  parts.sort.value = asked.sort;
  const isRelative = SPANS.some(([value]) => value === asked.from) && !asked.to;
  parts.span.value = isRelative ? asked.from : "custom";
  parts.from.hidden = parts.to.hidden = isRelative;
  showTime(parts.from, asked.from);
  showTime(parts.to, asked.to);
  const without = (at) => asked.where.filter((_, other) => other !== at);
  const chips = asked.where.map(([column, value], at) =>
    chip(`${column}: ${value ?? "(none)"}`, () => go({ where: without(at) })),
  );
  if (place)
    chips.push(
      chip(`within ${place.km} km of ${place.lat.toFixed(3)}, ${place.lon.toFixed(3)}`, () => setPlace(null)),
    );
  show(parts.chips, chips);
}

const chip = (text, remove) =>
  h(
    "span",
    { class: "chip" },
    text,
    button("×", remove, { class: "chip-remove", "aria-label": `Remove filter ${text}` }),
  );

async function run() {
  const own = ++visit;
  showAsked();
  setText(parts.status, "Searching …");
  show(parts.more);
  try {
    search = await Search.begin(asked, place);
    if (own === visit) await page(own, true);
  } catch (error) {
    if (own === visit) fail(error);
  }
}

function fail(error) {
  setText(parts.status, "");
  show(parts.facets);
  show(parts.hits, h("li", {}, errorBox(error, run)));
}

async function page(own, isFirst) {
  const hits = await search.next();
  if (own !== visit) return;
  if (isFirst) show(parts.hits);
  for (const hit of hits) {
    parts.hits.append(
      h("li", { "data-test": "hit", "data-lsn": hit.lsn }, hitElement(hit, search, filterBy)),
    );
  }
  const shown = search.shown.length;
  if (shown === 0) {
    show(
      parts.hits,
      h(
        "li",
        {},
        empty(
          "Nothing found.",
          asked.q || asked.where.length || place || asked.from
            ? "Try fewer words, another spelling, `prefix*`, or remove a filter."
            : `Stream ${stream} has no events yet.`,
        ),
      ),
    );
  }
  setText(parts.status, shown ? search.describe() : "");
  showFacets();
  show(parts.more, search.hasMore && button("Show more", showMore, { "data-test": "more" }));
}

async function showMore() {
  const own = visit;
  for (const each of parts.more.querySelectorAll("button")) each.disabled = true;
  try {
    await page(own, false);
  } catch (error) {
    if (own === visit) show(parts.more, errorBox(error, showMore));
  }
}

const filterBy = (column, value) => {
  const isSet = asked.where.some(([c, v]) => c === column && v === value);
  if (!isSet) go({ where: [...asked.where, [column, value]] });
};

/** Values of some columns with their numbers among the hits shown. */
function showFacets() {
  const counted = facetColumns(search.declaration, search.columns)
    .map((column) => {
      const values = new Map();
      for (const { event } of search.shown) {
        for (const value of [event[column]].flat()) {
          if (value !== null && value !== undefined && value !== "")
            values.set(value, (values.get(value) ?? 0) + 1);
        }
      }
      return [column, [...values].sort((a, b) => b[1] - a[1])];
    })
    .filter(([, values]) => values.length > 0);
  show(
    parts.facets,
    counted.length > 0 &&
      h("p", { class: "muted small" }, `Values in the ${number(search.shown.length)} hits shown`),
    counted.map(([column, values]) =>
      h(
        "section",
        { class: "facet" },
        h("h2", {}, column),
        h(
          "ul",
          {},
          values.slice(0, MAX_FACET_VALUES).map(([value, n]) =>
            h(
              "li",
              {},
              link(String(value), () => filterBy(column, value), {
                title: `Show ${column}: ${value}`,
                "data-test": "facet",
              }),
              h("span", { class: "bar-n" }, number(n)),
            ),
          ),
        ),
        values.length > MAX_FACET_VALUES &&
          h("p", { class: "muted small" }, `and ${number(values.length - MAX_FACET_VALUES)} others`),
      ),
    ),
  );
}
