// Speech to text: by the browser, on this device where it can; else by the server; else not, with the reason.

/** @typedef {{kind: "device" | "browser" | "server" | "none", note: string}} Ear */

const LONGEST_S = 60;

// Looked up late and never constructed at load: some browsers throw.
const recognition = () =>
  /** @type {any} */ (window).SpeechRecognition ?? /** @type {any} */ (window).webkitSpeechRecognition;

/** What can listen here. @param {import("./api.js").Server | null} server @returns {Promise<Ear>} */
export async function findEar(server) {
  const Recognition = isSecureContext && recognition(); // elsewhere it is there, and refuses
  if (Recognition) {
    const local = await Recognition.available?.({ langs: [navigator.language], processLocally: true }).catch(
      () => "",
    );
    if (local === "available") return { kind: "device", note: "Speech is recognised on this device." };
    return { kind: "browser", note: "The browser may send the sound to its maker's service." };
  }
  if (!navigator.mediaDevices?.getUserMedia)
    return {
      kind: "none",
      note: "No microphone: the browser gives it to https pages and to this computer's own only.",
    };
  if (await server?.canTranscribe()) return { kind: "server", note: "The sound goes to the chat server." };
  return { kind: "none", note: "No microphone: neither this browser nor the server recognises speech." };
}

const WORDS = /** @type {Record<string, string>} */ ({
  "not-allowed": "The browser may not use the microphone. Allow it in the address bar.",
  "service-not-allowed": "The browser's speech recognition is switched off.",
  "audio-capture": "No microphone was found.",
  "no-speech": "Nothing was heard.",
  network: "The browser's speech service cannot be reached.",
  "language-not-supported": "The browser does not recognise this language on this device.",
});

/**
 * @typedef {{stop: () => void, cancel: () => void}} Listening `stop`: what was heard so far still comes
 * @typedef {{onText: (text: string) => void, onWait: () => void, onEnd: (problem: string) => void}} To
 */

/**
 * Listen once.
 * @param {Ear} ear
 * @param {import("./api.js").Server} server
 * @param {To} to
 * @returns {Listening}
 */
export const listen = (ear, server, to) => (ear.kind === "server" ? record(server, to) : recognise(ear, to));

/** @param {Ear} ear @param {To} to @returns {Listening} */
function recognise(ear, { onText, onEnd }) {
  const heard = new (recognition())();
  heard.lang = navigator.language;
  heard.interimResults = true;
  if (ear.kind === "device") heard.processLocally = true;
  let over = false;
  const end = (problem = "") => {
    if (over) return; // an error is not always followed by an end
    over = true;
    onEnd(problem);
  };
  heard.onresult = (/** @type {any} */ event) =>
    over || onText([...event.results].map((result) => result[0].transcript).join(""));
  heard.onerror = (/** @type {any} */ event) =>
    end(event.error === "aborted" ? "" : (WORDS[event.error] ?? `Speech recognition failed: ${event.error}`));
  heard.onend = () => end();
  heard.start();
  return { stop: () => heard.stop(), cancel: () => (end(), heard.abort()) };
}

/** @param {import("./api.js").Server} server @param {To} to @returns {Listening} */
function record(server, { onText, onWait, onEnd }) {
  /** @type {MediaRecorder | null} */
  let recorder = null;
  let stopped = false;
  const cancelled = new AbortController();
  const { signal } = cancelled;
  const run = async () => {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: true } });
    const sound = await recorded(stream).finally(() => stream.getTracks().forEach((track) => track.stop()));
    signal.throwIfAborted();
    onWait();
    onText(await server.transcribe(sound, signal));
  };
  /** @param {MediaStream} stream @returns {Promise<Blob>} */
  const recorded = (stream) =>
    new Promise((resolve) => {
      /** @type {Blob[]} */
      const parts = [];
      const made = new MediaRecorder(stream);
      made.ondataavailable = ({ data }) => parts.push(data);
      made.onstop = () => resolve(new Blob(parts, { type: made.mimeType }));
      made.start();
      recorder = made;
      setTimeout(() => made.state === "recording" && made.stop(), LONGEST_S * 1000);
      if (stopped) made.stop();
    });
  run().then(
    () => onEnd(""),
    (error) =>
      onEnd(
        signal.aborted
          ? ""
          : error.name === "NotAllowedError"
            ? WORDS["not-allowed"]
            : error.name === "NotFoundError"
              ? WORDS["audio-capture"]
              : "The server could not turn the sound into text.",
      ),
  );
  const stop = () => {
    if (recorder?.state === "inactive") cancelled.abort(); // pressed again, while the server is at work
    stopped = true;
    if (recorder?.state === "recording") recorder.stop();
  };
  return { stop, cancel: () => (cancelled.abort(), stop()) };
}
