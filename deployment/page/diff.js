// Which words of two texts are the same, in order: a longest common subsequence.

const LARGEST = 16_000_000; // words of one text times words of the other: about 0.1 s

/** @typedef {{text: string, same: boolean}} Part */

/**
 * Both texts in parts that the other has too, or has not; null when they are too long to compare.
 * @param {string} left
 * @param {string} right
 * @returns {{left: Part[], right: Part[], share: number} | null} `share` of the words that both have, 0 to 1
 */
export function wordDiff(left, right) {
  const [a, b] = [words(left), words(right)];
  if (a.length * b.length > LARGEST) return null;
  const [inA, inB] = common(a, b);
  const shared = inA.filter(Boolean).length;
  return {
    left: parts(a, inA),
    right: parts(b, inB),
    share: a.length + b.length ? (2 * shared) / (a.length + b.length) : 1,
  };
}

/** Each word with the blanks before it. @param {string} text @returns {string[]} */
const words = (text) => text.match(/\s*\S+/g) ?? [];

/** For each word, whether it is in the common subsequence. @param {string[]} a @param {string[]} b */
function common(a, b) {
  const [left, right] = [a.map((word) => word.trim()), b.map((word) => word.trim())];
  const width = b.length + 1;
  const longest = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      longest[i * width + j] =
        left[i] === right[j]
          ? longest[(i + 1) * width + j + 1] + 1
          : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
  const inA = a.map(() => false);
  const inB = b.map(() => false);
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (left[i] === right[j]) inA[i++] = inB[j++] = true;
    else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) i++;
    else j++;
  }
  return [inA, inB];
}

/** @param {string[]} list @param {boolean[]} same @returns {Part[]} */
function parts(list, same) {
  /** @type {Part[]} */
  const found = [];
  list.forEach((text, place) => {
    const last = found[found.length - 1];
    if (last && last.same === same[place]) last.text += text;
    else found.push({ text, same: same[place] });
  });
  return found;
}
