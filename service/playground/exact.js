/**
 * The model in exact arithmetic, in JavaScript that one can step through: token ids in, logits out, the same bits on every machine.
 *
 *     exact-arithmetic.js   every function of one element, and why it is exact
 *     exact.js              the forward pass, and the text that follows a prompt
 *     exact-sampling.js     from logits to a token
 *     safetensors.js        a checkpoint's file → float32
 *
 * It says what model/exact/ says in Python. No product of two vectors is rounded: they are whole numbers of 8 bits (activations of 16,
 * where the model wants that), so no order of a sum can matter, which is all that makes other engines differ from machine to machine.
 *
 * Letters: m tokens of one pass, K inputs of a product, N its outputs, C n_embd, H heads, D the size of one, A = H · D, T positions.
 */
import * as ar from "./exact-arithmetic.js";
import { sample } from "./exact-sampling.js";

/** A matrix (N, K) as whole numbers with a scale for each output. */
class Linear {
  constructor(weight, bias, k, wide) {
    this.k = k;
    this.n = weight.length / k;
    this.weight = new Int16Array(weight.length);
    this.scales = new Float32Array(this.n);
    this.bias = Float32Array.from(bias ?? new Float32Array(this.n), ar.parameter);
    this.dots = wide ? fourWideDots : fourDots;
    for (let o = 0; o < this.n; o++) this.scales[o] = quantise(weight, o * k, k, ar.SIGNED, this.weight, o * k);
  }

  /** m quantised rows (m, K) with their scales → y (m, N). */
  apply(m, q, scales, y) {
    const { k, n, weight, bias, dots } = this;
    const sums = [0, 0, 0, 0];
    const put = (r, o, sum) => (y[r * n + o] = ar.linear(sum, scales[r], this.scales[o], bias[o]));
    if (m < 4) {
      for (let r = 0; r < m; r++)
        for (let o = 0; o < n; o += 4) {
          dots(weight, o, n, q, r, k, sums);
          for (let i = 0; i < 4 && o + i < n; i++) put(r, o + i, sums[i]);
        }
    } else {
      for (let o = 0; o < n; o++)
        for (let r = 0; r < m; r += 4) {
          dots(q, r, m, weight, o, k, sums);
          for (let i = 0; i < 4 && r + i < m; i++) put(r + i, o, sums[i]);
        }
    }
  }
}

/** Σ over k of four rows of a, from `row` on, with one row of b. Four at once, since loading costs more than multiplying. */
function fourDots(a, row, rows, b, at, k, sums) {
  const last = rows - 1;
  const i0 = row * k, i1 = Math.min(row + 1, last) * k, i2 = Math.min(row + 2, last) * k, i3 = Math.min(row + 3, last) * k;
  const j = at * k;
  let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  for (let i = 0; i < k; i++) {
    const x = b[j + i];
    s0 = (s0 + Math.imul(x, a[i0 + i])) | 0;
    s1 = (s1 + Math.imul(x, a[i1 + i])) | 0;
    s2 = (s2 + Math.imul(x, a[i2 + i])) | 0;
    s3 = (s3 + Math.imul(x, a[i3 + i])) | 0;
  }
  sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
}

/** The same where sums need more than 32 bits: numbers are whole up to 2^53. */
function fourWideDots(a, row, rows, b, at, k, sums) {
  for (let n = 0; n < 4; n++) {
    const from = Math.min(row + n, rows - 1) * k;
    let sum = 0;
    for (let i = 0; i < k; i++) sum += b[at * k + i] * a[from + i];
    sums[n] = sum;
  }
}

/** n values of y → whole numbers of at most `levels`, and their scale. */
function quantise(y, from, n, levels, to, at) {
  let most = 0;
  for (let i = from; i < from + n; i++) most = Math.max(most, Math.abs(y[i]));
  const inverse = ar.inverse(most, levels);
  for (let i = 0; i < n; i++) to[at + i] = ar.quantised(y[from + i], inverse);
  return ar.scale(most, levels);
}

export class ExactModel {
  /** `tensors`: name → Float32Array, as safetensors.js reads them. */
  constructor(config, tensors) {
    const c = config.n_embd, h = config.n_head, d = Math.floor(c / h), a = d * h, t = config.block_size;
    const wide = config.arithmetic === "w8a16";
    Object.assign(this, { config, c, h, d, a, root: ar.root(d) });
    this.levels = wide ? ar.WIDE : ar.SIGNED;
    this.hiddenLevels = wide ? ar.WIDE : config.activation === "relu" ? ar.UNSIGNED : ar.SIGNED;
    this.activate = config.activation === "relu" ? ar.relu : ar.gelu;
    const embedding = (name) => Int32Array.from(tensors[name], ar.embedding);
    const norm = (name) => [`${name}.weight`, `${name}.bias`].map((each) => tensors[each].map(ar.parameter));
    const linear = (name, k) => new Linear(tensors[`${name}.weight`], tensors[`${name}.bias`], k, wide);
    this.tokens = embedding("token_embedding.weight");
    this.positions = embedding("position_embedding.weight");
    this.blocks = Array.from({ length: config.n_layer }, (_, i) => ({
      ln1: norm(`blocks.${i}.ln_1`), qkv: linear(`blocks.${i}.attn.qkv`, c), proj: linear(`blocks.${i}.attn.proj`, a),
      ln2: norm(`blocks.${i}.ln_2`), up: linear(`blocks.${i}.mlp.up`, c), down: linear(`blocks.${i}.mlp.down`, 4 * c),
      keys: new Int16Array(t * a), values: new Int16Array(t * a), // the cache: whole numbers, and a scale for each head and position
      keyScales: new Float32Array(t * h), valueScales: new Float32Array(t * h),
    }));
    this.lnf = norm("ln_f");
    this.head = linear("lm_head", c);
    this.x = new Int32Array(t * c); // the residual stream
    this.q = new Int16Array(t * 4 * c); // what the next product takes, and its scales
    this.scales = new Float32Array(t);
    this.y = new Float32Array(t * 4 * c); // what the last one gave
    this.one = new Int16Array(d); // one head's query
    this.e = new Float32Array(t); // its softmax
    this.share = new Int32Array(t);
  }

  /** Tokens at the positions at, at + 1, …, after those that were encoded before → logits of those from number `from` on, (m - from, V). */
  encode(ids, at, from = ids.length - 1) {
    const { c, x, q, y, scales } = this, m = ids.length;
    if (at + m > this.config.block_size) throw new RangeError(`${at + m} tokens do not fit the context`);
    for (let r = 0; r < m; r++)
      for (let i = 0; i < c; i++) x[r * c + i] = ar.bound(this.tokens[ids[r] * c + i] + this.positions[(at + r) * c + i]);
    for (const block of this.blocks) {
      this.norm(m, block.ln1);
      block.qkv.apply(m, q, scales, y);
      this.attention(m, at, block);
      block.proj.apply(m, q, scales, y);
      this.add(m);
      this.norm(m, block.ln2);
      block.up.apply(m, q, scales, y);
      for (let i = 0; i < m * 4 * c; i++) y[i] = this.activate(y[i]);
      this.quantiseRows(m, 4 * c, this.hiddenLevels);
      block.down.apply(m, q, scales, y);
      this.add(m);
    }
    x.copyWithin(0, from * c, m * c);
    this.norm(m - from, this.lnf);
    const logits = new Float32Array((m - from) * this.config.vocab_size);
    this.head.apply(m - from, q, scales, logits);
    return logits;
  }

  /** LayerNorm of m rows of the residual stream, quantised. Its two sums are exact. */
  norm(m, [weight, bias]) {
    const { c, x, y } = this;
    for (let r = 0; r < m; r++) {
      let sum = 0;
      for (let i = 0; i < c; i++) sum += x[r * c + i];
      const mean = ar.mean(sum, c);
      let low = 0, high = 0; // of the squares, cut at 2^26: their sum may pass 2^53, its halves do not
      for (let i = 0; i < c; i++) {
        const d = x[r * c + i] - mean, top = Math.floor((d * d) / 67108864);
        high += top;
        low += d * d - top * 67108864;
      }
      const rsigma = ar.rsigma(ar.nearest(high, low), c);
      for (let i = 0; i < c; i++) y[r * c + i] = ar.norm(x[r * c + i] - mean, rsigma, weight[i], bias[i]);
    }
    this.quantiseRows(m, c, this.levels);
  }

  quantiseRows(m, n, levels) {
    for (let r = 0; r < m; r++) this.scales[r] = quantise(this.y, r * n, n, levels, this.q, r * n);
  }

  /** The residual stream takes a branch in. */
  add(m) {
    for (let i = 0; i < m * this.c; i++) this.x[i] = ar.residual(this.x[i], this.y[i]);
  }

  /** Causal self-attention: queries, keys and values in y (m, 3A) → the heads' outputs in y (m, A), and quantised. */
  attention(m, at, block) {
    const { a, d, h, y, one } = this;
    const out = new Float32Array(m * a);
    for (let r = 0; r < m; r++) {
      const row = r * 3 * a, p = at + r;
      for (let head = 0; head < h; head++) {
        block.keyScales[p * h + head] = quantise(y, row + a + head * d, d, ar.SIGNED, block.keys, p * a + head * d);
        block.valueScales[p * h + head] = quantise(y, row + 2 * a + head * d, d, ar.SIGNED, block.values, p * a + head * d);
      }
      for (let head = 0; head < h; head++) {
        const scale = quantise(y, row + head * d, d, ar.SIGNED, one, 0);
        this.attend(p, head, scale, block, out.subarray(r * a + head * d, r * a + head * d + d));
      }
    }
    y.set(out);
    this.quantiseRows(m, a, this.levels);
  }

  /** One head at position p looks at the positions 0 … p: the softmax of its scores, rounded to 8 bits, weighs their values. */
  attend(p, head, scale, { keys, values, keyScales, valueScales }, out) {
    const { a, d, h, e, share, one } = this;
    let most = -Infinity, z = 0, top = 0;
    for (let t = 0; t <= p; t++) {
      let sum = 0;
      for (let i = 0, j = t * a + head * d; i < d; i++, j++) sum += one[i] * keys[j];
      e[t] = ar.score(sum, scale, keyScales[t * h + head], this.root);
      most = Math.max(most, e[t]);
    }
    for (let t = 0; t <= p; t++) {
      const power = ar.exp(Math.fround(e[t] - most));
      z += ar.count(power);
      e[t] = power * valueScales[t * h + head]; // the array rounds to float32
      top = Math.max(top, e[t]);
    }
    const inverse = ar.inverseShare(top), factor = ar.attended(top, z);
    for (let t = 0; t <= p; t++) share[t] = ar.quantised(e[t], inverse);
    for (let i = 0; i < d; i++) {
      let sum = 0;
      for (let t = 0, j = head * d + i; t <= p; t++, j += a) sum += share[t] * values[j];
      out[i] = Math.fround(sum) * factor;
    }
  }
}

/** Where the window starts once there are `count` tokens: it stays until it is full, then jumps by `stride`. */
export function windowStart(count, blockSize, stride) {
  return count <= blockSize ? 0 : stride * Math.ceil((count - blockSize) / stride);
}

/**
 * The tokens after a prompt, one after another, without an end: { token, logits }. `start` is what an empty prompt begins with, which is
 * no part of it otherwise. When the window moves, everything in it is encoded afresh, since positions are absolute.
 */
export function* generate(model, prompt, params, { start = 0, stride = 1 } = {}) {
  const text = prompt.length ? [...prompt] : [start];
  const generated = [];
  let from = -1, encoded = 0;
  for (;;) {
    const window = windowStart(text.length, model.config.block_size, stride);
    if (window !== from) [from, encoded] = [window, 0];
    const logits = model.encode(text.slice(from + encoded), encoded);
    encoded = text.length - from;
    const token = sample(logits, params, prompt, generated);
    generated.push(token);
    text.push(token);
    yield { token, logits };
  }
}
