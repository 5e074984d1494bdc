// The chats in this browser: open, delete, export, import.

import { openDialog } from "./dialog.js";
import { h, iconButton } from "./dom.js";
import { chatRows, jsonl, voteRows } from "./jsonl.js";
import { deleteChat, isRecord, loadChat, loadChats, saveChat } from "./store.js";
import { newId } from "./view.js";

/**
 * @param {import("./main.js").App} app
 * @param {string} [message] what was just done
 * @param {number} [place] the chat that has the focus, or the last one where there are fewer
 */
export function openChats(app, message = "", place = -1) {
  const chats = loadChats();
  const said = h("p", { class: "dim", role: "status" });
  const pick = h("input", {
    type: "file",
    accept: ".json,application/json",
    class: "hidden",
    id: "import",
    onchange: () => load(pick.files[0]),
  });
  const list = chats.map((chat, number) => {
    const open = () => (dialog.close(), app.openSaved(chat.id));
    const remove = iconButton(
      "bin",
      `Delete: ${title(chat)}`,
      () => (deleteChat(chat.id), app.forget(chat.id), openChats(app, `Deleted: ${title(chat)}`, number)),
    );
    return h(
      "li",
      {},
      h(
        "button",
        { type: "button", class: "entry", onclick: open },
        h("span", {}, title(chat)),
        h("small", {}, `${when(chat.created)} · ${chat.mode}`),
      ),
      remove,
    );
  });
  const button = (/** @type {string} */ text, /** @type {() => void} */ onclick) =>
    h("button", { type: "button", class: "plain", onclick }, text);
  const dialog = openDialog(
    "Chats",
    "drawer",
    chats.length ? h("ul", { class: "entries" }, ...list) : h("p", { class: "dim" }, "No chats yet."),
    h("h3", {}, "As training data"),
    h(
      "p",
      { class: "dim" },
      "JSON Lines in FineTome's schema, which the lab trains on. A voted answer has a score: 5 better, 3 equal, 1 worse.",
    ),
    h(
      "div",
      { class: "actions" },
      button("Export chats (JSONL)", () => rows("chats", chatRows(loadChats()))),
      button("Export votes (JSONL)", () => rows("votes", voteRows(loadChats()))),
    ),
    h("h3", {}, "To another browser"),
    h(
      "div",
      { class: "actions" },
      button("Export everything (JSON)", () =>
        save("finelab-chats.json", JSON.stringify(loadChats(), null, 1)),
      ),
      button("Import", () => pick.click()),
      pick,
      button("Delete all chats", () => remove()),
    ),
    said,
  );
  pick.setAttribute("aria-label", "File to import");
  setTimeout(() => (said.textContent = message)); // a screen reader says what changes, not what was there
  list[Math.min(place, list.length - 1)]?.lastElementChild.focus();

  /** @param {string} name @param {unknown[]} found */
  function rows(name, found) {
    said.textContent = found.length
      ? `${found.length} rows. Answers that were cut, stopped or lost are left out.`
      : `No ${name} to export yet. Answers that were cut, stopped or lost are left out.`;
    if (found.length) save(`finelab-${name}.jsonl`, jsonl(found));
  }

  /** @param {File} file */
  async function load(file) {
    const found = await file
      .text()
      .then(JSON.parse)
      .catch(() => null);
    const good = Array.isArray(found) ? found.filter(isRecord) : [];
    const kept = good.filter(keep);
    openChats(
      app,
      Array.isArray(found)
        ? `${kept.length} of ${found.length} chats were imported.`
        : `${file.name} is not a file of chats: expected the JSON of "Export everything".`,
    );
  }

  function remove() {
    if (!confirm(`Delete ${chats.length} chats from this browser?`)) return;
    chats.forEach((chat) => (deleteChat(chat.id), app.forget(chat.id)));
    openChats(app, `Deleted: ${chats.length} chats`);
  }
}

/**
 * Keep a chat of a file, beside the one that has its id if that is another by now.
 * @param {import("./store.js").Record} chat
 */
function keep(chat) {
  const known = loadChat(chat.id);
  const same = !known || JSON.stringify(known) === JSON.stringify(chat);
  return saveChat(same ? chat : { ...chat, id: newId() });
}

/** @param {import("./store.js").Record} chat */
const title = (chat) => (chat.turns[0]?.prompt ?? "Empty").slice(0, 80);

/** @param {number} time */
const when = (time) => new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

/** @param {string} name @param {string} text */
function save(name, text) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text])), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
