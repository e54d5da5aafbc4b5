/**
 * Exact arithmetic: every function of one element, as model/exact/arithmetic.py and the engine's C have them, under the same names.
 *
 * Why it is exact. A number of JavaScript is a binary64: + - * / round to nearest even, and whole numbers below 2^53 are exact.
 * Math.fround rounds to binary32; rounding + - * / and the square root of float32 first to 53 bits and then to 24 is the same as
 * rounding once, since 53 >= 2 · 24 + 2 (Figueroa 1995) and nothing here is subnormal. Math.exp, Math.log and ** may differ between
 * browsers, by the letter of ECMA-262: none is used. So may Math.sqrt: it is used, and held to be right each time.
 */
export const VERSION = 1;

const f = Math.fround;

/** `0x1.b3…p-4` of C and Python: hexadecimal digits without their point, and the exponent. */
function hex(digits, exponent) {
  let x = Number(BigInt("0x" + digits));
  for (let bits = 4 * (digits.length - 1) - exponent; bits > 0; bits--) x /= 2;
  return x;
}

/** Coefficients of 2^x for |x| <= 1/2, the highest first. */
const EXP = [["1430912", -13], ["15d87fe", -10], ["13b2ab6", -7], ["1c6b08e", -5], ["1ebfbe0", -3], ["162e430", -1], ["1", 0]].map(([d, e]) => hex(d, e));
const EXP64 = [
  ["1c3bd650fc2986", -36], ["1e8cac7351bb25", -32], ["1e4cf5158b8eca", -28], ["1b5253d395e7c4", -24], ["162c0223a5c824", -20],
  ["1ffcbfc588b0c7", -17], ["1430912f86c787", -13], ["15d87fe78a6731", -10], ["13b2ab6fba4e77", -7], ["1c6b08d704a0c0", -5],
  ["1ebfbdff82c58f", -3], ["162e42fefa39ef", -1], ["1", 0],
].map(([d, e]) => hex(d, e));
/** 2/21, 2/19, … 2: the series of 2 · atanh. */
const LOG64 = Array.from({ length: 11 }, (_, i) => 2 / (21 - 2 * i));
const LOG2E = hex("1715476", 0);
const LOG2E64 = hex("171547652b82fe", 0);
const LN2 = hex("162e42fefa39ef", -1);
const SQRT_HALF = hex("16a09e667f3bcd", -1);
const GELU_CUBE = hex("16e4e26", -5);
const GELU_SLOPE = hex("1988454", 0);
/** HALVES[n] = 2^-n */
const HALVES = Float64Array.from({ length: 64 }, (_, n) => 1 / Number(1n << BigInt(n)));

/** Levels of what has either sign, of what is never negative, and of activations of 16 bits. */
export const SIGNED = 127;
export const UNSIGNED = 255;
export const WIDE = 32639;

/** A maximum or a parameter below it counts as 0. */
const TINY = HALVES[40];
/** The residual stream counts in units of 2^-12, and stays within ± this many. */
const UNITS = 4096;
const BOUND = 1 << 25;
const EPS = f(1e-5 * 16777216);
const ROUNDER = 6755399441055744; // 1.5 · 2^52: a sum with it has no digits after the point

/** To the nearest integer, half to even; |x| <= 2^51. (Math.round takes half up.) */
export const rint = (x) => x + ROUNDER - ROUNDER;

/** e^x for x <= 0; exactly 1 at 0, exactly 0 below -40. In float32. */
export function exp(x) {
  if (!(x >= -40)) return 0;
  const t = f(x * LOG2E);
  const n = rint(t);
  const r = f(t - n);
  let p = EXP[0];
  for (let i = 1; i < EXP.length; i++) p = f(f(p * r) + EXP[i]);
  return p * HALVES[-n];
}

/** The same in float64. */
export function exp64(x) {
  if (!(x >= -40)) return 0;
  const t = x * LOG2E64;
  const n = rint(t);
  const r = t - n;
  let p = EXP64[0];
  for (let i = 1; i < EXP64.length; i++) p = p * r + EXP64[i];
  return p * HALVES[-n];
}

/** Natural logarithm of a positive, normal float64. */
export function log64(x) {
  let e = 0;
  for (; x >= 1; e++) x /= 2;
  for (; x < 0.5; e--) x *= 2;
  if (x < SQRT_HALF) {
    x *= 2;
    e--;
  }
  const s = (x - 1) / (x + 1);
  const z = s * s;
  let p = LOG64[0];
  for (let i = 1; i < LOG64.length; i++) p = p * z + LOG64[i];
  return e * LN2 + p * s;
}

/** The square root of a float32, rounded once: s ± half a unit of its last place, squared, has 50 bits, so that comparing is exact. */
export function sqrt(x) {
  const s = f(Math.sqrt(x));
  const half = ulp(s) / 2;
  if ((s - half) * (s - half) > x || (s + half) * (s + half) < x) throw new Error("this browser's Math.sqrt is not the nearest float32");
  return s;
}

/** The distance of a positive float32 from the next one. */
function ulp(s) {
  const bits = new Uint32Array(Float32Array.of(s).buffer);
  bits[0]++;
  return new Float32Array(bits.buffer)[0] - s;
}

/** What a value is multiplied with when it is quantised; `a` is the largest magnitude of its vector. */
export const inverse = (a, levels) => (a < TINY ? 0 : f(levels / a));

/** What a quantised value is multiplied with to get back. */
export const scale = (a, levels) => (a < TINY ? 0 : f(a / levels));

/** One element, with `inverse` of its vector's largest magnitude. */
export const quantised = (y, inverse) => rint(f(y * inverse));

/** A bias or a parameter of LayerNorm as it is used. */
export const parameter = (w) => (Math.abs(w) < TINY ? 0 : w);

/** An embedding's weight in units of the residual stream. */
export const embedding = (w) => rint(f(w * UNITS));

/** The residual stream's limits. */
export const bound = (x) => Math.min(Math.max(x, -BOUND), BOUND);

/** x + y, rounded to a unit of the residual stream. */
export const residual = (x, y) => bound(x + rint(Math.min(Math.max(f(y * UNITS), -2 * BOUND), 2 * BOUND)));

/** The mean of c integers with the sum s, rounded. */
export const mean = (s, c) => rint(f(f(s) / c));

/**
 * The nearest float32 to high · 2^26 + low, a sum of squares that may have 63 bits. Beyond 53 a second rounding could go wrong, so the
 * lowest bit of the 50 that are kept says whether anything was cut off.
 */
export function nearest(high, low) {
  const sum = high * 67108864 + low;
  if (sum < 9007199254740992) return f(sum);
  const whole = BigInt(high) * 67108864n + BigInt(low);
  const cut = BigInt(whole.toString(2).length - 50);
  const kept = (whole >> cut) | (whole & ((1n << cut) - 1n) ? 1n : 0n);
  return f(Number(kept)) * Number(1n << cut);
}

/** 1 / standard deviation; v is the nearest float32 to the sum of c squared deviations from the mean. */
export const rsigma = (v, c) => f(1 / sqrt(f(f(v / c) + EPS)));

/** LayerNorm of one element, whose deviation from the mean is d. */
export const norm = (d, rsigma, weight, bias) => f(f(f(f(d) * rsigma) * weight) + bias);

/** An output from its integer sum and the scales of activation and weight. */
export const linear = (sum, scale, scaleW, bias) => f(f(f(sum) * f(scale * scaleW)) + bias);

/** (head size)^-0.5. */
export const root = (d) => f(1 / sqrt(d));

/** How much a query looks at a key, before the softmax. */
export const score = (sum, scaleQ, scaleK, root) => f(f(sum) * f(f(scaleQ * scaleK) * root));

/** What e adds to the softmax's normaliser, in units of 2^-20. */
export const count = (e) => rint(f(e * 1048576));

/** What attention weights are multiplied with when they are quantised; top is the largest of them, possibly 0. */
export const inverseShare = (top) => (top === 0 ? 0 : f(UNSIGNED / top));

/** The factor of a head's output; z is the sum of `count`. */
export const attended = (top, z) => f(f(top / UNSIGNED) / f(f(z) / 1048576));

export const relu = (x) => (x > 0 ? x : 0);

/** The tanh form (Hendrycks and Gimpel 2016), as x / (1 + exp(-z)), z = 2·√(2/π)·(x + 0.044715·x³). */
export function gelu(x) {
  const z = f(f(f(f(f(x * x) * GELU_CUBE) * x) + x) * GELU_SLOPE);
  const e = exp(-Math.abs(z));
  return f((z < 0 ? f(x * e) : x) / f(1 + e));
}
