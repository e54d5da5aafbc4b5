// What every JavaScript engine is asked: golden texts, digests of logits, and single functions; Python compares.
import * as ar from "./exact-arithmetic.js";
import { ExactModel, generate } from "./exact.js";
import * as sampling from "./exact-sampling.js";
import { readTensors } from "./safetensors.js";

const FUNCTIONS = {
  ...ar,
  ...sampling,
  quantise: (y, a, levels) => ar.quantised(y, ar.inverse(a, levels)),
  rsigma: (high, low, c) => ar.rsigma(ar.nearest(high, low), c),
  inverse_share: ar.inverseShare,
  u53: (seed, index) => Number(sampling.u53(seed, index)),
  target: (fraction, total) => sampling.target(BigInt(fraction), total),
};

/** `read(name)` gives the bytes of a file beside this one. */
export async function run(read) {
  const { models, probes } = JSON.parse(new TextDecoder().decode(await read("cases.json")));
  const answers = {};
  for (const { name, config, requests, passes } of models) {
    const model = new ExactModel(config, readTensors(await read(`${name}.safetensors`)));
    answers[name] = { texts: requests.map((request) => text(model, request)), logits: passes.map((ids) => base64(model.encode(ids, 0, 0))) };
  }
  return { models: answers, probes: Object.fromEntries(Object.entries(probes).map(([name, rows]) => [name, rows.map((row) => FUNCTIONS[name](...row))])) };
}

/** Tokens, and of each its own log-probability and those of the most probable ones, as pairs in one list. */
function text(model, { prompt, params, start, stride, length, top }) {
  const tokens = [], logprobs = [];
  for (const { token, logits } of generate(model, prompt, params, { start, stride })) {
    tokens.push(token);
    if (top !== null) {
      const all = sampling.logProbabilities(logits);
      const best = [...logits.keys()].sort((i, j) => logits[j] - logits[i] || i - j).slice(0, top);
      logprobs.push(all[token], ...best.flatMap((i) => [i, all[i]]));
    }
    if (tokens.length === length) return { tokens, logprobs };
  }
}

function base64(floats) {
  return btoa(Array.from(new Uint8Array(floats.buffer), (byte) => String.fromCharCode(byte)).join(""));
}
