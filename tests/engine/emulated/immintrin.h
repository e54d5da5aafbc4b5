/* AVX-512 and VNNI in plain C, as Intel's intrinsics guide describes them, so that kernels for processors that are not here
 * run on any x86-64 with AVX2: compile with -I this folder, -include immintrin.h and -DEMULATE_AVX512 or -DEMULATE_AVXVNNI.
 * Only what simd.h uses. */
#ifndef EMULATED_H
#define EMULATED_H
#include_next <immintrin.h>
#include <math.h>
#include <stdint.h>

#if defined(EMULATE_AVX512) /* not before the compiler's headers, which believe it */
#define __AVX512VNNI__ 1
#define IN_REGISTER(x) (void)(x) /* no register holds 64 bytes here */
#else
#define __AVXVNNI__ 1
#endif

#define EMULATED static inline __attribute__((always_inline, unused))
#define EACH(i, n) for (int i = 0; i < (n); i++)
typedef union { __m512i i; __m512 f; int32_t s[16]; uint32_t u[16]; int64_t l[8]; uint64_t q[8]; float x[16]; uint8_t ub[64]; int8_t sb[64]; } Wide;
typedef union { __m256i i; int32_t s[8]; uint8_t ub[32]; int8_t sb[32]; } Half;

EMULATED __m256i emulated_dpbusd_256(__m256i sums, __m256i a, __m256i b) {
  Half r = {sums}, u = {a}, s = {b};
  EACH(i, 32) r.s[i / 4] = (int32_t)((uint32_t)r.s[i / 4] + (uint32_t)(u.ub[i] * s.sb[i]));
  return r.i;
}
EMULATED __m512i emulated_dpbusd_512(__m512i sums, __m512i a, __m512i b) {
  Wide r = {sums}, u = {a}, s = {b};
  EACH(i, 64) r.u[i / 4] += (uint32_t)(u.ub[i] * s.sb[i]);
  return r.i;
}
EMULATED __m512 emulated_max_ps(__m512 a, __m512 b) {
  Wide r = {.f = a}, y = {.f = b};
  EACH(i, 16) r.x[i] = r.x[i] > y.x[i] ? r.x[i] : y.x[i];
  return r.f;
}
EMULATED __m512 emulated_min_ps(__m512 a, __m512 b) {
  Wide r = {.f = a}, y = {.f = b};
  EACH(i, 16) r.x[i] = r.x[i] < y.x[i] ? r.x[i] : y.x[i];
  return r.f;
}
EMULATED __m512i emulated_max_epi32(__m512i a, __m512i b) {
  Wide r = {a}, y = {b};
  EACH(i, 16) r.s[i] = r.s[i] > y.s[i] ? r.s[i] : y.s[i];
  return r.i;
}
EMULATED __m512i emulated_min_epi32(__m512i a, __m512i b) {
  Wide r = {a}, y = {b};
  EACH(i, 16) r.s[i] = r.s[i] < y.s[i] ? r.s[i] : y.s[i];
  return r.i;
}
EMULATED __m128i emulated_cvtepi32_epi8(__m512i a) {
  Wide x = {a};
  union { __m128i i; uint8_t b[16]; } r;
  EACH(i, 16) r.b[i] = (uint8_t)x.u[i];
  return r.i;
}
EMULATED __m512i emulated_cvtps_epi32(__m512 a) {
  Wide r = {.f = a};
  EACH(i, 16) r.s[i] = (int32_t)lrintf(r.x[i]);
  return r.i;
}
EMULATED float emulated_reduce_max_ps(__m512 a) {
  Wide x = {.f = a};
  EACH(i, 16) x.x[0] = x.x[0] > x.x[i] ? x.x[0] : x.x[i];
  return x.x[0];
}
EMULATED int emulated_reduce_add_epi32(__m512i a) {
  Wide x = {a};
  EACH(i, 15) x.u[0] += x.u[i + 1];
  return x.s[0];
}
EMULATED __m512i emulated_srli_epi64(__m512i a, unsigned count) {
  Wide x = {a};
  EACH(i, 8) x.q[i] >>= count;
  return x.i;
}
EMULATED __m512i emulated_mul_epi32(__m512i a, __m512i b) {
  Wide x = {a}, y = {b}, r;
  EACH(i, 8) r.l[i] = (int64_t)x.s[2 * i] * y.s[2 * i];
  return r.i;
}

#define _mm256_dpbusd_avx_epi32 emulated_dpbusd_256
#define _mm512_dpbusd_epi32 emulated_dpbusd_512
#define _mm512_max_ps emulated_max_ps
#define _mm512_min_ps emulated_min_ps
#define _mm512_max_epi32 emulated_max_epi32
#define _mm512_min_epi32 emulated_min_epi32
#define _mm512_cvtepi32_epi8 emulated_cvtepi32_epi8
#define _mm512_cvtps_epi32 emulated_cvtps_epi32
#define _mm512_reduce_max_ps emulated_reduce_max_ps
#define _mm512_reduce_add_epi32 emulated_reduce_add_epi32
#define _mm512_srli_epi64 emulated_srli_epi64
#define _mm512_mul_epi32 emulated_mul_epi32
#endif
