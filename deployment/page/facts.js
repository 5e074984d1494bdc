// What the run's evidence says, in words and in one picture.

import { h, svg } from "./dom.js";

/** @typedef {{verdict?: string, difference: number, interval: [number, number], heldout_nll_base?: number, heldout_nll_tuned?: number}} Evaluation */

const size = (/** @type {number} */ value) => Math.abs(value).toFixed(3);
const signed = (/** @type {number} */ value) => (value < 0 ? "−" : "+") + size(value);

/**
 * The evidence's verdict as a headline, a sentence and a tone; null when there is none.
 * @param {Evaluation} evaluation
 */
export function verdict({
  verdict: word,
  difference,
  interval: [low, high],
  heldout_nll_base: base,
  heldout_nll_tuned: tuned,
}) {
  const losses = base && tuned ? ` (${base.toFixed(3)} → ${tuned.toFixed(3)})` : "";
  const loss = "On held-out conversations its loss per answer token";
  const differs = `${loss} differs from the base's by ${signed(difference)}${losses}`;
  switch (word) {
    case "improved":
      return {
        tone: "improved",
        title: "Improved",
        text: `${loss} is ${size(difference)} lower than the base's${losses}. 95 % interval: ${size(high)} to ${size(low)} lower.`,
      };
    case "worse":
      return {
        tone: "worse",
        title: "Worse",
        text: `${loss} is ${size(difference)} higher than the base's${losses}. 95 % interval: ${size(low)} to ${size(high)} higher.`,
      };
    case "no measurable change":
      return {
        tone: "same",
        title: "No measurable change",
        text: `${differs}, and the 95 % interval, ${signed(low)} to ${signed(high)}, includes zero.`,
      };
    case "too few rows to tell":
      return {
        tone: "same",
        title: "Too few rows to tell",
        text: `${differs}. So few rows cannot tell a change from chance, whatever the interval, ${signed(low)} to ${signed(high)}.`,
      };
    default:
      return null;
  }
}

/**
 * A card with a model's facts; null when the server knows none.
 * @param {import("./api.js").Model} model
 */
export function factsCard(model) {
  const { run, base_model: base, recipe, data, adapter, training, evaluation } = model.finelab ?? {};
  if (!run) return null;
  const card = h(
    "div",
    { class: "card" },
    h("p", { class: "card-name" }, h("strong", {}, run), ` is ${base ?? model.parent} with a fine-tune`),
  );
  const found = evaluation?.interval && verdict(evaluation);
  if (found)
    card.append(
      h("p", { class: `headline ${found.tone}` }, found.title),
      picture(evaluation, found.tone),
      h("p", {}, found.text),
    );
  else
    card.append(
      h("p", { class: "headline same" }, "Not measured yet"),
      h("p", {}, "Run the lab's evaluation to learn whether the fine-tune changed anything."),
    );
  const rows = [
    ["LoRA", recipe && [`r ${recipe.r}`, `lora_alpha ${recipe.lora_alpha}`].join(", ")],
    ["learning rate", recipe?.learning_rate],
    [
      "trained",
      training &&
        [`${training.steps} steps`, data?.train_rows && `${data.train_rows} conversations`]
          .filter(Boolean)
          .join(", "),
    ],
    [
      "trainable",
      adapter &&
        `${((100 * adapter.trainable_parameters) / adapter.total_parameters).toFixed(2)} % of the parameters`,
    ],
  ].filter(([, value]) => value !== undefined && value !== "");
  card.append(
    h("dl", {}, ...rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value))))),
  );
  return card;
}

const [WIDTH, HEIGHT, EDGE] = [320, 34, 8];

/** The interval on an axis with zero. @param {Evaluation} evaluation @param {string} tone */
function picture({ difference, interval: [low, high] }, tone) {
  const span = 1.25 * Math.max(Math.abs(low), Math.abs(high), 1e-6);
  const x = (/** @type {number} */ value) => EDGE + ((value + span) / (2 * span)) * (WIDTH - 2 * EDGE);
  const middle = HEIGHT / 2;
  const drawn = svg(
    "svg",
    {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      class: `interval ${tone}`,
      role: "img",
      "aria-label": `Difference ${signed(difference)}, 95 % interval ${signed(low)} to ${signed(high)}, zero means no change`,
    },
    svg("line", { class: "axis", x1: EDGE, x2: WIDTH - EDGE, y1: middle, y2: middle }),
    svg("line", { class: "zero", x1: x(0), x2: x(0), y1: 4, y2: HEIGHT - 4 }),
    svg("line", { class: "span", x1: x(low), x2: x(high), y1: middle, y2: middle }),
    svg("circle", { class: "dot", cx: x(difference), cy: middle, r: 5 }),
  );
  return h(
    "div",
    { class: "picture" },
    drawn,
    h(
      "p",
      { class: "ends", "aria-hidden": "true" },
      h("span", {}, "better"),
      h("span", {}, "no change"),
      h("span", {}, "worse"),
    ),
  );
}
