// Search: one box, filters, facets over all hits, pages, and each record as it was received.

import { parse, sleep, visible } from "./api.js";
import { button, empty, errorBox, h, select, setText, show } from "./dom.js";
import { countFacets, facetList } from "./facets.js";
import { Filters } from "./filters.js";
import { localTime, number } from "./format.js";
import { hitElement } from "./hit.js";
import { absolute, PAGE, Search } from "./find.js";
import { around, isSamePlace, putPlace, statedPlace } from "./place.js";
import { changed, coordinates, place, setPlace, stream } from "./state.js";

const SPANS = [
  ["", "Any time"],
  ["now-5m", "Last 5 minutes"],
  ["now-1h", "Last hour"],
  ["now-1d", "Last day"],
  ["now-7d", "Last 7 days"],
  ["custom", "From … to …"],
];
/** How soon a search is repeated whose index lacks records; each time twice as late, up to a maximum. */
const FIRST_WAIT_MS = 250;
const MAX_WAIT_MS = 4000;
/** Repetitions in which the index does not advance, after which the page gives up. */
const MAX_UNCHANGED = 20;

let root;
const parts = {};
/** What is asked: text, times, sort, `where`, a list of [column, value], and the place. */
let asked = { q: "", from: "", to: "", sort: "time", where: [], place: null };
/** The words that the page has shown last; others in the box are not submitted yet. */
let shownWords = "";
let search = null;
let visit = 0;
/** The end of the log when the reader asked: until the index has it, few hits may become more. */
let wanted = 0;
/** Ends what runs for the search that is shown, and the count of its values. */
let ended = new AbortController();
let counting = new AbortController();

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
  parts.from = timeInput("from", "From, local time");
  parts.to = timeInput("to", "To, local time");
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
  parts.filters = new Filters(setValue, (place) => go({ place }));
  parts.chips = h("div", { class: "chips", id: "search-filters" });
  parts.status = h("div", { class: "muted", role: "status", id: "search-status" });
  parts.facets = h("aside", { class: "facets", "aria-label": "Values in the hits", id: "facets" });
  parts.hits = h("ol", { class: "hits", id: "hits" });
  parts.more = h("div", { class: "more" });
  const form = h(
    "form",
    {
      class: "search-form",
      role: "search",
      onsubmit: (event) => {
        event.preventDefault();
        go({});
      },
    },
    parts.text,
    h("button", { type: "submit", class: "button primary", "data-test": "search-go" }, "Search"),
    parts.span,
    parts.from,
    parts.to,
    parts.sort,
    parts.filters.root,
  );
  show(
    root,
    h("h1", { class: "visually-hidden" }, "Search"),
    form,
    parts.chips,
    parts.status,
    h("div", { class: "search-layout" }, parts.facets, h("div", {}, parts.hits, parts.more)),
  );
  changed.addEventListener("stream", () => !root.hidden && enter(null, parameters()));
  changed.addEventListener("place", () => !root.hidden && follow());
}

const timeInput = (name, label) =>
  h("input", {
    type: "datetime-local",
    "aria-label": label,
    step: 1,
    hidden: true,
    onchange: () => go({ [name]: utc(parts[name]) }),
  });

/** Takes a place that was chosen or removed elsewhere. */
function follow() {
  asked = { ...asked, place };
  completeUrl();
  run();
}

/** The parameters of the section's URL. */
const parameters = () => new URLSearchParams(location.hash.split("?")[1]);

/** Makes the URL state also the stream and the place that were chosen before, so that a link to it
 * is the same search. */
function completeUrl() {
  const query = parameters();
  if (stream && !query.has("stream")) query.set("stream", stream);
  putPlace(query, asked.place);
  history.replaceState(null, "", `#/search?${query}`);
}

/** The filter that a parameter states, or null: links that people write may be wrong. */
function statedFilter(text) {
  try {
    const pair = parse(text);
    return Array.isArray(pair) && pair.length === 2 && typeof pair[0] === "string" ? pair : null;
  } catch {
    return null;
  }
}

export async function enter(_, query) {
  const own = ++visit;
  const next = {
    q: query.get("q") ?? "",
    from: query.get("from") ?? "",
    to: query.get("to") ?? "",
    sort: query.get("sort") === "rank" ? "rank" : "time",
    where: query.getAll("where").map(statedFilter).filter(Boolean),
    place: statedPlace(query),
  };
  // A URL with a stream, as the page writes it, states all that is asked. Others keep the place.
  if (!query.has("stream")) next.place ??= place;
  // Without coordinates the search says why it cannot filter, and other sections have no place.
  const shared = (await coordinates()) ? next.place : null;
  if (own !== visit) return;
  if (!isSamePlace(shared, place)) setPlace(shared);
  asked = next;
  // Another search replaces words that were not submitted; one that is repeated keeps them.
  parts.text.value = shownWords;
  completeUrl();
  await run();
}

export function leave() {
  visit += 1;
  ended.abort();
  counting.abort();
}

/** Searches for the words in the box, with some of what is asked changed; the URL states it all. */
function go(change) {
  asked = { ...asked, q: parts.text.value, ...change };
  const query = new URLSearchParams();
  for (const name of ["q", "from", "to"]) if (asked[name]) query.set(name, asked[name]);
  if (asked.sort === "rank") query.set("sort", "rank");
  for (const pair of asked.where) query.append("where", JSON.stringify(pair));
  if (stream) query.set("stream", stream);
  putPlace(query, asked.place);
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
  if (parts.text.value === shownWords) parts.text.value = asked.q;
  shownWords = asked.q;
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
  if (asked.place)
    chips.push(chip(`within ${asked.place.km} km ${around(asked.place)}`, () => go({ place: null })));
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
  // What runs for the search before has no reader any more.
  leave();
  const own = visit;
  ended = new AbortController();
  const { signal } = ended;
  showAsked();
  // Without its values, those of the facets remain.
  parts.filters.show(asked, signal).catch(() => {});
  setText(parts.status, "Searching …");
  show(parts.more);
  try {
    const next = await Search.begin(asked);
    if (own !== visit) return;
    search = next;
    wanted = 0;
    const hits = await search.next(signal);
    if (own !== visit) return;
    wanted = search.asOf ? search.asOf.lsn + search.asOf.pending : 0;
    show(parts.hits, hits.map(hitItem));
    showFound();
    showFacets();
    awaitIndex(own, signal);
  } catch (error) {
    if (own === visit) fail(error);
  }
}

function fail(error) {
  setText(parts.status, "");
  show(parts.facets);
  show(parts.hits, h("li", {}, errorBox(error, run)));
}

const hitItem = (hit) =>
  h("li", { "data-test": "hit", "data-lsn": hit.lsn }, hitElement(hit, search, filterBy));

/** How many records the index lacks of those that the reader asked for; 0 once a page is full, or
 * while there are hits to look through, which a repetition would forget. */
const lacking = () =>
  search.asOf && !search.isCutShort && search.shown.length < PAGE
    ? Math.max(0, wanted - search.asOf.lsn)
    : 0;

/** Shows what the hits are of, and whether more may come. */
function showFound(isStuck = false) {
  const shown = search.shown.length;
  if (shown === 0) show(parts.hits, h("li", {}, nothing(isStuck)));
  const missing = number(lacking());
  const note = isStuck
    ? `the index is ${missing} records behind and does not advance: see Pipeline`
    : `waiting for the index, which is ${missing} records behind …`;
  const notes = [shown > 0 && search.describe(), lacking() > 0 && note];
  setText(parts.status, notes.filter(Boolean).join(" · "));
  const more = search.isCutShort ? "Look through more hits" : "Show more";
  show(parts.more, search.hasMore && button(more, showMore, { "data-test": "more" }));
}

function nothing(isStuck) {
  if (search.isCutShort) return nothingSoFar();
  if (lacking() > 0) {
    const next = isStuck ? "It does not advance: see Pipeline." : "The search is repeated.";
    return empty("Nothing found yet.", `The newest records are not in the index. ${next}`);
  }
  const isFiltered = asked.q || asked.where.length || asked.place || asked.from || asked.to;
  return empty(
    "Nothing found.",
    isFiltered
      ? "Try fewer words, another spelling, `prefix*`, or remove a filter."
      : `Stream ${stream} has no events yet.`,
  );
}

/** Filters that the index does not have were compared with the first hits only. */
function nothingSoFar() {
  const columns = search.undeclared();
  const advice = [
    "Filters that the index does not have are compared hit by hit.",
    "Look through more hits, add words, or choose a shorter time.",
    columns.length > 0 && `Or declare in \`search.exact\`: ${columns.join(", ")}.`,
  ];
  return empty(
    `Nothing found among the first ${number(search.examined)} of ${number(search.total)} hits.`,
    advice.filter(Boolean).join(" "),
  );
}

/**
 * Asks again while the index lacks records that were in the log when the reader asked, until a page
 * is full or the reader asks for something else. A hidden tab asks nothing.
 */
async function awaitIndex(own, signal) {
  let wait = FIRST_WAIT_MS;
  let unchanged = 0;
  try {
    while (lacking() > 0 && unchanged < MAX_UNCHANGED) {
      await sleep(wait, signal);
      await visible(signal);
      if (own !== visit) return;
      const reached = search.asOf.lsn;
      await repeat(own, signal);
      if (own !== visit) return;
      unchanged = search.asOf.lsn > reached ? 0 : unchanged + 1;
      wait = Math.min(wait * 2, MAX_WAIT_MS);
    }
    if (lacking() > 0) showFound(true);
  } catch (error) {
    if (own === visit) showUnrepeated(error, own, signal);
  }
}

/** Why the search was not repeated. The hits are still what the index had. */
function showUnrepeated(error, own, signal) {
  const retry = () => {
    showFound();
    awaitIndex(own, signal);
  };
  show(parts.status, errorBox(error, retry));
}

/** The same search once more. Elements of hits stay, with their focus and their details. */
async function repeat(own, signal) {
  const next = await Search.begin(asked);
  const hits = await next.next(signal);
  if (own !== visit) return;
  const lsns = (all) => all.map(({ lsn }) => lsn).join();
  const isSame = lsns(hits) === lsns(search.shown);
  search = next;
  if (!isSame) {
    updateHits(hits);
    showFacets();
  }
  showFound();
}

function updateHits(hits) {
  const { children } = parts.hits;
  const known = new Map([...children].map((item) => [item.dataset.lsn, item]));
  hits.forEach((hit, at) => {
    const item = known.get(String(hit.lsn)) ?? hitItem(hit);
    if (children[at] !== item) parts.hits.insertBefore(item, children[at] ?? null);
  });
  while (children.length > hits.length) parts.hits.lastElementChild.remove();
}

async function showMore() {
  const own = ++visit;
  for (const each of parts.more.querySelectorAll("button")) each.disabled = true;
  try {
    const hits = await search.next(ended.signal);
    if (own !== visit) return;
    // The first hits replace the note that there are none.
    if (search.shown.length === hits.length) {
      show(parts.hits);
      showFacets();
    }
    parts.hits.append(...hits.map(hitItem));
    wanted = 0;
    showFound();
  } catch (error) {
    if (own === visit) show(parts.more, errorBox(error, showMore));
  }
}

const filterBy = (column, value) => {
  const isSet = asked.where.some(([c, v]) => c === column && v === value);
  if (!isSet) go({ where: [...asked.where, [column, value]] });
};

/** One value of a column instead of others; undefined removes the filter. */
function setValue(column, value) {
  const others = asked.where.filter(([own]) => own !== column);
  go({ where: value === undefined ? others : [...others, [column, value]] });
}

/** Values of some columns with their numbers in all hits of the search, instead of those before. */
async function showFacets() {
  counting.abort();
  counting = new AbortController();
  const { signal } = counting;
  if (search.shown.length === 0) return show(parts.facets);
  show(parts.facets, h("p", { class: "muted small" }, "Counting values …"));
  try {
    const counted = await countFacets(search, signal);
    if (!signal.aborted) show(parts.facets, facetList(counted, filterBy));
  } catch (error) {
    if (signal.aborted) return;
    const text = ["Values are not counted.", error.message, error.hint].filter(Boolean).join(" ");
    show(parts.facets, h("p", { class: "muted small" }, text));
  }
}
