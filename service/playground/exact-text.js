/**
 * A request as the arithmetic takes it, and its text: the part of a tokenizer and of the API's defaults that a page needs.
 *
 *     const derivation = new Derivation(model, loadWeights);      `model` as GET /info has it
 *     for await (const { done, text, ended } of derivation.run(body, count)) …
 */
import { MOST_TOKENS, NEUTRAL } from "./exact-sampling.js";

const START = "\n"; // what an empty prompt begins with, unless the checkpoint says otherwise

/** Characters or bytes; byte pairs would need their merges. */
class Alphabet {
  constructor({ tokenizer, vocabulary }) {
    this.ids = vocabulary && new Map(vocabulary.map((character, id) => [character, id]));
    this.vocabulary = vocabulary;
    this.isKnown = tokenizer === "byte" || Boolean(vocabulary);
  }

  /** Ids of a text; what the model does not know is left out, as the API does when it is told to. */
  encode(text) {
    if (!this.ids) return [...new TextEncoder().encode(text)];
    return [...text].filter((character) => this.ids.has(character)).map((character) => this.ids.get(character));
  }

  decode(ids) {
    if (this.ids) return ids.map((id) => this.vocabulary[id]).join("");
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(ids));
  }

  /** The id of a token as `logit_bias` names it: as one reads it, or `bytes:\xe2`. */
  idOf(name) {
    const byte = /^bytes:\\x([0-9a-f]{2})$/.exec(name);
    return !this.ids && byte ? parseInt(byte[1], 16) : this.encode(name)[0];
  }
}

export class Derivation {
  /** `loadWeights()` gives the ArrayBuffer of model.safetensors, once. */
  constructor(model, loadWeights) {
    this.model = model;
    this.alphabet = new Alphabet(model);
    this.loadWeights = loadWeights;
    this.worker = null;
  }

  /** Whether texts of this model can be derived here. */
  get isPossible() {
    return this.alphabet.isKnown && this.model.vocab_size <= MOST_TOKENS;
  }

  /** The first `count` tokens after a request's prompt: { done, text, ended }, the text being all of it so far. */
  async *run(body, count) {
    const weights = this.worker ? null : await this.loadWeights();
    this.worker ??= new Worker(new URL("exact-worker.js", import.meta.url), { type: "module" });
    this.worker.postMessage({ weights, config: this.model.config, question: this.question(body, count) }, weights ? [weights] : []);
    const tokens = [];
    const before = body.echo ? this.alphabet.decode(this.alphabet.encode(body.prompt)) : "";
    for await (const report of reports(this.worker)) {
      tokens.push(...report.tokens);
      yield { done: tokens.length, text: before + this.alphabet.decode(tokens), ended: report.ended };
    }
  }

  question(body, count) {
    const { model, alphabet } = this;
    const params = { ...NEUTRAL };
    for (const name of Object.keys(NEUTRAL)) if (name in body && name !== "logit_bias") params[name] = body[name];
    params.logit_bias = Object.entries(body.logit_bias ?? {}).map(([token, addend]) => [alphabet.idOf(token), addend]);
    const rule = body.context || model.context.default;
    const start = alphabet.encode(model.manifest.start ?? START)[0] ?? 0;
    return { prompt: alphabet.encode(body.prompt ?? ""), params, start, stride: model.context.stride[rule], count };
  }

  /** Let it go: the next text begins with the weights again. */
  end() {
    this.worker?.terminate();
    this.worker = null;
  }
}

/** What a worker says until it has ended, in order: it may say more than one thing before it is listened to. */
async function* reports(worker) {
  const waiting = [];
  let wake = () => {};
  let failure = null;
  worker.onmessage = ({ data }) => {
    waiting.push(data);
    wake();
  };
  worker.onerror = (event) => {
    failure = new Error(event.message || "this browser does not start the worker");
    wake();
  };
  for (;;) {
    while (!waiting.length && !failure) await new Promise((resolve) => (wake = resolve));
    if (failure) throw failure;
    const report = waiting.shift();
    yield report;
    if (report.ended) return;
  }
}
