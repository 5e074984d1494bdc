// Waiting for a server that sleeps or is busy, with what is waited for in words and seconds.

import { ApiError } from "./api.js";

const LONGEST_S = 300;
const SLOW_S = 2; // without an answer for so long, the page says what it waits for
const POLL_S = 2; // between two looks at a sleeping server

/** @type {{[kind: string]: string}} */
const ASLEEP = {
  waking: "Waking the server",
  silent: "The server is waking, or does not allow this page",
};

/** @param {number} seconds @param {AbortSignal} signal */
export const sleep = (seconds, signal) =>
  new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });

/**
 * Try until the server has answered: again after Retry-After when it is busy, every two seconds while it wakes
 * or says nothing to this page.
 * @template T
 * @param {() => Promise<T>} attempt
 * @param {{signal: AbortSignal, say: (text: string, clock?: string) => void, waiting: string}} how `waiting` names what a slow
 *   answer is waited for
 * @returns {Promise<T>}
 */
export async function patiently(attempt, { signal, say, waiting }) {
  const began = performance.now();
  const seconds = () => Math.floor((performance.now() - began) / 1000);
  let words = waiting;
  let until = 0; // when the next try of a busy server is due
  const tick = () => {
    const left = Math.ceil((until - performance.now()) / 1000);
    if (left > 0) say("The server is busy. Trying again", ` in ${left} s`);
    else if (seconds() >= SLOW_S || words !== waiting) say(words, `, ${seconds()} s`);
  };
  const timer = setInterval(tick, 250);
  try {
    for (;;) {
      try {
        return await attempt();
      } catch (error) {
        if (!(error instanceof ApiError) || !(error.kind === "busy" || error.kind in ASLEEP)) throw error;
        if (seconds() > LONGEST_S) throw error;
        const pause = error.retryAfter || POLL_S;
        words = ASLEEP[error.kind] ?? waiting;
        if (error.kind === "busy") until = performance.now() + pause * 1000;
        tick();
        await sleep(pause, signal);
      }
    }
  } finally {
    clearInterval(timer);
    say("");
  }
}
