// Model output is untrusted text. HTML in it is shown as text, pictures as their words, and what marked makes is
// sanitised to a short list of tags before it becomes elements.

import DOMPurify from "./vendor/dompurify.js";
import { Marked } from "./vendor/marked.js";
import { copyText } from "./copy.js";
import { h } from "./dom.js";
import { fillFormulas } from "./math.js";

const ALLOWED = {
  ALLOWED_TAGS: [
    "p",
    "br",
    "hr",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "strong",
    "em",
    "del",
    "code",
    "pre",
    "blockquote",
    "ul",
    "ol",
    "li",
    "a",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "span",
    "div",
  ],
  ALLOWED_ATTR: ["href", "start", "data-tex", "data-language"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ADD_URI_SAFE_ATTR: ["start", "data-tex", "data-language"], // no addresses: the rule above is not for them
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

/** @param {string} text */
const escape = (text) => text.replace(/[&<>"']/g, (each) => `&#${each.charCodeAt(0)};`);

const marked = new Marked({
  gfm: true,
  renderer: {
    html: (/** @type {any} */ { text }) => escape(text),
    image: (/** @type {any} */ { text, href }) => escape(`[picture: ${text || href}]`),
    checkbox: (/** @type {any} */ { checked }) => (checked ? "[x] " : "[ ] "),
    code: (/** @type {any} */ { text, lang }) =>
      `<pre data-language="${escape(/^[\w+#.-]{1,20}/.exec(lang ?? "")?.[0] ?? "")}"><code>${escape(text)}</code></pre>`,
  },
  extensions: [
    formula(
      "displayFormula",
      "block",
      /^(?:\$\$([^]+?)\$\$|\\\[([^]+?)\\\])(?:\n|$)/,
      /(?:^|\n)(?:\$\$|\\\[)/,
      "div",
    ),
    formula("inlineDisplay", "inline", /^\$\$([^]+?)\$\$/, /\$\$/, "div"),
    // Not money: "$5 and $6" has a blank before the second sign or a figure behind it.
    formula(
      "inlineFormula",
      "inline",
      /^(?:\$(?![\s$])((?:\\.|[^\\$\n])+?)(?<!\s)\$(?!\d)|\\\(([^]+?)\\\))/,
      /\$|\\\(/,
      "span",
    ),
  ],
});

/**
 * A formula as a rule for marked; its TeX waits in a data attribute.
 * @param {string} name
 * @param {"block" | "inline"} level
 * @param {RegExp} rule
 * @param {RegExp} start
 * @param {"div" | "span"} tag
 */
function formula(name, level, rule, start, tag) {
  return {
    name,
    level,
    start: (/** @type {string} */ text) => start.exec(text)?.index,
    tokenizer(/** @type {string} */ text) {
      const match = rule.exec(text);
      return match ? { type: name, raw: match[0], text: match[1] ?? match[2] } : undefined;
    },
    renderer: (/** @type {any} */ token) =>
      `<${tag} data-tex="${escape(token.text)}">${escape(token.raw)}</${tag}>`,
  };
}

/**
 * What `render` makes of a text; null where marked runs out of stack, as it does some thousand quotes or lists
 * deep, which a model that goes in circles writes.
 * @template T
 * @param {() => T} render
 */
function unlessTooDeep(render) {
  try {
    return render();
  } catch (error) {
    if (error instanceof RangeError) return null;
    throw error;
  }
}

/** The blocks of a markdown text. @param {string} text @returns {any[]} */
export const blocks = (text) =>
  unlessTooDeep(() => marked.lexer(text)) ?? [{ type: "code", raw: text, text }]; // not read aloud

/** Elements for markdown. @param {string} text @returns {DocumentFragment} */
export function elements(text) {
  const html =
    unlessTooDeep(() => /** @type {string} */ (marked.parse(text))) ??
    `<pre data-language=""><code>${escape(text)}</code></pre>`;
  const made = /** @type {any} */ (DOMPurify).sanitize(html, ALLOWED);
  made.querySelectorAll("a").forEach(outward);
  made.querySelectorAll("pre").forEach(withCopy);
  made.querySelectorAll("table").forEach((/** @type {Element} */ table) => scrolling(table, "Table"));
  fillFormulas(made);
  for (const block of made.children) block.dir ||= "auto"; // inside one they would hide its text from it
  return made;
}

/** A link opens apart from the page and tells the other side nothing of it. */
function outward(/** @type {HTMLAnchorElement} */ link) {
  if (!link.hasAttribute("href")) return;
  link.target = "_blank";
  link.rel = "noopener noreferrer nofollow";
  link.title = link.href;
}

function withCopy(/** @type {HTMLElement} */ pre) {
  const language = pre.dataset.language ?? "";
  pre.removeAttribute("data-language");
  const copy = h(
    "button",
    { type: "button", class: "quiet", onclick: () => copyText(pre.textContent ?? "", copy) },
    "Copy",
  );
  const box = h(
    "div",
    { class: "code", dir: "ltr" },
    h("div", { class: "code-bar" }, h("span", {}, language), copy),
  );
  pre.replaceWith(box);
  box.append(pre);
  pre.tabIndex = 0; // it scrolls sideways, also by keys
  pre.setAttribute("role", "region");
  pre.setAttribute("aria-label", language ? `Code, ${language}` : "Code");
}

function scrolling(/** @type {Element} */ element, /** @type {string} */ label) {
  const box = h("div", { class: "scroll", role: "region", tabIndex: 0, "aria-label": label });
  element.replaceWith(box);
  box.append(element);
}

/**
 * Shows markdown that is still being written. What stands in finished blocks is rendered once; only the last
 * block is rendered again, so that the work grows with the text and not with its square.
 */
export class LiveMarkdown {
  constructor() {
    this.element = h("div", { class: "markdown" });
    this.tail = h("div", { class: "tail" });
    this.element.append(this.tail);
    this.text = ""; // with line ends as marked makes them, so that its lengths count
    this.settled = 0; // characters of it that are rendered for good
  }

  /** @param {string} text all of it so far; what was shown before is its beginning */
  show(text) {
    this.text = text.replace(/\r\n?/g, "\n");
    this.#settle();
    this.tail.replaceChildren(elements(this.text.slice(this.settled)));
  }

  /** Blocks before the last one are finished, judged by whole lines: "***" may yet become "***bold***". */
  #settle() {
    const open = this.text.slice(this.settled, this.text.lastIndexOf("\n") + 1);
    const found = blocks(open);
    while (found.length && found[found.length - 1].type === "space") found.pop();
    const length = found.slice(0, -1).reduce((sum, each) => sum + each.raw.length, 0);
    if (!length) return;
    this.tail.before(elements(open.slice(0, length)));
    this.settled += length;
  }
}
