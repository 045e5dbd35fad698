// The words of a statement, for colours, completion and the place of an error.

const KEYWORDS = new Set(
  (
    "select from where group by order limit offset having distinct as and or not in is null like ilike " +
    "between case when then else end join left right full inner outer cross on using union all except intersect with recursive " +
    "values asc desc nulls first last exists cast try_cast interval timestamp date time true false over partition rows range " +
    "preceding following unbounded current row filter extract unnest explain analyze show tables describe lateral"
  ).split(" "),
);

export const FUNCTIONS = (
  "count sum avg min max median stddev approx_distinct approx_percentile_cont array_agg string_agg " +
  "first_value last_value row_number rank dense_rank lag lead date_bin date_trunc date_part to_timestamp to_timestamp_millis now " +
  "coalesce nullif greatest least lower upper trim length substr split_part replace concat regexp_like regexp_replace " +
  "starts_with strpos array_length array_has array_to_string json_get json_get_str json_get_int json_get_float"
).split(" ");

const TOKEN =
  /(--[^\n]*|\/\*[\s\S]*?(?:\*\/|$))|('(?:[^']|'')*(?:'|$))|("(?:[^"]|"")*(?:"|$))|(\d+(?:\.\d+)?)|([\p{L}_][\p{L}\p{N}_]*)|(\s+)|([\s\S])/gu;
const KINDS = ["", "comment", "text", "name", "number", "word", "space", "sign"];

/** `[{kind, text, at}]` of a statement, nothing left out. */
export function tokens(statement) {
  const out = [];
  for (const match of statement.matchAll(TOKEN)) {
    let kind = KINDS[match.slice(1).findIndex((group) => group !== undefined) + 1];
    const next = statement.slice(match.index + match[0].length).trimStart()[0];
    if (kind === "word") {
      if (KEYWORDS.has(match[0].toLowerCase())) kind = "keyword";
      else if (next === "(") kind = "function";
    }
    out.push({ kind, text: match[0], at: match.index });
  }
  return out;
}

export const keywords = [...KEYWORDS];

/** Words that may follow the conditions of a query. */
const AFTER_WHERE = new Set("group having qualify order limit offset union intersect except".split(" "));

/** The queries of a statement, also those in parentheses: each with its own words, and its bounds. */
function queries(statement) {
  const found = [];
  /** The query that is read in each open parenthesis; null before its `select`. */
  let open = [null];
  const close = (query, at) => query && Object.assign(query, { end: at });
  for (const { kind, text, at } of tokens(statement)) {
    const word = text.toLowerCase();
    if (kind === "space" || kind === "comment") continue;
    if (word === ";") {
      open.forEach((query) => close(query, at));
      open = [null];
    }
    if (word === ")" && open.length > 1) close(open.pop(), at);
    if (word === "select") {
      close(open.pop(), at);
      open.push({ words: [], start: at, end: statement.length });
      found.push(open.at(-1));
    }
    open.at(-1)?.words.push({ word, at, end: at + text.length });
    if (word === "(") open.push(null);
  }
  return found;
}

/** The innermost query at an offset, else the one that ends before it, else the first. */
function queryAt(statement, offset) {
  const all = queries(statement);
  const before = all.filter(({ start }) => start <= offset);
  const inside = before.filter(({ end }) => offset <= end);
  return inside.at(-1) ?? before.sort((a, b) => a.end - b.end).at(-1) ?? all[0];
}

/**
 * A statement with one more condition in the query at the caret, `{text, caret}`: after its other
 * conditions, else as its `where`. Null if there is no query that reads a table.
 */
export function withCondition(statement, caret, condition) {
  const words = queryAt(statement, caret)?.words ?? [];
  const from = words.findIndex(({ word }) => word === "from");
  const after = from < 0 ? [] : words.slice(from + 1);
  const last = after.findIndex(({ word }) => AFTER_WHERE.has(word));
  const clause = last < 0 ? after : after.slice(0, last);
  if (clause.length === 0) return null;
  const where = clause.findIndex(({ word }) => word === "where");
  const conditions = where < 0 ? [] : clause.slice(where + 1);
  const { word, end } = clause.at(-1);
  const put = (start, text) => {
    const before = `${statement.slice(0, start)}${text}`;
    return { text: `${before}${statement.slice(end)}`, caret: before.length };
  };
  if (where < 0) return put(end, `\nwhere ${condition}`);
  if (["where", "and", "or"].includes(word)) return put(end, ` ${condition}`);
  if (!conditions.some((own) => own.word === "or")) return put(end, `\n  and ${condition}`);
  const [{ at }] = conditions;
  return put(at, `(${statement.slice(at, end)})\n  and ${condition}`);
}

/** Where an error is, from its message: `{line, column}` from 1, or null. */
export function positionOf(message) {
  const found = /\bline:? (\d+),? column:? (\d+)/i.exec(message ?? "");
  return found && { line: Number(found[1]), column: Number(found[2]) };
}

/** The offset of a place in a text. */
export function offsetOf(text, { line, column }) {
  const lines = text.split("\n");
  const before = lines.slice(0, line - 1).reduce((sum, l) => sum + l.length + 1, 0);
  return Math.min(text.length, before + Math.min(column - 1, lines[line - 1]?.length ?? 0));
}

/** The beginning of a word at the caret, with the names before its dots: `{start, word, owner}`. */
export function wordAt(text, caret) {
  const found = /((?:[\p{L}_][\p{L}\p{N}_]*\.)*)([\p{L}_][\p{L}\p{N}_]*)?$/u.exec(text.slice(0, caret));
  const word = found[2] ?? "";
  return { start: caret - word.length, word, owner: found[1].replace(/\.$/, "") };
}

/** Names of tables after `from` and `join`, with their aliases: `{alias: table}`. */
export function tablesIn(statement) {
  const out = {};
  const pattern =
    /\b(?:from|join)\s+((?:"[^"]+"|[\p{L}_][\p{L}\p{N}_]*)(?:\.(?:"[^"]+"|[\p{L}_][\p{L}\p{N}_]*))*)(?:\s+(?:as\s+)?([\p{L}_][\p{L}\p{N}_]*))?/giu;
  for (const [, quoted, alias] of statement.matchAll(pattern)) {
    const name = quoted.replaceAll('"', "");
    out[name] = name;
    if (alias && !KEYWORDS.has(alias.toLowerCase())) out[alias] = name;
  }
  return out;
}
