// Panels of the overview under a place filter: the same shapes as the server's, by SQL.

import { identifier, poll, sql, table } from "./api.js";
import { columns, countedOnce, declaration, placeCondition, stream } from "./state.js";

const EVERY_MS = 5000;
/** Statements that run at once. */
const AT_ONCE = 3;
const MAX_VALUES = 12;
const MAX_SERIES = 8;
const BUCKETS = 60;

/** Numbers of events by the values of a column, of which lists have several. */
async function counts(column, where, span = "this place") {
  const type = (await columns()).find(({ name }) => name === column)?.type ?? "";
  const value = /list/i.test(type) ? `unnest(${identifier(column)})` : identifier(column);
  const { rows } = await sql(
    `select "value", count(*) as n, sum(count(*)) over () as total from (select ${value} as "value" from ${table(stream)} where ${where}) as v ` +
      `group by 1 order by n desc limit ${MAX_VALUES + 1}`,
  );
  const total = rows[0]?.total ?? 0;
  return { total, values: rows.slice(0, MAX_VALUES), span, complete: rows.length <= MAX_VALUES };
}

const newest = (minutes) =>
  `event_time > (select max(event_time) from ${table(stream)}) - interval '${minutes} minutes'`;

async function line(column, where, minutes) {
  const bucket = Math.max(1, Math.round((minutes * 60) / BUCKETS));
  const { rows } = await sql(
    `select ${identifier(column)} as "value", date_bin(interval '${bucket} seconds', event_time) as bucket, count(*) as n ` +
      `from ${table(stream)} where ${where} and ${newest(minutes)} group by 1, 2 order by 2`,
  );
  const last = rows.length ? new Date(rows.at(-1).bucket).getTime() : Date.now();
  const start = last - (BUCKETS - 1) * bucket * 1000;
  const series = new Map();
  for (const { value, bucket: at, n } of rows) {
    if (!series.has(value)) series.set(value, new Array(BUCKETS).fill(0));
    const place = Math.round((new Date(at) - start) / (bucket * 1000));
    if (place >= 0 && place < BUCKETS) series.get(value)[place] += n;
  }
  const sum = ([, counts]) => counts.reduce((total, n) => total + n, 0);
  const most = [...series].sort((a, b) => sum(b) - sum(a)).slice(0, MAX_SERIES);
  const list = most.map(([value, n]) => ({ value, n }));
  return { start: new Date(start).toISOString(), bucket_s: bucket, series: list };
}

async function latest(where) {
  const own = (await columns()).map(({ name }) => name);
  const fixed = new Set(["lsn", "received_at", "source", "is_duplicate", "year", "month", "day", "hour"]);
  const names = own.filter((name) => !fixed.has(name)).slice(0, 8);
  const { rows } = await sql(
    `select lsn, ${names.map(identifier).join(", ")} from ${table(stream)} where ${where} ` +
      "order by event_time desc limit 12",
  );
  return { columns: names, rows };
}

/** How each panel that can be filtered is computed, by its id. */
function computation({ id, kind, column }, where, minutes, count) {
  if (kind === "latest") return () => latest(where);
  if (kind === "line" && count) return () => line(count.type, where, minutes);
  if (kind !== "counts" || !column) return null;
  if (id.startsWith("top:")) return () => counts(column, `${where} and ${newest(5)}`, "5m");
  return () => counts(column, where);
}

async function compute(panels, minutes, signal, receive) {
  const around = await placeCondition();
  if (!around) return;
  const { count } = await declaration();
  const where = `${around} and ${await countedOnce()}`;
  const all = panels.map((panel) => [panel.id, computation(panel, where, minutes, count)]);
  const waiting = all.filter(([, work]) => work);
  const worker = async () => {
    while (waiting.length > 0 && !signal.aborted) {
      const [id, work] = waiting.shift();
      const at = new Date().toISOString();
      const message = await work().then(
        (data) => ({ data }),
        (error) => ({ error }),
      );
      if (!signal.aborted) receive("panel", { id, at, now: new Date().toISOString(), ...message }, true);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}

/** Shows those of the panels that can be filtered, until the returned function is called. */
export const followFiltered = (panels, minutes, receive) =>
  poll(EVERY_MS, (signal) => compute(panels, minutes, signal, receive));
