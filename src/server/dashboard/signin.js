// The dialog that asks for a token when the server answers 401.

import { button, h } from "./dom.js";

let open = null;

/** Resolves with the token that the reader enters. Requests that wait share one dialog. */
export function askForToken(wasRefused) {
  open ??= new Promise((resolve) => {
    const input = h("input", {
      type: "password",
      id: "token",
      name: "token",
      autocomplete: "off",
      required: true,
      "data-test": "token",
      "aria-describedby": "token-hint",
    });
    const dialog = h(
      "dialog",
      { class: "dialog", id: "sign-in", "aria-labelledby": "sign-in-title" },
      h(
        "form",
        { method: "dialog" },
        h("h2", { id: "sign-in-title" }, "Sign in"),
        wasRefused &&
          h("p", { class: "error-title", role: "alert" }, "The server does not accept this token."),
        h("label", { for: "token" }, "Token"),
        input,
        h(
          "p",
          { id: "token-hint", class: "muted" },
          "This server needs a token. ",
          h("code", {}, "weir token create"),
          " creates one. It is stored until this tab is closed.",
        ),
        h(
          "div",
          { class: "dialog-actions" },
          button("Sign in", null, { type: "submit", class: "button primary", "data-test": "sign-in" }),
        ),
      ),
    );
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => {
      dialog.remove();
      open = null;
      resolve(input.value.trim());
    });
    document.body.append(dialog);
    dialog.showModal();
  });
  return open;
}
