// Elements of the page. Texts only ever become text nodes: nothing here parses markup.

/** Builds an element. `props` are attributes, `on…` listeners, and `text`. */
export function h(tag, props = {}, ...children) {
  const isSvg = ["svg", "path", "rect", "circle", "line", "g", "title", "polyline"].includes(tag);
  const element = isSvg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  append(element, children);
  return element;
}

/** Appends nodes and texts; lists are flattened, nothing is shown for null. */
export function append(parent, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    parent.append(child);
  }
}

/** Replaces all that an element shows. */
export function show(parent, ...children) {
  parent.replaceChildren();
  append(parent, children);
  return parent;
}

/** Sets a text only where it changes, so that selections and screen readers are left alone. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Makes the children of `parent` match `items`. Elements are reused by index, so that focus and
 * pointer stay where they are while numbers change.
 */
export function update(parent, items, create, change) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  items.forEach((item, at) => {
    if (!parent.children[at]) parent.append(create(item, at));
    change(parent.children[at], item, at);
  });
}

/** A button that looks like the text it shows, for values that filter. */
export const link = (text, onclick, props = {}) =>
  h("button", { type: "button", class: "link", onclick, ...props }, text);

export const button = (text, onclick, props = {}) =>
  h("button", { type: "button", class: "button", onclick, ...props }, text);

/** A labelled select; `options` are [value, text]. */
export function select(label, options, value, onchange, props = {}) {
  const element = h(
    "select",
    { "aria-label": label, onchange: () => onchange(element.value), ...props },
    options.map(([of, text]) => h("option", { value: of, selected: of === value }, text)),
  );
  element.value = value;
  return element;
}

/** What is shown where nothing is: a sentence, and what to do. */
export const empty = (title, hint) =>
  h("div", { class: "empty" }, h("p", { class: "empty-title" }, title), hint && h("p", {}, hint));

/** An error with what to do next, and a way to try again, which a server that is back does, too. */
export function errorBox(error, retry) {
  const box = h(
    "div",
    { class: "error-box", role: "alert" },
    h("p", { class: "error-title" }, error.message),
    error.hint && h("p", {}, error.hint),
    retry && button("Try again", retry),
  );
  if (error.status === 0) box.resume = retry;
  return box;
}

/** Tries again what failed because the server did not answer, once for each alert. */
export function resume(alerts) {
  for (const alert of alerts) {
    const again = alert.resume;
    alert.resume = null;
    again?.();
  }
}

/** A panel: a titled box whose body its owner fills. */
export function panel(title, { id, place, meta, actions } = {}) {
  const body = h("div", { class: "panel-body" });
  const note = h("span", { class: "panel-meta" }, meta);
  const heading = h("h2", {}, title);
  const head = h("header", { class: "panel-head" }, heading, note, actions);
  const root = h("article", { class: `panel${place ? ` at-${place}` : ""}`, "data-panel": id }, head, body);
  return { root, body, meta: note, heading };
}
