// Prompts to start from: the run's held-out ones, which it was never trained on; else a few of ours.

import { openDialog } from "./dialog.js";
import { h } from "./dom.js";

/** @typedef {{source: string, messages: import("./api.js").Message[], reference?: string}} Prompt */

/** @type {Prompt[]} */
export const BUILT_IN = [
  ["explaining", "Explain LoRA to a friend who knows what a matrix is."],
  ["writing", "Write a short poem about a llama that learns."],
  ["code", "Write a Python function that counts the words of a text, and explain it."],
  ["formatting", "Compare tea and coffee in a table with three rows."],
].map(([source, content]) => ({ source, messages: [{ role: "user", content }] }));

/** The prompt's question: its last turn. @param {Prompt} prompt */
export const question = (prompt) => prompt.messages.at(-1)?.content ?? "";

/** The turns before it. @param {Prompt} prompt */
export const before = (prompt) => prompt.messages.slice(0, -1);

/** Some prompts of different kinds that stand for themselves. @param {Prompt[]} prompts @param {number} limit */
export function sample(prompts, limit) {
  const alone = prompts.filter((prompt) => prompt.messages.length === 1);
  const kinds = new Map((alone.length ? alone : prompts).map((prompt) => [prompt.source, prompt]));
  return [...kinds.values()].slice(0, limit);
}

/** What comes before the question, in short. @param {Prompt} prompt */
const context = (prompt) =>
  before(prompt).map(({ role, content }) =>
    h("small", { dir: "auto" }, h("bdi", { dir: "ltr" }, `${role}: `), content.slice(0, 120)),
  );

/**
 * @param {Prompt[] | null | undefined} heldOut null where the server has none, undefined where it has not said yet
 * @param {(prompt: Prompt) => void} choose
 */
export function openGallery(heldOut, choose) {
  const kinds = Map.groupBy(heldOut ?? BUILT_IN, (prompt) => prompt.source);
  const about = heldOut
    ? "Held-out prompts of this run: the fine-tune never saw them."
    : heldOut === null
      ? "This server has no held-out prompts, so these are the page's own."
      : "The server has not answered yet, so these are the page's own.";
  const dialog = openDialog(
    "Prompts",
    "gallery",
    h("p", { class: "dim" }, about),
    ...[...kinds].flatMap(([source, prompts]) => [
      h("h3", {}, source),
      h("ul", { class: "prompts" }, ...prompts.map((prompt) => h("li", {}, card(prompt)))),
    ]),
  );
  /** @param {Prompt} prompt */
  function card(prompt) {
    const pick = () => (dialog.close(), choose(prompt));
    return h(
      "div",
      { class: "choice" },
      h(
        "button",
        { type: "button", onclick: pick },
        ...context(prompt),
        h("span", { dir: "auto" }, question(prompt)),
      ),
      prompt.reference &&
        h(
          "details",
          {},
          h("summary", {}, "The data set's answer"),
          h("p", { dir: "auto" }, prompt.reference),
        ),
    );
  }
}
