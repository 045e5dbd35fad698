// The pipeline: how records flow, what halts and what to do; dead letters; configuration; resources.

import { get, poll } from "./api.js";
import { configurationTab } from "./configuration.js";
import { deadLettersTab } from "./deadletters.js";
import { errorBox, h, show } from "./dom.js";
import { flowTab } from "./flow.js";
import { readMetrics } from "./metrics.js";
import { resourcesTab } from "./resources.js";

const EVERY_MS = 2000;
const TABS = [
  ["flow", "Flow", flowTab],
  ["dead-letters", "Dead letters", deadLettersTab],
  ["configuration", "Configuration", configurationTab],
  ["resources", "Memory and disk", resourcesTab],
];

let tabs;
let problem;
let body;
let stop = null;
let shown = null;
const built = new Map();

export function mount(root) {
  tabs = h(
    "nav",
    { class: "tabs", "aria-label": "Parts of the pipeline" },
    TABS.map(([name, text]) =>
      h(
        "a",
        {
          href: name === "flow" ? "#/pipeline" : `#/pipeline/${name}`,
          "data-tab": name,
          "data-test": `tab-${name}`,
        },
        text,
      ),
    ),
  );
  problem = h("div");
  body = h("div");
  show(root, h("div", { class: "section-head" }, h("h1", {}, "Pipeline"), tabs), problem, body);
}

export function enter([asked]) {
  leave();
  const [name, , create] = TABS.find(([tab]) => tab === asked) ?? TABS[0];
  for (const tab of tabs.children) {
    if (tab.dataset.tab === name) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  if (!built.has(name)) built.set(name, create());
  shown = built.get(name);
  show(problem);
  show(body, shown.root);
  if (shown.refresh) stop = poll(EVERY_MS, refresh);
  shown.enter?.();
}

export function leave() {
  stop?.();
  stop = null;
}

async function refresh(signal) {
  const tab = shown;
  try {
    const [status, metrics, ready] = await Promise.all([get("/api/v1/status"), readMetrics(), readiness()]);
    if (signal.aborted) return;
    await tab.refresh({ status, metrics, ready });
    if (!signal.aborted) show(problem);
  } catch (error) {
    // What is shown stays, and so does the first error, which is then read out once.
    const again = () => enter([TABS.find(([name]) => built.get(name) === tab)[0]]);
    if (!signal.aborted && !problem.firstChild) show(problem, errorBox(error, again));
  }
}

/** Why the process is not ready, if it is not. */
async function readiness() {
  try {
    return { isReady: true, ...(await get("/readyz")) };
  } catch (error) {
    if (error.status !== 503) throw error;
    return { isReady: false, reason: error.message };
  }
}
