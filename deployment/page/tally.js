// What the votes say, and whether they are enough to say it.

/** @typedef {import("./store.js").Record} Record */

/**
 * How often each of two models won, in comparisons of these two. With itself a model was not compared.
 * @param {Record[]} chats
 * @param {string} first
 * @param {string} second
 * @param {boolean} blind count only votes that were given without knowing
 */
export function tally(chats, first, second, blind) {
  const found = { first: 0, second: 0, even: 0 };
  if (first === second) return found;
  for (const chat of chats) {
    if (chat.mode !== "compare") continue;
    for (const turn of chat.turns) {
      const models = turn.answers.map((answer) => answer?.model);
      if (!turn.vote || turn.blind !== blind || !models.includes(first) || !models.includes(second)) continue;
      if (turn.vote === "tie" || turn.vote === "neither") found.even++;
      else if (models[turn.vote === "left" ? 0 : 1] === first) found.first++;
      else found.second++;
    }
  }
  return found;
}

/** Wilson's 95 % interval of a share. @param {number} won @param {number} of @returns {[number, number]} */
export function wilson(won, of) {
  const z = 1.96;
  const share = won / of;
  const middle = (share + (z * z) / (2 * of)) / (1 + (z * z) / of);
  const half = (z / (1 + (z * z) / of)) * Math.sqrt((share * (1 - share)) / of + (z * z) / (4 * of * of));
  return [middle - half, middle + half];
}

/**
 * The votes in a sentence; "" when there are none.
 * @param {{first: number, second: number, even: number}} votes
 * @param {string} first
 * @param {string} second
 * @param {boolean} blind
 */
export function inWords(votes, first, second, blind) {
  const decided = votes.first + votes.second;
  if (!decided && !votes.even) return "";
  const kind = blind ? "blind votes" : "votes";
  const even = votes.even ? `, ${votes.even} without a winner` : "";
  if (!decided) return `${votes.even} ${kind} without a winner.`;
  const [low, high] = wilson(votes.first, decided);
  const percent = (/** @type {number} */ share) => `${Math.round(100 * share)}`;
  const interval = `95 % interval ${percent(low)} to ${percent(high)} %`;
  const verdict =
    low > 0.5 ? `${first} is preferred` : high < 0.5 ? `${second} is preferred` : "too few votes to tell";
  return `${first} won ${votes.first} of ${decided} ${kind}${even} (${interval}): ${verdict}.`;
}
