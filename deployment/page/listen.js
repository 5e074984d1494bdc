// Speech to text: by the browser, on this device where it can; else by the server; else not, with the reason.

/** @typedef {{kind: "device" | "browser" | "server" | "none", note: string}} Ear */

const LONGEST_S = 60;

// Looked up late and never constructed at load: some browsers throw.
const recognition = () =>
  /** @type {any} */ (window).SpeechRecognition ?? /** @type {any} */ (window).webkitSpeechRecognition;

/** What can listen here. @param {import("./api.js").Server | null} server @returns {Promise<Ear>} */
export async function findEar(server) {
  const Recognition = recognition();
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
 * Listen once. The result's `stop` ends it; what was heard so far still comes.
 * @param {Ear} ear
 * @param {import("./api.js").Server} server
 * @param {{onText: (text: string) => void, onEnd: (problem: string) => void}} to
 * @returns {{stop: () => void}}
 */
export const listen = (ear, server, to) => (ear.kind === "server" ? record(server, to) : recognise(ear, to));

/** @param {Ear} ear @param {{onText: (text: string) => void, onEnd: (problem: string) => void}} to */
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
    onText([...event.results].map((result) => result[0].transcript).join(""));
  heard.onerror = (/** @type {any} */ event) =>
    end(event.error === "aborted" ? "" : (WORDS[event.error] ?? `Speech recognition failed: ${event.error}`));
  heard.onend = () => end();
  heard.start();
  return { stop: () => heard.stop() };
}

/** @param {import("./api.js").Server} server @param {{onText: (text: string) => void, onEnd: (problem: string) => void}} to */
function record(server, { onText, onEnd }) {
  /** @type {MediaRecorder | null} */
  let recorder = null;
  let stopped = false;
  const run = async () => {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: true } });
    try {
      const sound = await recorded(stream);
      onText(await server.transcribe(sound));
    } finally {
      stream.getTracks().forEach((track) => track.stop());
    }
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
        error.name === "NotAllowedError"
          ? WORDS["not-allowed"]
          : error.name === "NotFoundError"
            ? WORDS["audio-capture"]
            : "The server could not turn the sound into text.",
      ),
  );
  return {
    stop: () => {
      stopped = true;
      if (recorder?.state === "recording") recorder.stop();
    },
  };
}
