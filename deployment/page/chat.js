// Chat: one column, one model.

import { h, iconButton } from "./dom.js";
import { Reply, promptBubble, toggleButton } from "./reply.js";
import { View, isAnswered, messages, newRecord } from "./view.js";

/** @typedef {import("./store.js").Chat} ChatRecord */
/** @typedef {import("./view.js").Replaced} Replaced */

/** @extends {View<ChatRecord>} */
export class Chat extends View {
  /** @param {import("./main.js").App} app */
  constructor(app) {
    super(app, newRecord("chat", ""));
  }

  /** Turns at the beginning that no longer fit. */
  get skipped() {
    return this.record.skipped ?? 0;
  }

  /** @param {ChatRecord} record */
  show(record) {
    this.clear(record);
    record.turns.forEach((turn, place) => {
      const reply = this.#addTurn(place);
      if (turn.answer) {
        reply.show(turn.answer);
        this.#finish(reply, place);
      } else this.#offerAgain(reply);
    });
    this.#markSkipped();
  }

  /** @param {string} prompt */
  async send(prompt) {
    const replaced = this.makeRoom();
    this.record.turns.push({ prompt, answer: null });
    if (!replaced) this.app.save(this.record);
    await this.#answer(this.#addTurn(this.record.turns.length - 1), replaced);
  }

  /** @param {number} place @returns {Replaced} */
  cut(place) {
    const replaced = super.cut(place);
    this.record.skipped = Math.min(this.skipped, place);
    return replaced;
  }

  /** @param {number} place @returns {Reply} */
  #addTurn(place) {
    const turn = this.record.turns[place];
    const reply = new Reply(this.app, turn.answer?.model ?? this.app.settings.model);
    const edit = iconButton("edit", "Edit and send again", () => this.app.startEdit(this.edit(place)));
    this.app.log.querySelectorAll(".regenerate").forEach((/** @type {Element} */ button) => button.remove()); // the last turn's only
    this.app.log.append(h("div", { class: "turn" }, promptBubble(turn.prompt, edit), reply.element));
    this.app.follow(true);
    return reply;
  }

  /** What the model sees before its answer number `place`. @param {number} place */
  #messages(place) {
    const { turns } = this.record;
    return messages(this.record, turns.slice(this.skipped, place), turns[place].prompt);
  }

  /** Have the last turn answered. @param {Reply} reply @param {Replaced | null} replaced */
  async #answer(reply, replaced) {
    const { record, app } = this;
    const place = record.turns.length - 1;
    const turn = record.turns[place];
    const model = app.settings.model;
    const speak = app.settings.aloud ? app.speaker?.begin() : undefined;
    reply.setModel(model);
    this.running = new AbortController();
    const { signal } = this.running;
    const { answer, error } = await reply.stream({
      model,
      messages: this.#messages(place),
      seed: app.seed(),
      signal,
      onShow: (text, settled) => speak?.(text, settled, false),
    });
    if (!signal.aborted) speak?.(reply.markdown.text, reply.markdown.settled, true);
    this.running = null;
    turn.answer = answer;
    const back = isAnswered(turn) ? null : replaced;
    if (back) Object.assign(record, back.record, { id: record.id });
    app.save(record);
    if (this.record !== record) return; // another chat was opened meanwhile
    if (!answer) this.#offerAgain(reply);
    else if (back) reply.showFacts(answer);
    else this.#finish(reply, place);
    const shorten = place > this.skipped ? { shorten: () => this.#shorten() } : {};
    if (error) reply.showError(error, { ...this.remedies, ...shorten });
    if (back) this.bringBack(back, turn.prompt, [reply]);
  }

  /** Leave out the oldest turn that is still sent, and try again. */
  #shorten() {
    if (this.app.busy) return;
    this.record.skipped = this.skipped + 1;
    this.#markSkipped();
    this.remedies.retry();
  }

  #markSkipped() {
    this.elements.forEach((turn, place) => turn.classList.toggle("unsent", place < this.skipped));
  }

  /** @param {Reply} reply @param {number} place */
  #finish(reply, place) {
    const turn = this.record.turns[place];
    if (!turn.answer) return;
    reply.setModel(turn.answer.model);
    reply.showFacts(turn.answer);
    reply.addButtons(this.#messages(place), turn.answer.model);
    const vote = (/** @type {"good" | "bad"} */ value) => {
      turn.vote = turn.vote === value ? undefined : value;
      good.setAttribute("aria-pressed", String(turn.vote === "good"));
      bad.setAttribute("aria-pressed", String(turn.vote === "bad"));
      this.app.save(this.record);
    };
    const good = toggleButton("good", "Good answer", turn.vote === "good", () => vote("good"));
    const bad = toggleButton("bad", "Bad answer", turn.vote === "bad", () => vote("bad"));
    reply.buttons.append(good, bad);
    if (place === this.record.turns.length - 1) this.#offerAgain(reply);
  }

  /** @param {Reply} reply */
  #offerAgain(reply) {
    const again = iconButton("again", "Regenerate", () => this.again());
    again.classList.add("regenerate");
    reply.buttons.querySelector(".regenerate")?.remove();
    reply.buttons.prepend(again);
  }
}
