// Facets of a search: the most frequent values of some columns among all its hits.

import { get, identifier, sql, table } from "./api.js";
import { h, link } from "./dom.js";
import { facetColumns } from "./find.js";
import { number } from "./format.js";
import { stream } from "./state.js";

const MAX_VALUES = 8;
/** Events that SQL counts, the newest first; the server has the same limit for hits of its index. */
const MAX_COUNTED = 50_000;
/** Statements that run at once. */
const AT_ONCE = 2;

/** `{total, counted, matching, facets: [{column, distinct, complete, values: [{value, n}]}]}`. */
export function countFacets(search, signal) {
  const columns = facetColumns(search.declaration, search.columns);
  if (columns.length === 0) return { facets: [] };
  return search.isIndexed ? countHits(search, columns, signal) : countRows(search, columns, signal);
}

function countHits(search, columns, signal) {
  const query = search.parameters();
  query.set("columns", columns.join(","));
  query.set("limit", MAX_VALUES);
  if (search.others.length) query.set("where", JSON.stringify(search.others));
  return get(`/api/v1/search/facets?${query}`, { signal });
}

async function countRows(search, columns, signal) {
  const where = await search.where();
  const from = `from ${table(stream)} ${where}`;
  const found = await sql(
    `select count(*) as n from (select lsn ${from} limit ${MAX_COUNTED + 1}) as hits`,
    { signal },
  );
  const [{ n }] = found.rows;
  const isCapped = n > MAX_COUNTED;
  const rows = isCapped ? newestOf(from) : from;
  const counted = Math.min(n, MAX_COUNTED);
  const facets = new Array(columns.length);
  const waiting = columns.map((column, at) => [column, at]);
  const worker = async () => {
    while (waiting.length > 0) {
      const [column, at] = waiting.shift();
      facets[at] = await countColumn(search, column, rows, signal);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  return { total: isCapped ? null : n, counted, matching: counted, facets };
}

async function countColumn(search, column, from, signal) {
  const typed = search.columns.find((of) => of.name === column) ?? { name: column };
  const values = await frequentValues(typed, { from, signal });
  return { column, distinct: values[0]?.different ?? 0, complete: true, values };
}

/** `from` of the newest rows among those of a clause of SQL. */
const newestOf = (clause) => `${clause} order by event_time desc, lsn desc limit ${MAX_COUNTED}`;

/**
 * The most frequent values of a column, `[{value, n, different}]`, in the rows of `from`: the
 * stream's newest ones by default.
 */
export async function frequentValues(column, { from, limit = MAX_VALUES, signal }) {
  const name = identifier(column.name);
  const value = /list/i.test(column.type ?? "") ? `unnest(array_distinct(${name}))` : name;
  const rows = `select ${name} ${from ?? newestOf(`from ${table(stream)}`)}`;
  const groups =
    `select "value", count(*) as n from (select ${value} as "value" from (${rows}) as hits) ` +
    `as v where cast("value" as varchar) <> '' group by 1`;
  const found = await sql(
    `select "value", n, count(*) over () as different from (${groups}) as g ` +
      `order by n desc, "value" limit ${limit}`,
    { signal },
  );
  return found.rows;
}

/** What was counted, and each column's values as filters. */
export function facetList({ total, counted, matching, facets }, filterBy) {
  const shown = facets.filter(({ values }) => values.length > 0);
  if (shown.length === 0) return null;
  const isWhole = counted === total;
  const all = total === null ? "hits; older ones are not counted" : `of ${number(total)} hits`;
  const note = isWhole
    ? `Values in all ${number(matching)} hits`
    : `Values in the newest ${number(counted)} ${all}`;
  return [
    h("p", { class: `muted small${isWhole ? " is-whole" : ""}`, "data-test": "facets-note" }, note),
    shown.map((facet) => facetSection(facet, filterBy)),
  ];
}

function facetSection({ column, distinct, complete, values }, filterBy) {
  const others = distinct - values.length;
  const item = ({ value, n }) =>
    h(
      "li",
      {},
      link(String(value), () => filterBy(column, value), {
        title: `Show ${column}: ${value}`,
        "data-test": "facet",
      }),
      h("span", { class: "bar-n" }, number(n)),
    );
  return h(
    "section",
    { class: "facet", "data-column": column },
    h("h2", {}, column),
    h("ul", {}, values.map(item)),
    others > 0 &&
      h("p", { class: "muted small" }, `and ${complete ? "" : "more than "}${number(others)} others`),
  );
}
