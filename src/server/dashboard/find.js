// Finds events: by the search index where words are asked for, and by SQL where only filters are.

import { get, identifier, literal, sql, table } from "./api.js";
import { number } from "./format.js";
import { putPlace } from "./place.js";
import { columns, coordinates, declaration, placeCondition, stream } from "./state.js";

export const PAGE = 25;
/** Hits that are looked through for one page, where a filter is not in the index. */
const MAX_EXAMINED = 2_000;
const INDEX_PAGE = 100;

/** Columns whose values are counted beside the hits: the type, groups, exact columns, and lists. */
export function facetColumns({ count, search }, all) {
  const named = [count?.type, ...(count?.by ?? []), ...(search?.exact ?? [])];
  const lists = all
    .filter(({ type }) => /list/i.test(type))
    .map(({ name }) => name)
    .filter((name) => search?.text?.includes(name));
  return [...new Set([...named, ...lists].filter(Boolean))].slice(0, 8);
}

/** Whether a value, or an item of a list, equals the one that is filtered by. */
const matches = (event, [column, value]) =>
  [event[column]].flat().some((own) => asText(own) === asText(value));

/** Whole numbers come as texts where a double cannot hold them. */
const asText = (value) => ((value ?? null) === null ? null : String(value));

/** A search with its pages so far. */
export class Search {
  static async begin(asked) {
    const own = new Search();
    const [declared, all, at] = await Promise.all([declaration(), columns(), coordinates()]);
    Object.assign(own, {
      asked,
      place: asked.place,
      declaration: declared,
      columns: all,
      shown: [],
      examined: 0,
      hasMore: true,
      // Whether the last page is short because it examined no more hits.
      isCutShort: false,
      after: null,
      total: null,
      // How far the index was; null where SQL answers, which has all records.
      asOf: null,
    });
    const { search } = declared;
    own.isIndexed = Boolean(search) && asked.q.trim() !== "";
    // Exact columns are filtered by the index, others here.
    const isExact = ([column, value]) =>
      search?.exact?.includes(column) && typeof value === "string" && !value.includes('"');
    own.exact = asked.where.filter(isExact);
    own.others = asked.where.filter((pair) => !isExact(pair));
    if (!search && asked.q.trim()) {
      throw Object.assign(new Error(`Stream ${stream} declares no search.`), {
        hint: "Add `search` with its columns of text to the declaration, or use the filters alone.",
      });
    }
    if (own.place && !at) {
      throw Object.assign(new Error(`Stream ${stream} has no coordinates to filter by a place.`), {
        hint: "Remove the filter, or choose a stream that declares `places` or `search.geo`.",
      });
    }
    return own;
  }

  /** The next page of hits; `hasMore` says whether another may follow. The signal ends it. */
  async next(signal) {
    const hits = this.isIndexed ? await this.nextIndexed(signal) : await this.nextRows(signal);
    this.shown.push(...hits);
    return hits;
  }

  /** What the index is asked for: exact values, words, times and the place. Words come last, as a
   * quote that they do not close would take in what follows. */
  parameters() {
    const { q, from, to } = this.asked;
    const exact = this.exact.map(([column, value]) => `${column}:"${value}"`);
    const query = new URLSearchParams({ q: [...exact, q.trim()].join(" "), stream });
    if (from) query.set("from", from);
    if (to) query.set("to", to);
    putPlace(query, this.place);
    return query;
  }

  async nextIndexed(signal) {
    const wanted = [];
    let looked = 0;
    while (wanted.length < PAGE && this.hasMore && looked < MAX_EXAMINED) {
      signal.throwIfAborted();
      const query = this.parameters();
      query.set("sort", this.asked.sort);
      query.set("limit", this.others.length ? INDEX_PAGE : PAGE);
      if (this.after) query.set("after", this.after);
      const { hits, total, next, as_of: asOf } = await get(`/api/v1/search?${query}`, { signal });
      wanted.push(...hits.filter(({ event }) => this.others.every((pair) => matches(event, pair))));
      this.total ??= total;
      this.asOf ??= asOf;
      this.after = next;
      this.hasMore = Boolean(next);
      looked += hits.length;
      this.examined += hits.length;
    }
    this.isCutShort = this.hasMore && wanted.length < PAGE;
    return wanted;
  }

  /** The clause of SQL with all filters and more conditions; empty without any. */
  async where(...more) {
    const conditions = this.asked.where.map(([column, value]) => this.condition(column, value));
    const at = await placeCondition(this.place);
    if (at) conditions.push(at);
    const { from, to } = this.asked;
    if (from) conditions.push(`event_time >= ${instant(from)}`);
    if (to) conditions.push(`event_time < ${instant(to)}`);
    conditions.push(...more);
    return conditions.length ? `where ${conditions.join(" and ")}` : "";
  }

  async nextRows(signal) {
    const { end, lsns } = this.after ?? {};
    const older = end ? [`event_time < timestamp ${literal(end)}`, `lsn not in (${lsns.join(", ")})`] : [];
    const { rows } = await sql(
      `select * from ${table(stream)} ${await this.where(...older)} ` +
        `order by event_time desc, lsn desc limit ${PAGE}`,
      { signal },
    );
    this.hasMore = rows.length === PAGE;
    if (this.hasMore) this.after = this.following(rows);
    return rows.map((event) => ({ lsn: event.lsn, event_time: event.event_time, highlights: {}, event }));
  }

  /** Where the next page begins: times are stored in microseconds and shown in milliseconds, so it is
   * at the end of the last one's millisecond, without the rows of that which are shown. */
  following(rows) {
    const { event_time } = rows.at(-1);
    const all = [...this.shown, ...rows].filter((row) => row.event_time === event_time);
    return { end: new Date(Date.parse(event_time) + 1).toISOString(), lsns: all.map(({ lsn }) => lsn) };
  }

  condition(column, value) {
    const name = identifier(column);
    if (value === null || value === undefined) return `${name} is null`;
    const type = this.columns.find((c) => c.name === column)?.type ?? "";
    return /list/i.test(type) ? `array_has(${name}, ${literal(value)})` : `${name} = ${literal(value)}`;
  }

  /** Columns that are compared hit by hit although the index could have them, were they declared. */
  undeclared() {
    const exact = this.declaration.search?.exact ?? [];
    return [...new Set(this.others.map(([column]) => column))].filter((column) => !exact.includes(column));
  }

  /** What the shown hits are of. */
  describe() {
    const shown = number(this.shown.length);
    if (!this.isIndexed) return this.hasMore ? `The newest ${shown} events` : `${shown} events`;
    if (this.others.length === 0) return `${shown} of ${number(this.total)} hits`;
    const searched = this.hasMore
      ? `the first ${number(this.examined)} of ${number(this.total)} hits`
      : `${number(this.total)} hits`;
    return `${shown} among ${searched} pass the filters`;
  }
}

/** A time of the parameters, `now-1h` or RFC 3339, as the latter. */
export function absolute(text) {
  const relative = /^now-(\d+)([smhd])$/.exec(text);
  if (!relative) return text;
  const unit = { s: 1, m: 60, h: 3600, d: 86_400 }[relative[2]];
  return new Date(Date.now() - relative[1] * unit * 1000).toISOString();
}

const instant = (text) => `timestamp ${literal(absolute(text))}`;
