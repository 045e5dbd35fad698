// A map of the world on a canvas: land and borders, density where points are many, points where they
// are few. It can be dragged, zoomed with wheel, fingers or keys, and clicked.

import { poll } from "./api.js";
import { button, h } from "./dom.js";
import { number } from "./format.js";
import { toUnit, View } from "./projection.js";

/** Above so many points in view they are shown as density. */
const MAX_POINTS = 400;
const CELL = 9;
const ROUND_KM = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];
const HIT_PIXELS = 10;
/** Between copies of the world that are drawn side by side. */
const COPIES = [-1, 0, 1];

/** How often land and borders that could not be read are asked for again. */
const AGAIN_MS = 5000;

let world = null;

/** Land and borders as paths over the unit square; read once, and again if that failed. */
function outlines() {
  world ??= readOutlines().catch((error) => {
    world = null;
    throw error;
  });
  return world;
}

function readOutlines() {
  return fetch("/assets/world.json")
    .then((response) => {
      if (!response.ok) throw new Error(`world.json: status ${response.status}`);
      return response.json();
    })
    .then((data) => {
      const path = (lines, isClosed) => {
        const out = new Path2D();
        for (const line of lines) {
          let [lon, lat] = [0, 0];
          for (let at = 0; at < line.length; at += 2) {
            lon += line[at];
            lat += line[at + 1];
            const [x, y] = toUnit(lat / data.units_per_degree, lon / data.units_per_degree);
            if (at) out.lineTo(x, y);
            else out.moveTo(x, y);
          }
          if (isClosed) out.closePath();
        }
        return out;
      };
      return { land: path(data.land, true), borders: path(data.borders, false) };
    });
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const root of document.querySelectorAll(".world")) root.redraw?.();
});

export class WorldMap {
  /** `onclick({lat, lon, metresPerPixel, point})` is called for clicks and for Enter. */
  constructor({ label, onclick, onmove }) {
    this.view = new View();
    this.points = [];
    this.circle = null;
    this.onclick = onclick;
    this.onmove = onmove;
    const choice = onclick ? ", Enter chooses the middle" : "";
    this.canvas = h("canvas", {
      tabindex: 0,
      role: "application",
      "data-test": "map-canvas",
      "aria-label": `${label}. Arrow keys move, plus and minus zoom${choice}.`,
    });
    this.tip = h("div", { class: "map-tip", hidden: true });
    const zoom = (factor) => () => this.change(() => this.view.zoom(factor));
    this.root = h(
      "div",
      { class: "world" },
      this.canvas,
      this.tip,
      h(
        "div",
        { class: "map-buttons" },
        button("+", zoom(2), { "aria-label": "Zoom in" }),
        button("−", zoom(0.5), { "aria-label": "Zoom out" }),
        button("⌂", () => this.home(), { "aria-label": "Show the whole world" }),
      ),
      h("p", { class: "map-credit" }, "Natural Earth"),
    );
    this.listen();
    this.readWorld();
    new ResizeObserver(() => this.resize()).observe(this.root);
    this.root.redraw = () => this.draw();
  }

  /** Reads land and borders; until that succeeds, points are drawn without them. */
  readWorld() {
    const stop = poll(AGAIN_MS, async () => {
      try {
        this.paths = await outlines();
        this.draw();
        stop();
      } catch {
        if (!this.root.isConnected) stop();
      }
    });
  }

  /** `[{lat, lon, n, label}]`. */
  setPoints(points) {
    this.points = points.map((point) => ({ ...point, unit: toUnit(point.lat, point.lon) }));
    this.draw();
  }

  setCircle(circle) {
    this.circle = circle;
    this.draw();
  }

  home() {
    this.view.isMoved = false;
    Object.assign(this.view, { x: 0.5, y: 0.42 });
    this.change(() => this.view.resize(this.view.width, this.view.height));
  }

  /** Shows all points, as large as fits. */
  fit() {
    if (this.points.length === 0) return this.home();
    const xs = this.points.map(({ unit }) => unit[0]);
    const ys = this.points.map(({ unit }) => unit[1]);
    const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const scale =
      0.8 * Math.min(this.view.width / (right - left || 1e-6), this.view.height / (bottom - top || 1e-6));
    return this.change(() => {
      Object.assign(this.view, {
        x: (left + right) / 2,
        y: (top + bottom) / 2,
        scale: Math.min(scale, 1e6),
        isMoved: true,
      });
      this.view.clamp();
    });
  }

  /** Moves to a place, close enough that its circle is seen. */
  goTo({ lat, lon, km }) {
    const [x, y] = toUnit(lat, lon);
    const scale =
      (this.view.metresPerPixel(lat) * this.view.scale * Math.min(this.view.width, this.view.height)) /
      (km * 6000);
    this.change(() => {
      Object.assign(this.view, { x, y, scale: Math.max(this.view.scale, scale), isMoved: true });
      this.view.clamp();
    });
  }

  resize() {
    const { width, height } = this.root.getBoundingClientRect();
    if (width === 0 || height === 0) return;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.view.resize(width, height);
    this.draw();
  }

  change(work) {
    work();
    this.tip.hidden = true;
    this.draw();
    this.onmove?.();
  }

  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.paint());
  }

  paint() {
    const context = this.canvas.getContext("2d");
    const ratio = window.devicePixelRatio || 1;
    const { view } = this;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = css("--sea");
    context.fillRect(0, 0, view.width, view.height);
    if (this.paths) this.paintLand(context, ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (this.circle) this.paintCircle(context);
    const visible = this.visible();
    this.cells = null;
    if (visible.length > MAX_POINTS) this.paintDensity(context, visible);
    else this.paintPoints(context, visible);
    this.paintScale(context);
  }

  paintLand(context, ratio) {
    const { view } = this;
    for (const copy of COPIES) {
      const left = view.width / 2 + (copy - view.x) * view.scale;
      if (left > view.width || left + view.scale < 0) continue;
      context.setTransform(
        ratio * view.scale,
        0,
        0,
        ratio * view.scale,
        ratio * left,
        ratio * (view.height / 2 - view.y * view.scale),
      );
      context.fillStyle = css("--land");
      context.fill(this.paths.land, "evenodd");
      context.lineWidth = 0.6 / view.scale;
      context.strokeStyle = css("--coast");
      context.stroke(this.paths.land);
      context.strokeStyle = css("--border-land");
      context.stroke(this.paths.borders);
    }
  }

  /** Points on the canvas with their pixels. */
  visible() {
    const { view } = this;
    const out = [];
    for (const point of this.points) {
      const [x, y] = view.pixel(...point.unit);
      if (x > -20 && y > -20 && x < view.width + 20 && y < view.height + 20) out.push({ point, x, y });
    }
    return out;
  }

  paintDensity(context, visible) {
    const cells = new Map();
    for (const { point, x, y } of visible) {
      const row = Math.round(y / (CELL * 0.866));
      const column = Math.round(x / CELL - (row % 2) / 2);
      const key = `${column}/${row}`;
      const cell = cells.get(key) ?? {
        x: (column + (row % 2) / 2) * CELL,
        y: row * CELL * 0.866,
        n: 0,
        places: 0,
      };
      cell.n += point.n;
      cell.places += 1;
      cells.set(key, cell);
    }
    const most = Math.log1p(Math.max(1, ...[...cells.values()].map(({ n }) => n)));
    context.fillStyle = css("--accent");
    for (const cell of cells.values()) {
      const level = Math.log1p(cell.n) / most;
      context.globalAlpha = 0.3 + 0.7 * level;
      context.beginPath();
      context.arc(cell.x, cell.y, CELL * (0.26 + 0.24 * level), 0, 2 * Math.PI);
      context.fill();
    }
    context.globalAlpha = 1;
    this.cells = [...cells.values()];
  }

  paintPoints(context, visible) {
    const isClose = this.view.scale > 30_000 && visible.length < 60;
    context.lineWidth = 1;
    context.strokeStyle = css("--panel");
    context.font = `12px ${css("--font")}`;
    for (const { point, x, y } of visible) {
      context.beginPath();
      context.arc(x, y, this.radius(point), 0, 2 * Math.PI);
      context.globalAlpha = 0.85;
      context.fillStyle = css("--accent");
      context.fill();
      context.globalAlpha = 1;
      context.stroke();
      if (isClose && point.label) {
        context.fillStyle = css("--text");
        context.fillText(String(point.label).slice(0, 40), x + this.radius(point) + 4, y + 4);
      }
    }
  }

  radius(point) {
    return Math.min(12, 3 + Math.log2(1 + point.n));
  }

  paintCircle(context) {
    const { lat, lon, km } = this.circle;
    const [x, y] = this.view.pixel(...toUnit(lat, lon));
    context.beginPath();
    context.arc(x, y, Math.max(3, (km * 1000) / this.view.metresPerPixel(lat)), 0, 2 * Math.PI);
    context.fillStyle = css("--highlight-soft");
    context.fill();
    context.lineWidth = 2;
    context.strokeStyle = css("--highlight");
    context.stroke();
  }

  /** A bar of a round length, at the latitude of the middle; at world scale no length is true. */
  paintScale(context) {
    const { view } = this;
    if (view.scale < 4_000) return;
    const metres = view.metresPerPixel(view.degrees(view.width / 2, view.height / 2)[0]);
    const round = ROUND_KM.findLast((km) => (km * 1000) / metres <= 120) ?? ROUND_KM[0];
    const length = (round * 1000) / metres;
    const [x, y] = [12, view.height - 30];
    context.strokeStyle = css("--muted");
    context.lineWidth = 1.5;
    context.beginPath();
    context.moveTo(x, y - 5);
    context.lineTo(x, y);
    context.lineTo(x + length, y);
    context.lineTo(x + length, y - 5);
    context.stroke();
    context.fillStyle = css("--muted");
    context.font = `11px ${css("--font")}`;
    context.fillText(round < 1 ? `${round * 1000} m` : `${round} km`, x + 5, y - 5);
  }

  /** What is under a pixel: a point, or a cell of the density. */
  at(px, py) {
    if (this.cells) {
      const near = this.cells.find(({ x, y }) => Math.hypot(x - px, y - py) < CELL * 0.7);
      return near && { text: `${number(near.n)} in ${number(near.places)} places` };
    }
    let best = null;
    for (const { point, x, y } of this.visible()) {
      const away = Math.hypot(x - px, y - py) - this.radius(point);
      if (away < HIT_PIXELS / 2 && (!best || away < best.away)) best = { point, away };
    }
    return (
      best && {
        point: best.point,
        text: [best.point.label, number(best.point.n)].filter(Boolean).join(" · "),
      }
    );
  }

  showTip(px, py) {
    const found = this.at(px, py);
    this.tip.hidden = !found;
    this.canvas.style.cursor = found?.point ? "pointer" : "";
    if (!found) return;
    this.tip.textContent = found.text;
    this.tip.style.left = `${Math.min(px + 12, this.view.width - 180)}px`;
    this.tip.style.top = `${Math.max(4, py - 30)}px`;
  }

  choose(px, py) {
    const found = this.at(px, py);
    const [lat, lon] = found?.point ? [found.point.lat, found.point.lon] : this.view.degrees(px, py);
    this.onclick?.({ lat, lon, metresPerPixel: this.view.metresPerPixel(lat), point: found?.point });
  }

  listen() {
    const pointers = new Map();
    let moved = 0;
    const local = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const spread = () => {
      const [a, b] = [...pointers.values()];
      return Math.hypot(a[0] - b[0], a[1] - b[1]);
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      pointers.set(event.pointerId, local(event));
      this.canvas.setPointerCapture(event.pointerId);
      moved = 0;
    });
    this.canvas.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      const now = local(event);
      if (!before) return this.showTip(...now);
      const wide = pointers.size === 2 && spread();
      pointers.set(event.pointerId, now);
      moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
      if (wide) this.change(() => this.view.zoom(spread() / wide, ...now));
      else if (moved > 3) this.change(() => this.view.pan(now[0] - before[0], now[1] - before[1]));
      return null;
    });
    const release = (event) => pointers.delete(event.pointerId);
    this.canvas.addEventListener("pointerup", (event) => {
      if (pointers.size === 1 && moved <= 3) this.choose(...local(event));
      release(event);
    });
    this.canvas.addEventListener("pointercancel", release);
    this.canvas.addEventListener("pointerleave", () => {
      this.tip.hidden = true;
    });
    this.canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.change(() => this.view.zoom(2 ** (-event.deltaY / 300), ...local(event)));
      },
      { passive: false },
    );
    this.canvas.addEventListener("keydown", (event) => this.onkey(event));
  }

  onkey(event) {
    const step = 60;
    const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (moves[event.key]) this.change(() => this.view.pan(...moves[event.key]));
    else if (event.key === "+" || event.key === "=") this.change(() => this.view.zoom(1.6));
    else if (event.key === "-") this.change(() => this.view.zoom(1 / 1.6));
    else if (event.key === "Enter") this.choose(this.view.width / 2, this.view.height / 2);
    else return;
    event.preventDefault();
  }
}

/** A radius for a click: about 14 pixels, as a round number of kilometres. */
export function roundRadius(metresPerPixel) {
  const km = (14 * metresPerPixel) / 1000;
  return [1, 2, 5, 10, 25, 50, 100, 250, 500, 1000].find((round) => round >= km) ?? 1000;
}
