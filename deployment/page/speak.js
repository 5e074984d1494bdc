// Reading aloud, sentence by sentence, while the reply still streams.

import { blocks } from "./markdown.js";

const LONGEST = 200; // characters of one utterance: some browsers stop in the middle of longer ones
const SHOWN_VOICES = 60;

/** The browser's voices, without variants of the same one, those of this language first. @param {string} language */
export function voices(language) {
  const rank = (/** @type {SpeechSynthesisVoice} */ voice) => {
    const near = voice.lang.replace("_", "-");
    const match =
      near === language
        ? 0
        : near.split("-")[0] === language.split("-")[0]
          ? 1
          : near.startsWith("en")
            ? 2
            : 3;
    return match + (voice.localService ? 0 : 0.5); // a voice that is not local sends the text away
  };
  return speechSynthesis
    .getVoices()
    .filter((voice) => !voice.name.includes("+"))
    .sort((a, b) => rank(a) - rank(b))
    .slice(0, SHOWN_VOICES);
}

/** @typedef {(text: string, settled: number, done: boolean) => void} Feed */

/** A speaker, or null in a browser that cannot speak. @param {() => {voice: string, rate: string}} settings */
export const makeSpeaker = (settings) => ("speechSynthesis" in window ? new Speaker(settings) : null);

export class Speaker {
  /** @param {() => {voice: string, rate: string}} settings */
  constructor(settings) {
    this.settings = settings;
    /** @type {string[]} */
    this.queue = [];
    /** @type {SpeechSynthesisUtterance | null} */
    this.current = null;
    this.texts = 0; // begun so far: one that was stopped or followed by another is not spoken on
    this.onchange = () => {};
    speechSynthesis.getVoices(); // asks for them: they come seconds later
  }

  /** Read one whole text. @param {string} markdown */
  read(markdown) {
    this.begin()(markdown, 0, true);
  }

  /**
   * Begin with a text that grows. The function that is given back takes all of it so far, how many of its
   * characters are in finished blocks, and whether it is done; whole sentences are spoken, each once.
   * @returns {Feed}
   */
  begin() {
    this.stop();
    const mine = this.texts;
    let from = 0;
    let said = 0; // sentences behind `from`
    return (text, settled, done) => {
      if (mine !== this.texts) return;
      if (settled > from) {
        this.#say(sentences(text.slice(from, settled)).slice(said));
        [from, said] = [settled, 0];
      }
      const open = sentences(text.slice(from));
      if (!done) open.pop();
      this.#say(open.slice(said));
      said = Math.max(said, open.length);
    };
  }

  /** Be silent at once. */
  stop() {
    this.texts++;
    this.queue = [];
    this.current = null;
    speechSynthesis.cancel();
    this.onchange();
  }

  /** @param {string[]} list */
  #say(list) {
    this.queue.push(...list);
    if (!this.current) this.#next();
  }

  #next() {
    const sentence = this.queue.shift();
    if (sentence === undefined) {
      this.current = null;
      this.onchange();
      return;
    }
    const utterance = new SpeechSynthesisUtterance(sentence);
    const { voice: wanted, rate } = this.settings();
    const found = voices(navigator.language);
    const voice = found.find((each) => each.name === wanted) ?? found[0];
    if (voice) [utterance.voice, utterance.lang] = [voice, voice.lang];
    utterance.rate = Number(rate) || 1;
    utterance.onend = utterance.onerror = () => this.current === utterance && this.#next();
    this.current = utterance;
    this.onchange();
    speechSynthesis.speak(utterance);
  }
}

/** Sentences to be spoken, of a markdown text. @param {string} markdown @returns {string[]} */
export const sentences = (markdown) => blocks(markdown).flatMap(spoken).flatMap(split);

/** What is said of a block. @param {any} block @returns {string[]} */
function spoken(block) {
  switch (block.type) {
    case "paragraph":
    case "heading":
    case "text":
      return [inline(block.tokens ?? [block])];
    case "list":
      return block.items.flatMap((/** @type {any} */ item) => item.tokens.flatMap(spoken));
    case "blockquote":
      return block.tokens.flatMap(spoken);
    case "code":
      return ["Code block."];
    case "table":
      return ["Table."];
    case "displayFormula":
      return ["Formula."];
    default:
      return [];
  }
}

/** @param {any[]} tokens @returns {string} */
const inline = (tokens) =>
  tokens
    .map((token) => {
      if (token.type === "inlineFormula" || token.type === "inlineDisplay") return "formula";
      if (token.type === "html") return "";
      if (token.type === "br") return " ";
      return token.tokens ? inline(token.tokens) : (token.text ?? "");
    })
    .join("");

const segmenter = new Intl.Segmenter(undefined, { granularity: "sentence" });

/** @param {string} text @returns {string[]} */
function split(text) {
  const readable = text.replace(/[*_`#|~]+/g, "").replace(/\s+/g, " ");
  return [...segmenter.segment(readable)]
    .flatMap(({ segment }) => pieces(segment.trim()))
    .filter((piece) => /[\p{L}\p{N}]/u.test(piece));
}

/** A long sentence in pieces, cut at blanks. @param {string} sentence @returns {string[]} */
function pieces(sentence) {
  const found = [];
  let rest = sentence;
  while (rest.length > LONGEST) {
    const cut = rest.lastIndexOf(" ", LONGEST);
    found.push(rest.slice(0, cut > 0 ? cut : LONGEST));
    rest = rest.slice(cut > 0 ? cut + 1 : LONGEST);
  }
  return [...found, rest];
}
