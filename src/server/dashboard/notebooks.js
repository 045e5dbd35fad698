// Notebooks on the server: list, read, save with a version check, delete.

import { get, send } from "./api.js";
import { button, h, setText } from "./dom.js";

export const listNotebooks = async () => (await get("/api/v1/notebooks")).notebooks;

const path = (name) => `/api/v1/notebooks/${encodeURIComponent(name)}`;

export const readNotebook = (name) => get(path(name));

/** Saves a notebook. `version` is the one that was read; 0 creates one without replacing any. */
export async function writeNotebook(name, { title, cells }, version) {
  const headers = { "Content-Type": "application/json", "If-Match": `"${version}"` };
  const response = await send(path(name), { method: "PUT", headers, body: JSON.stringify({ title, cells }) });
  return response.json();
}

export const removeNotebook = (name, version) =>
  send(path(name), { method: "DELETE", headers: version ? { "If-Match": `"${version}"` } : {} });

/** A name in the form that the server takes, from a title. */
export const nameOf = (title) =>
  title
    .normalize("NFKD")
    .toLowerCase()
    .replace(/[^a-z0-9_]+/g, "-")
    .replace(/^-+|-+$/g, "")
    .slice(0, 64);

/** Asks for a title and a name, and saves the cells; resolves with the name, or null. */
export function saveAsNotebook(cells, suggested = "") {
  return new Promise((resolve) => {
    const title = h("input", {
      id: "save-title",
      required: true,
      maxlength: 200,
      value: suggested,
      autocomplete: "off",
      "data-test": "save-title",
    });
    const name = h("input", {
      id: "save-name",
      required: true,
      maxlength: 64,
      pattern: "[a-z0-9_\\-]+",
      value: nameOf(suggested),
      autocomplete: "off",
      "data-test": "save-name",
    });
    const problem = h("p", { class: "error-title", role: "alert" });
    title.addEventListener("input", () => {
      if (!name.dataset.typed) name.value = nameOf(title.value);
    });
    name.addEventListener("input", () => {
      name.dataset.typed = "1";
    });
    let saved = null;
    const form = h(
      "form",
      {},
      h("h2", { id: "save-heading" }, "Save as notebook"),
      h("label", { for: "save-title" }, "Title"),
      title,
      h("label", { for: "save-name" }, "Name in its URL"),
      name,
      h("p", { class: "muted small" }, "Lower-case letters, digits, - and _."),
      problem,
      h(
        "div",
        { class: "dialog-actions" },
        button("Cancel", () => dialog.close()),
        button("Save", null, { type: "submit", class: "button primary", "data-test": "save-confirm" }),
      ),
    );
    const dialog = h("dialog", { class: "dialog", "aria-labelledby": "save-heading" }, form);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      try {
        await writeNotebook(name.value, { title: title.value, cells }, 0);
        saved = name.value;
        return dialog.close();
      } catch (error) {
        if (error.status === 412) {
          return setText(problem, `A notebook named ${name.value} exists. Choose another name.`);
        }
        return setText(problem, [error.message, error.hint].filter(Boolean).join(" "));
      }
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(saved);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
