// What the browser keeps: settings and chats for good, keys until the tab is closed.

const PREFIX = "finelab.";
const CHAT = `${PREFIX}chat `;

/** A browser's storage, or a forgetful one where the browser forbids it. @param {() => Storage} open @returns {Storage} */
function storage(open) {
  try {
    return open();
  } catch {
    return Object.create({
      /** @this {any} @param {string} name */
      getItem(name) {
        return this[name] ?? null;
      },
      /** @this {any} @param {string} name @param {string} text */
      setItem(name, text) {
        this[name] = text;
      },
      /** @this {any} @param {string} name */
      removeItem(name) {
        delete this[name];
      },
    });
  }
}

const local = storage(() => localStorage);
const session = storage(() => sessionStorage);

/** @typedef {import("./api.js").Message} Message */

/**
 * @typedef {{server: string, system: string, temperature: string, top_p: string, max_tokens: string, seed: string,
 *   model: string, left: string, right: string, blind: boolean, aloud: boolean, voice: string, rate: string}} Settings
 * @typedef {{model: string, content: string, finish: string, seed: number, tokens: number, first_s: number,
 *   tokens_per_s: number}} Answer `finish`: "stop", "length", "stopped" by the user, "lost", "limit"
 * @typedef {"left" | "right" | "tie" | "neither"} Choice
 * @typedef {{id: string, created: number, mode: "chat", system: string, given: Message[],
 *   skipped?: number, turns: {prompt: string, answer: Answer | null, vote?: "good" | "bad"}[]}} Chat
 *   `skipped`: turns at the beginning that are no longer sent
 * @typedef {{id: string, created: number, mode: "compare", system: string, given: Message[],
 *   turns: {prompt: string, blind: boolean, answers: (Answer | null)[], vote?: Choice}[]}} Comparison
 * @typedef {Chat | Comparison} Record
 */

/** @type {Settings} */
export const DEFAULTS = {
  server: "",
  system: "",
  temperature: "",
  top_p: "",
  max_tokens: "",
  seed: "",
  model: "",
  left: "",
  right: "",
  blind: false,
  aloud: false,
  voice: "",
  rate: "1",
};

/** @returns {Settings} */
export const loadSettings = () => ({ ...DEFAULTS, ...read("settings", {}) });

/** @param {Settings} settings */
export const saveSettings = (settings) => write("settings", settings);

/** The key typed for this server: never another server's, and gone with the tab. @param {string} server */
export const loadKey = (server) => session.getItem(`${PREFIX}key ${server}`) ?? "";

/** @param {string} server @param {string} key */
export const saveKey = (server, key) => session.setItem(`${PREFIX}key ${server}`, key);

export const loadTheme = () => local.getItem(`${PREFIX}theme`) ?? "";

/** @param {string} theme */
export const saveTheme = (theme) => local.setItem(`${PREFIX}theme`, theme);

/** All chats, the newest first. @returns {Record[]} */
export function loadChats() {
  const names = Object.keys(local).filter((name) => name.startsWith(CHAT));
  const found = names.map((name) => loadChat(name.slice(CHAT.length))).filter((chat) => chat !== null);
  return found.sort((a, b) => b.created - a.created);
}

/** @param {string} id @returns {Record | null} */
export function loadChat(id) {
  const found = read(`chat ${id}`, null);
  return isRecord(found) ? found : null;
}

/** Be told the id of each chat that another tab saves or deletes. @param {(id: string) => void} tell */
export const watchChats = (tell) =>
  addEventListener("storage", ({ key }) => key?.startsWith(CHAT) && tell(key.slice(CHAT.length)));

/** @param {Record} chat @returns {boolean} false when the browser has no room left */
export const saveChat = (chat) => write(`chat ${chat.id}`, chat);

/** @param {string} id */
export const deleteChat = (id) => local.removeItem(`${PREFIX}chat ${id}`);

/** @param {any} value @returns {value is Record} */
export function isRecord(value) {
  const text = (/** @type {any} */ each) => typeof each === "string";
  const answer = (/** @type {any} */ each) =>
    each === null ||
    (text(each?.content) &&
      text(each.model) &&
      text(each.finish) &&
      [each.seed, each.tokens, each.first_s, each.tokens_per_s].every(Number.isFinite));
  return (
    ["chat", "compare"].includes(value?.mode) &&
    text(value.id) &&
    Number.isFinite(value.created) &&
    text(value.system) &&
    Array.isArray(value.given) &&
    value.given.every((/** @type {any} */ each) => text(each?.content) && text(each?.role)) &&
    Array.isArray(value.turns) &&
    Number.isInteger(value.skipped ?? 0) &&
    (value.skipped ?? 0) >= 0 &&
    value.turns.every(
      (/** @type {any} */ turn) =>
        text(turn?.prompt) &&
        (value.mode === "chat"
          ? answer(turn.answer)
          : turn.answers?.length === 2 && turn.answers.every(answer)),
    )
  );
}

/** @param {string} name @param {any} otherwise */
function read(name, otherwise) {
  try {
    return JSON.parse(local.getItem(PREFIX + name) ?? "null") ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** @param {string} name @param {unknown} value */
function write(name, value) {
  try {
    local.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
