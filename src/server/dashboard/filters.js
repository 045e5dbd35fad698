// Filters in the form of the search, as the declaration offers them: the type and the groups by
// which a stream counts, and a place where its events have coordinates.

import { parse } from "./api.js";
import { h, select, show } from "./dom.js";
import { frequentValues } from "./facets.js";
import { radiusOptions, readCoordinates } from "./place.js";
import { columns, coordinates, declaration, stream } from "./state.js";

/** Values of a column that are offered: the most frequent ones of its newest events. */
const MAX_VALUES = 50;
/** Values that were read so long ago are read again with the next search. */
const MAX_AGE_MS = 60_000;
const DEFAULT_KM = 5;

/** Makes a select offer [value, text]. If the same options replaced them, an open list would close. */
function offer(element, options, value) {
  const own = [...element.options].map((option) => option.value);
  if (own.join("\n") !== options.map(([of]) => of).join("\n"))
    show(
      element,
      options.map(([of, text]) => h("option", { value: of }, text)),
    );
  element.value = value;
}

export class Filters {
  /** `setValue(column, value)` and `setPlace(place)` search with another filter, or without it. */
  constructor(setValue, setPlace) {
    Object.assign(this, { setValue, setPlace });
    this.root = h("div", { class: "search-filters", hidden: true });
    /** Of which stream and columns the controls are. */
    this.key = null;
  }

  /** Shows what is filtered by, then the values that may be chosen. */
  async show(asked, signal) {
    const [{ count }, all, at] = await Promise.all([declaration(), columns(), coordinates()]);
    if (signal.aborted) return;
    const names = [...new Set([count?.type, ...(count?.by ?? [])].filter(Boolean))];
    this.asked = asked;
    this.build(names, at !== null);
    this.showPlace();
    for (const name of names) this.list(name);
    if (performance.now() - this.readAt < MAX_AGE_MS) return;
    for (const name of names) {
      const column = all.find((of) => of.name === name) ?? { name };
      const rows = await frequentValues(column, { limit: MAX_VALUES, signal });
      if (signal.aborted) return;
      this.fields.get(name).values = rows.map(({ value }) => value);
      this.list(name);
    }
    this.readAt = performance.now();
  }

  /** Controls stay while they are of the same columns, so that a focus does. */
  build(names, hasPlaces) {
    const key = JSON.stringify([stream, names, hasPlaces]);
    if (key === this.key) return;
    this.key = key;
    this.readAt = -Infinity;
    const field = (name) => ({
      element: select(name, [], "", (text) => this.setValue(name, text ? parse(text) : undefined), {
        "data-test": `filter-${name}`,
      }),
      values: [],
    });
    this.fields = new Map(names.map((name) => [name, field(name)]));
    this.near = hasPlaces && this.nearInput();
    const onchange = (value) => this.chooseDistance(Number(value));
    this.within = hasPlaces && select("Distance", [], "", onchange, { "data-test": "search-within" });
    show(this.root, [...this.fields.values()].map(({ element }) => element), this.near, this.within);
    this.root.hidden = this.root.childElementCount === 0;
  }

  /** Offers the values of a column, with those that are filtered by. */
  list(name) {
    const { element, values } = this.fields.get(name);
    const chosen = this.asked.where.filter(([column]) => column === name).map(([, value]) => value);
    const texts = [...values, ...chosen].map((value) => JSON.stringify(value ?? null));
    const options = [...new Set(texts)].map((text) => [text, String(parse(text) ?? "(none)")]);
    offer(element, [["", `Any ${name}`], ...options], texts[values.length] ?? "");
  }

  nearInput() {
    return h("input", {
      type: "text",
      class: "near",
      "aria-label": "Near: latitude, longitude",
      placeholder: "Near latitude, longitude",
      autocomplete: "off",
      "data-test": "search-near",
      oninput: () => this.near.setCustomValidity(""),
      onchange: () => this.choosePlace(),
    });
  }

  showPlace() {
    if (!this.near) return;
    const { place } = this.asked;
    // Not while the reader is writing it.
    if (this.near !== document.activeElement) {
      this.near.value = place ? `${place.lat.toFixed(4)}, ${place.lon.toFixed(4)}` : "";
      this.near.setCustomValidity("");
    }
    const km = place?.km ?? (Number(this.within.value) || DEFAULT_KM);
    offer(this.within, radiusOptions(km), String(km));
  }

  chooseDistance(km) {
    const { place } = this.asked;
    if (place) this.setPlace({ ...place, km });
  }

  choosePlace() {
    const text = this.near.value.trim();
    const at = readCoordinates(text);
    const problem = text && !at ? "Write latitude and longitude, for example 40.7, -74.0." : "";
    this.near.setCustomValidity(problem);
    if (this.near.reportValidity()) this.setPlace(at && { ...at, km: Number(this.within.value) });
  }
}
