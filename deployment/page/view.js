// What chat and comparison share: a record of turns, one of which may be running or be edited.

import { h } from "./dom.js";

/** @typedef {import("./store.js").Record} Record */
/** @typedef {import("./store.js").Answer} Answer */

/**
 * @template {Record} T
 */
export class View {
  /** @param {import("./main.js").App} app @param {T} record */
  constructor(app, record) {
    this.app = app;
    this.record = record;
    /** @type {AbortController | null} */
    this.running = null;
    this.editing = -1; // the turn whose prompt is in the message box
  }

  /** Begin to show a record. @param {T} record */
  clear(record) {
    this.record = record;
    this.editing = -1;
    this.app.log.replaceChildren(...givenTurns(record));
  }

  /** End what runs; the server stops when the connection closes. */
  stop() {
    this.running?.abort();
  }

  get elements() {
    return [...this.app.log.querySelectorAll(".turn")];
  }

  /** Take a prompt back for editing; "" when there is none. @param {number} [place] the last one without */
  edit(place = this.record.turns.length - 1) {
    this.editing = place;
    this.elements.forEach((turn, each) => turn.classList.toggle("replaced", place >= 0 && each >= place));
    return this.record.turns[place]?.prompt ?? "";
  }

  cancelEdit() {
    this.editing = -1;
    this.elements.forEach((turn) => turn.classList.remove("replaced"));
  }

  /** Room for a new turn: without the one that was edited and what followed it. */
  makeRoom() {
    if (this.editing >= 0) this.cut(this.editing);
    if (!this.record.turns.length) this.record.system = this.app.settings.system;
  }

  /** Ask the last prompt again. */
  again() {
    if (this.app.busy) return;
    const place = this.record.turns.length - 1;
    const { prompt } = this.record.turns[place];
    this.cut(place);
    this.app.send(prompt);
  }

  /** Drop the turns from `place` on. @param {number} place */
  cut(place) {
    this.elements.slice(place).forEach((turn) => turn.remove());
    this.record.turns.length = place;
    this.editing = -1;
  }

  /** What the buttons of an error do. */
  get remedies() {
    const settings = () => this.app.openSettings();
    return { retry: () => this.again(), settings, key: settings, new: () => this.app.startNew() };
  }
}

/**
 * @param {"chat" | "compare"} mode
 * @param {string} system
 * @param {import("./api.js").Message[]} [given] turns that a prompt of the gallery brings along
 * @returns {any}
 */
export const newRecord = (mode, system, given = []) => ({
  id: newId(),
  created: Date.now(),
  mode,
  system,
  given,
  turns: [],
});

// Not randomUUID: a page on plain http, served to a phone in the same network, does not have it.
const newId = () => crypto.getRandomValues(new Uint32Array(4)).join("-");

/** What stands before the first turn. @param {{system: string, given: import("./api.js").Message[]}} record */
export const opening = ({ system, given }) =>
  given.length || !system ? given : [{ role: "system", content: system }];

/** What was given, above the first turn. @param {Record} record */
function givenTurns({ given }) {
  if (!given.length) return [];
  const shown = given.map(({ role, content }) => h("p", {}, h("strong", {}, `${role}: `), content));
  return [h("section", { class: "given", "aria-label": "Given before" }, ...shown)];
}

/**
 * What a model is sent: the user's system prompt, or the turns that were given with theirs.
 * @param {Record} record
 * @param {{prompt: string, answer: Answer | null}[]} before
 * @param {string} prompt
 * @returns {import("./api.js").Message[]}
 */
export function messages({ system, given }, before, prompt) {
  const turns = before.flatMap((turn) => [
    { role: "user", content: turn.prompt },
    ...(turn.answer?.content ? [{ role: "assistant", content: turn.answer.content }] : []),
  ]);
  return [...opening({ system, given }), ...turns, { role: "user", content: prompt }];
}
