// The server's HTTP API: OpenAI's, with /tokenize and /v1/gallery where the server has them.

/**
 * @typedef {"offline" | "silent" | "key" | "busy" | "waking" | "context" | "missing" | "empty" | "lost" | "refused"
 *   } Kind
 */

/** What went wrong, as a kind that the page has words for. */
export class ApiError extends Error {
  /**
   * @param {Kind} kind
   * @param {string} [message] the server's own sentence
   * @param {number} [retryAfter] seconds
   */
  constructor(kind, message = "", retryAfter = 0) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }
}

/**
 * @typedef {{role: string, content: string}} Message
 * @typedef {{id: string, parent?: string | null, root?: string, max_model_len?: number, finelab?: any}} Model
 * @typedef {{text?: string, finish?: string, usage?: {completion_tokens: number, prompt_tokens: number}}} Event
 */

const LONGEST_LINE = 1_000_000; // characters of a stream without an end of line

/** The address as it was meant: without a path to /v1, without a slash at its end. */
export function cleanAddress(/** @type {string} */ typed) {
  const url = new URL(/^https?:\/\//i.test(typed) ? typed : `https://${typed}`);
  return (url.origin + url.pathname).replace(/\/+$/, "").replace(/\/v1$/, "");
}

export class Server {
  /** @param {string} url @param {string} key "" for none */
  constructor(url, key) {
    this.url = url;
    this.key = key;
  }

  /** @returns {Promise<Model[]>} */
  async models(/** @type {AbortSignal} */ signal) {
    const found = await this.#json("/v1/models", { signal });
    if (!Array.isArray(found?.data)) throw new ApiError("offline");
    if (!found.data.length) throw new ApiError("empty");
    return found.data;
  }

  /** Held-out prompts of the run; null where the server knows none. */
  async gallery() {
    try {
      const { data } = await this.#json("/v1/gallery");
      return Array.isArray(data) && data.length ? data : null;
    } catch {
      return null;
    }
  }

  /** What the model sees: text and tokens. */
  tokenize(/** @type {string} */ model, /** @type {Message[]} */ messages) {
    return this.#json("/tokenize", {
      body: { model, messages, add_generation_prompt: true, return_token_strs: true },
    });
  }

  async canTokenize(/** @type {string} */ model) {
    return this.#json("/tokenize", { body: { model, prompt: "a" } }).then(
      () => true,
      () => false,
    );
  }

  /** Whether the server turns sound into text: it answers 404 where it does not. */
  async canTranscribe() {
    const response = await this.#fetch("/v1/audio/transcriptions", { form: new FormData() }).catch(
      () => null,
    );
    return response !== null && response.status !== 404 && response.status !== 405;
  }

  /** @param {Blob} sound @param {AbortSignal} signal @returns {Promise<string>} */
  async transcribe(sound, signal) {
    const form = new FormData();
    form.append("file", sound, "speech.webm");
    form.append("model", "whisper-1");
    return (await this.#json("/v1/audio/transcriptions", { form, signal })).text;
  }

  /**
   * A reply as it comes. Ends after `[DONE]`; throws "lost" when the connection ends before.
   * @param {Record<string, unknown>} body
   * @param {AbortSignal} signal
   * @returns {AsyncGenerator<Event>}
   */
  async *chat(body, signal) {
    const sent = { ...body, stream: true, stream_options: { include_usage: true } };
    const response = await this.#checked("/v1/chat/completions", { body: sent, signal });
    let finished = false;
    for await (const data of dataLines(response.body, signal)) {
      if (data === "[DONE]") return;
      const chunk = parsed(data);
      if (chunk.error) throw new ApiError("lost", chunk.error.message);
      const choice = chunk.choices?.[0];
      if (choice?.delta?.content) yield { text: choice.delta.content };
      if (choice?.finish_reason) {
        finished = true;
        yield { finish: choice.finish_reason };
      }
      if (chunk.usage) yield { usage: chunk.usage };
    }
    if (!finished) throw new ApiError("lost");
  }

  /** @param {string} path @param {{body?: unknown, form?: FormData, signal?: AbortSignal}} [options] */
  async #json(path, options) {
    const response = await this.#checked(path, options);
    return response.json().catch(() => {
      throw new ApiError("offline"); // something answers, but no model server: a static host's own page
    });
  }

  /** @param {string} path @param {{body?: unknown, form?: FormData, signal?: AbortSignal}} [options] */
  async #checked(path, options) {
    const response = await this.#fetch(path, options);
    if (!response.ok) throw await failure(response);
    return response;
  }

  /** @param {string} path @param {{body?: unknown, form?: FormData, signal?: AbortSignal}} [options] */
  async #fetch(path, { body, form, signal } = {}) {
    /** @type {Record<string, string>} */
    const headers = this.key ? { Authorization: `Bearer ${this.key}` } : {};
    if (body) headers["Content-Type"] = "application/json";
    const sent = form ?? (body && JSON.stringify(body));
    try {
      return await fetch(this.url + path, {
        method: sent ? "POST" : "GET",
        headers,
        body: /** @type {BodyInit} */ (sent),
        signal,
        credentials: "omit",
        cache: "no-store",
        referrerPolicy: "no-referrer",
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiError((await this.#isThere()) ? "silent" : "offline");
    }
  }

  /** Whether something answers, though not to this page: a proxy before a sleeping server allows no origin. */
  async #isThere() {
    if (new URL(this.url).origin === location.origin) return false;
    const options = /** @type {const} */ ({ mode: "no-cors", credentials: "omit", cache: "no-store" });
    return fetch(`${this.url}/health`, options).then(
      () => true,
      () => false,
    );
  }
}

/** @param {Response} response */
async function failure(response) {
  const { error = {} } = await response.json().catch(() => ({}));
  const retryAfter = Number(response.headers.get("Retry-After")) || 0;
  return new ApiError(kindOf(response.status, error.code ?? ""), error.message ?? "", retryAfter);
}

/** @param {number} status @param {string} code @returns {Kind} */
function kindOf(status, code) {
  if (status === 401 || status === 403) return "key";
  if (status === 429) return "busy";
  if ([502, 503, 504].includes(status)) return "waking";
  if (code === "context_length_exceeded") return "context";
  return status === 404 ? "missing" : "refused";
}

/** @param {string} data */
function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiError("lost");
  }
}

/**
 * The `data:` fields of a server-sent event stream.
 * @param {any} body
 * @param {AbortSignal} signal
 */
async function* dataLines(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop() ?? "";
      if (rest.length > LONGEST_LINE) throw new ApiError("lost");
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } catch (error) {
    throw signal.aborted || error instanceof ApiError ? error : new ApiError("lost");
  } finally {
    reader.cancel().catch(() => {}); // the server sees the connection close, and stops
  }
}
