// Settings: the server, how answers are drawn, the voice.

import { cleanAddress } from "./api.js";
import { openDialog } from "./dialog.js";
import { h } from "./dom.js";
import { loadKey, saveKey, saveSettings } from "./store.js";
import { voices } from "./speak.js";

/** @param {import("./main.js").App} app */
export function openSettings(app) {
  const { settings } = app;
  const recipe = app.models.find((model) => model.id === settings.model)?.finelab?.recipe ?? {};
  const keep = (/** @type {string} */ name) => (/** @type {any} */ event) => {
    const { type, checked, value, validity, validationMessage } = event.target;
    event.target.parentElement.querySelector(".wrong")?.replaceChildren(validationMessage);
    if (!validity.valid) return;
    /** @type {any} */ (settings)[name] = type === "checkbox" ? checked : value.trim();
    saveSettings(settings);
  };
  const number = (
    /** @type {string} */ name,
    /** @type {Record<string, any>} */ range,
    /** @type {string} */ placeholder,
  ) => {
    const input = h("input", {
      type: "number",
      id: name,
      value: /** @type {any} */ (settings)[name],
      placeholder,
      oninput: keep(name),
      ...range,
    });
    const box = field(name.replace("_", " "), input);
    box.append(h("small", { class: "wrong", role: "status" }));
    return box;
  };
  const reset = () => {
    Object.assign(settings, { system: "", temperature: "", top_p: "", max_tokens: "", seed: "" });
    saveSettings(settings);
    openSettings(app);
  };
  openDialog(
    "Settings",
    "",
    server(app),
    h("h3", {}, "Answers"),
    field(
      "system prompt",
      h("textarea", {
        id: "system",
        rows: 2,
        value: settings.system,
        oninput: keep("system"),
        placeholder: "none",
      }),
      "For the next new chat.",
    ),
    h(
      "div",
      { class: "grid" },
      number("temperature", { min: 0, max: 2, step: "any" }, recipe.temperature ?? "the server's"),
      number("top_p", { min: 0.01, max: 1, step: "any" }, "1"),
      number("max_tokens", { min: 1, step: 1 }, "what fits"),
      number("seed", { min: 0, max: 2 ** 31 - 1, step: 1 }, "random"),
    ),
    h(
      "div",
      { class: "actions" },
      h("button", { type: "button", class: "plain", onclick: reset }, "Reset answers"),
    ),
    h("h3", {}, "Voice"),
    ...(app.speaker ? voice(app, keep) : [h("p", { class: "dim" }, "This browser cannot speak.")]),
    h("p", { class: "dim" }, app.ear.note),
  );
}

/** @param {import("./main.js").App} app */
function server(app) {
  let typed = false; // a key; until then the field holds the one that is known for the address
  const key = h("input", {
    type: "password",
    id: "key",
    value: app.server.key,
    autocomplete: "off",
    oninput: () => (typed = true),
  });
  const address = h("input", {
    type: "text",
    id: "server",
    value: app.settings.server,
    placeholder: location.origin,
    inputMode: "url",
    autocomplete: "off",
    spellcheck: false,
    oninput: () => {
      if (!typed) key.value = loadKey(written() ?? "");
    },
  });
  /** The address in its field, this page's own where it is empty; null while it is none. */
  const written = () => {
    try {
      return address.value.trim() ? cleanAddress(address.value.trim()) : location.origin;
    } catch {
      return null;
    }
  };
  const said = h("p", { class: "dim", role: "status" });
  const connect = async (/** @type {Event} */ event) => {
    event.preventDefault();
    const url = written();
    if (!url) {
      said.textContent = `${address.value} is no address; expected one such as https://example.org`;
      return;
    }
    app.settings.server = address.value.trim() && url;
    saveSettings(app.settings);
    saveKey(url, key.value.trim());
    typed = false;
    said.textContent = "Connecting.";
    said.textContent = await app.connect();
  };
  return h(
    "form",
    { onsubmit: connect },
    h("h3", {}, "Server"),
    field("address", address, "Your prompts and the key go there, and nowhere else."),
    field("key", key, "Kept in this tab only."),
    h("div", { class: "actions" }, h("button", { class: "plain", type: "submit" }, "Connect")),
    said,
  );
}

/** @param {import("./main.js").App} app @param {(name: string) => (event: any) => void} keep */
function voice(app, keep) {
  const { settings } = app;
  const select = h("select", { id: "voice", onchange: keep("voice") });
  const fill = () => {
    const found = voices(navigator.language);
    const options = found.map((each) =>
      h(
        "option",
        { value: each.name, selected: each.name === settings.voice },
        each.name + (each.localService ? "" : " (online: the text leaves this computer)"),
      ),
    );
    select.replaceChildren(...(options.length ? options : [h("option", { value: "" }, "No voices yet")]));
  };
  fill();
  speechSynthesis.addEventListener("voiceschanged", fill);
  const rate = h("input", {
    type: "range",
    id: "rate",
    min: 0.5,
    max: 2,
    step: 0.1,
    value: settings.rate,
    oninput: keep("rate"),
  });
  const aloud = h("input", {
    type: "checkbox",
    id: "aloud",
    checked: settings.aloud,
    onchange: keep("aloud"),
  });
  const test = () => app.speaker?.read("This is how I sound.");
  return [
    h("label", { class: "check", for: "aloud" }, aloud, "Read replies aloud as they come"),
    h("div", { class: "grid" }, field("voice", select), field("rate", rate)),
    h("div", { class: "actions" }, h("button", { type: "button", class: "plain", onclick: test }, "Hear it")),
  ];
}

/** @param {string} label @param {any} input @param {string} [hint] */
function field(label, input, hint) {
  if (hint) input.setAttribute("aria-describedby", `${input.id}-hint`);
  return h(
    "div",
    { class: "field" },
    h("label", { for: input.id }, label),
    input,
    hint && h("small", { id: `${input.id}-hint` }, hint),
  );
}
