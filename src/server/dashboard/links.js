// Links from a value or a place to the sections that show more of it.

import { putPlace } from "./place.js";
import { place, stream } from "./state.js";

/** Opens the search for events with a value in a column, and in the chosen place. */
export function openSearch({ column, value, text = "" }) {
  const query = new URLSearchParams();
  if (text) query.set("q", text);
  if (column) query.append("where", JSON.stringify([column, value]));
  if (stream) query.set("stream", stream);
  putPlace(query, place);
  location.hash = `#/search?${query}`;
}

/** Opens a statement in the SQL section. */
export function openSql(statement) {
  location.hash = `#/sql?${new URLSearchParams({ q: statement, run: "1" })}`;
}
