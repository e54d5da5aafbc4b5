/**
 * From logits to a token, as model/sampling.py has it: a pure function of (logits, parameters, earlier tokens, seed, index).
 *
 * Logits become whole weights, the largest 2^40; every sum and every comparison after that is one of integers. The random number is a
 * hash of seed and index, and the token is the first whose running sum of weights exceeds that share of their total.
 */
import { exp64, log64, rint } from "./exact-arithmetic.js";

/** The weight of the most probable token. */
const ONE = 1099511627776;
/** A sum of more weights than this might pass 2^53, beyond which numbers are not whole any more. */
export const MOST_TOKENS = 8191;

/** What changes nothing. `logit_bias`: pairs of a token's id and an addend. */
export const NEUTRAL = {
  seed: 0, temperature: 1, top_k: 0, top_p: 1, min_p: 0, repetition_penalty: 1, frequency_penalty: 0, presence_penalty: 0, logit_bias: [],
};

/** The token after `prompt` and `generated`, two lists of ids. `params`: as NEUTRAL. */
export function sample(logits, params, prompt, generated) {
  const x = adjusted(logits, params, prompt, generated);
  const most = largest(x);
  if (params.temperature === 0) return x.indexOf(most);
  const weights = filtered(x.map((each) => weight(each, most, params.temperature)), params);
  return draw(weights, u53(params.seed, generated.length));
}

/** Logits after bias (addends for one token are summed) and repetition, frequency and presence penalties. */
export function adjusted(logits, params, prompt, generated) {
  const bias = new Float64Array(logits.length);
  for (const [token, addend] of params.logit_bias) bias[token] += addend;
  const counts = new Float64Array(logits.length);
  for (const token of generated) counts[token]++;
  const inPrompt = new Set(prompt);
  return Float64Array.from(logits, (logit, i) => {
    let x = logit + bias[i];
    if (inPrompt.has(i) || counts[i]) x = x > 0 ? x / params.repetition_penalty : x * params.repetition_penalty;
    x -= params.frequency_penalty * counts[i];
    return counts[i] ? x - params.presence_penalty : x;
  });
}

/** Probability in units of 2^-40 of the largest, whose adjusted logit is `most`. */
export const weight = (x, most, temperature) => rint(exp64((x - most) / temperature) * ONE);

/** Weights with min-p, top-k and top-p applied in this order: what is cut off weighs 0. A tie goes to the lower id. */
export function filtered(weights, { min_p, top_k, top_p }) {
  const order = [...weights.keys()].sort((i, j) => weights[j] - weights[i] || i - j);
  const least = rint(min_p * ONE);
  const allowed = order.slice(0, top_k || order.length).filter((i) => weights[i] >= least);
  const limit = nucleus(top_p, total(allowed.map((i) => weights[i])));
  const kept = new Float64Array(weights.length);
  let before = 0;
  for (const i of allowed) {
    if (before >= limit) break;
    kept[i] = weights[i];
    before += weights[i];
  }
  return kept;
}

/** Top-p keeps a token if those before it weigh less than this. */
export const nucleus = (topP, total) => Math.max(1, target(BigInt(rint53(topP)), total));

/** A share in units of 2^-53, to the nearest, half to even. From 1/2 on it is whole; below, a sum with 2^52 has no digits after the point. */
const rint53 = (share) => (share >= 0.5 ? share * TWO_53 : share * TWO_53 + TWO_53 / 2 - TWO_53 / 2);

const TWO_53 = 9007199254740992;

/** `fraction` / 2^53 of a total, rounded down. */
export const target = (fraction, total) => Number((fraction * BigInt(total)) >> 53n);

/** The first token whose running sum of weights exceeds that share of their total. */
function draw(weights, fraction) {
  const limit = target(fraction, total(weights));
  let running = 0;
  return weights.findIndex((each) => (running += each) > limit);
}

/** Log-probabilities of all tokens, of the model's own distribution. */
export function logProbabilities(logits) {
  const most = largest(logits);
  const all = log64(total(Float64Array.from(logits, (x) => weight(x, most, 1))) / ONE);
  return Float64Array.from(logits, (x) => x - most - all);
}

/** Random number `index` of the stream `seed`: uniform in 0 … 2^53 - 1. */
export function u53(seed, index) {
  return mix64(wrap(mix64(wrap(BigInt(seed) + GOLDEN)) + BigInt(index + 1) * GOLDEN)) >> 11n;
}

const GOLDEN = 0x9e3779b97f4a7c15n;
const wrap = (x) => BigInt.asUintN(64, x);

/** SplitMix64's finaliser (Steele, Lea and Flood 2014). */
function mix64(x) {
  x = wrap((x ^ (x >> 30n)) * 0xbf58476d1ce4e5b9n);
  x = wrap((x ^ (x >> 27n)) * 0x94d049bb133111ebn);
  return x ^ (x >> 31n);
}

function total(weights) {
  if (weights.length > MOST_TOKENS) throw new RangeError(`a vocabulary of more than ${MOST_TOKENS} tokens is not computed here`);
  return weights.reduce((sum, each) => sum + each, 0);
}

const largest = (values) => values.reduce((a, b) => Math.max(a, b));
