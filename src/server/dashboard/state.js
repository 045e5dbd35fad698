// What sections share: the stream, the place filter, and what the server has.

import { access } from "./access.js";
import { connection, get, identifier, sql } from "./api.js";
import { circle, square } from "./distance.js";

/** Announces another "stream" or "place", and a "server" that was restarted. */
export const changed = new EventTarget();
const announce = (name) => changed.dispatchEvent(new CustomEvent(name));

/** The chosen stream, by name; null until the configuration is read. */
export let stream = null;
/** Where the reader has clicked: `{lat, lon, km}`, or null. */
export let place = null;

/** A place is nothing to a stream without coordinates. The stream is announced also where these
 * could not be read: sections must not continue with the one before. */
export async function setStream(name) {
  if (name === stream) return;
  stream = name;
  try {
    if (place && !(await coordinates())) setPlace(null);
  } finally {
    announce("stream");
  }
}

export function setPlace(next) {
  place = next;
  announce("place");
}

let reading = null;

/** `{settings, streams, sources, sinks, windows}` as in force; read once in each run of the
 * server, and again if that failed. */
export function configuration() {
  reading ??= get("/api/v1/configuration").catch((error) => {
    reading = null;
    throw error;
  });
  return reading;
}

function forget() {
  reading = null;
  tables = null;
}

let wasLost = false;

// While the server did not answer, it may have been started with another configuration. What failed
// is tried again right after this, and so reads the new one.
connection.addEventListener("change", ({ detail }) => {
  if (detail === "live" && wasLost) forget();
  wasLost = detail === "lost" || (wasLost && detail !== "live");
});
access.addEventListener("restart", () => {
  forget();
  announce("server");
});

/** A declaration of the chosen stream. */
export async function declaration() {
  return (await configuration()).streams?.[stream] ?? {};
}

let tables = null;

/** Tables with their columns, by kind: `[{name, kind, columns: [{name, type}]}]`. */
export function catalog() {
  tables ??= readCatalog().catch((error) => {
    tables = null;
    throw error;
  });
  return tables;
}

async function readCatalog() {
  const [{ rows }, configured] = await Promise.all([
    sql(
      "select table_schema, table_name, column_name, data_type from information_schema.columns " +
        "where table_schema <> 'information_schema' order by table_schema, table_name, ordinal_position",
    ),
    configuration(),
  ]);
  const found = new Map();
  for (const { table_schema: schema, table_name: own, column_name, data_type } of rows) {
    const name = schema === "main" ? own : `${schema}.${own}`;
    if (!found.has(name)) found.set(name, { name, kind: kindOf(schema, own, configured), columns: [] });
    found.get(name).columns.push({ name: column_name, type: data_type });
  }
  const order = Object.keys(KINDS);
  return [...found.values()].sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind));
}

/** Kinds of tables, in the order in which they are listed. */
export const KINDS = {
  stream: "Streams",
  window: "Windows",
  sessions: "Sessions",
  entity: "Entities",
  late: "Late events",
  system: "System",
};

function kindOf(schema, name, { streams = {}, windows = {} }) {
  if (schema === "weir") return "system";
  if (schema !== "main") return ["sessions", "late"].includes(name) ? name : "entity";
  if (name in streams) return "stream";
  return name.replace(/_versions$/, "") in windows ? "window" : "system";
}

/** Columns of the chosen stream's table, in its order. */
export async function columns() {
  return (await catalog()).find((table) => table.name === stream)?.columns ?? [];
}

/** Names of the columns with latitude and longitude, if the stream has them. */
export async function coordinates() {
  const { places, search } = await declaration();
  if (places) return [places.lat, places.lon];
  return search?.geo?.length === 2 ? search.geo : null;
}

/** The condition in SQL that an event is counted: duplicates are marked where they are declared. */
export async function countedOnce() {
  const { duplicates } = await declaration();
  return duplicates ? "not is_duplicate" : "true";
}

/** The condition in SQL that rows are within a distance of a place; null without coordinates. */
export async function placeCondition(around = place) {
  const at = await coordinates();
  if (!around || !at) return null;
  const [lat, lon] = at.map(identifier);
  return [...square(lat, lon, around), circle(lat, lon, around)].join(" and ");
}
