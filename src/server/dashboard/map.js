// The map of venues and recent events. A click filters the page to a place and shows what is near.

import { get, identifier, literal, poll, sql, table } from "./api.js";
import { button, empty, errorBox, h, link, select, setText, show, update } from "./dom.js";
import { compact, distance, number, time } from "./format.js";
import { openSearch } from "./links.js";
import { radiusOptions } from "./place.js";
import { changed, coordinates, countedOnce, declaration, place, setPlace, stream } from "./state.js";
import { roundRadius, WorldMap } from "./world.js";

const EVERY_MS = 5000;
const MAX_PLACES = 10_000;
const MAX_VENUES = 12;
const SPANS = [
  ["5 minutes", "Last 5 minutes"],
  ["1 hour", "Last hour"],
  ["1 day", "Last day"],
  ["7 days", "Last 7 days"],
  ["", "All time"],
];

let map;
let side;
let summary;
let problem;
let span = "1 hour";
let stop = null;
let isShown = false;

export function mount(root) {
  map = new WorldMap({
    label: "Map of venues and events",
    onclick: async ({ lat, lon, metresPerPixel }) => {
      if (await coordinates()) setPlace({ lat, lon, km: place?.km ?? roundRadius(metresPerPixel) });
    },
  });
  side = h("aside", { class: "map-side", "aria-label": "Place", id: "map-place" });
  summary = h("span", { class: "muted", role: "status", id: "map-summary" });
  problem = h("div");
  const range = select(
    "Time range of events",
    SPANS,
    span,
    (value) => {
      span = value;
      restart();
    },
    { id: "map-range", "data-test": "map-range" },
  );
  show(
    root,
    h("div", { class: "section-head" }, h("h1", {}, "Map"), summary, h("span", { class: "spacer" }), range),
    problem,
    h("div", { class: "map-layout" }, map.root, side),
  );
  changed.addEventListener("place", showPlace);
  changed.addEventListener("stream", () => {
    busiest = [];
    map.setPoints([]);
    if (isShown) enter();
  });
  changed.addEventListener("server", () => isShown && enter());
}

export function enter() {
  isShown = true;
  restart();
  showPlace();
}

export function leave() {
  isShown = false;
  stop?.();
  stop = null;
}

function restart() {
  if (!isShown) return;
  stop?.();
  stop = poll(EVERY_MS, refresh);
}

/** Places of recent events with their numbers of events. */
async function events() {
  const at = await coordinates();
  if (!at) return null;
  const { places } = await declaration();
  const [lat, lon] = at.map(identifier);
  const name = places ? `max(${identifier(places.name)})` : "null";
  const once = await countedOnce();
  const since = span
    ? ` and event_time > (select max(event_time) from ${table(stream)}) - interval '${span}'`
    : "";
  const { rows } = await sql(
    `select ${lat} as lat, ${lon} as lon, ${name} as label, count(*) as n from ${table(stream)} ` +
      `where ${lat} is not null and ${lon} is not null and ${once}${since} ` +
      `group by 1, 2 order by n desc limit ${MAX_PLACES}`,
  );
  return rows;
}

async function refresh(signal) {
  try {
    const rows = await events();
    if (signal.aborted) return;
    show(problem);
    if (rows === null) {
      map.setPoints([]);
      show(
        problem,
        empty(
          `Stream ${stream} declares no places.`,
          "Add `places` or `search.geo` with the columns of latitude and longitude to its declaration.",
        ),
      );
      setText(summary, "");
      return;
    }
    map.setPoints(rows);
    busiest = rows.slice(0, MAX_VENUES);
    if (!place) listBusiest();
    const total = rows.reduce((sum, { n }) => sum + n, 0);
    const most = rows.length === MAX_PLACES ? "the busiest " : "";
    setText(
      summary,
      rows.length
        ? `${compact(total)} events in ${most}${compact(rows.length)} places`
        : "No events with a place in this time",
    );
  } catch (error) {
    if (!signal.aborted) show(problem, errorBox(error, restart));
  }
}

let visit = 0;
let busiest = [];
const busiestTitle = h("h3", {}, "Most events");
const busiestList = h("ol", { class: "venues" });

function goTo(next) {
  setPlace(next);
  map.goTo(next);
}

/** While no place is chosen: what a click does for this stream, and where most happens. */
async function showBusiest(own) {
  const [at, { places }] = await Promise.all([coordinates(), declaration()]);
  if (own !== visit) return;
  if (!at) {
    const text = "Events of this stream have no coordinates.";
    show(side, h("h2", {}, "No places"), h("p", { class: "muted" }, text));
    return;
  }
  const nearest = places ? "Click the map for the nearest venues with their coming events. " : "";
  const then = places
    ? "Overview and search are then filtered to that place."
    : "Click the map to filter overview and search to a place.";
  show(
    side,
    h("h2", {}, "Choose a place"),
    h("p", { class: "muted" }, nearest, then),
    busiestTitle,
    busiestList,
  );
  listBusiest();
}

/** Elements stay where they are, so that a focus does. */
function listBusiest() {
  busiestTitle.hidden = busiest.length === 0;
  update(
    busiestList,
    busiest,
    (_, at) =>
      h(
        "li",
        { class: "venue-name" },
        link("", () => goTo({ lat: busiest[at].lat, lon: busiest[at].lon, km: 5 })),
        h("span", { class: "muted distance" }),
      ),
    ({ children: [name, events] }, { lat, lon, label, n }) => {
      setText(name, label ?? `${lat.toFixed(3)}, ${lon.toFixed(3)}`);
      setText(events, number(n));
    },
  );
}

async function showPlace() {
  if (!side) return;
  map.setCircle(place);
  const own = ++visit;
  if (!place) {
    try {
      await showBusiest(own);
    } catch (error) {
      if (own === visit) show(side, errorBox(error, showPlace));
    }
    return;
  }
  const { lat, lon, km } = place;
  const radius = select(
    "Radius",
    radiusOptions(km),
    String(km),
    (value) => setPlace({ ...place, km: Number(value) }),
    { "data-test": "radius" },
  );
  const found = h("div", { id: "nearby" }, h("p", { class: "loading" }, "Loading …"));
  show(
    side,
    h("h2", {}, `${lat.toFixed(4)}, ${lon.toFixed(4)}`),
    h(
      "div",
      { class: "row" },
      h("span", { class: "muted" }, "within"),
      radius,
      button("Search here", () => openSearch({}), { "data-test": "search-here" }),
      link("Clear", () => setPlace(null)),
    ),
    found,
  );
  try {
    await showNearby(found, own);
  } catch (error) {
    if (own === visit) show(found, errorBox(error, showPlace));
  }
}

async function showNearby(found, own) {
  const { places } = await declaration();
  if (!places) {
    show(
      found,
      empty(
        `Stream ${stream} declares no venues.`,
        "With `places` in its declaration, venues near a point are listed here.",
      ),
    );
    return;
  }
  const query = new URLSearchParams({
    lat: place.lat,
    lon: place.lon,
    within: `${place.km}km`,
    limit: MAX_VENUES,
    stream,
  });
  const { venues } = await get(`/api/v1/nearby?${query}`);
  if (own !== visit) return;
  if (venues.length === 0) {
    show(found, empty(`No venue within ${place.km} km.`, "Choose a larger radius, or another place."));
    return;
  }
  const list = h("ol", { class: "venues" }, venues.map(venueItem));
  show(
    found,
    h(
      "h3",
      {},
      venues.length === MAX_VENUES ? `Nearest ${MAX_VENUES} venues` : `${number(venues.length)} venues`,
    ),
    list,
  );
  nameEvents(found, venues, places).catch(() => {});
}

function venueItem(venue) {
  const now = Date.now();
  const coming = venue.events.filter(({ date }) => date && new Date(date) >= now);
  const listed = (coming.length ? coming : venue.events.slice(-2)).slice(0, 4);
  return h(
    "li",
    { "data-test": "venue" },
    h(
      "p",
      { class: "venue-name" },
      link(venue.venue_name ?? "(no name)", () => goTo({ ...place, lat: venue.lat, lon: venue.lon })),
      h("span", { class: "muted distance" }, distance(venue.distance_m)),
    ),
    listed.length
      ? h(
          "ul",
          { class: "venue-events" },
          listed.map(({ event_id, date }) =>
            h(
              "li",
              {},
              date ? time(date) : "no date",
              " ",
              h("span", { class: "event-name", "data-event": String(event_id) }, String(event_id)),
            ),
          ),
        )
      : null,
    listed.length && !coming.length
      ? h("p", { class: "muted small" }, "nothing coming; these were last")
      : null,
  );
}

/** Replaces the ids of events by their names, where the stream has a searched text for them. */
async function nameEvents(found, venues, places) {
  const { search } = await declaration();
  const title = search?.text?.find((column) => !column.endsWith(".*"));
  const ids = [...new Set(venues.flatMap(({ events }) => events.map(({ event_id }) => event_id)))].slice(
    0,
    100,
  );
  if (!title || ids.length === 0) return;
  const { rows } = await sql(
    `select ${identifier(places.event)} as id, max(${identifier(title)}) as name from ${table(stream)} ` +
      `where ${identifier(places.event)} in (${ids.map(literal).join(", ")}) group by 1`,
  );
  const names = new Map(rows.map(({ id, name }) => [String(id), name]));
  for (const element of found.querySelectorAll(".event-name")) {
    const name = names.get(element.dataset.event);
    if (name) element.textContent = name;
  }
}
