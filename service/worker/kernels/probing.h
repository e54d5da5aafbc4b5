/* The probes through the code that this file was compiled to: a function that has a vector form is asked in that form. */
#ifndef PROBING_H
#define PROBING_H

#include "simd.h"

INLINE float lane_exp(float x) { return vexp(spread(x))[0]; }
INLINE float lane_gelu(float x) { return vgelu(spread(x))[0]; }
INLINE int lane_quantise(float y, float inverse) { return (rounded(spread(y) * inverse, 0) - MAGIC_BITS)[0]; }
INLINE int lane_count(float e) { return (rounded(spread(e) * 1048576.0f, 0) - MAGIC_BITS)[0]; }
INLINE int lane_residual(int x, float y) { return vresidual((vint){0} + x, spread(y))[0]; }
INLINE float lane_linear(int acc, float scale, float scale_w, float bias) {
  return (to_float((vint){0} + acc) * (spread(scale_w) * scale) + spread(bias))[0];
}
INLINE float lane_linear_wide(int high, int low, float scale, float scale_w, float bias) {
  return (to_float_wide((vint){0} + high, (vint){0} + low) * (spread(scale_w) * scale) + spread(bias))[0];
}
INLINE ex_i64 lane_weight(double v, double most, double temperature) { return vweights((vdouble){0} + v, most, temperature)[0]; }

#define ex_exp lane_exp
#define ex_gelu lane_gelu
#define ex_quantise lane_quantise
#define ex_count lane_count
#define ex_residual lane_residual
#define ex_linear lane_linear
#define ex_linear_wide lane_linear_wide
#define ex_weight lane_weight
#include "probe.h"

static uint64_t probe_sum(int function) {
  uint64_t sum = 0;
  for (int i = 0; i < EX_PROBE_ARGUMENTS; i++) sum += ex_probe(function, (ex_u64)i);
  return sum;
}

#endif
