// The place filter as text: in parameters of a URL, as the API has them, and in words.

/** Distances that are offered, in kilometres. */
const RADII = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1000];

/** Options of a select of distances; one that a URL names is among them. */
export const radiusOptions = (km = RADII[0]) =>
  [...new Set([...RADII, km])].sort((a, b) => a - b).map((n) => [String(n), `${n} km`]);

/** Makes parameters state a place, or none. */
export function putPlace(query, place) {
  for (const name of ["near", "within"]) query.delete(name);
  if (!place) return;
  query.set("near", `${place.lat},${place.lon}`);
  query.set("within", `${place.km}km`);
}

/** The place that parameters state, or null. */
export function statedPlace(query) {
  const at = readCoordinates(query.get("near") ?? "");
  const [, n, unit] = /^(\d+(?:\.\d+)?)(km|m)$/.exec(query.get("within") ?? "") ?? [];
  const km = Number(n) / (unit === "m" ? 1000 : 1);
  return at && km > 0 ? { ...at, km } : null;
}

/** Latitude and longitude that a text states, or null. 0,0 means an unknown place. */
export function readCoordinates(text) {
  const parts = text.split(",").map((part) => (part.trim() ? Number(part) : NaN));
  const [lat, lon] = parts;
  const isPlace = parts.length === 2 && Math.abs(lat) <= 90 && Math.abs(lon) <= 180 && (lat || lon);
  return isPlace ? { lat, lon } : null;
}

export const isSamePlace = (a, b) => a?.lat === b?.lat && a?.lon === b?.lon && a?.km === b?.km;

export const around = ({ lat, lon }) => `around ${lat.toFixed(3)}, ${lon.toFixed(3)}`;
