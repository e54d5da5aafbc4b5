/* Folio's exact arithmetic, version 1: every function of one element. docs/arithmetic.md explains it, model/exact says the same in numpy.
 *
 * gcc, clang, g++, nvcc, NVRTC and clang for WebAssembly compile this file to the same bits: nothing in it depends on an order, calls a
 * library, or is fused; no result that counts is subnormal, so flush-to-zero changes nothing; no conversion leaves its range. What is
 * left is + - * / sqrt of IEEE binary32 and binary64, each rounded to nearest even by itself, and integers.
 *
 * Host compilers need -ffp-contract=off, nvcc and NVRTC --fmad=false. A caller may define EX_FN, the qualifiers of every function.
 * Types: f32 unless the name says otherwise; ex_i64 sums are exact, so they may be taken in any order and in any number of parts. */
#ifndef ARITHMETIC_H
#define ARITHMETIC_H

#define EX_VERSION 1

#if defined(__FAST_MATH__)
#error "exact arithmetic needs a compiler that follows IEEE 754: compile without -ffast-math"
#endif
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0 && __FLT_EVAL_METHOD__ != 16 && !defined(__CUDACC__)
#error "exact arithmetic needs float operations in float: -msse2 -mfpmath=sse on 32-bit x86" /* 16 is ARM with half precision */
#endif

typedef unsigned int ex_u32;
typedef long long ex_i64;
typedef unsigned long long ex_u64;

/* ---- operations: one rounding each ------------------------------------------------------------------------------------------------- */

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#ifndef EX_FN
#define EX_FN static __device__ __forceinline__
#endif
EX_FN float ex_mul(float a, float b) { return __fmul_rn(a, b); } /* these intrinsics are never contracted */
EX_FN float ex_add(float a, float b) { return __fadd_rn(a, b); }
EX_FN float ex_sub(float a, float b) { return __fsub_rn(a, b); }
EX_FN float ex_div(float a, float b) { return __fdiv_rn(a, b); }
EX_FN float ex_sqrt(float a) { return __fsqrt_rn(a); }
EX_FN double ex_dmul(double a, double b) { return __dmul_rn(a, b); }
EX_FN double ex_dadd(double a, double b) { return __dadd_rn(a, b); }
EX_FN double ex_dsub(double a, double b) { return __dsub_rn(a, b); }
EX_FN double ex_ddiv(double a, double b) { return __ddiv_rn(a, b); }
EX_FN float ex_from_int(int a) { return __int2float_rn(a); }
EX_FN float ex_from_long(ex_i64 a) { return __ll2float_rn(a); }
EX_FN double ex_double(ex_i64 a) { return __ll2double_rn(a); }
EX_FN ex_u32 ex_bits(float a) { return (ex_u32)__float_as_int(a); }
EX_FN float ex_from_bits(ex_u32 a) { return __int_as_float((int)a); }
EX_FN ex_u64 ex_dbits(double a) { return (ex_u64)__double_as_longlong(a); }
EX_FN double ex_from_dbits(ex_u64 a) { return __longlong_as_double((ex_i64)a); }
#else
#ifndef EX_FN
#define EX_FN static inline __attribute__((always_inline, unused))
#endif
EX_FN float ex_mul(float a, float b) { return a * b; }
EX_FN float ex_add(float a, float b) { return a + b; }
EX_FN float ex_sub(float a, float b) { return a - b; }
EX_FN float ex_div(float a, float b) { return a / b; }
EX_FN float ex_sqrt(float a) { return __builtin_sqrtf(a); }
EX_FN double ex_dmul(double a, double b) { return a * b; }
EX_FN double ex_dadd(double a, double b) { return a + b; }
EX_FN double ex_dsub(double a, double b) { return a - b; }
EX_FN double ex_ddiv(double a, double b) { return a / b; }
EX_FN float ex_from_int(int a) { return (float)a; }
EX_FN float ex_from_long(ex_i64 a) { return (float)a; }
EX_FN double ex_double(ex_i64 a) { return (double)a; }
EX_FN ex_u32 ex_bits(float a) { ex_u32 b; __builtin_memcpy(&b, &a, 4); return b; }
EX_FN float ex_from_bits(ex_u32 a) { float b; __builtin_memcpy(&b, &a, 4); return b; }
EX_FN ex_u64 ex_dbits(double a) { ex_u64 b; __builtin_memcpy(&b, &a, 8); return b; }
EX_FN double ex_from_dbits(ex_u64 a) { double b; __builtin_memcpy(&b, &a, 8); return b; }
#endif

EX_FN float ex_muladd(float a, float b, float c) { return ex_add(ex_mul(a, b), c); } /* two roundings: never an fma */
EX_FN double ex_dmuladd(double a, double b, double c) { return ex_dadd(ex_dmul(a, b), c); }
EX_FN float ex_abs(float a) { return a < 0 ? -a : a; }
EX_FN float ex_max(float a, float b) { return a > b ? a : b; }
EX_FN float ex_clamp(float a, float most) { return a > most ? most : a < -most ? -most : a; }

/* rint: to the nearest integer, half to even. Adding 1.5 * 2^23 leaves no bits for a fraction. */
#define EX_MAGIC 12582912.0f         /* 1.5 * 2^23 */
#define EX_DMAGIC 6755399441055744.0 /* 1.5 * 2^52 */
EX_FN float ex_rint(float a) { return ex_sub(ex_add(a, EX_MAGIC), EX_MAGIC); }        /* |a| <= 2^22 */
EX_FN double ex_drint(double a) { return ex_dsub(ex_dadd(a, EX_DMAGIC), EX_DMAGIC); } /* |a| <= 2^51 */
EX_FN int ex_int(float a) { /* rint of |a| < 2^31; from 2^23 on every float is an integer */
  float m = ex_abs(a);
  int i = (int)(m < 8388608.0f ? ex_sub(ex_add(m, 8388608.0f), 8388608.0f) : m);
  return a < 0 ? -i : i;
}
EX_FN ex_i64 ex_long(double a) { /* rint of 0 <= a < 2^63; from 2^52 on every double is an integer */
  return (ex_i64)(a < 4503599627370496.0 ? ex_dsub(ex_dadd(a, 4503599627370496.0), 4503599627370496.0) : a);
}

/* ---- exp and log --------------------------------------------------------------------------------------------------------------------- */

#define EX_EXP_LEAST -40.0f /* below it exp is 0: what is multiplied with it later cannot become subnormal */

EX_FN float ex_exp(float x) { /* x <= 0. Relative error 1.3e-6 at -40, 2e-7 near 0; exp(0) = 1. */
  float t, n, f, p;
  if (!(x >= EX_EXP_LEAST)) return 0;
  t = ex_mul(x, 0x1.715476p+0f), n = ex_rint(t), f = ex_sub(t, n); /* x / ln 2; the difference is exact */
  p = ex_muladd(0x1.430912p-13f, f, 0x1.5d87fep-10f);
  p = ex_muladd(p, f, 0x1.3b2ab6p-7f);
  p = ex_muladd(p, f, 0x1.c6b08ep-5f);
  p = ex_muladd(p, f, 0x1.ebfbe0p-3f);
  p = ex_muladd(p, f, 0x1.62e430p-1f);
  p = ex_muladd(p, f, 1.0f);
  return ex_from_bits(ex_bits(p) + ((ex_u32)(int)n << 23)); /* 2^n * p */
}

EX_FN double ex_exp64(double x) { /* x <= 0. Relative error below 1e-14; 0 below -40. */
  double t, n, f, p;
  if (!(x >= (double)EX_EXP_LEAST)) return 0;
  t = ex_dmul(x, 0x1.71547652b82fep+0), n = ex_drint(t), f = ex_dsub(t, n);
  p = ex_dmuladd(0x1.c3bd650fc2986p-36, f, 0x1.e8cac7351bb25p-32);
  p = ex_dmuladd(p, f, 0x1.e4cf5158b8ecap-28);
  p = ex_dmuladd(p, f, 0x1.b5253d395e7c4p-24);
  p = ex_dmuladd(p, f, 0x1.62c0223a5c824p-20);
  p = ex_dmuladd(p, f, 0x1.ffcbfc588b0c7p-17);
  p = ex_dmuladd(p, f, 0x1.430912f86c787p-13);
  p = ex_dmuladd(p, f, 0x1.5d87fe78a6731p-10);
  p = ex_dmuladd(p, f, 0x1.3b2ab6fba4e77p-7);
  p = ex_dmuladd(p, f, 0x1.c6b08d704a0c0p-5);
  p = ex_dmuladd(p, f, 0x1.ebfbdff82c58fp-3);
  p = ex_dmuladd(p, f, 0x1.62e42fefa39efp-1);
  p = ex_dmuladd(p, f, 1.0);
  return ex_from_dbits(ex_dbits(p) + ((ex_u64)(ex_i64)n << 52));
}

EX_FN double ex_log64(double x) { /* x > 0 and normal: e * ln 2 + 2 * atanh((m - 1) / (m + 1)), x = 2^e * m, sqrt(1/2) <= m < sqrt(2) */
  ex_u64 bits = ex_dbits(x) - 0x3fe6a09e667f3bcdull; /* sqrt(1/2) */
  ex_i64 e = (ex_i64)bits >> 52;
  double m = ex_from_dbits((bits & 0xfffffffffffffull) + 0x3fe6a09e667f3bcdull);
  double s = ex_ddiv(ex_dsub(m, 1.0), ex_dadd(m, 1.0)), z = ex_dmul(s, s), p;
  p = ex_dmuladd(0x1.8618618618618p-4, z, 0x1.af286bca1af28p-4); /* 2/21, 2/19, ... 2/3, 2 */
  p = ex_dmuladd(p, z, 0x1.e1e1e1e1e1e1ep-4);
  p = ex_dmuladd(p, z, 0x1.1111111111111p-3);
  p = ex_dmuladd(p, z, 0x1.3b13b13b13b14p-3);
  p = ex_dmuladd(p, z, 0x1.745d1745d1746p-3);
  p = ex_dmuladd(p, z, 0x1.c71c71c71c71cp-3);
  p = ex_dmuladd(p, z, 0x1.2492492492492p-2);
  p = ex_dmuladd(p, z, 0x1.999999999999ap-2);
  p = ex_dmuladd(p, z, 0x1.5555555555555p-1);
  p = ex_dmuladd(p, z, 2.0);
  return ex_dmuladd(ex_double(e), 0x1.62e42fefa39efp-1, ex_dmul(p, s));
}

/* ---- quantising: q = rint(y * (levels / a)) with a = max |y|, y ~ q * (a / levels) ---------------------------------------------------- */

#define EX_SIGNED 127.0f   /* levels of weights, keys, values, queries, and activations of either sign: -127 ... 127 */
#define EX_UNSIGNED 255.0f /* of what is never negative: attention weights, and hidden units after ReLU: 0 ... 255 */
#define EX_WIDE 32639.0f   /* of activations of 16 bits, 127 * 256 + 127: both digits then fit a signed byte */
#define EX_TINY 0x1p-40f   /* a maximum or a parameter below it counts as 0 */
#define EX_LARGE 0x1p16f   /* a checkpoint with a larger parameter is refused: no float is then infinite (but in GELU) or NaN */

EX_FN float ex_inverse(float a, float levels) { return a < EX_TINY ? 0 : ex_div(levels, a); }
EX_FN float ex_scale(float a, float levels) { return a < EX_TINY ? 0 : ex_div(a, levels); }
EX_FN int ex_quantise(float y, float inverse) { return (int)ex_rint(ex_mul(y, inverse)); } /* never leaves the levels */
EX_FN int ex_high(int q) { return (q + 128) >> 8; }    /* the digits of a 16-bit activation: q = 256 * high + low, */
EX_FN int ex_low(int q) { return q - 256 * ex_high(q); } /* -127 <= high <= 127, -128 <= low <= 127 */
EX_FN float ex_parameter(float w) { return ex_abs(w) < EX_TINY ? 0 : w; } /* biases and LayerNorm's, at load; -0 becomes 0 */

/* ---- the residual stream: integers, units of 2^-12 ------------------------------------------------------------------------------------- */

#define EX_UNITS 4096.0f
#define EX_BOUND (1 << 25)
EX_FN int ex_embedding(float w) { return ex_int(ex_mul(w, EX_UNITS)); } /* at load */
EX_FN int ex_bound(int x) { return x > EX_BOUND ? EX_BOUND : x < -EX_BOUND ? -EX_BOUND : x; } /* of token + position */
EX_FN int ex_residual(int x, float y) { return ex_bound(x + ex_int(ex_clamp(ex_mul(y, EX_UNITS), 0x1p26f))); } /* x + y */

/* ---- LayerNorm of c elements: s = sum of x, v = sum of (x - mean)^2 -------------------------------------------------------------------- */

#define EX_EPS 167.77216f /* float32(1e-5 * 2^24) */
EX_FN int ex_mean(ex_i64 s, int c) { return ex_int(ex_div(ex_from_long(s), ex_from_int(c))); }
EX_FN float ex_rsigma(ex_i64 v, int c) {
  return ex_div(1.0f, ex_sqrt(ex_add(ex_div(ex_from_long(v), ex_from_int(c)), EX_EPS)));
}
EX_FN float ex_norm(int d, float rsigma, float weight, float bias) { /* d = x - mean */
  return ex_muladd(ex_mul(ex_from_int(d), rsigma), weight, bias);
}

/* ---- linear: acc = sum of q * w8; with 16 bits high = sum of the high digits' products, low of the low digits' -------------------------- */

EX_FN float ex_linear(int acc, float scale, float scale_w, float bias) { return ex_muladd(ex_from_int(acc), ex_mul(scale, scale_w), bias); }
EX_FN float ex_linear_wide(int high, int low, float scale, float scale_w, float bias) {
  return ex_muladd(ex_from_long(256 * (ex_i64)high + low), ex_mul(scale, scale_w), bias);
}

/* ---- attention, one head: acc = sum of q * k, e = exp(score - max), z = sum of ex_count(e), w = e * scale_v,
        u = ex_quantise(w, ex_inverse_share(max w)), acc = sum of u * v ------------------------------------------------------------------- */

EX_FN float ex_root(int d) { return ex_div(1.0f, ex_sqrt(ex_from_int(d))); } /* head size^-0.5 */
EX_FN float ex_score(int acc, float scale_q, float scale_k, float root) { return ex_mul(ex_from_int(acc), ex_mul(ex_mul(scale_q, scale_k), root)); }
EX_FN int ex_count(float e) { return (int)ex_rint(ex_mul(e, 1048576.0f)); } /* what e adds to the normaliser z, in units of 2^-20 */
EX_FN float ex_inverse_share(float top) { return top == 0 ? 0 : ex_div(EX_UNSIGNED, top); }
EX_FN float ex_attended(float top, ex_i64 z) { return ex_div(ex_div(top, EX_UNSIGNED), ex_mul(ex_from_long(z), 0x1p-20f)); } /* z >= 2^20 */
EX_FN float ex_attention(int acc, float attended) { return ex_mul(ex_from_int(acc), attended); }

/* ---- activations --------------------------------------------------------------------------------------------------------------------------- */

EX_FN float ex_relu(float x) { return x > 0 ? x : 0; }
EX_FN float ex_gelu(float x) { /* the tanh form: x / (1 + exp(-z)), z = 2 * sqrt(2 / pi) * (x + 0.044715 * x^3), which may be infinite */
  float z = ex_mul(ex_muladd(ex_mul(ex_mul(x, x), 0x1.6e4e26p-5f), x, x), 0x1.988454p+0f);
  float e = ex_exp(-ex_abs(z));
  return ex_div(z < 0 ? ex_mul(x, e) : x, ex_add(1.0f, e));
}

/* ---- sampling ------------------------------------------------------------------------------------------------------------------------------- */

/* The logit of one token after bias (the sum of what the request adds to it) and penalties; count: how often it was generated. */
EX_FN double ex_adjusted(float logit, double bias, double repetition, double frequency, double presence, int in_prompt, int count) {
  double v = ex_dadd((double)logit, bias);
  if (in_prompt || count > 0) v = v > 0 ? ex_ddiv(v, repetition) : ex_dmul(v, repetition);
  v = ex_dsub(v, ex_dmul(frequency, (double)count));
  return ex_dsub(v, count > 0 ? presence : 0);
}
/* Weights are probabilities in units of 2^-40 of the largest; most = max v. A temperature of 0 is greedy and never comes here. */
EX_FN ex_i64 ex_weight(double v, double most, double temperature) {
  return ex_long(ex_dmul(ex_exp64(ex_ddiv(ex_dsub(v, most), temperature)), 1099511627776.0));
}
EX_FN ex_i64 ex_least(double min_p) { return ex_long(ex_dmul(min_p, 1099511627776.0)); } /* min-p keeps weights of at least this */

EX_FN ex_u64 ex_mulhi(ex_u64 a, ex_u64 b) { /* the upper half of the 128-bit product */
  ex_u64 al = a & 0xffffffffull, ah = a >> 32, bl = b & 0xffffffffull, bh = b >> 32;
  ex_u64 middle = ah * bl + ((al * bl) >> 32);
  return ah * bh + (middle >> 32) + ((al * bh + (middle & 0xffffffffull)) >> 32);
}
EX_FN ex_i64 ex_target(ex_u64 fraction, ex_i64 total) { /* floor(fraction * total / 2^53): drawn is the first token whose running sum exceeds it */
  return (ex_i64)((ex_mulhi(fraction, (ex_u64)total) << 11) | ((fraction * (ex_u64)total) >> 53));
}
EX_FN ex_i64 ex_nucleus(double top_p, ex_i64 total) { /* top-p keeps a token if those before it weigh less than this */
  ex_i64 sum = ex_target((ex_u64)ex_long(ex_dmul(top_p, 9007199254740992.0)), total);
  return sum > 1 ? sum : 1;
}
EX_FN ex_u64 ex_mix(ex_u64 x) { /* SplitMix64's finaliser */
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}
EX_FN ex_u64 ex_u53(ex_i64 seed, ex_i64 index) { /* random number `index` of `seed`: uniform in 0 ... 2^53 - 1 */
  ex_u64 golden = 0x9E3779B97F4A7C15ull;
  return ex_mix(ex_mix((ex_u64)seed + golden) + (ex_u64)(index + 1) * golden) >> 11;
}
EX_FN double ex_log_total(ex_i64 total) { return ex_log64(ex_dmul(ex_double(total), 0x1p-40)); } /* total: of weights at temperature 1 */
EX_FN double ex_logprob(double x, double most, double log_total) { return ex_dsub(ex_dsub(x, most), log_total); }

#endif
