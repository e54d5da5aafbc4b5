/**
 * One generation: the request, its stream of events, and what to do when the connection is lost.
 *
 *     const generation = new Generation({ prompt: "ROMEO:", seed: 7 }, headers);
 *     for await (const step of generation.run()) …
 *
 * The text is a pure function of the body and its seed. So after a cut the same body is sent again with the id of the last event
 * that came (`Last-Event-ID`), and the server goes on with the next character: it has kept nothing, it runs the request again and
 * withholds what was sent.
 *
 * The steps:   { kind: "open" }                 the server has taken the request; nothing was refused
 *              { kind: "text", index, text, logprobs? }
 *              { kind: "lost", at, wait }       the connection broke after character `at`; next attempt in `wait` ms
 *              { kind: "resumed", at }
 *              { kind: "end", reply }           always the last one
 */
import { readEvents } from "./sse.js";

const FIRST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 5_000;
const MAX_ATTEMPTS = 12;
const SILENCE_MS = 25_000; // the server sends something, if only a comment, every 10 s

/** What the server refused, or could not finish. `code`, `message` and `param` are the API's. */
export class RequestError extends Error {
  constructor(status, { code, message, param }, { retryable = false, retryAfter = 0 } = {}) {
    super(message);
    Object.assign(this, { status, code, param, retryable, retryAfter });
  }

  static async from(response) {
    const body = await response.json().catch(() => null);
    const error = body?.error ?? { code: "unreadable", message: `The server answered with status ${response.status}.`, param: null };
    const retryAfter = Number(response.headers.get("retry-after")) || 0;
    return new RequestError(response.status, error, { retryable: [429, 503, 504].includes(response.status), retryAfter });
  }
}

export class Generation {
  /** `cutAfter`: drop the connection by ourselves once this many characters are here, to show what happens. */
  constructor(body, headers = {}, { cutAfter = Infinity } = {}) {
    this.body = { ...body, stream: true };
    this.headers = headers;
    this.cutAfter = cutAfter;
    this.lastEventId = null;
    this.index = 0;
    this.stopped = false;
    this.connection = null;
  }

  /** End it: the server sees the connection close, and frees the row at once. `run()` then throws an AbortError. */
  stop() {
    this.stopped = true;
    this.connection?.abort();
    this.wakeUp?.();
  }

  /** Lose the connection, as a tunnel or a sleeping laptop would. `run()` resumes. */
  cut() {
    this.connection?.abort(new TypeError("the connection was cut on purpose"));
  }

  /** The steps. Called again after `stop()`, it goes on where it was stopped. */
  async *run() {
    this.stopped = false;
    let opened = this.lastEventId !== null;
    let attempt = 0;
    for (;;) {
      const before = this.index;
      try {
        const response = await this.connect();
        yield attempt ? { kind: "resumed", at: this.index } : { kind: "open" };
        opened = true;
        for await (const step of this.read(response)) {
          if (step.kind === "end") clearTimeout(this.silence);
          yield step;
          if (step.kind === "end") return;
        }
        throw new TypeError("the stream ended without its end event");
      } catch (caught) {
        clearTimeout(this.silence);
        const error = this.connection.signal.reason ?? caught; // a browser may speak of its buffers instead
        if (this.stopped) throw new DOMException("stopped", "AbortError");
        if (!opened || !isPassing(error)) throw error;
        attempt = this.index > before ? 1 : attempt + 1;
        if (attempt > MAX_ATTEMPTS) throw error;
        const wait = Math.max(backOff(attempt), (error.retryAfter ?? 0) * 1000);
        yield { kind: "lost", at: this.index, wait };
        await this.pause(wait);
      }
    }
  }

  async connect() {
    this.connection = new AbortController();
    this.listen();
    const headers = { ...this.headers, "Content-Type": "application/json", Accept: "text/event-stream" };
    if (this.lastEventId !== null) headers["Last-Event-ID"] = this.lastEventId;
    const request = { method: "POST", headers, body: JSON.stringify(this.body), signal: this.connection.signal, cache: "no-store" };
    const response = await fetch("generate", request);
    if (!response.ok) throw await RequestError.from(response);
    return response;
  }

  async *read(response) {
    for await (const event of readEvents(response.body, () => this.listen())) {
      const data = JSON.parse(event.data);
      if (event.type === "end") {
        yield { kind: "end", reply: data };
      } else if (event.type === "error") {
        throw new RequestError(response.status, data.error, { retryable: data.retryable });
      } else {
        this.lastEventId = event.id;
        this.index = data.index;
        yield { kind: "text", ...data };
        this.cutIfAsked();
      }
    }
  }

  /** Not every loss is told to us: give the connection up when nothing has come for long. Called whenever something does. */
  listen() {
    const { connection } = this;
    clearTimeout(this.silence);
    this.silence = setTimeout(() => connection.abort(new TypeError("nothing has come for long")), SILENCE_MS);
  }

  cutIfAsked() {
    if (this.index < this.cutAfter) return;
    this.cutAfter = Infinity;
    this.cut();
    this.connection.signal.throwIfAborted();
  }

  /** Wait, unless `stop()` is called. */
  async pause(milliseconds) {
    await new Promise((resolve) => {
      this.wakeUp = resolve;
      setTimeout(resolve, milliseconds);
    });
    if (this.stopped) throw new DOMException("stopped", "AbortError");
  }
}

/** Whether trying again may help: the network failed (for fetch, that is a TypeError), or the server said so. */
function isPassing(error) {
  return error instanceof RequestError ? error.retryable : error instanceof TypeError;
}

/** 250 ms, 500 ms, 1 s, … 5 s, each a little off, so that many readers do not come back in one moment. */
function backOff(attempt) {
  return Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** (attempt - 1)) * (0.75 + Math.random() / 2);
}
