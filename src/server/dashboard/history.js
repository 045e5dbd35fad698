// Statements that were run in this browser, newest first.

const KEY = "weir.history";
const MAX = 50;
const MAX_CHARS = 20_000;

export function history() {
  try {
    const list = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(list) ? list.filter((entry) => typeof entry.statement === "string") : [];
  } catch {
    return [];
  }
}

/** Notes a statement: `{statement, rows, ms}`, or `{statement}` alone if it failed, as a message
 * may quote data. One that was run before moves to the front. */
export function remember(entry) {
  if (entry.statement.length > MAX_CHARS) return;
  const others = history().filter(({ statement }) => statement !== entry.statement);
  store([{ ...entry, at: new Date().toISOString() }, ...others].slice(0, MAX));
}

export const forget = () => store([]);

function store(list) {
  try {
    localStorage.setItem(KEY, JSON.stringify(list));
  } catch {
    // Without storage there is no history; everything else works.
  }
}
