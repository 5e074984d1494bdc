import { byId, h } from "./dom.js";

/**
 * Open the page's dialog. The browser keeps the focus inside, Esc closes it, and the focus returns. One that is
 * open already is filled anew, and the focus, whose button has gone, is on its heading.
 * @param {string} title
 * @param {string} kind a class for its looks
 * @param {...(Node | string | null | false)} content
 * @returns {HTMLDialogElement}
 */
export function openDialog(title, kind, ...content) {
  const dialog = byId("dialog");
  dialog.className = kind;
  const close = h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Close");
  const heading = h("h2", { id: "dialog-title" }, title);
  dialog.replaceChildren(
    h("header", {}, heading, close),
    h("div", { class: "content" }, ...content),
  );
  dialog.onclick = (/** @type {Event} */ event) => {
    if (event.target === dialog) dialog.close(); // outside its content
  };
  if (dialog.open) {
    heading.tabIndex = -1;
    heading.focus();
  } else dialog.showModal();
  return dialog;
}
