// Distances on the earth, as conditions of SQL: the same that search and nearby venues compute.

/** Mean radius of the earth, as the server has it. */
const EARTH_RADIUS_KM = 6371.0088;
/** Degrees by which a square is larger than its circle, so that rounding excludes nothing. */
const MARGIN = 1e-6;

const radians = (degrees) => (degrees * Math.PI) / 180;
const degrees = (angle) => (angle * 180) / Math.PI;

/** The square of the sine of half the angle between two places (haversine). */
function haversine(from, to) {
  const half = (a, b) => Math.sin(radians(b - a) / 2) ** 2;
  const cosines = Math.cos(radians(from.lat)) * Math.cos(radians(to.lat));
  return half(from.lat, to.lat) + cosines * half(from.lon, to.lon);
}

/** The haversine of a distance; of one that goes round the earth, that of the other side. */
const reach = (km) => Math.sin(Math.min(km / EARTH_RADIUS_KM, Math.PI) / 2) ** 2;

/** Conditions that columns are in the square around a place: bounds of files decide them. */
export function square(lat, lon, { lat: middle, lon: centre, km }) {
  const angle = km / EARTH_RADIUS_KM;
  const north = degrees(angle) + MARGIN;
  const between = (column, low, high) => `${column} between ${low.toFixed(6)} and ${high.toFixed(6)}`;
  const inLatitude = between(lat, Math.max(-90, middle - north), Math.min(90, middle + north));
  // A circle around a pole has every longitude.
  if (Math.abs(middle) + north >= 90) return [inLatitude, between(lon, -180, 180)];
  const east = degrees(Math.asin(Math.min(1, Math.sin(angle) / Math.cos(radians(middle))))) + MARGIN;
  const [low, high] = [centre - east, centre + east];
  if (low >= -180 && high <= 180) return [inLatitude, between(lon, low, high)];
  // It crosses the date line.
  const [from, to] = low < -180 ? [low + 360, high] : [low, high - 360];
  return [inLatitude, `(${between(lon, from, 180)} or ${between(lon, -180, to)})`];
}

/** The condition that columns are within a distance of a place. Coordinates 0,0 are no place. */
export function circle(lat, lon, { lat: middle, lon: centre, km }) {
  const half = (column, value) => `power(sin(radians(${column} - (${value})) / 2.0), 2.0)`;
  const cosines = `cos(radians(${lat})) * ${Math.cos(radians(middle))}`;
  const within = `${half(lat, middle)} + ${cosines} * ${half(lon, centre)} <= ${reach(km)}`;
  const hasNowhere = haversine({ lat: middle, lon: centre }, { lat: 0, lon: 0 }) <= reach(km) + 1e-9;
  return hasNowhere ? `${within} and (${lat} <> 0 or ${lon} <> 0)` : within;
}
