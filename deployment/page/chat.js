// Chat: one column, one model.

import { h, iconButton } from "./dom.js";
import { Reply, promptBubble, toggleButton } from "./reply.js";
import { View, messages, newRecord } from "./view.js";

/** @typedef {import("./store.js").Chat} ChatRecord */

/** @extends {View<ChatRecord>} */
export class Chat extends View {
  /** @param {import("./main.js").App} app */
  constructor(app) {
    super(app, newRecord("chat", ""));
    this.skipped = 0; // turns at the beginning that no longer fit
  }

  /** @param {ChatRecord} record */
  show(record) {
    this.clear(record);
    this.skipped = 0;
    record.turns.forEach((turn, place) => {
      const reply = this.#addTurn(place);
      if (turn.answer) {
        reply.show(turn.answer);
        this.#finish(reply, place);
      } else this.#offerAgain(reply);
    });
  }

  /** @param {string} prompt */
  async send(prompt) {
    this.makeRoom();
    this.record.turns.push({ prompt, answer: null });
    this.app.save(this.record);
    await this.#answer(this.#addTurn(this.record.turns.length - 1));
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

  /** Have the last turn answered. @param {Reply} reply */
  async #answer(reply) {
    const { record, app } = this;
    const place = record.turns.length - 1;
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
    if (!signal.aborted) speak?.(reply.text, reply.markdown.settled, true);
    this.running = null;
    record.turns[place].answer = answer;
    app.save(record);
    if (this.record !== record) return; // another chat was opened meanwhile
    if (answer) this.#finish(reply, place);
    else this.#offerAgain(reply);
    if (!error) return;
    const shorten = place > this.skipped ? { shorten: () => this.#shorten(reply) } : {};
    reply.showError(error, { ...this.remedies, ...shorten });
  }

  /** Leave out the oldest turn that is still sent, and try again. @param {Reply} reply */
  async #shorten(reply) {
    this.skipped++;
    this.elements.forEach((turn, place) => turn.classList.toggle("unsent", place < this.skipped));
    reply.state.replaceChildren();
    this.app.working(true);
    try {
      await this.#answer(reply);
    } finally {
      this.app.working(false);
    }
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
