// Requests to the server: token, errors, and server-sent events read by `fetch`, since an
// EventSource cannot send a token.

import { askForToken } from "./signin.js";

const TOKEN = "weir.token";
/** Without a byte for so long, a stream is taken for dead: the server sends one every 15 s. */
const SILENCE_MS = 40_000;
/** How often a server that does not answer is asked whether it does. */
const PROBE_MS = 2000;

/** A request that failed: what is wrong, and what to do. */
export class ApiError extends Error {
  constructor(status, { code = "failed", message, hint = "" }) {
    super(message);
    Object.assign(this, { status, code, hint });
  }
}

/** Notifies listeners whether the server answers: "live", "lost", "paused" or "connecting"; and of
 * another token that it accepts. */
export const connection = new EventTarget();
let state = "connecting";
let stopProbing = null;

export function setConnection(next) {
  if (next === state) return;
  state = next;
  stopProbing?.();
  stopProbing = next === "lost" ? poll(PROBE_MS, probe, PROBE_MS) : null;
  connection.dispatchEvent(new CustomEvent("change", { detail: next }));
}

/** One loop asks for all that wait; once the server answers, the page tries again what failed. */
const probe = () =>
  fetch("/healthz", { cache: "no-store" }).then(
    (response) => response.ok && state === "lost" && setConnection("live"),
    () => {},
  );

/** The error of a server that does not answer, which is also shown as the state of the connection. */
export function lost() {
  setConnection("lost");
  return new ApiError(0, {
    code: "lost",
    message: "The server does not answer.",
    hint: "It may be restarting. The page continues once it answers; until then, see the log of weir run.",
  });
}

/** The error of a request or of the reading of its answer that was broken off. */
const broken = (error) => (error.name === "AbortError" ? error : lost());

export const isSignedIn = () => sessionStorage.getItem(TOKEN) !== null;
export const signOut = () => sessionStorage.removeItem(TOKEN);

async function errorOf(response) {
  const body = await response.json().catch(() => ({}));
  const error = body.error ?? { message: `The server answered ${response.status}.` };
  return new ApiError(response.status, error);
}

/**
 * A response; asks for a token when the server does, and then repeats the request. Without an
 * answer within `timeout`, in milliseconds and instead of a signal, the server is taken for lost.
 */
export async function send(path, { method = "GET", headers = {}, body, signal, keepalive, timeout } = {}) {
  for (let isNewToken = false; ; isNewToken = true) {
    const token = sessionStorage.getItem(TOKEN);
    const all = { ...headers };
    if (token) all.Authorization = `Bearer ${token}`;
    let response;
    try {
      const limit = timeout ? AbortSignal.timeout(timeout) : signal;
      const options = { method, headers: all, body, signal: limit, keepalive, cache: "no-store" };
      response = await fetch(path, options);
    } catch (error) {
      throw broken(error);
    }
    if (response.status === 401) {
      let given = await askForToken(token !== null);
      // With other characters no request would be sent at all.
      while (!/^[\x21-\x7e]+$/.test(given)) given = await askForToken(true);
      sessionStorage.setItem(TOKEN, given);
      continue;
    }
    if (isNewToken) connection.dispatchEvent(new Event("signin"));
    setConnection("live");
    if (!response.ok) throw await errorOf(response);
    return response;
  }
}

/** Whole numbers that a double cannot hold stay texts, where the browser says what was sent. */
const exactly = (_, value, context) =>
  typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value) && context?.source
    ? context.source
    : value;

export const parse = (text) => JSON.parse(text, exactly);

const read = async (response) => parse(await response.text().catch((error) => Promise.reject(broken(error))));

/** The bytes of an answer, for a file. */
export const blob = (response) => response.blob().catch((error) => Promise.reject(broken(error)));

export const get = async (path, options) => read(await send(path, options));

export async function post(path, body, options = {}) {
  const headers = { "Content-Type": "application/json", ...options.headers };
  return send(path, { method: "POST", ...options, headers, body: JSON.stringify(body) });
}

/** Rows of a statement: `{rows, as_of}`. */
export async function sql(statement, { id, signal } = {}) {
  return read(await post("/api/v1/sql", { sql: statement, format: "json", id }, { signal }));
}

export const identifier = (name) => `"${String(name).replaceAll('"', '""')}"`;
export const literal = (value) =>
  typeof value === "number" || typeof value === "boolean"
    ? String(value)
    : `'${String(value).replaceAll("'", "''")}'`;

/** A table's name, of which each part is quoted: `"s"."late"`. */
export const table = (name) => name.split(".").map(identifier).join(".");

export const sleep = (ms, signal) =>
  new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, ms);
    signal.addEventListener("abort", end);
  });

const isHidden = () => document.visibilityState === "hidden";

/** Waits until the tab is visible, or the signal ends it. */
export const visible = (signal) =>
  new Promise((resolve) => {
    const check = () => {
      if (isHidden() && !signal.aborted) return;
      document.removeEventListener("visibilitychange", check);
      signal.removeEventListener("abort", check);
      resolve();
    };
    document.addEventListener("visibilitychange", check);
    signal.addEventListener("abort", check);
    check();
  });

/** Calls `onevent(name, data)` for each event of a response until it ends. */
async function readEvents(response, onevent, alive) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    alive();
    rest = (rest + value).replaceAll("\r\n", "\n");
    let end;
    while ((end = rest.indexOf("\n\n")) >= 0) {
      const fields = { event: "message", data: [] };
      for (const line of rest.slice(0, end).split("\n")) {
        if (line.startsWith("event:")) fields.event = line.slice(6).trim();
        else if (line.startsWith("data:")) fields.data.push(line.slice(5).replace(/^ /, ""));
      }
      rest = rest.slice(end + 2);
      if (fields.data.length) onevent(fields.event, parse(fields.data.join("\n")));
    }
  }
}

/**
 * Follows a stream of events until the returned function is called. It reconnects by itself, and is
 * closed while the tab is hidden, which then costs nothing.
 */
export function follow(path, onevent, onerror) {
  const end = new AbortController();
  let current = null;
  const pause = () => isHidden() && current?.abort();
  document.addEventListener("visibilitychange", pause);
  (async () => {
    let wait = 250;
    while (!end.signal.aborted) {
      if (isHidden()) setConnection("paused");
      await visible(end.signal);
      if (end.signal.aborted) break;
      current = new AbortController();
      const stop = () => current.abort();
      end.signal.addEventListener("abort", stop, { once: true });
      let silence;
      let isAnswered = false;
      const alive = () => {
        clearTimeout(silence);
        silence = setTimeout(() => current.abort(), SILENCE_MS);
      };
      try {
        const response = await send(path, { signal: current.signal });
        alive();
        wait = 250;
        await readEvents(response, onevent, alive);
      } catch (error) {
        isAnswered = error instanceof ApiError && error.status >= 400;
        if (isAnswered) onerror(error);
      } finally {
        clearTimeout(silence);
        end.signal.removeEventListener("abort", stop);
      }
      if (end.signal.aborted) break;
      if (!isHidden() && !isAnswered) setConnection("lost");
      await sleep(wait, end.signal);
      wait = Math.min(wait * 2, 4000);
    }
    document.removeEventListener("visibilitychange", pause);
  })();
  return () => end.abort();
}

/**
 * Calls `work` now and then every `ms`, while the tab is visible, until the returned function is
 * called. The next call waits for the one before; the first waits for `first`.
 */
export function poll(ms, work, first = 0) {
  const end = new AbortController();
  (async () => {
    if (first) await sleep(first, end.signal);
    while (!end.signal.aborted) {
      if (!isHidden()) await work(end.signal);
      if (end.signal.aborted) break;
      await sleep(ms, end.signal);
    }
  })();
  return () => end.abort();
}
