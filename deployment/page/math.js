// Formulas as MathML, which browsers draw themselves. The library is fetched when the first formula comes.

const LONGEST = 2000; // characters of one formula

/** @type {Promise<any> | undefined} */
let library;

/** Turn the elements with TeX in `data-tex` into formulas, once the library is here. @param {ParentNode} root */
export function fillFormulas(root) {
  const waiting = [...root.querySelectorAll("[data-tex]")];
  if (!waiting.length) return;
  library ??= import("./vendor/temml.js").then((module) => module.default);
  library.then((temml) => waiting.forEach((element) => draw(temml, /** @type {HTMLElement} */ (element))));
}

/** @param {any} temml @param {HTMLElement} element */
function draw(temml, element) {
  const tex = element.dataset.tex ?? "";
  if (tex.length > LONGEST) return; // it stays as text
  const options = {
    displayMode: element.tagName === "DIV",
    trust: false,
    strict: false,
    maxExpand: 200,
    maxSize: [20, 20],
  };
  try {
    temml.render(tex, element, { ...options, throwOnError: true });
  } catch {
    return; // half a formula, or no TeX: it stays as text
  }
  element.querySelector("math")?.setAttribute("title", tex);
}
