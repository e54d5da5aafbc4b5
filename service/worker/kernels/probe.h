/* Every function of arithmetic.h over 2^18 arguments each, folded into one sum a function. The sums are constants of the arithmetic's version
 * (model/exact/probes.py has them, and the same in numpy): a compiler or a machine that rounds one result otherwise is refused by name.
 *
 * Why the logits of a self-test are not enough: quantising to 8 bits hides a wrong last bit for many tokens. The sums are integers, so the
 * arguments may be run through in any order and by any number of threads. */
#ifndef PROBE_H
#define PROBE_H
#include "arithmetic.h"

enum { EX_PROBES = 33, EX_PROBE_ARGUMENTS = 1 << 18 };

EX_FN ex_u64 ex_hash(int function, ex_u64 argument, int part) { /* 64 random bits */
  return ex_mix(ex_mix(((argument << 8) + (ex_u64)function) * 0x9E3779B97F4A7C15ull) + (ex_u64)part);
}
EX_FN float ex_some(ex_u64 h, int least, int most) { /* a float of either sign, its exponent from least to most */
  ex_u32 exponent = (ex_u32)(127 + least + (int)((h >> 32) % (ex_u64)(most - least + 1)));
  return ex_from_bits((ex_u32)(h & 0x807fffffull) | exponent << 23);
}
EX_FN double ex_dsome(ex_u64 h, int least, int most) { /* a double of either sign */
  ex_u64 exponent = (ex_u64)(1023 + least) + (h >> 40) % (ex_u64)(most - least + 1);
  return ex_from_dbits((h & 0x8000000000000000ull) | exponent << 52 | (ex_mix(h) >> 12));
}
EX_FN int ex_within(ex_u64 h, int most) { return (int)((h >> 20) % (2 * (ex_u64)most + 1)) - most; } /* -most ... most */
EX_FN float ex_levels(ex_u64 h) { return h % 3 == 0 ? EX_SIGNED : h % 3 == 1 ? EX_UNSIGNED : EX_WIDE; }
EX_FN ex_u64 ex_pair(ex_u32 a, ex_u32 b) { return (ex_u64)a << 32 | b; }

/* The bits of one result; h, g, k and l are the random arguments. */
EX_FN ex_u64 ex_probe_result(int function, ex_u64 h, ex_u64 g, ex_u64 k, ex_u64 l) {
  int c = 1 + (int)(k % 8191);
  float a, b;
  switch (function) {
  case 0: return ex_bits(ex_exp(ex_mul(ex_from_int(-(int)(h >> 39)), 0x1.4p-20f))); /* -40 ... 0 */
  case 1: return ex_dbits(ex_exp64(ex_dmul(ex_double(-(ex_i64)(h >> 11)), 0x1.5p-48))); /* -42 ... 0 */
  case 2: return ex_dbits(ex_log64(ex_from_dbits(ex_dbits(ex_dsome(h, -60, 62)) & 0x7fffffffffffffffull)));
  case 3: return ex_bits(ex_inverse(ex_abs(ex_some(h, -42, 90)), ex_levels(g)));
  case 4: return ex_bits(ex_scale(ex_abs(ex_some(h, -42, 90)), ex_levels(g)));
  case 5: /* y = a * fraction, so that |y| <= a */
    a = ex_abs(ex_some(h, -40, 90)), b = ex_mul(ex_from_int(ex_within(g, 1 << 23)), 0x1p-23f);
    return (ex_u64)(ex_i64)ex_quantise(ex_mul(a, b), ex_inverse(a, ex_levels(k)));
  case 6: return (ex_u64)(ex_i64)ex_high(ex_within(h, 32639));
  case 7: return (ex_u64)(ex_i64)ex_low(ex_within(h, 32639));
  case 8: return ex_bits(ex_parameter(ex_some(h, -44, 16)));
  case 9: return (ex_u64)(ex_i64)ex_embedding(ex_some(h, -20, 15));
  case 10: return (ex_u64)(ex_i64)ex_bound(ex_within(h, 1 << 27));
  case 11: return (ex_u64)(ex_i64)ex_residual(ex_within(h, EX_BOUND), ex_some(g, -16, 30));
  case 12: return (ex_u64)(ex_i64)ex_mean((ex_i64)(h >> 12) % ((ex_i64)c * 2 * EX_BOUND + 1) - (ex_i64)c * EX_BOUND, c);
  case 13: return ex_bits(ex_rsigma((ex_i64)(h >> (1 + g % 60)), c));
  case 14: return ex_bits(ex_norm(ex_within(h, 2 * EX_BOUND), ex_abs(ex_some(g, -26, -4)), ex_some(k, -40, 15), ex_some(l, -40, 15)));
  case 15: return ex_bits(ex_linear((int)(ex_u32)h, ex_abs(ex_some(g, -54, 20)), ex_abs(ex_some(k, -46, 9)), ex_some(l, -40, 15)));
  case 16: return ex_bits(ex_linear_wide((int)(ex_u32)h, (int)(h >> 32), ex_abs(ex_some(g, -54, 20)), ex_abs(ex_some(k, -46, 9)), ex_some(l, -40, 15)));
  case 17: return ex_bits(ex_root(c));
  case 18: return ex_bits(ex_score((int)(ex_u32)h, ex_abs(ex_some(g, -46, 40)), ex_abs(ex_some(k, -46, 40)), ex_root(c)));
  case 19: return (ex_u64)(ex_i64)ex_count(ex_exp(ex_mul(ex_from_int(-(int)(h >> 39)), 0x1p-21f))); /* -16 ... 0 */
  case 20: return ex_bits(ex_inverse_share(h & 1 ? ex_abs(ex_some(h, -104, 60)) : 0));
  case 21: return ex_bits(ex_attended(ex_abs(ex_some(h, -104, 60)), (1 << 20) + (ex_i64)(g >> (31 + k % 13))));
  case 22: return ex_bits(ex_attention((int)(ex_u32)h, ex_abs(ex_some(g, -110, 60))));
  case 23: return ex_bits(ex_relu(ex_some(h, -60, 60)));
  case 24: return ex_bits(ex_gelu(g % 8 ? ex_some(h, -20, 5) : ex_some(h, -60, 54)));
  case 25: /* half of the tokens without a bias, half of them in the prompt, half of them never generated */
    return ex_dbits(ex_adjusted(ex_some(h, -10, 7), g & 1 ? ex_dsome(g, -10, 6) : 0, ex_dadd(0.5, ex_dmul(ex_double((ex_i64)(k >> 11)), 0x1p-53)),
                                ex_dsome(l, -10, 1), ex_dsome(ex_mix(l), -10, 1), (int)(k & 1), k & 2 ? (int)(k >> 2 & 7) : 0));
  case 26: return (ex_u64)ex_weight(ex_dsub(ex_dsome(h, -10, 3), 16.0), 0, ex_dadd(0.01, ex_dmul(ex_double((ex_i64)(g >> 11)), 0x1p-50)));
  case 27: return (ex_u64)ex_least(ex_dmul(ex_double((ex_i64)(h >> 11)), 0x1p-53));
  case 28: return (ex_u64)ex_target(h >> 11, (ex_i64)(g >> (1 + k % 40)));
  case 29: return (ex_u64)ex_nucleus(ex_dmul(ex_double((ex_i64)(h >> 11)), 0x1p-53), (ex_i64)(g >> (1 + k % 40)));
  case 30: return ex_u53((ex_i64)(h >> 11), (ex_i64)(g >> 40));
  case 31: return ex_dbits(ex_log_total((1ll << 40) + (ex_i64)(h >> (1 + g % 23))));
  default: return ex_dbits(ex_logprob((double)ex_some(h, -10, 7), (double)ex_abs(ex_some(g, 7, 8)), ex_abs(ex_some(k, -10, 4))));
  }
}
/* What one argument of one function adds to the function's sum (mod 2^64). */
EX_FN ex_u64 ex_probe(int function, ex_u64 argument) {
  return ex_mix(argument + ex_probe_result(function, ex_hash(function, argument, 1), ex_hash(function, argument, 2), ex_hash(function, argument, 3), ex_hash(function, argument, 4)));
}
#endif
