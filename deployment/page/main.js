// The page: connects to a server, keeps the mode, and passes what the user does to the chat or the comparison.

import { ApiError, Server } from "./api.js";
import { Chat } from "./chat.js";
import { openChats } from "./chats.js";
import { Compare } from "./compare.js";
import { openDialog } from "./dialog.js";
import { byId, h, icon } from "./dom.js";
import { explain } from "./explain.js";
import { factsCard } from "./facts.js";
import { BUILT_IN, before, openGallery, question, sample } from "./gallery.js";
import { findEar, listen } from "./listen.js";
import { patiently } from "./patience.js";
import { openRaw } from "./raw.js";
import { actionButtons, note } from "./reply.js";
import { openSettings } from "./settings.js";
import { makeSpeaker } from "./speak.js";
import {
  loadChat,
  loadKey,
  loadSettings,
  loadTheme,
  saveChat,
  saveSettings,
  saveTheme,
  watchChats,
} from "./store.js";
import { newId, newRecord } from "./view.js";

/** @typedef {import("./store.js").Record} Record */

const text = byId("text");

export class App {
  constructor() {
    this.settings = loadSettings();
    this.log = byId("log");
    this.main = byId("main");
    /** @type {import("./api.js").Model[]} */
    this.models = [];
    /** @type {import("./gallery.js").Prompt[] | null | undefined} */
    this.heldOut = undefined;
    this.learned = false; // what the server can do is known
    this.learning = Promise.resolve();
    this.canTokenize = false;
    /** @type {import("./listen.js").Ear} */
    this.ear = { kind: "none", note: "" };
    /** @type {import("./listen.js").Listening | null} */
    this.listening = null;
    this.speaker = makeSpeaker(() => this.settings);
    if (this.speaker) this.speaker.onchange = () => this.#showStop();
    this.server = this.#newServer();
    this.busy = false;
    this.atEnd = true;
    /** @type {WeakSet<Record>} */
    this.deleted = new WeakSet(); // what still streams into one of these is not kept
    /** @type {Chat | Compare} */
    this.view = new Chat(this);
  }

  // ---- the server ----

  #newServer() {
    const url = this.settings.server || location.origin;
    return new Server(url, loadKey(url));
  }

  /** Ask the server who it is. @returns {Promise<string>} what came of it, in words */
  async connect() {
    this.connecting?.abort();
    const { signal } = (this.connecting = new AbortController());
    this.server = this.#newServer();
    this.models = [];
    this.problem = null;
    this.learned = false;
    this.heldOut = undefined;
    try {
      this.models = await patiently(() => this.server.models(signal), {
        signal,
        say: (words, clock) => this.say(words, clock),
        waiting: "Waking the server",
      });
    } catch (error) {
      if (signal.aborted) return "";
      this.problem = error instanceof ApiError ? error : new ApiError("offline");
    }
    this.#chooseModels();
    this.#showPickers();
    this.showWelcome();
    if (this.problem) return explain(this.problem, this.settings.server).title + ".";
    await (this.learning = this.#learn(signal));
    return `Connected: ${this.models.map(({ id }) => id).join(", ")}.`;
  }

  /** Whether there is a model to ask (else the server is asked again), and the chat is still open. */
  async ready() {
    if (this.models.length) return true;
    const { id } = this.view.record;
    const words = await this.connect();
    if (this.problem) this.say(words);
    return this.models.length > 0 && this.view.record.id === id;
  }

  /** What else the server can do. @param {AbortSignal} signal */
  async #learn(signal) {
    const [heldOut, canTokenize, ear] = await Promise.all([
      this.server.gallery(),
      this.server.canTokenize(this.models[0].id),
      findEar(this.server),
    ]);
    if (signal.aborted) return;
    Object.assign(this, { heldOut, canTokenize, learned: true });
    this.#useEar(ear);
    this.showWelcome();
    if (byId("dialog").matches(".gallery[open]")) this.openGallery();
  }

  #chooseModels() {
    const ids = this.models.map(({ id }) => id);
    if (!ids.length) return; // those that were chosen may come back
    const tuned =
      ids.find((id) => id === "tuned") ?? this.models.find(({ parent }) => parent)?.id ?? ids[0] ?? "";
    const known = (/** @type {string} */ id, /** @type {string} */ otherwise) =>
      ids.includes(id) ? id : otherwise;
    this.settings.model = known(this.settings.model, tuned);
    const right = known(this.settings.right, tuned);
    const others = ids.filter((id) => id !== right); // a model is not compared with itself
    this.settings.left = others.includes(this.settings.left) ? this.settings.left : (others[0] ?? right);
    this.settings.right = right;
  }

  // ---- what the views need ----

  /** The settings that the user made; the others are the server's. */
  sampling() {
    const set = /** @type {const} */ (["temperature", "top_p", "max_tokens"]).filter(
      (name) => this.settings[name] !== "",
    );
    return Object.fromEntries(set.map((name) => [name, Number(this.settings[name])]));
  }

  /** The seed of the next answer: the user's, else a new one, so that every answer can be had again. */
  seed() {
    return this.settings.seed === ""
      ? crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000
      : Number(this.settings.seed);
  }

  /** @param {string} words on the status line @param {string} [clock] behind them; a screen reader leaves it out */
  say(words, clock = "") {
    const [said, ticking] = byId("status").children;
    if (said.textContent !== words) said.textContent = words;
    ticking.textContent = clock;
  }

  /** Keep the end in view, unless the user has scrolled away. @param {boolean} [always] */
  follow(always = false) {
    this.atEnd ||= always;
    if (this.atEnd) this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  /** What scrolls: the conversation, or on a very low screen the whole page. */
  get scroller() {
    return getComputedStyle(this.main).overflowY === "visible" ? document.documentElement : this.main;
  }

  /** @param {Record} record */
  save(record) {
    this.#hideWelcome();
    if (!this.deleted.has(record) && !saveChat(record))
      this.say("The browser has no room left for this chat. Export and delete some chats.");
  }

  /** @param {boolean} on */
  working(on) {
    this.busy = on;
    const [send, stop] = [byId("send"), byId("stop")];
    const focus = document.activeElement;
    const pressed = on && this.log.contains(focus); // a button that goes with its turn, such as Regenerate
    const focused = focus === send || focus === stop || pressed;
    send.hidden = on;
    this.#showStop();
    if (focused) (on ? stop : send).focus();
  }

  #showStop() {
    byId("stop").hidden = !this.busy && !this.speaker?.current;
  }

  /** @param {string} prompt */
  async send(prompt) {
    this.speaker?.stop();
    this.listening?.cancel();
    this.working(true);
    this.say("");
    byId("composer").classList.remove("editing");
    try {
      await this.view.send(prompt);
    } finally {
      this.working(false);
    }
  }

  /** @param {string} prompt */
  startEdit(prompt) {
    if (!prompt) return;
    text.value = prompt;
    text.focus();
    text.setSelectionRange(prompt.length, prompt.length);
    byId("composer").classList.add("editing");
    this.say("Editing. What followed this message will be replaced. Esc cancels.");
  }

  openRaw(/** @type {string} */ model, /** @type {import("./api.js").Message[]} */ messages) {
    openRaw(this.server, model, messages);
  }

  openSettings() {
    openSettings(this);
  }

  // ---- modes and chats ----

  startNew(mode = this.view.record.mode, given = /** @type {import("./api.js").Message[]} */ ([])) {
    this.view.stop();
    this.speaker?.stop();
    this.#setMode(mode);
    this.view.show(/** @type {any} */ (newRecord(mode, this.settings.system, given)));
    this.showWelcome();
    text.focus();
  }

  /** Show a chat as it is kept now; the one on the screen goes on. @param {string} id */
  openSaved(id) {
    if (this.view.record.id === id) return;
    const record = loadChat(id);
    if (!record) return this.say("Another tab has deleted this chat.");
    this.view.stop();
    this.speaker?.stop();
    this.#setMode(record.mode);
    this.view.show(/** @type {any} */ (record));
    this.showWelcome();
    this.follow(true);
  }

  /** Another tab saved or deleted a chat: show that, or part from it while an answer comes. @param {string} id */
  followTab(id) {
    const { view } = this;
    if (view.record.id !== id) return;
    const record = loadChat(id);
    if (!record) return this.forget(id);
    if (this.busy) {
      view.record.id = newId(); // both tabs' turns are kept
      return;
    }
    const { editing } = view;
    view.show(/** @type {any} */ (record));
    if (editing >= 0) view.edit(editing);
  }

  /** @param {string} id of a chat that was deleted */
  forget(id) {
    if (this.view.record.id !== id) return;
    this.deleted.add(this.view.record);
    this.startNew();
  }

  /** @param {"chat" | "compare"} mode */
  #setMode(mode) {
    if (this.view.record.mode !== mode) this.view = mode === "chat" ? new Chat(this) : new Compare(this);
    document.body.dataset.mode = mode;
    for (const button of byId("modes").children)
      button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
    byId("composer").classList.remove("editing");
    this.say("");
    this.#showPickers();
  }

  #showPickers() {
    const pick = (/** @type {"model" | "left" | "right"} */ name, /** @type {string} */ label) =>
      h(
        "select",
        {
          id: `pick-${name}`,
          class: "picker",
          "aria-label": label,
          onchange: (/** @type {any} */ event) => this.#pick(name, event.target.value),
        },
        ...this.models.map(({ id }) => h("option", { value: id, selected: id === this.settings[name] }, id)),
      );
    const blind = h("input", {
      type: "checkbox",
      checked: this.settings.blind,
      id: "blind",
      onchange: (/** @type {any} */ event) => this.#pick("blind", event.target.checked),
    });
    const compare = this.view.record.mode === "compare";
    const shown = !this.models.length
      ? []
      : compare
        ? [
            pick("left", "First model"),
            pick("right", "Second model"),
            h("label", { class: "check", for: "blind" }, blind, "Blind"),
          ]
        : [pick("model", "Model")];
    byId("pickers").replaceChildren(...shown);
    const button = byId("modes").querySelector("[data-mode=compare]");
    button.disabled = this.models.length === 1;
    button.title = button.disabled ? "This server has one model; a comparison needs two." : "";
  }

  /** @param {"model" | "left" | "right" | "blind"} name @param {any} value */
  #pick(name, value) {
    const other = name === "left" ? "right" : "left";
    if (value === this.settings[other] && name !== "model")
      this.settings[other] = this.settings[/** @type {"left"} */ (name)];
    /** @type {any} */ (this.settings)[name] = value;
    saveSettings(this.settings);
    this.#showPickers();
    byId(name === "blind" ? "blind" : `pick-${name}`).focus();
  }

  // ---- the empty page ----

  #hideWelcome() {
    const { turns, given } = this.view.record;
    byId("welcome").hidden = turns.length > 0 || given.length > 0;
  }

  showWelcome() {
    const welcome = byId("welcome");
    this.#hideWelcome();
    const compare = this.view.record.mode === "compare";
    const title = h(
      "h2",
      { id: "welcome-title" },
      compare ? "What did the fine-tune change?" : "Talk to what you trained",
    );
    const lead = h(
      "p",
      { class: "lead" },
      compare
        ? "One prompt, two models, the same seed and settings."
        : "Ask anything. Compare shows the model it was before, beside it.",
    );
    welcome.replaceChildren(
      title,
      lead,
      ...(this.problem ? [this.#problemCard(this.problem)] : this.models.length ? this.#opening() : []),
    );
  }

  #opening() {
    const model = this.models.find(({ id }) => id === this.settings.model);
    const card = model?.finelab?.run ? factsCard(model) : null;
    if (!this.learned) return card ? [card] : [];
    const prompts = sample(this.heldOut ?? BUILT_IN, 4);
    const use = (/** @type {any} */ prompt) =>
      h(
        "li",
        {},
        h(
          "button",
          { type: "button", class: "suggestion", dir: "auto", onclick: () => this.#usePrompt(prompt) },
          question(prompt),
        ),
      );
    return [
      ...(card ? [card] : []),
      h("h3", { class: "dim" }, this.heldOut ? "It was never trained on these" : "To begin with"),
      h("ul", { class: "suggestions" }, ...prompts.map(use)),
    ];
  }

  /** @param {ApiError} problem */
  #problemCard(problem) {
    const { title, text: words, actions } = explain(problem, this.settings.server);
    const open = () => this.openSettings();
    return note(
      title,
      words,
      ...actionButtons(actions, { retry: () => this.connect(), settings: open, key: open }),
    );
  }

  /** @param {import("./gallery.js").Prompt} prompt */
  #usePrompt(prompt) {
    const given = before(prompt);
    if (given.length) this.startNew(this.view.record.mode, given);
    text.value = question(prompt);
    text.focus();
  }

  openGallery() {
    openGallery(this.heldOut, (prompt) => this.#usePrompt(prompt));
  }

  openFacts() {
    const cards = this.models.map(factsCard).filter((card) => card !== null);
    openDialog(
      "About this run",
      "",
      ...(cards.length ? cards : [h("p", {}, "This server says nothing about how its models were made.")]),
    );
  }

  // ---- the microphone ----

  /** @param {import("./listen.js").Ear} ear */
  #useEar(ear) {
    this.ear = ear;
    const button = byId("microphone");
    button.hidden = ear.kind === "none";
    button.title = ear.note;
    byId("no-microphone").textContent = ear.kind === "none" ? ear.note : "";
  }

  toggleMicrophone() {
    this.speaker?.stop();
    if (this.listening) return this.listening.stop();
    const before = text.value ? text.value.trimEnd() + " " : "";
    const button = byId("microphone");
    button.setAttribute("aria-pressed", "true");
    this.say(`Listening. ${this.ear.note}`);
    this.listening = listen(this.ear, this.server, {
      onText: (heard) => (text.value = before + heard.trim()),
      onWait: () => this.say("The server turns the sound into text."),
      onEnd: (problem) => {
        this.listening = null;
        button.setAttribute("aria-pressed", "false");
        this.say(problem);
        text.focus();
      },
    });
  }

  // ---- what the user does ----

  async submit() {
    if (!text.value.trim() || this.busy) return;
    if (!(await this.ready())) return; // the text stays in the box, and the page says what is wrong
    const prompt = text.value.trim(); // what was written while it connected, too
    if (!prompt || this.busy) return;
    text.value = "";
    await this.send(prompt);
  }

  /** End what runs: the answer, the voice, the microphone. */
  stop() {
    this.speaker?.stop();
    this.listening?.cancel();
    this.view.stop();
  }

  /** End what runs, and the editing of a message. */
  escape() {
    this.stop();
    if (this.view.editing < 0) return;
    this.view.cancelEdit();
    text.value = "";
    byId("composer").classList.remove("editing");
    this.say("");
  }

  toggleTheme() {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    saveTheme(document.documentElement.dataset.theme);
    showTheme();
  }
}

const isDark = () =>
  loadTheme() ? loadTheme() === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

function showTheme() {
  byId("toggle-theme").setAttribute("aria-pressed", String(isDark()));
  byId("toggle-theme").replaceChildren(icon(isDark() ? "sun" : "moon"));
}

/** @param {App} app */
function listenToKeys(app) {
  const touch = matchMedia("(pointer: coarse)").matches; // there Enter is a new line, and the button sends
  if (touch) text.enterKeyHint = "enter";
  text.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.isComposing || event.keyCode === 229) return; // an input method is at work
    if (event.key === "Enter" && !event.shiftKey && !touch) {
      event.preventDefault();
      app.submit();
    } else if (event.key === "ArrowUp" && !text.value && !app.busy) {
      event.preventDefault();
      app.startEdit(app.view.edit());
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || byId("dialog").open) return;
    if (event.key === "Escape") app.escape();
    if (event.ctrlKey && event.shiftKey && event.key.toLowerCase() === "o") {
      event.preventDefault();
      app.startNew();
    }
  });
}

/** @param {App} app */
function listenToButtons(app) {
  /** @type {[string, Parameters<typeof icon>[0], () => void][]} */
  const buttons = [
    ["open-history", "chats", () => openChats(app)],
    ["new-chat", "plus", () => app.startNew()],
    ["open-facts", "info", () => app.openFacts()],
    ["toggle-theme", "moon", () => app.toggleTheme()],
    ["open-settings", "settings", () => app.openSettings()],
    ["microphone", "microphone", () => app.toggleMicrophone()],
    ["stop", "stop", () => app.stop()],
  ];
  for (const [id, glyph, action] of buttons) {
    byId(id).append(icon(glyph));
    byId(id).addEventListener("click", action);
    byId(id).title ||= byId(id).getAttribute("aria-label");
  }
  byId("send").append(icon("send"));
  byId("open-gallery").addEventListener("click", () => app.openGallery());
  byId("modes").addEventListener(
    "click",
    (/** @type {any} */ event) => event.target.dataset.mode && app.startNew(event.target.dataset.mode),
  );
  byId("composer").addEventListener(
    "submit",
    (/** @type {Event} */ event) => (event.preventDefault(), app.submit()),
  );
  document.addEventListener(
    "scroll",
    () => {
      const { scrollHeight, scrollTop, clientHeight } = app.scroller;
      app.atEnd = scrollHeight - scrollTop - clientHeight < 60;
    },
    { passive: true, capture: true },
  );
}

const app = new App();
listenToButtons(app);
listenToKeys(app);
watchChats((id) => app.followTab(id));
showTheme();
app.showWelcome();
app.connect();
text.focus();
