"use strict";
const at = (id) => document.getElementById(id);
const ask = async (path) => (await fetch(path)).json();

function fill(table, rows) {
  table.replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    for (const cell of cells) {
      const data = row.appendChild(document.createElement("td"));
      data.textContent = cell ?? "";
      if (typeof cell === "number") data.className = "number";
    }
    return row;
  }));
}

async function refresh() {
  try {
    const status = await ask("/api/v1/status");
    const streams = Object.entries(status.streams);
    const lag = Math.max(0, ...status.views.map((v) => v.lag));
    at("state").textContent = `record ${status.synced_lsn} · greatest lag of a view ${lag} · ` +
      streams.map(([n, s]) => `${n}: ${s.events} events, ${s.late} late, watermark ${s.watermark ?? "none"}`).join(" · ");
    fill(at("counts"), streams.map(([n, s]) => [n, s.events, `${s.duplicates} duplicates`, `${s.dead_letters} dead letters`]));
    const near = await ask(`/api/v1/nearby?lat=${encodeURIComponent(at("lat").value)}&lon=${encodeURIComponent(at("lon").value)}&limit=8`);
    fill(at("nearby"), (near.venues ?? []).map((v) => [v.venue_name, `${(v.distance_m / 1000).toFixed(1)} km`, v.events.length ? v.events[0].event_id : ""]));
  } catch (error) {
    at("state").textContent = `no answer: ${error.message}`;
  }
}

const latest = [];
const source = new EventSource("/api/v1/live");
source.onmessage = (message) => {
  const row = JSON.parse(message.data);
  const own = Object.entries(row).filter(([k, v]) => typeof v === "string" && !["source", "event_time", "received_at", "photo"].includes(k) && !k.endsWith("_url"));
  latest.unshift([row.event_time, ...own.slice(0, 5).map(([, v]) => v)]);
  latest.length = Math.min(latest.length, 12);
  fill(at("latest"), latest);
};
refresh();
setInterval(refresh, 1000);
