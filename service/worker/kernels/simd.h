/* The few vector operations that the kernel is built from, for each instruction set.
 *
 * Everything that is + - * / on elements is GCC's vector arithmetic on the types below and is the same everywhere. What
 * an instruction set has to give is `dot`, which multiplies small integers and adds them to 32-bit sums, and some
 * operations that compilers write badly: maxima, narrowing, sums across a vector.
 *
 *   BYTES of a vector, LANES of 32 bits. `dot` adds to each lane the products of G weights with the G activations of a
 *   `word`. Where G is 4 activations are bytes, where it is 2 they are int16.
 *
 * Instructions want operands of certain signs, so values are stored with an offset: OFFSET for activations of either
 * sign, OFFSET_UNSIGNED for those from 0 to 255, OFFSET_KEY for keys. Who knows the other operand's sum takes the
 * excess out again, exactly.
 */
#ifndef SIMD_H
#define SIMD_H

#include <stdint.h>
#include <string.h>

#include "arithmetic.h"

#define INLINE static inline __attribute__((always_inline, unused))

#if defined(GENERIC)
#define BYTES 16
#define G 2
#define MAX_TILE 4
#elif defined(__AVX512VNNI__)
#include <immintrin.h>
#define BYTES 64
#define G 4
#define MAX_TILE 12 /* rows of a register tile: 12 x 2 sums and some temporaries fill 32 registers */
#elif defined(__AVXVNNI__)
#include <immintrin.h>
#define BYTES 32
#define G 4
#define MAX_TILE 6
#elif defined(__AVX2__)
#include <immintrin.h>
#define BYTES 32
#define G 2
#define MAX_TILE 4
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#define BYTES 16
#define G 4
#define MAX_TILE 8
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#define BYTES 16
#define G 4
#define MAX_TILE 4
#else
#error "compile with -DGENERIC, or for an instruction set that is known here"
#endif

#define LANES (BYTES / 4)
#define PANEL (2 * LANES) /* outputs of a linear layer that are stored and computed side by side */
#define VECTOR(type, bytes) type __attribute__((vector_size(bytes), aligned(bytes), may_alias))
typedef VECTOR(float, BYTES) vfloat;
typedef VECTOR(int32_t, BYTES) vint;
typedef VECTOR(uint32_t, BYTES) vuint;
typedef VECTOR(double, BYTES) vdouble;
typedef VECTOR(int64_t, BYTES) vlong;
typedef VECTOR(int16_t, BYTES) vshort;
typedef VECTOR(int8_t, LANES * G) vbytes; /* weights, keys or values as they are stored: G for each lane */
typedef VECTOR(int8_t, LANES) lanes8;
typedef VECTOR(int16_t, LANES * 2) lanes16;
typedef VECTOR(int32_t, BYTES / 2) half_int;
typedef VECTOR(float, BYTES / 2) half_float;
typedef uint32_t word; /* G activations: 4 bytes or 2 int16 */

#if G == 4
typedef uint8_t act; /* as bits: ARM reads them as signed */
typedef int8_t query_act;
#else
typedef int16_t act, query_act;
#endif

/* ---- dot: sums += G products for each lane ------------------------------------------------------------------------- */

#if defined(GENERIC)
#define OFFSET 0
#define OFFSET_UNSIGNED 0
#define OFFSET_KEY 0
typedef vshort weights;
INLINE weights widen(const vbytes *w) { return __builtin_convertvector(*w, vshort); }
INLINE vint dot(vint sums, weights w, word x) { /* a product fits 16 bits: 255 * 127 */
  vint pairs = (vint)(w * (vshort)((vuint){0} + x));
  return sums + ((pairs << 16) >> 16) + (pairs >> 16);
}
#define dot_key dot

#elif defined(__AVX512VNNI__) || defined(__AVXVNNI__) /* unsigned x signed; what is stored as unsigned has 128 added */
#define OFFSET 128
#define OFFSET_UNSIGNED 0
#define OFFSET_KEY 128
typedef vbytes weights;
INLINE weights widen(const vbytes *w) { return *w; }
#if BYTES == 64
INLINE vint dpbusd(vint sums, vint u, vint s) {
  return (vint)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)u, (__m512i)s);
}
#else
INLINE vint dpbusd(vint sums, vint u, vint s) {
  return (vint)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)u, (__m256i)s);
}
#endif
INLINE vint dot(vint sums, weights w, word x) { return dpbusd(sums, (vint)((vuint){0} + x), (vint)w); }
INLINE vint dot_key(vint sums, weights k, word q) { return dpbusd(sums, (vint)k, (vint)((vuint){0} + q)); }

#elif defined(__AVX2__) /* not vpmaddubsw, which saturates: 2 * 255 * 127 does not fit 16 bits */
#define OFFSET 0
#define OFFSET_UNSIGNED 0
#define OFFSET_KEY 0
typedef vshort weights;
INLINE weights widen(const vbytes *w) { return (weights)_mm256_cvtepi8_epi16(*(const __m128i *)w); }
INLINE vint dot(vint sums, weights w, word x) {
  return sums + (vint)_mm256_madd_epi16((__m256i)w, _mm256_set1_epi32((int)x));
}
#define dot_key dot

#else /* ARM: signed x signed; what goes from 0 to 255 is stored less 128 */
#define OFFSET 0
#define OFFSET_UNSIGNED (-128)
#define OFFSET_KEY 0
typedef vbytes weights;
INLINE weights widen(const vbytes *w) { return *w; }
#if defined(__ARM_FEATURE_DOTPROD)
INLINE vint dot(vint sums, weights w, word x) {
  return (vint)vdotq_s32((int32x4_t)sums, (int8x16_t)w, vreinterpretq_s8_u32(vdupq_n_u32(x)));
}
#else
INLINE vint dot(vint sums, weights w, word x) { /* two products fit 16 bits: 2 * 128 * 127 */
  int8x8_t v = vreinterpret_s8_u32(vdup_n_u32(x));
  int16x8_t low = vmull_s8(vget_low_s8((int8x16_t)w), v), high = vmull_s8(vget_high_s8((int8x16_t)w), v);
  return (vint)vpadalq_s16((int32x4_t)sums, vpaddq_s16(low, high));
}
#endif
#define dot_key dot
#endif

/* Keeps a loaded weight in a register: gcc would fold the load into each instruction that uses it, and then loads are
 * what limits tiles of a few rows. */
#if defined(GENERIC) || !defined(__x86_64__)
#define IN_REGISTER(x) (void)(x)
#elif !defined(IN_REGISTER)
#define IN_REGISTER(x) __asm__("" : "+v"(x))
#endif

/* ---- maxima, narrowing (to the low bits), nearest integer (half to even), sums across ------------------------------- */

#if defined(GENERIC)
INLINE vfloat fmax_(vfloat a, vfloat b) { vint m = a > b; return (vfloat)((m & (vint)a) | (~m & (vint)b)); }
INLINE vfloat fmin_(vfloat a, vfloat b) { vint m = a < b; return (vfloat)((m & (vint)a) | (~m & (vint)b)); }
INLINE vint imax(vint a, vint b) { vint m = a > b; return (m & a) | (~m & b); }
INLINE vint imin(vint a, vint b) { vint m = a < b; return (m & a) | (~m & b); }
INLINE lanes8 narrow8(vint a) { return __builtin_convertvector(a, lanes8); }
INLINE lanes16 narrow16(vint a) { return __builtin_convertvector(a, lanes16); }
INLINE vint nearest(vfloat a) { vint r; for (int i = 0; i < LANES; i++) r[i] = ex_int(a[i]); return r; }
INLINE float highest(vfloat a) { float r = a[0]; for (int i = 1; i < LANES; i++) r = ex_max(r, a[i]); return r; }
INLINE int32_t total(vint a) { int32_t r = 0; for (int i = 0; i < LANES; i++) r += a[i]; return r; }
INLINE vlong squares(vlong s, vint d) { for (int i = 0; i < LANES; i++) s[i / 2] += (int64_t)d[i] * d[i]; return s; }

#elif BYTES == 64
INLINE vfloat fmax_(vfloat a, vfloat b) { return (vfloat)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vfloat fmin_(vfloat a, vfloat b) { return (vfloat)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vint imax(vint a, vint b) { return (vint)_mm512_max_epi32((__m512i)a, (__m512i)b); }
INLINE vint imin(vint a, vint b) { return (vint)_mm512_min_epi32((__m512i)a, (__m512i)b); }
INLINE lanes8 narrow8(vint a) { return (lanes8)_mm512_cvtepi32_epi8((__m512i)a); }
INLINE vint nearest(vfloat a) { return (vint)_mm512_cvtps_epi32((__m512)a); }
INLINE float highest(vfloat a) { return _mm512_reduce_max_ps((__m512)a); }
INLINE int32_t total(vint a) { return _mm512_reduce_add_epi32((__m512i)a); }
INLINE vlong squares(vlong s, vint d) {
  __m512i odd = _mm512_srli_epi64((__m512i)d, 32);
  return s + (vlong)_mm512_mul_epi32((__m512i)d, (__m512i)d) + (vlong)_mm512_mul_epi32(odd, odd);
}

#elif BYTES == 32
INLINE vfloat fmax_(vfloat a, vfloat b) { return (vfloat)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vfloat fmin_(vfloat a, vfloat b) { return (vfloat)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vint imax(vint a, vint b) { return (vint)_mm256_max_epi32((__m256i)a, (__m256i)b); }
INLINE vint imin(vint a, vint b) { return (vint)_mm256_min_epi32((__m256i)a, (__m256i)b); }
INLINE lanes8 narrow8(vint a) {
  __m256i x = _mm256_shuffle_epi8((__m256i)a, _mm256_set1_epi32(0x0c080400));
  __m128i y = _mm_unpacklo_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  lanes8 r;
  _mm_storel_epi64((__m128i *)&r, y);
  return r;
}
INLINE lanes16 narrow16(vint a) {
  __m256i x = _mm256_shuffle_epi8((__m256i)a, _mm256_set1_epi64x(0x0d0c090805040100));
  return (lanes16)_mm_unpacklo_epi64(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}
INLINE vint nearest(vfloat a) { return (vint)_mm256_cvtps_epi32((__m256)a); }
INLINE float highest(vfloat a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}
INLINE int32_t total(vint a) {
  __m128i x = _mm_add_epi32(_mm256_castsi256_si128((__m256i)a), _mm256_extracti128_si256((__m256i)a, 1));
  x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}
INLINE vlong squares(vlong s, vint d) {
  __m256i odd = _mm256_srli_epi64((__m256i)d, 32);
  return s + (vlong)_mm256_mul_epi32((__m256i)d, (__m256i)d) + (vlong)_mm256_mul_epi32(odd, odd);
}

#else
INLINE vfloat fmax_(vfloat a, vfloat b) { return (vfloat)vmaxq_f32((float32x4_t)a, (float32x4_t)b); }
INLINE vfloat fmin_(vfloat a, vfloat b) { return (vfloat)vminq_f32((float32x4_t)a, (float32x4_t)b); }
INLINE vint imax(vint a, vint b) { return (vint)vmaxq_s32((int32x4_t)a, (int32x4_t)b); }
INLINE vint imin(vint a, vint b) { return (vint)vminq_s32((int32x4_t)a, (int32x4_t)b); }
INLINE lanes8 narrow8(vint a) { return __builtin_convertvector(a, lanes8); }
INLINE vint nearest(vfloat a) { return (vint)vcvtnq_s32_f32((float32x4_t)a); }
INLINE float highest(vfloat a) { return vmaxvq_f32((float32x4_t)a); }
INLINE int32_t total(vint a) { return vaddvq_s32((int32x4_t)a); }
INLINE vlong squares(vlong s, vint d) {
  int32x4_t x = (int32x4_t)d;
  return (vlong)vmlal_high_s32(vmlal_s32((int64x2_t)s, vget_low_s32(x), vget_low_s32(x)), x, x);
}
#endif

#if G == 4
INLINE void store_act(act *to, vint q) { lanes8 a = narrow8(q); memcpy(to, &a, sizeof a); }
#else
INLINE void store_act(act *to, vint q) { lanes16 a = narrow16(q); memcpy(to, &a, sizeof a); }
#endif

/* ---- the same for all: arithmetic.h on whole vectors --------------------------------------------------------------- */

INLINE int round_up(int n, int to) { return (n + to - 1) / to * to; }
INLINE vfloat spread(float a) { return (vfloat){0} + a; }
INLINE vfloat pick(vint mask, vfloat a, vfloat b) { return (vfloat)((mask & (vint)a) | (~mask & (vint)b)); }
INLINE vfloat fabs_(vfloat a) { return (vfloat)((vint)a & 0x7fffffff); }
INLINE vfloat load(const float *from) { vfloat x; memcpy(&x, from, sizeof x); return x; } /* need not be aligned */
INLINE vfloat to_float(vint a) { return __builtin_convertvector(a, vfloat); }
INLINE vint first_lanes(int n) { vint lane; for (int i = 0; i < LANES; i++) lane[i] = i; return lane < n; }
INLINE int64_t long_total(vint a) { return total(a & 0xffff) + ((int64_t)total(a >> 16) << 16); }

/* ex_rint + offset in the low 22 bits, |a| < 2^21: all that narrowing keeps. An even offset does not move a tie. */
#define MAGIC_BITS 0x4b400000
INLINE vint rounded(vfloat a, int offset) { return (vint)(a + (EX_MAGIC + (float)offset)); }

INLINE vint vresidual(vint x, vfloat y) { /* ex_residual */
  vfloat units = fmax_(fmin_(y * EX_UNITS, spread(0x1p26f)), spread(-0x1p26f));
  return imax(imin(x + nearest(units), (vint){0} + EX_BOUND), (vint){0} - EX_BOUND);
}

INLINE vfloat vexp(vfloat x) { /* ex_exp */
  vint counts = x >= EX_EXP_LEAST;
  x = fmax_(x, spread(EX_EXP_LEAST));
  vfloat t = x * 0x1.715476p+0f, n = t + EX_MAGIC;
  vint exponent = (vint)n << 23;
  vfloat f = t - (n - EX_MAGIC), p = f * 0x1.430912p-13f + 0x1.5d87fep-10f;
  p = p * f + 0x1.3b2ab6p-7f;
  p = p * f + 0x1.c6b08ep-5f;
  p = p * f + 0x1.ebfbe0p-3f;
  p = p * f + 0x1.62e430p-1f;
  p = p * f + 1.0f;
  return (vfloat)(((vint)p + exponent) & counts);
}

INLINE vfloat vgelu(vfloat x) { /* ex_gelu */
  vfloat z = (x * x * 0x1.6e4e26p-5f * x + x) * 0x1.988454p+0f, e = vexp(-fabs_(z));
  return pick(z < 0, x * e, x) / (1.0f + e);
}

INLINE vlong vweights(vdouble v, double most, double temperature) { /* ex_weight */
  vdouble x = (v - most) / temperature, least = (vdouble){0} + (double)EX_EXP_LEAST;
  vlong counts = x >= least;
  x = (vdouble)((counts & (vlong)x) | (~counts & (vlong)least));
  vdouble t = x * 0x1.71547652b82fep+0, n = t + EX_DMAGIC;
  vlong exponent = (vlong)n << 52;
  vdouble f = t - (n - EX_DMAGIC), p = f * 0x1.c3bd650fc2986p-36 + 0x1.e8cac7351bb25p-32;
  p = p * f + 0x1.e4cf5158b8ecap-28;
  p = p * f + 0x1.b5253d395e7c4p-24;
  p = p * f + 0x1.62c0223a5c824p-20;
  p = p * f + 0x1.ffcbfc588b0c7p-17;
  p = p * f + 0x1.430912f86c787p-13;
  p = p * f + 0x1.5d87fe78a6731p-10;
  p = p * f + 0x1.3b2ab6fba4e77p-7;
  p = p * f + 0x1.c6b08d704a0c0p-5;
  p = p * f + 0x1.ebfbdff82c58fp-3;
  p = p * f + 0x1.62e42fefa39efp-1;
  p = p * f + 1.0;
  p = (vdouble)((vlong)p + exponent) * 1099511627776.0 + EX_DMAGIC;
  return ((vlong)p - 0x4338000000000000) & counts; /* the low bits of 1.5 * 2^52 + W are W */
}

/* ex_from_long(256 * high + low): float64 holds every such integer, so there is one rounding */
INLINE vfloat to_float_wide(vint high, vint low) {
  union { vint whole; half_int half[2]; } h = {high}, l = {low};
  union { vfloat whole; half_float half[2]; } r;
  for (int i = 0; i < 2; i++)
    r.half[i] = __builtin_convertvector(__builtin_convertvector(h.half[i], vdouble) * 256.0 +
                                        __builtin_convertvector(l.half[i], vdouble), half_float);
  return r.whole;
}

#endif
