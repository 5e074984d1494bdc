// What the model saw: the templated prompt and its tokens.

import { openDialog } from "./dialog.js";
import { h } from "./dom.js";

/** @param {import("./api.js").Server} server @param {string} model @param {import("./api.js").Message[]} messages */
export async function openRaw(server, model, messages) {
  const place = h("div", { "aria-live": "polite" }, "Asking the server.");
  openDialog(
    "What the model saw",
    "wide",
    h("p", { class: "dim" }, "The exact text before this answer, with the template's own tokens."),
    place,
  );
  try {
    const { count, tokens, token_strs: texts, prompt } = await server.tokenize(model, messages);
    place.replaceChildren(
      h(
        "pre",
        { class: "raw", tabIndex: 0, role: "region", "aria-label": "Prompt" },
        prompt ?? (texts ?? []).join(""),
      ),
      h("h3", {}, `${count} tokens`),
      h(
        "div",
        { class: "tokens", tabIndex: 0, role: "region", "aria-label": "Tokens" },
        ...tokens.map((/** @type {number} */ id, /** @type {number} */ place) =>
          h("span", { title: `id ${id}` }, readable(texts?.[place] ?? String(id))),
        ),
      ),
    );
  } catch (error) {
    place.replaceChildren(
      h("p", {}, `The server did not say: ${/** @type {Error} */ (error).message || "no answer"}`),
    );
  }
}

/** A token as it is read: byte-level vocabularies write a blank as Ġ and an end of line as Ċ. @param {string} text */
const readable = (text) =>
  text.replaceAll("Ġ", "␣").replaceAll("Ċ", "↵").replaceAll(" ", "␣").replaceAll("\n", "↵");
