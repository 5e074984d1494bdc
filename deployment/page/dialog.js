import { byId, h } from "./dom.js";

/**
 * Open the page's dialog. The browser keeps the focus inside, Esc closes it, and the focus returns.
 * @param {string} title
 * @param {string} kind a class for its looks
 * @param {...(Node | string | null | false)} content
 * @returns {HTMLDialogElement}
 */
export function openDialog(title, kind, ...content) {
  const dialog = byId("dialog");
  dialog.className = kind;
  const close = h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Close");
  dialog.replaceChildren(
    h("header", {}, h("h2", { id: "dialog-title" }, title), close),
    h("div", { class: "content" }, ...content),
  );
  dialog.onclick = (/** @type {Event} */ event) => {
    if (event.target === dialog) dialog.close(); // outside its content
  };
  if (!dialog.open) dialog.showModal();
  return dialog;
}
