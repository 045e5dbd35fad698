// Highlights of a search come as text in which `<b>` marks what matched and a few characters are
// escaped. They are taken apart here, and become text nodes and elements, never markup.

import { h } from "./dom.js";

const ESCAPED = {
  "&amp;": "&",
  "&lt;": "<",
  "&gt;": ">",
  "&quot;": '"',
  "&#x27;": "'",
  "&#39;": "'",
  "&#x2F;": "/",
};
const unescape = (text) => text.replace(/&(amp|lt|gt|quot|#x27|#39|#x2F);/g, (found) => ESCAPED[found]);

/** Nodes of a highlight. */
export function highlight(text) {
  return text
    .split(/(<b>[\s\S]*?<\/b>)/)
    .filter(Boolean)
    .map((part) => (part.startsWith("<b>") ? h("mark", {}, unescape(part.slice(3, -4))) : unescape(part)));
}
