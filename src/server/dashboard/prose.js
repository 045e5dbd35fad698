// Text of a notebook: headings, lists, `code`, **bold** and links, as elements. Nothing else is
// markup: every text becomes a text node.

import { h } from "./dom.js";

const INLINE = /(`[^`]+`)|(\*\*[^*]+\*\*)|(https?:\/\/[^\s<>"')]+)/g;

function inline(text) {
  const out = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    out.push(text.slice(at, match.index));
    const [found] = match;
    if (match[1]) out.push(h("code", {}, found.slice(1, -1)));
    else if (match[2]) out.push(h("strong", {}, found.slice(2, -2)));
    else out.push(h("a", { href: found, rel: "noreferrer noopener", target: "_blank" }, found));
    at = match.index + found.length;
  }
  return [...out, text.slice(at)].filter(Boolean);
}

/** Elements of a text. */
export function prose(text) {
  return text
    .split(/\n{2,}/)
    .filter((block) => block.trim())
    .map((block) => {
      const heading = /^(#{1,3}) +([^\n]+)$/.exec(block.trim());
      if (heading) return h(`h${heading[1].length + 1}`, {}, inline(heading[2]));
      const lines = block.trim().split("\n");
      if (lines.every((line) => /^[-*] /.test(line))) {
        return h(
          "ul",
          {},
          lines.map((line) => h("li", {}, inline(line.slice(2)))),
        );
      }
      return h(
        "p",
        {},
        lines.flatMap((line, at) => (at ? [h("br"), ...inline(line)] : inline(line))),
      );
    });
}
