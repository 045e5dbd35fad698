// Charts by plotly.js, which is loaded when the first one is shown, in the colours of the page.

import { h, show } from "./dom.js";

let loading = null;

function plotly() {
  loading ??= new Promise((resolve, reject) => {
    const script = h("script", { src: "/assets/plotly.js" });
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => {
      loading = null;
      script.remove();
      reject(new Error("The charts' script could not be loaded."));
    };
    document.head.append(script);
  });
  return loading;
}

const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;" };

/** A value for plotly, which takes <a>, <b> and the like in texts for markup. */
export const plain = (value) =>
  typeof value === "string" ? value.replace(/[&<>]/g, (sign) => ESCAPES[sign]) : value;

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Colours of series, in order; readable on both backgrounds and by the colour-blind. */
export const palette = () => [1, 2, 3, 4, 5, 6, 7, 8].map((n) => css(`--series-${n}`));

function layout(more, width) {
  const axis = {
    gridcolor: css("--line"),
    linecolor: css("--line"),
    zerolinecolor: css("--line"),
    tickfont: { color: css("--muted") },
    automargin: true,
    fixedrange: true,
  };
  const { xaxis, yaxis, ...rest } = more;
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    colorway: palette(),
    font: { family: css("--font"), size: 12, color: css("--text") },
    margin: { l: 48, r: 12, t: 8, b: 32 },
    hovermode: "x unified",
    // Names are not cut, which would be in the middle of an escaped sign.
    hoverlabel: {
      bgcolor: css("--panel"),
      bordercolor: css("--line"),
      font: { color: css("--text") },
      namelength: -1,
    },
    legend: { orientation: "h", y: 1.12, x: 0, font: { color: css("--muted") } },
    xaxis: { ...axis, nticks: Math.max(3, Math.floor(width / 90)), ...xaxis },
    yaxis: { ...axis, rangemode: "tozero", ...yaxis },
    ...rest,
  };
}

const CONFIG = { displayModeBar: false };

/** Charts follow the size of their elements. */
const resized = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    if (target.redraw && contentRect.width > 0) window.Plotly?.Plots.resize(target);
  }
});

/** Draws or updates a chart in an element. */
export async function draw(element, label, traces, more = {}) {
  const library = await plotly();
  if (!element.isConnected) return;
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", label);
  element.redraw = () => library.react(element, traces, layout(more, element.clientWidth), CONFIG);
  await element.redraw();
  if (element.redraw) resized.observe(element);
}

/** Removes a chart with its listeners. */
export function clear(element) {
  if (window.Plotly && element.redraw) window.Plotly.purge(element);
  element.redraw = null;
  resized.unobserve(element);
  show(element);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const element of document.querySelectorAll(".chart")) element.redraw?.();
});
