/**
 * Copy, and say so on the button for a moment.
 * @param {string} text
 * @param {HTMLElement} button
 */
export async function copyText(text, button) {
  const written = navigator.clipboard?.writeText(text) ?? Promise.reject(); // a page on plain http has no clipboard
  const said = await written.then(
    () => "Copied",
    () => "The browser refused",
  );
  const before =
    button.getAttribute("data-label") ?? button.getAttribute("aria-label") ?? button.textContent ?? "";
  button.setAttribute("data-label", before);
  label(button, said);
  setTimeout(() => label(button, before), 1500);
}

/** @param {HTMLElement} button @param {string} text */
function label(button, text) {
  if (button.hasAttribute("aria-label")) {
    button.setAttribute("aria-label", text);
    button.title = text;
    button.classList.toggle("done", text === "Copied");
  } else button.textContent = text;
}
