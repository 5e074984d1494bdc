// Elements without a framework: h("p", {class: "note"}, "text", child).

/**
 * Make an element. Strings become text nodes, never HTML.
 * @param {string} tag
 * @param {Record<string, any>} [props] `class`, `on...` listeners, properties, or attributes
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {any}
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element) /** @type {any} */ (element)[name] = value;
    else element.setAttribute(name, String(value));
  }
  element.append(
    ...children.filter((child) => child || child === "").map((child) => /** @type {Node} */ (child)),
  );
  return element;
}

/** @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

/**
 * Make an SVG element.
 * @param {string} tag
 * @param {Record<string, string | number>} attributes
 * @param {...Node} children
 */
export function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

const PATHS = {
  chats: "M4 6h16M4 12h16M4 18h10",
  plus: "M12 5v14M5 12h14",
  info: "M12 11v6M12 7.5v.01M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18",
  moon: "M20 14.5A8 8 0 0 1 9.5 4 8 8 0 1 0 20 14.5",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 2v2M12 20v2M4.9 4.9l1.4 1.4M17.7 17.7l1.4 1.4M2 12h2M20 12h2M4.9 19.1l1.4-1.4M17.7 6.3l1.4-1.4",
  settings: "M4 7h9M19 7h1M4 17h1M11 17h9M16 4.5v5M8 14.5v5",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  microphone: "M12 3a3 3 0 0 0-3 3v5a3 3 0 0 0 6 0V6a3 3 0 0 0-3-3M6 11a6 6 0 0 0 12 0M12 17v4",
  speak: "M4 10v4h4l5 4V6L8 10H4M16.5 9a4 4 0 0 1 0 6M19 6.5a8 8 0 0 1 0 11",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  again: "M20 11a8 8 0 1 0-2 6M20 5v6h-6",
  edit: "M4 20l1-5L16 4l4 4L9 19l-5 1",
  raw: "M9 7l-5 5 5 5M15 7l5 5-5 5",
  good: "M7 11v9H4v-9h3zl4-8c1.5 0 2.5 1 2.5 2.5V9H19c1 0 1.8 1 1.5 2l-1.6 7c-.3 1.2-1.1 2-2.3 2H7",
  bad: "M17 13V4h3v9h-3zl-4 8c-1.5 0-2.5-1-2.5-2.5V15H5c-1 0-1.8-1-1.5-2l1.6-7c.3-1.2 1.1-2 2.3-2H17",
  bin: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
};

/** @param {keyof typeof PATHS} name */
export function icon(name) {
  return svg(
    "svg",
    { viewBox: "0 0 24 24", "aria-hidden": "true", class: "glyph" },
    svg("path", { d: PATHS[name] }),
  );
}

/**
 * A button with an icon and a name for those who do not see it.
 * @param {keyof typeof PATHS} glyph
 * @param {string} label
 * @param {(event: Event) => void} onclick
 */
export const iconButton = (glyph, label, onclick) =>
  h(
    "button",
    { type: "button", class: "icon small", "aria-label": label, title: label, onclick },
    icon(glyph),
  );
