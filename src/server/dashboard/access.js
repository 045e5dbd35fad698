// What the server says of itself and of this reader: whether it answers, since when it runs, and
// whether the token may change anything.

import { connection, get, isSignedIn, poll, setConnection, signOut } from "./api.js";
import { h } from "./dom.js";
import { forget } from "./history.js";

const BEAT_MS = 5000;
/** A server that is asked whether it answers has so long for it. */
const TIMEOUT_MS = 15_000;
/** For so long a page may take to be loaded again. */
const LEAVE_MS = 20_000;

/** Announces "restart", of the server, and "change", of what the token may do. */
export const access = new EventTarget();
let startedAt = null;
let isReadOnly = false;

/** Whether the token may only read; false until the server has said so. */
export const readOnly = () => isReadOnly;

function note({ started_at, may_write }) {
  const isRestarted = startedAt !== null && started_at !== startedAt;
  startedAt = started_at;
  if (isReadOnly !== (may_write === false)) {
    isReadOnly = may_write === false;
    refreshControls();
    access.dispatchEvent(new Event("change"));
  }
  if (isRestarted) access.dispatchEvent(new Event("restart"));
}

/** Asks the server; a request that is not answered shows as the state of the connection. */
async function ask() {
  try {
    note(await get("/api/v1/status", { timeout: TIMEOUT_MS }));
  } catch (error) {
    if (error.status === undefined) console.error(error);
  }
}

let asking = null;

/** Asks now, unless it is asking. */
function beat() {
  asking ??= ask().finally(() => {
    asking = null;
  });
  return asking;
}

const isHidden = () => document.visibilityState === "hidden";
let first = null;

/** Resolves once the server was asked for the first time. Sections that keep no connection of
 * their own learn by the same questions that the server is lost, or was restarted. */
export function asked() {
  first ??= beat().then(() => poll(BEAT_MS, beat, BEAT_MS));
  return first;
}

connection.addEventListener("change", ({ detail }) => first && detail === "live" && !isHidden() && beat());
connection.addEventListener("signin", beat);

// A hidden tab asks nothing; one that is shown again asks at once.
document.addEventListener("visibilitychange", () => {
  if (isHidden()) setConnection("paused");
  else beat();
});

const REASON = "This token is read-only. Sign out, and sign in with one that may write.";

/** A control that changes something: a read-only token disables it, and its title says why. */
export function writing(control) {
  control.dataset.title = control.title;
  setControl(control);
  return control;
}

function setControl(control) {
  const isRefused = "refused" in control.dataset;
  if (isReadOnly === isRefused) return;
  control.disabled = isReadOnly;
  control.title = isReadOnly ? REASON : control.dataset.title;
  if (isReadOnly) control.dataset.refused = "";
  else delete control.dataset.refused;
}

/** Applies what the token may do to the controls that are shown. */
export const refreshControls = () => document.querySelectorAll("[data-title]").forEach(setControl);

/** Statements may quote what the token has read. */
function forgetReader() {
  forget();
  signOut();
}

/** Leaves nothing of what the token has read: the page begins again, and asks for another. The
 * token goes last, as statements that run are ended with it; the reader may also decide to stay. */
function leave() {
  addEventListener("pagehide", forgetReader);
  location.reload();
  setTimeout(() => removeEventListener("pagehide", forgetReader), LEAVE_MS);
}

/** Opens what a plain link cannot, since it sends no token: text, in a tab of its own. */
async function openText(path, read) {
  const text = await read(path);
  const url = URL.createObjectURL(new Blob([text], { type: "text/plain; charset=utf-8" }));
  h("a", { href: url, target: "_blank", rel: "noopener" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Shows the controls of a reader who has signed in. `onerror(error, retry)` learns why a link
 * could not be opened. */
export function mountAccess({ signOutButton, links, onerror }) {
  const showSignedIn = () => {
    signOutButton.hidden = !isSignedIn();
  };
  signOutButton.addEventListener("click", leave);
  connection.addEventListener("signin", showSignedIn);
  showSignedIn();
  for (const { element, path, read } of links) {
    const open = () => openText(path, read).catch((error) => onerror(error, open));
    element.addEventListener("click", (event) => {
      if (!isSignedIn()) return;
      event.preventDefault();
      open();
    });
  }
}
