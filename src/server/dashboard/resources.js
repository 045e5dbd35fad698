// What memory and disk are used for.

import { sql } from "./api.js";
import { h, setText, show } from "./dom.js";
import { bytes, compact } from "./format.js";
import { value } from "./metrics.js";
import { meter } from "./spark.js";

const NAMES = {
  hot_rows: "rows not yet in files",
  ring: "recent output",
  operators: "operators",
  places: "places",
  counts: "counts",
};

/** How often the files of the lake are counted, which takes longer than the other numbers. */
const FILES_MS = 10_000;
const FILES =
  'select "table" as name, count(*) as files, sum("rows") as n, sum(bytes) as bytes from weir.files ' +
  "group by 1 order by 4 desc";

export function resourcesTab() {
  const memory = part("Memory", "memory-parts");
  const disk = part("Disk", "disk-parts");
  const tables = part("Files of the lake", "lake-files");
  const root = h("div", { class: "columns-3" }, memory.root, disk.root, tables.root);
  let files = [];
  let readAt = -Infinity;
  const refresh = async ({ metrics }) => {
    const limits = ["weir_memory_limit_bytes", "weir_disk_limit_bytes"].map((name) => value(metrics, name));
    const resident = value(metrics, "weir_memory_resident_bytes");
    parts(memory, metrics.weir_memory_bytes, limits[0], resident);
    parts(disk, metrics.weir_disk_bytes, limits[1], null);
    if (performance.now() - readAt > FILES_MS) {
      files = (await sql(FILES)).rows;
      readAt = performance.now();
    }
    setText(tables.total, bytes(files.reduce((sum, row) => sum + row.bytes, 0)));
    list(
      tables.list,
      files.map(({ name, files: number, n, bytes: size }) => ({
        name,
        size,
        note: `${compact(n)} rows, ${compact(number)} ${number === 1 ? "file" : "files"}`,
      })),
    );
  };
  return { root, refresh };
}

function part(title, id) {
  const sum = h("span", { class: "figure" });
  const ofLimit = h("div", { class: "of-limit" });
  const items = h("ol", { class: "bars" });
  const root = h(
    "section",
    { class: "panel", id },
    h("header", { class: "panel-head" }, h("h2", {}, title)),
    h("div", { class: "panel-body" }, h("p", { class: "figure-line" }, sum), ofLimit, items),
  );
  return { root, total: sum, ofLimit, list: items };
}

/** Series of a metric with the label `part`, beside their limit. What `whole` exceeds their sum by is a
 * part, too. */
function parts(element, series, limit, whole) {
  const all = (series ?? []).map(({ labels, value: size }) => ({
    name: NAMES[labels.part] ?? labels.part?.replaceAll("_", " "),
    size,
  }));
  const sum = all.reduce((before, { size }) => before + size, 0);
  if (whole > sum) all.push({ name: "everything else in the process", size: whole - sum });
  const used = Math.max(sum, whole ?? 0);
  setText(element.total, bytes(used));
  show(
    element.ofLimit,
    limit
      ? [
          meter(`${bytes(used)} of ${bytes(limit)}`, used, limit),
          h("span", { class: "muted" }, `of ${bytes(limit)}`),
        ]
      : h("span", { class: "muted" }, "no limit"),
  );
  const listed = all.filter(({ size }) => size > 0).sort((a, b) => b.size - a.size);
  list(element.list, listed);
}

function list(element, items) {
  const most = Math.max(1, ...items.map(({ size }) => size));
  show(
    element,
    items.map(({ name, size, note }) => {
      const bar = h("span", { class: "bar", "aria-hidden": "true" });
      bar.style.width = `${(100 * size) / most}%`;
      return h(
        "li",
        { class: "bar-row" },
        bar,
        h("span", { class: "bar-name", title: name }, name),
        note && h("span", { class: "bar-share" }, note),
        h("span", { class: "bar-n" }, bytes(size)),
      );
    }),
  );
}
