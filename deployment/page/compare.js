// Compare: one prompt, two models, the same seed and settings; which words differ, and which answer is better.

import { h, iconButton } from "./dom.js";
import { wordDiff } from "./diff.js";
import { history } from "./jsonl.js";
import { Reply, promptBubble } from "./reply.js";
import { loadChats } from "./store.js";
import { inWords, tally } from "./tally.js";
import { View, isAnswered, messages, newRecord } from "./view.js";

/** @typedef {import("./store.js").Comparison} Comparison */
/** @typedef {import("./store.js").Choice} Choice */

const BLIND_NAMES = ["Answer A", "Answer B"];

/** @typedef {{replies: Reply[], below: HTMLElement}} Round */

/** @extends {View<Comparison>} */
export class Compare extends View {
  /** @param {import("./main.js").App} app */
  constructor(app) {
    super(app, newRecord("compare", ""));
  }

  /** @param {Comparison} record */
  show(record) {
    this.clear(record);
    record.turns.forEach((turn, place) => {
      const round = this.#addRound(
        place,
        turn.answers.map((answer) => answer?.model ?? "no answer"),
      );
      turn.answers.forEach((answer, side) => answer && round.replies[side].show(answer));
      this.#finish(round, place);
    });
  }

  /** @param {string} prompt */
  async send(prompt) {
    const replaced = this.makeRoom();
    const { blind, left, right } = this.app.settings;
    const models = blind && crypto.getRandomValues(new Uint8Array(1))[0] % 2 ? [right, left] : [left, right];
    this.record.turns.push({ prompt, blind, answers: [null, null] });
    if (!replaced) this.app.save(this.record);
    const place = this.record.turns.length - 1;
    await this.#answer(this.#addRound(place, models), place, models, replaced);
  }

  /** @param {number} place @param {string[]} models @returns {Round} */
  #addRound(place, models) {
    const { prompt, blind, vote } = this.record.turns[place];
    const hidden = blind && !vote;
    const replies = models.map((model, side) => new Reply(this.app, hidden ? BLIND_NAMES[side] : model));
    if (!hidden) replies.forEach((reply, side) => reply.setModel(models[side]));
    const edit = iconButton("edit", "Edit and send again", () => this.app.startEdit(this.edit(place)));
    const below = h("div", { class: "verdict" });
    const columns = h("div", { class: "columns" }, ...replies.map((reply) => reply.element));
    this.app.log.append(h("div", { class: "turn" }, promptBubble(prompt, edit), columns, below));
    this.app.follow(true);
    return { replies, below };
  }

  /** What `model` sees before its answer number `place`. @param {number} place @param {string} model */
  #messages(place, model) {
    return messages(this.record, history(this.record, model, place), this.record.turns[place].prompt);
  }

  /**
   * @param {Round} round
   * @param {number} place
   * @param {string[]} models
   * @param {import("./view.js").Replaced | null} replaced
   */
  async #answer(round, place, models, replaced) {
    const { record, app } = this;
    const turn = record.turns[place];
    const seed = app.seed();
    this.running = new AbortController();
    const { signal } = this.running;
    const ask = (/** @type {string} */ model) => ({
      model,
      messages: this.#messages(place, model),
      seed,
      signal,
    });
    const done = await Promise.all(models.map((model, side) => round.replies[side].stream(ask(model))));
    this.running = null;
    turn.answers = done.map(({ answer }) => answer);
    const back = isAnswered(turn) ? null : replaced;
    if (back) Object.assign(record, back.record, { id: record.id });
    app.save(record);
    if (this.record !== record) return; // another one was opened meanwhile
    if (back) done.forEach(({ answer }, side) => answer && round.replies[side].showFacts(answer));
    else this.#finish(round, place);
    done.forEach(({ error }, side) => error && round.replies[side].showError(error, this.remedies));
    if (back) this.bringBack(back, turn.prompt, round.replies);
  }

  /** Show what may be shown: of a blind round without a vote, not who is who. @param {Round} round @param {number} place */
  #finish({ replies, below }, place) {
    const { answers, blind, vote } = this.record.turns[place];
    const both = answers.every((answer) => answer?.content.trim());
    const again = h(
      "button",
      { type: "button", class: "plain regenerate", onclick: () => this.again() },
      "Regenerate both",
    );
    this.app.log.querySelectorAll(".regenerate").forEach((/** @type {Element} */ button) => button.remove());
    if (blind && !vote && both) {
      below.replaceChildren(this.#ballot({ replies, below }, place)); // speeds could tell who is who
      return;
    }
    answers.forEach((answer, side) => answer && this.#reveal(replies[side], answer, place));
    const last = place === this.record.turns.length - 1 ? [again] : [];
    if (!both) return below.replaceChildren(...last);
    const differences = this.#differences(
      replies,
      answers.map((answer) => answer?.content ?? ""),
    );
    differences.append(...last);
    below.replaceChildren(this.#ballot({ replies, below }, place), differences, this.#score(place));
  }

  /** @param {Reply} reply @param {import("./store.js").Answer} answer @param {number} place */
  #reveal(reply, answer, place) {
    reply.setModel(answer.model);
    reply.showFacts(answer);
    if (!reply.buttons.childElementCount) reply.addButtons(this.#messages(place, answer.model), answer.model);
  }

  /** @param {Round} round @param {number} place */
  #ballot(round, place) {
    const turn = this.record.turns[place];
    const names = turn.blind && !turn.vote ? ["A", "B"] : turn.answers.map((answer) => answer?.model ?? "");
    const choice = (/** @type {Choice} */ value, /** @type {string} */ label) =>
      h(
        "button",
        {
          type: "button",
          class: "plain",
          "aria-pressed": String(turn.vote === value),
          onclick: () => this.#vote(round, place, value),
        },
        label,
      );
    return h(
      "div",
      { class: "ballot", role: "group", "aria-label": "Which answer is better?" },
      h("span", { class: "question" }, "Which is better?"),
      choice("left", names[0]),
      choice("tie", "Equally good"),
      choice("neither", "Neither"),
      choice("right", names[1]),
    );
  }

  /** @param {Round} round @param {number} place @param {Choice} value */
  #vote(round, place, value) {
    this.record.turns[place].vote = value;
    this.app.save(this.record);
    this.#finish(round, place);
    /** @type {HTMLElement | null} */ (round.below.querySelector("[aria-pressed=true]"))?.focus();
  }

  /** @param {Reply[]} replies @param {string[]} texts */
  #differences([left, right], texts) {
    const toggle = h(
      "button",
      { type: "button", class: "plain", "aria-pressed": "false" },
      "Show differences",
    );
    const said = h("span", { class: "share" });
    toggle.addEventListener("click", () => {
      const on = toggle.getAttribute("aria-pressed") === "false";
      toggle.setAttribute("aria-pressed", String(on));
      const found = on ? wordDiff(texts[0], texts[1]) : null;
      const share = found
        ? `${Math.round(100 * found.share)} % of the words are in both, in the same order.`
        : "These answers are too long to compare word by word.";
      said.textContent = on ? share : "";
      left.body.replaceChildren(found ? marked(found.left, "del") : left.markdown.element);
      right.body.replaceChildren(found ? marked(found.right, "ins") : right.markdown.element);
    });
    return h("div", { class: "differences" }, toggle, said);
  }

  /** What the votes on these two models say so far. @param {number} place */
  #score(place) {
    const { answers, blind, vote } = this.record.turns[place];
    const names = answers
      .map((answer) => answer?.model ?? "")
      .sort((a, b) => Number(a === "base") - Number(b === "base"));
    const words = vote
      ? inWords(tally(loadChats(), names[0], names[1], blind), names[0], names[1], blind)
      : "";
    return h("p", { class: "tally", role: "status" }, words);
  }
}

/** @param {import("./diff.js").Part[]} parts @param {"del" | "ins"} tag what stands in this text only */
const marked = (parts, tag) =>
  h(
    "div",
    { class: "plain-text", dir: "auto" },
    ...parts.flatMap(({ text, same }) => {
      const words = text.trimStart();
      return same ? [text] : [text.slice(0, text.length - words.length), h(tag, {}, words)];
    }),
  );
