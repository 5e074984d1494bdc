// Chats and votes as rows in FineTome's schema, so that they can become training data.

import { opening } from "./view.js";

/** @typedef {import("./store.js").Record} Record */
/** @typedef {import("./store.js").Answer} Answer */

/** @type {{[role: string]: string}} */
const FROM = { system: "system", user: "human", assistant: "gpt" };
const GOOD = 5;
const EVEN = 3;
const BAD = 1;

/**
 * Chats as rows: one for a chat, one for each column of a comparison. An answer that was cut or lost is never
 * taught as a whole one: the row ends before it.
 * @param {Record[]} chats
 */
export function chatRows(chats) {
  return chats.flatMap((chat) =>
    columns(chat)
      .map(({ turns, ...column }) => ({ turns: beforeBroken(turns), ...column }))
      .filter(({ turns }) => turns.length)
      .map(({ model, turns, score }) => row(chat, turns, `finelab ${chat.mode}: ${model}`, score)),
  );
}

/**
 * Each vote of a comparison as two rows: the better answer has score 5, the other 1, a tie 3 and 3, neither 1 and 1.
 * An answer that was cut or lost, or follows one, is left out.
 * @param {Record[]} chats
 */
export function voteRows(chats) {
  return chats.flatMap((chat) => {
    if (chat.mode !== "compare") return [];
    return chat.turns.flatMap((turn, place) => {
      if (!turn.vote) return [];
      return turn.answers.flatMap((answer, side) => {
        const turns = [...history(chat, answer?.model ?? "", place), { prompt: turn.prompt, answer }];
        if (!turns.every((each) => isWhole(each.answer))) return [];
        return [row(chat, turns, `finelab vote: ${answer?.model}`, scores(turn.vote)[side])];
      });
    });
  });
}

/** @param {unknown[]} rows */
export const jsonl = (rows) => rows.map((each) => JSON.stringify(each) + "\n").join("");

/** What `model` was asked and said before turn number `place`. @param {Record} chat @param {string} model @param {number} place */
export function history(chat, model, place) {
  return chat.turns.slice(0, place).map((turn) => ({
    prompt: turn.prompt,
    answer: "answers" in turn ? (turn.answers.find((each) => each?.model === model) ?? null) : turn.answer,
  }));
}

/** @param {string | undefined} vote */
function scores(vote) {
  if (vote === "left") return [GOOD, BAD];
  if (vote === "right") return [BAD, GOOD];
  return vote === "tie" ? [EVEN, EVEN] : [BAD, BAD];
}

/** @param {{prompt: string, answer: Answer | null}[]} turns */
function beforeBroken(turns) {
  const broken = turns.findIndex((turn) => !isWhole(turn.answer));
  return broken < 0 ? turns : turns.slice(0, broken);
}

/** @param {Answer | null} answer */
const isWhole = (answer) => answer?.finish === "stop" && answer.content.trim() !== "";

/** @param {Record} chat */
function columns(chat) {
  if (chat.mode === "chat") {
    const models = [...new Set(chat.turns.map((turn) => turn.answer?.model).filter(Boolean))];
    const votes = chat.turns.map((turn) => turn.vote).filter(Boolean);
    const score = votes.length ? (votes.includes("bad") ? BAD : GOOD) : null;
    return [{ model: models.join(", "), turns: chat.turns, score }];
  }
  const models = [
    ...new Set(chat.turns.flatMap((turn) => turn.answers.map((answer) => answer?.model ?? ""))),
  ].filter(Boolean);
  return models.map((model) => ({ model, turns: history(chat, model, chat.turns.length), score: null }));
}

/**
 * @param {Record} chat
 * @param {{prompt: string, answer: Answer | null}[]} turns
 * @param {string} source
 * @param {number | null} score
 */
function row(chat, turns, source, score) {
  const before = opening(chat).map(({ role, content }) => ({ from: FROM[role], value: content }));
  const conversations = turns.flatMap((turn) => [
    { from: "human", value: turn.prompt },
    { from: "gpt", value: turn.answer?.content ?? "" },
  ]);
  return {
    conversations: [...before, ...conversations],
    source,
    score,
  };
}
