// Prometheus metrics as `{name: [{labels, value}]}`, and rates between two readings.

import { send } from "./api.js";

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /([a-zA-Z_]\w*)="((?:\\.|[^"\\])*)"/g;
const ESCAPES = { "\\n": "\n", "\\\\": "\\", '\\"': '"' };

export function parse(text) {
  const out = {};
  for (const line of text.split("\n")) {
    const found = line.startsWith("#") ? null : LINE.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, name, value] of (found[2] ?? "").matchAll(LABEL)) {
      labels[name] = value.replace(/\\[n\\"]/g, (escape) => ESCAPES[escape]);
    }
    (out[found[1]] ??= []).push({ labels, value: Number(found[3]) });
  }
  return out;
}

export const readMetrics = async () => parse(await (await send("/metrics")).text());

/** The value of the series with these labels; null if it does not exist. */
export function value(metrics, name, labels = {}) {
  const isIt = ({ labels: own }) => Object.entries(labels).every(([label, of]) => own[label] === of);
  return metrics[name]?.find(isIt)?.value ?? null;
}

/** Remembers counters, to give their rates per second over the last readings. */
export class Rates {
  constructor() {
    this.readings = new Map();
  }

  /** The rate of a counter, from its value now; null at first. */
  of(key, now, at = performance.now()) {
    if (now === null) return null;
    const list = this.readings.get(key) ?? [];
    list.push({ at, now });
    while (list.length > 5) list.shift();
    this.readings.set(key, list);
    const [first] = list;
    // A server that was started again counts from the beginning.
    if (first.now > now) {
      this.readings.set(key, [{ at, now }]);
      return null;
    }
    return list.length > 1 ? ((now - first.now) * 1000) / (at - first.at) : null;
  }
}
