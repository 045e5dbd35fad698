// Numbers, sizes and times as people read them. Times are local, with UTC on hover.

import { h } from "./dom.js";

const whole = new Intl.NumberFormat();
const short = new Intl.NumberFormat(undefined, { notation: "compact", maximumSignificantDigits: 3 });
const precise = new Intl.NumberFormat(undefined, { maximumFractionDigits: 6 });

export const number = (n) => (Number.isInteger(n) ? whole.format(n) : precise.format(n));

/** Numbers from a million on are shortened. */
export const compact = (n) => (Math.abs(n) >= 1e6 ? short.format(n) : whole.format(Math.round(n)));

export const percent = (part, whole) =>
  whole > 0 ? `${((100 * part) / whole).toFixed(part / whole < 0.1 ? 1 : 0)} %` : "";

export function rate(n) {
  if (n >= 100) return compact(n);
  return n >= 10 ? n.toFixed(1) : n.toFixed(2).replace(/\.?0+$/, "") || "0";
}

export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let at = 0;
  while (n >= 1024 && at < units.length - 1) {
    n /= 1024;
    at += 1;
  }
  return `${at === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)} ${units[at]}`;
}

/** A duration in milliseconds, in its largest unit or two. */
export function duration(ms) {
  const seconds = Math.max(0, ms / 1000);
  if (seconds < 1) return `${Math.round(ms)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

export const distance = (metres) =>
  metres < 1000 ? `${Math.round(metres)} m` : `${(metres / 1000).toFixed(metres < 10000 ? 1 : 0)} km`;

const pad = (n) => String(n).padStart(2, "0");

/** A time as this machine's clock shows it. */
export function localTime(date, withDate = true) {
  const day = `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())}`;
  const time = `${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`;
  return withDate ? `${day} ${time}` : time;
}

const isToday = (date) => date.toDateString() === new Date().toDateString();

/** Writes a time into an element: local, the day left out if it is today, UTC on hover. */
export function setTime(element, value) {
  const date = new Date(value);
  if (Number.isNaN(date.getTime())) {
    element.textContent = value ?? "–";
    return element;
  }
  const utc = date.toISOString();
  if (element.dateTime === utc) return element;
  element.dateTime = utc;
  element.title = `${utc.replace("T", " ").replace(".000Z", "Z").replace("Z", " UTC")}`;
  element.textContent = localTime(date, !isToday(date));
  return element;
}

export const time = (value) => setTime(h("time"), value);

const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/;

export const isTime = (value) => typeof value === "string" && TIME.test(value);

/** A value of a row as text. */
export function text(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "object") return JSON.stringify(value);
  return String(value);
}

/** A value of a row as a node; numbers are as they were stored, since many are identities. */
export function valueNode(value) {
  if (value === null || value === undefined) return h("span", { class: "null" }, "null");
  if (isTime(value)) return time(value);
  if (Array.isArray(value) && value.every((item) => typeof item === "string")) return value.join(", ");
  return text(value);
}
