// The configuration in force: settings with where each comes from, and declarations.

import { get } from "./api.js";
import { errorBox, h, show } from "./dom.js";
import { changed } from "./state.js";

export function configurationTab() {
  const root = h("div", { id: "configuration" }, h("p", { class: "loading" }, "Loading …"));
  const enter = async () => {
    try {
      build(root, await get("/api/v1/configuration"));
    } catch (error) {
      show(root, errorBox(error, enter));
    }
  };
  changed.addEventListener("server", () => root.isConnected && enter());
  return { root, enter };
}

function build(root, { settings = [], streams = {}, sources = [], sinks = [], windows = {}, tables = {} }) {
  const rows = settings.map(({ key, value, origin }) =>
    h(
      "tr",
      { "data-key": key },
      h("th", { scope: "row" }, h("code", {}, key)),
      h("td", { class: "wrap" }, plain(value)),
      h("td", { class: "muted" }, origin),
    ),
  );
  const count = h("span", { class: "panel-meta", role: "status" }, `${rows.length} settings`);
  const filter = h("input", {
    type: "search",
    placeholder: "Filter settings",
    "aria-label": "Filter settings",
    "data-test": "filter-settings",
    oninput: () => {
      const word = filter.value.toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(word);
      count.textContent = `${rows.filter((row) => !row.hidden).length} settings`;
    },
  });
  const named = (list) => Object.fromEntries(list.map((each, at) => [each.name ?? String(at + 1), each]));
  show(
    root,
    h(
      "div",
      { class: "columns-2" },
      h(
        "section",
        { class: "panel" },
        h("header", { class: "panel-head" }, h("h2", {}, "Settings"), count, filter),
        h(
          "div",
          { class: "table-wrap", tabindex: 0, role: "region", "aria-label": "Settings" },
          h(
            "table",
            { class: "data", "data-test": "settings" },
            h(
              "thead",
              {},
              h(
                "tr",
                {},
                ["Key", "Value", "From"].map((text) => h("th", { scope: "col" }, text)),
              ),
            ),
            h("tbody", {}, rows),
          ),
        ),
      ),
      h(
        "div",
        {},
        group("Streams", streams),
        group("Windows", windows),
        group("Entity tables", tables),
        group("Sources", Array.isArray(sources) ? named(sources) : sources),
        group("Sinks", Array.isArray(sinks) ? named(sinks) : sinks),
      ),
    ),
  );
}

const plain = (value) => (typeof value === "string" ? value : JSON.stringify(value));

function group(title, declarations) {
  const entries = Object.entries(declarations ?? {});
  if (entries.length === 0) return null;
  return h(
    "section",
    { class: "panel" },
    h(
      "header",
      { class: "panel-head" },
      h("h2", {}, title),
      h("span", { class: "panel-meta" }, String(entries.length)),
    ),
    h(
      "div",
      { class: "panel-body" },
      entries.map(([name, declared]) =>
        h(
          "details",
          { class: "declaration", open: entries.length === 1 },
          h("summary", {}, name),
          typeof declared === "string" ? h("pre", { class: "code" }, declared) : fields(declared),
        ),
      ),
    ),
  );
}

const fields = (declared) =>
  h(
    "dl",
    { class: "fields-list" },
    Object.entries(declared ?? {})
      .filter(([, value]) => value !== null)
      .map(([key, value]) =>
        h(
          "div",
          {},
          h("dt", {}, key),
          h(
            "dd",
            {},
            typeof value === "string" && value.length > 60
              ? h("pre", { class: "code", tabindex: 0, "aria-label": key }, value.trim())
              : h("code", {}, plain(value)),
          ),
        ),
      ),
  );
