// What went wrong, in words, and what to do next.

/** @typedef {import("./api.js").ApiError} ApiError */
/** @typedef {"retry" | "settings" | "new" | "shorten" | "key"} Action */

/**
 * @param {ApiError} error
 * @param {string} server the address, as the user knows it
 * @returns {{title: string, text: string, actions: Action[]}}
 */
export function explain(error, server) {
  const detail = error.message.slice(0, 300);
  switch (error.kind) {
    case "offline":
      return { title: "No server answers", text: offline(server), actions: ["retry", "settings"] };
    case "silent":
      return {
        title: "The server says nothing to this page",
        text: `Something answers at ${server}, but a browser may not show it here. Either it does not start (look at its log), or it has to allow ${location.origin} (--allow-origin, on Modal FINELAB_ALLOWED_ORIGINS).`,
        actions: ["retry", "settings"],
      };
    case "key":
      return {
        title: "The server wants a key",
        text: "Without the right key it answers nobody. The key stays in this tab, and is gone when you close it.",
        actions: ["key"],
      };
    case "busy":
      return { title: "The server is busy", text: "It had no room for five minutes.", actions: ["retry"] };
    case "waking":
      return {
        title: "The server does not wake",
        text: "It has been starting for five minutes. Look at its log.",
        actions: ["retry", "settings"],
      };
    case "context":
      return {
        title: "This chat is longer than the model's context",
        text: detail,
        actions: ["shorten", "new"],
      };
    case "missing":
      return { title: "The server does not have this model", text: detail, actions: ["retry", "settings"] };
    case "empty":
      return {
        title: "The server has no model",
        text: "It answers, but its list of models is empty. Load one there, or give another server's address.",
        actions: ["retry", "settings"],
      };
    case "lost":
      return {
        title: "The connection was lost",
        text: `What arrived is kept. ${detail}`.trim(),
        actions: ["retry"],
      };
    default:
      return { title: "The server refused", text: detail, actions: ["retry", "settings"] };
  }
}

/** @param {string} server */
function offline(server) {
  if (!server)
    return "Start one with: python lab.py serve. Or give another server's address in the settings.";
  const mixed = location.protocol === "https:" && server.startsWith("http:");
  return `Nothing that speaks the chat API answers at ${server}. ${
    mixed
      ? "A page on https can reach servers on https only, and with some browsers this computer."
      : "Start it, check the address, or allow this page's origin on it."
  }`;
}

/** How a reply ended. @type {Record<string, string>} */
export const ENDINGS = {
  stop: "complete",
  length: "cut at the token limit",
  stopped: "stopped by you",
  lost: "connection lost",
  limit: "stopped by this page: too long",
};
