// Starts the page: chooses the section by the part of the URL after #, and shows what sections share.

import { asked, mountAccess, refreshControls } from "./access.js";
import { connection, get, lost, send } from "./api.js";
import { errorBox, h, link, resume, select, setText, show } from "./dom.js";
import { around } from "./place.js";
import { changed, configuration, place, setPlace, setStream, stream } from "./state.js";

/** Sections by the first word of the path; each module has `mount(root)`, `enter(path, query)`, `leave()`. */
const SECTIONS = {
  overview: () => import("./overview.js"),
  map: () => import("./map.js"),
  search: () => import("./search.js"),
  sql: () => import("./sql.js"),
  notebook: () => import("./notebook.js"),
  pipeline: () => import("./pipeline.js"),
};
/** Sections that another one's link in the navigation stands for. */
const UNDER = { notebook: "sql" };

/** Loads a section. A script that could not be loaded stays so: the page itself is loaded again then. */
function load(name) {
  return SECTIONS[name]().catch((error) => {
    console.info(error);
    throw Object.assign(lost(), { isOfScript: true });
  });
}

/** When the page was last loaded again for a script. */
const RELOADED = "weir.reloaded";
const RELOAD_MS = 60_000;
const wasReloaded = () => Date.now() - Number(sessionStorage.getItem(RELOADED)) < RELOAD_MS;

function reload() {
  sessionStorage.setItem(RELOADED, String(Date.now()));
  location.reload();
}

const at = (id) => document.getElementById(id);
const mounted = new Set();
let current = null;
let visit = 0;

/** Links that people write are not always encoded. */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/").map(decoded);
  const known = Object.hasOwn(SECTIONS, name) ? name : "overview";
  return { name: known, path: rest, query: new URLSearchParams(query ?? "") };
}

/** Shows an error above the section, which stays as it is with what the reader has not saved. */
function showProblem(error, retry) {
  if (error.status === undefined) console.error(error);
  const box = errorBox(error, () => {
    box.remove();
    retry();
  });
  at("problem").append(box);
  return box;
}

async function open() {
  const { name, path, query } = route();
  const own = ++visit;
  const root = at(name);
  if (current && current.name !== name) current.section?.leave?.();
  for (const other of document.querySelectorAll("main > section")) other.hidden = other !== root;
  for (const entry of document.querySelectorAll("nav a")) {
    const isCurrent = entry.dataset.section === (UNDER[name] ?? name);
    if (isCurrent) entry.setAttribute("aria-current", "page");
    else entry.removeAttribute("aria-current");
  }
  show(at("problem"));
  showFilters();
  document.title = `${root.getAttribute("aria-label")} · Weir`;
  try {
    const configured = configuration().then((found) => chooseStream(found, query.get("stream")));
    const [section] = await Promise.all([load(name), configured, asked()]);
    if (own !== visit) return;
    current = { name, section };
    if (!mounted.has(name)) {
      section.mount(root);
      mounted.add(name);
    }
    focusSearch();
    await section.enter(path, query);
    refreshControls();
  } catch (error) {
    if (own !== visit) return;
    const box = showProblem(error, error.isOfScript ? reload : open);
    // By itself only now and then: a script may be broken while the server answers.
    if (error.isOfScript && wasReloaded()) box.resume = null;
  }
}

/** The reader's choice, which replaces the stream in the URL. */
function choose(name) {
  const [path, query] = location.hash.split("?");
  const asked = new URLSearchParams(query);
  if (asked.has("stream")) {
    asked.set("stream", name);
    history.replaceState(null, "", `${path}?${asked}`);
  }
  missing = null;
  showFilters();
  setStream(name).catch((error) => showProblem(error, () => choose(name)));
}

/** A stream that the URL names and the server does not have. */
let missing = null;

/** Chooses the stream that the URL names, else stays with the one shown, else takes the first. */
async function chooseStream({ streams }, named) {
  const names = Object.keys(streams ?? {});
  missing = named === null || names.includes(named) ? null : named;
  if (names.includes(named)) await setStream(named);
  else if (!names.includes(stream)) await setStream(names[0] ?? null);
  const isChoice = names.length > 1;
  show(
    at("stream"),
    isChoice &&
      select(
        "Stream",
        names.map((n) => [n, n]),
        stream,
        choose,
        { id: "stream-choice", "data-test": "stream" },
      ),
  );
  at("stream").hidden = !isChoice;
  showFilters();
}

/** Takes the streams of a server that was restarted. */
function renew() {
  const named = route().query.get("stream");
  configuration()
    .then((found) => chooseStream(found, named))
    .catch((error) => showProblem(error, renew));
}

changed.addEventListener("server", renew);

const STATES = {
  connecting: "Connecting",
  live: "Live",
  lost: "Connection lost, trying again",
  paused: "Paused while hidden",
};

/** Errors that the reader sees. */
const ALERTS = "#problem [role=alert], main > section:not([hidden]) [role=alert]";

connection.addEventListener("change", ({ detail }) => {
  at("connection").dataset.state = detail;
  setText(at("connection-text"), STATES[detail]);
  if (detail === "live") resume(document.querySelectorAll(ALERTS));
});

/** What a chosen place means in each section: texts before and after it. */
const PLACE_NOTES = {
  overview: ["Filtered to ", ". Records per second and health are of the whole stream; windows are left out."],
  map: ["Chosen: ", ". The map shows all places; the overview and the search are filtered."],
  search: ["Filtered to ", "."],
  sql: ["Not filtered: statements run as they are. “Insert place filter” limits one to ", "."],
  notebook: ["Not filtered: statements run as they are. Chosen on the map: ", "."],
  pipeline: ["Not filtered: the pipeline is of all records. Chosen on the map: ", "."],
};

function placeNote() {
  const [before, after] = PLACE_NOTES[route().name];
  return h("span", {}, before, h("strong", {}, `${place.km} km`), ` ${around(place)}`, after);
}

function showFilters() {
  at("filters").hidden = !place && missing === null;
  show(
    at("filters"),
    missing !== null &&
      h(
        "span",
        { "data-test": "missing-stream" },
        `There is no stream ${missing}. `,
        stream ? `Shown is ${stream}.` : "This server has no stream.",
      ),
    place && [placeNote(), link("Remove filter", () => setPlace(null), { "data-test": "remove-place" })],
  );
}

changed.addEventListener("place", showFilters);

let isSearchWanted = false;

/** Once the search is shown, its box takes the focus if `/` asked for it. */
function focusSearch() {
  if (!isSearchWanted || current?.name !== "search") return;
  isSearchWanted = false;
  at("search-text")?.focus();
}

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest?.("input, textarea, select, [contenteditable]");
  if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    isSearchWanted = true;
    if (route().name === "search") focusSearch();
    else location.hash = "#/search";
  }
});

// The link would replace the section in the URL.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  at("content").focus();
});

mountAccess({
  signOutButton: at("sign-out"),
  links: [
    {
      element: at("api-link"),
      path: "/openapi.json",
      read: async (path) => JSON.stringify(await get(path), null, 2),
    },
    { element: at("metrics-link"), path: "/metrics", read: async (path) => (await send(path)).text() },
  ],
  onerror: (error, retry) => {
    // A tab of its own is opened by a click alone.
    showProblem(error, retry).resume = null;
  },
});
addEventListener("hashchange", open);
open();
