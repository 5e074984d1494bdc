// One reply: it streams in, says how fast it came and how it ended, and offers what can be done with it.

import { ApiError } from "./api.js";
import { copyText } from "./copy.js";
import { h, icon, iconButton } from "./dom.js";
import { ENDINGS, explain } from "./explain.js";
import { LiveMarkdown } from "./markdown.js";
import { patiently } from "./patience.js";

/** @typedef {import("./store.js").Answer} Answer */
/** @typedef {import("./api.js").Event} Event */

const LONGEST = 400_000; // characters: a model that never ends would fill the memory
const RENDER_SHARE = 0.25; // of the time at most goes into rendering, however slow one rendering is

export class Reply {
  /**
   * @param {import("./main.js").App} app
   * @param {string} label the model's name, or "Answer A" while it is not to be known
   */
  constructor(app, label) {
    this.app = app;
    this.markdown = new LiveMarkdown();
    this.name = h("span", { class: "who" }, label);
    this.dots = h("span", { class: "dots", "aria-hidden": "true" }, h("i"), h("i"), h("i"));
    this.body = h("div", { class: "body" }, this.markdown.element);
    this.facts = h("p", { class: "facts" });
    this.buttons = h("div", { class: "buttons" });
    this.foot = h("div", { class: "foot" }, this.buttons, this.facts);
    this.state = h("div", {});
    this.element = h(
      "article",
      { class: "reply" },
      h("header", {}, this.name, this.dots),
      this.body,
      this.state,
      this.foot,
    );
    this.dots.hidden = true;
    this.text = "";
    this.frame = 0;
    this.nextRender = 0;
  }

  /**
   * Stream the answer in. Never throws: what went wrong is shown, and what arrived is kept.
   * @param {{model: string, messages: import("./api.js").Message[], seed: number, signal: AbortSignal,
   *   onShow?: (text: string, settled: number) => void}} ask
   * @returns {Promise<{answer: Answer | null, error: ApiError | null}>}
   */
  async stream({ model, messages, seed, signal, onShow }) {
    this.onShow = onShow;
    this.element.setAttribute("aria-busy", "true"); // a screen reader hears the whole, not every token
    this.dots.hidden = false;
    const began = performance.now();
    const clock = { first: 0, last: 0, chunks: 0, usage: 0 };
    let finish = "";
    let error = null;
    try {
      const body = { model, messages, seed, ...this.app.sampling() };
      finish = await this.#read(body, signal, clock);
    } catch (thrown) {
      error = signal.aborted
        ? null
        : thrown instanceof ApiError
          ? thrown
          : new ApiError("lost", String(thrown));
      finish = signal.aborted ? "stopped" : "lost";
    }
    if (["offline", "missing"].includes(error?.kind ?? "")) this.app.connect(); // it may serve others by now
    this.#render();
    this.dots.hidden = true;
    this.element.setAttribute("aria-busy", "false");
    if (error && !this.text) return { answer: null, error };
    const tokens = clock.usage || clock.chunks;
    const seconds = (clock.last - clock.first) / 1000;
    const answer = {
      model,
      content: this.text,
      finish,
      seed,
      tokens,
      first_s: clock.first ? (clock.first - began) / 1000 : 0,
      tokens_per_s: seconds > 0 ? (tokens - 1) / seconds : 0,
    };
    return { answer, error };
  }

  /**
   * @param {Record<string, unknown>} body
   * @param {AbortSignal} signal
   * @param {{first: number, last: number, chunks: number, usage: number}} clock
   * @returns {Promise<string>} how it ended
   */
  async #read(body, signal, clock) {
    const events = await patiently(
      async () => {
        const stream = this.app.server.chat(body, signal);
        return { first: await stream.next(), stream };
      },
      { signal, say: (text, clock) => this.app.say(text, clock), waiting: "Waiting for the first token" },
    );
    let finish = "";
    for (let each = events.first; !each.done; each = await events.stream.next()) {
      const { text, finish: ended, usage } = /** @type {Event} */ (each.value);
      if (ended) finish = ended;
      if (usage) clock.usage = usage.completion_tokens;
      if (!text) continue;
      clock.last = performance.now();
      clock.first ||= clock.last;
      clock.chunks++;
      this.text += text;
      if (this.text.length > LONGEST) {
        await events.stream.return(undefined);
        return "limit";
      }
      this.#schedule();
    }
    return finish;
  }

  /** Show the text at the next frame, or later when rendering has become slow. */
  #schedule() {
    if (this.frame) return;
    this.frame = requestAnimationFrame((now) => {
      this.frame = 0;
      if (now < this.nextRender) this.#schedule();
      else this.#render();
    });
  }

  #render() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    const began = performance.now();
    this.markdown.show(this.text);
    this.onShow?.(this.markdown.text, this.markdown.settled);
    this.app.follow();
    const now = performance.now();
    this.nextRender = now + (now - began) / RENDER_SHARE;
  }

  /** Say whose reply it is. @param {string} model */
  setModel(model) {
    this.name.textContent = model;
    this.element.dataset.model = model;
  }

  /** Show an answer from the past. @param {Answer} answer */
  show(answer) {
    this.text = answer.content;
    this.markdown.show(this.text);
  }

  /** What is known of an answer, under it. @param {Answer} answer */
  showFacts(answer) {
    const speed = answer.tokens_per_s ? [`${answer.tokens_per_s.toFixed(1)} tokens/s`] : [];
    const first = answer.first_s ? [`first token ${answer.first_s.toFixed(2)} s`] : [];
    const ending = ENDINGS[answer.finish] ?? answer.finish;
    const facts = [`${answer.tokens} tokens`, ...speed, ...first, ending, `seed ${answer.seed}`];
    this.facts.textContent = facts.filter(Boolean).join(" · ");
    if (!answer.content.trim() && answer.finish !== "stopped")
      this.showNote(
        "The model ended its answer at once.",
        "Nothing came but the end token. Try again, or ask in other words.",
      );
  }

  /** @param {string} title @param {string} text @param {...Node} actions */
  showNote(title, text, ...actions) {
    this.state.replaceChildren(note(title, text, ...actions));
  }

  /** @param {ApiError} error @param {{[name: string]: (() => void) | undefined}} actions what each of explain's actions does */
  showError(error, actions) {
    const { title, text, actions: names } = explain(error, this.app.server.url);
    this.showNote(title, text, ...actionButtons(names, actions));
  }

  /** Buttons every reply has. @param {import("./api.js").Message[]} seen what the model saw @param {string} model */
  addButtons(seen, model) {
    const copy = iconButton("copy", "Copy", () => copyText(this.text, copy));
    this.buttons.append(copy);
    if (this.app.speaker)
      this.buttons.append(iconButton("speak", "Read aloud", () => this.app.speaker?.read(this.text)));
    const raw = iconButton("raw", "What the model saw", () => this.app.openRaw(model, seen));
    const show = () => (raw.hidden = !this.app.canTokenize);
    show();
    this.app.learning.then(show); // a quick first answer may come before the server has said
    this.buttons.append(raw);
  }
}

/** @type {{[name: string]: string}} */
const LABELS = {
  retry: "Try again",
  settings: "Settings",
  new: "New chat",
  shorten: "Leave out the oldest turn and try again",
  key: "Enter the key",
};

/** @param {string[]} names @param {{[name: string]: (() => void) | undefined}} actions */
export const actionButtons = (names, actions) =>
  names
    .filter((name) => actions[name])
    .map((name) => h("button", { type: "button", class: "plain", onclick: actions[name] }, LABELS[name]));

/** @param {string} title @param {string} text @param {...Node} actions */
export const note = (title, text, ...actions) =>
  h(
    "div",
    { class: "state" },
    h("strong", {}, title),
    h("p", {}, text),
    h("div", { class: "actions" }, ...actions),
  );

/** The user's turn. @param {string} text @param {...Node} buttons */
export const promptBubble = (text, ...buttons) =>
  h(
    "article",
    { class: "prompt" },
    h("header", { class: "hidden" }, "You"),
    h("div", { class: "bubble", dir: "auto" }, text),
    h("div", { class: "buttons" }, ...buttons),
  );

/** A button that is on or off. @param {Parameters<typeof icon>[0]} glyph @param {string} label @param {boolean} on @param {() => void} onclick */
export const toggleButton = (glyph, label, on, onclick) =>
  h(
    "button",
    {
      type: "button",
      class: "icon small",
      "aria-label": label,
      title: label,
      "aria-pressed": String(on),
      onclick,
    },
    icon(glyph),
  );
