// What chat and comparison share: a record of turns, one of which may be running or be edited.

import { byId, h } from "./dom.js";

/** @typedef {import("./store.js").Record} Record */
/** @typedef {import("./store.js").Answer} Answer */
/** @typedef {import("./reply.js").Reply} Reply */
/** @typedef {{record: Record, elements: Element[]}} Replaced the record as it was, and the turns that are cut */

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

  /**
   * Room for a new turn: without the one that was edited and what followed it.
   * @returns {Replaced | null} what comes back when nothing comes in its place; null where no answer is replaced
   */
  makeRoom() {
    const replaced = this.editing < 0 ? null : this.cut(this.editing);
    if (!this.record.turns.length) this.record.system = this.app.settings.system;
    return replaced?.record.turns.slice(this.record.turns.length).some(isAnswered) ? replaced : null;
  }

  /** Ask the last prompt again. */
  async again() {
    if (this.app.busy || !(await this.app.ready()) || this.app.busy) return;
    const { view } = this.app; // another one of the same chat, where it was left and opened again
    view.editing = view.record.turns.length - 1;
    this.app.send(view.record.turns[view.editing].prompt);
  }

  /** Take the turns from `place` on away. @param {number} place @returns {Replaced} */
  cut(place) {
    const { record } = this;
    const elements = this.elements.slice(place);
    elements.forEach((turn) => turn.remove());
    const before = /** @type {Record} */ ({ ...record, turns: [...record.turns] });
    record.turns.length = place;
    this.editing = -1;
    return { record: before, elements };
  }

  /**
   * Show what was replaced in place of the last turn, which stayed without an answer: with what was said about
   * that, and with the prompt in the message box if it was another.
   * @param {Replaced} replaced
   * @param {string} prompt
   * @param {Reply[]} replies
   */
  bringBack({ record, elements }, prompt, replies) {
    const place = record.turns.length - elements.length;
    const [last] = elements.slice(-1);
    last.querySelectorAll(".state").forEach((note) => note.remove());
    last.append(...replies.flatMap((reply) => [...reply.state.childNodes]));
    elements.forEach((turn) => turn.classList.remove("replaced"));
    this.elements.slice(place).forEach((turn) => turn.remove());
    this.app.log.append(...elements);
    this.app.follow();
    if (elements.length === 1 && record.turns[place].prompt === prompt) return;
    this.edit(place);
    this.app.startEdit([prompt, byId("text").value].filter(Boolean).join("\n\n"));
  }

  /** What the buttons of an error do. */
  get remedies() {
    const retry = () => (this.editing < 0 ? this.again() : this.app.submit());
    const settings = () => this.app.openSettings();
    return { retry, settings, key: settings, new: () => this.app.startNew() };
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
export const newId = () => crypto.getRandomValues(new Uint32Array(4)).join("-");

/** Whether a turn has something of an answer. @param {Record["turns"][number]} turn */
export const isAnswered = (turn) =>
  ("answers" in turn ? turn.answers : [turn.answer]).some((answer) => answer?.content.trim());

/** What stands before the first turn. @param {{system: string, given: import("./api.js").Message[]}} record */
export const opening = ({ system, given }) =>
  given.length || !system ? given : [{ role: "system", content: system }];

/** What was given, above the first turn. @param {Record} record */
function givenTurns({ given }) {
  if (!given.length) return [];
  const shown = given.map(({ role, content }) =>
    h("p", { dir: "auto" }, h("strong", { dir: "ltr" }, `${role}: `), content),
  );
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
