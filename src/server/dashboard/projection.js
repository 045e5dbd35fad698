// Mercator: degrees to the unit square and back, and the view of it that a canvas shows.

const MAX_LAT = 85;
const RADIANS = Math.PI / 180;
const EARTH_M = 6_371_008;

export const toUnit = (lat, lon) => {
  const clamped = Math.max(-MAX_LAT, Math.min(MAX_LAT, lat)) * RADIANS;
  return [lon / 360 + 0.5, 0.5 - Math.log(Math.tan(Math.PI / 4 + clamped / 2)) / (2 * Math.PI)];
};

export const toDegrees = (x, y) => [
  (2 * Math.atan(Math.exp((0.5 - y) * 2 * Math.PI)) - Math.PI / 2) / RADIANS,
  (x - 0.5) * 360,
];

/** Great-circle distance in metres. */
export function distanceM(from, to) {
  const half = (angle) => Math.sin((angle * RADIANS) / 2) ** 2;
  const a =
    half(to.lat - from.lat) +
    Math.cos(from.lat * RADIANS) * Math.cos(to.lat * RADIANS) * half(to.lon - from.lon);
  return 2 * EARTH_M * Math.asin(Math.sqrt(a));
}

/** What part of the unit square a canvas shows: `scale` pixels are its whole width. */
export class View {
  constructor() {
    Object.assign(this, { width: 1, height: 1, scale: 1, x: 0.5, y: 0.42, isMoved: false });
  }

  /** The whole world in the given size, unless the reader has moved already. */
  resize(width, height) {
    Object.assign(this, { width, height });
    if (!this.isMoved) this.scale = Math.max(width, Math.min(height * 1.1, width * 1.6));
    this.clamp();
  }

  get minScale() {
    return Math.max(200, Math.min(this.width, this.height * 1.4));
  }

  clamp() {
    this.scale = Math.max(this.minScale, Math.min(this.scale, 4e7));
    const halfHeight = this.height / this.scale / 2;
    this.y = halfHeight > 0.5 ? 0.5 : Math.max(halfHeight, Math.min(1 - halfHeight, this.y));
    this.x -= Math.floor(this.x);
  }

  /** Pixels of a point of the unit square, on the copy of the world nearest to the middle. */
  pixel(x, y) {
    let east = x - this.x;
    east -= Math.round(east);
    return [this.width / 2 + east * this.scale, this.height / 2 + (y - this.y) * this.scale];
  }

  /** Degrees at a pixel. */
  degrees(px, py) {
    const x = this.x + (px - this.width / 2) / this.scale;
    return toDegrees(x - Math.floor(x), this.y + (py - this.height / 2) / this.scale);
  }

  pan(dx, dy) {
    this.isMoved = true;
    this.x -= dx / this.scale;
    this.y -= dy / this.scale;
    this.clamp();
  }

  /** Zooms so that what is at a pixel stays there. */
  zoom(factor, px = this.width / 2, py = this.height / 2) {
    this.isMoved = true;
    const before = this.scale;
    const scale = Math.max(this.minScale, Math.min(before * factor, 4e7));
    this.x += (px - this.width / 2) * (1 / before - 1 / scale);
    this.y += (py - this.height / 2) * (1 / before - 1 / scale);
    this.scale = scale;
    this.clamp();
  }

  /** Metres per pixel at a latitude. */
  metresPerPixel(lat) {
    return (2 * Math.PI * EARTH_M * Math.cos(lat * RADIANS)) / this.scale;
  }
}
