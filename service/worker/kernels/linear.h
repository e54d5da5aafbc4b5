/* Linear layers: m items times (N, K) weights, and what becomes of the result; quantising, LayerNorm.
 *
 * Letters: m items (tokens of this step), K inputs, N outputs. With activations of 16 bits an item has two rows, its
 * high digits and its low ones, and their two sums become one number.
 */
#ifndef LINEAR_H
#define LINEAR_H

#include "engine.h"

enum { STORE, ADD, RELU, GELU }; /* the result as it is, added to the residual stream, or after an activation */

INLINE void finish(int kind, vfloat acc, float scale, const Linear *l, int column, void *y) { /* ex_linear */
  vfloat r = acc * (*(const vfloat *)(l->scale + column) * scale) + *(const vfloat *)(l->bias + column);
  if (kind == ADD) *(vint *)y = vresidual(*(vint *)y, r);
  else *(vfloat *)y = kind == RELU ? fmax_(r, (vfloat){0}) : kind == GELU ? vgelu(r) : r;
}

/* `rows` rows of x times `vectors` vectors of outputs from `panel` on. y: (rows / digits, N), 4 bytes each. */
INLINE void tile(int kind, int digits, int rows, int vectors, const Linear *l, int panel, const act *x, int x_stride,
                 const float *scales, int32_t *y, int y_stride) {
  vint sums[24];
  const vbytes *w = (const vbytes *)(l->w + (size_t)panel * l->words * PANEL * G);
#pragma GCC unroll 12
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) sums[r * vectors + v] = *(const vint *)(l->start + panel * PANEL + v * LANES);
#pragma GCC unroll 2
  for (int k = 0; k < l->words; k++) {
    weights b[8];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) {
      b[v] = widen(&w[(size_t)(v / 2 * l->words + k) * 2 + v % 2]);
      if (rows > 1) IN_REGISTER(b[v]);
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
      word value;
      memcpy(&value, x + (size_t)r * x_stride + k * G, 4);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; v++) sums[r * vectors + v] = dot(sums[r * vectors + v], b[v], value);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < rows / digits; i++)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) {
      int column = panel * PANEL + v * LANES;
      const vint *s = sums + i * digits * vectors + v;
      vfloat acc = digits == 2 ? to_float_wide(s[0], s[vectors]) : to_float(s[0]);
      finish(kind, acc, scales[i], l, column, y + (size_t)i * y_stride + column);
    }
}

typedef struct { int m, x_stride, y_stride, first, last; const act *x; const float *scales; int32_t *y; } Work;

/* Panels `first` to `last` of l, for all items. One row is bound by reading weights, so it gets many panels at once. */
INLINE void linear(int kind, int digits, const Linear *l, const Work *a) {
  int panel = a->first, rows = a->m * digits;
#define TILE(n, vectors, r) \
  tile(kind, digits, n, vectors, l, panel, a->x + (size_t)(r) * a->x_stride, a->x_stride, a->scales + (r) / digits, \
       a->y + (size_t)((r) / digits) * a->y_stride, a->y_stride)
#define CASE(n) case n: if ((n) % digits == 0) TILE(n, 2, r); break;
  if (digits == 1 && rows == 1 && G == 4) for (; panel + 4 <= a->last; panel += 4) TILE(1, 8, 0);
  else if (rows == 2) for (; panel + 2 <= a->last; panel += 2) TILE(2, 4, 0);
  for (; panel < a->last; panel++)
    for (int r = 0, n, left = (rows + MAX_TILE - 1) / MAX_TILE; r < rows; r += n, left--) {
      n = round_up((rows - r + left - 1) / left, digits); /* tiles of equal size */
      switch (n) {
        CASE(1) CASE(2) CASE(3) CASE(4)
#if MAX_TILE > 4
        CASE(5) CASE(6)
#endif
#if MAX_TILE > 6
        CASE(7) CASE(8)
#endif
#if MAX_TILE > 8
        CASE(9) CASE(10) CASE(11) CASE(12)
#endif
      }
    }
#undef CASE
#undef TILE
}

#define LINEAR(name, kind, digits) \
  static __attribute__((noinline)) void name(const Linear *l, const Work *a) { linear(kind, digits, l, a); }
LINEAR(linear_store, STORE, 1)
LINEAR(linear_add, ADD, 1)
LINEAR(linear_relu, RELU, 1)
LINEAR(linear_gelu, GELU, 1)
LINEAR(linear_store_wide, STORE, 2)
LINEAR(linear_add_wide, ADD, 2)
LINEAR(linear_relu_wide, RELU, 2)
LINEAR(linear_gelu_wide, GELU, 2)

/* This thread's share of the outputs: whole panels, so that each has one owner. */
static void run_linear(const Engine *e, int kind, const Linear *l, int m, const act *x, int x_stride, void *y, int y_stride, int thread) {
  static void (*const functions[2][4])(const Linear *, const Work *) = {
    {linear_store, linear_add, linear_relu, linear_gelu},
    {linear_store_wide, linear_add_wide, linear_relu_wide, linear_gelu_wide},
  };
  int64_t panels = l->panels, threads = e->c.threads;
  Work a = {m, x_stride, y_stride, (int)(panels * thread / threads), (int)(panels * (thread + 1) / threads), x, e->scales, y};
  functions[e->c.wide != 0][kind](l, &a);
}

/* ---- after ReLU most activations are 0, and adding no zeros changes no sum ------------------------------------------ */

INLINE int find_words(const act *x, int words, int32_t *found) { /* which words of a row are not 0; returns how many */
  int n = 0;
  for (int k = 0; k < words; k++) {
    word value;
    memcpy(&value, x + k * G, 4);
    found[n] = k, n += value != 0;
  }
  return n;
}

/* One row times `vectors` vectors of outputs from `panel` on, added to the residual stream. */
INLINE void sparse_tile(int vectors, const Linear *l, int panel, const act *x, const int32_t *found, int count, float scale, int32_t *y) {
  vint sums[8];
  const vbytes *w = (const vbytes *)(l->w + (size_t)panel * l->words * PANEL * G);
#pragma GCC unroll 8
  for (int v = 0; v < vectors; v++) sums[v] = *(const vint *)(l->start + panel * PANEL + v * LANES);
  for (int i = 0; i < count; i++) {
    word value;
    memcpy(&value, x + found[i] * G, 4);
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) sums[v] = dot(sums[v], widen(&w[((size_t)(v / 2) * l->words + found[i]) * 2 + v % 2]), value);
  }
#pragma GCC unroll 8
  for (int v = 0; v < vectors; v++) {
    int column = panel * PANEL + v * LANES;
    finish(ADD, to_float(sums[v]), scale, l, column, y + column);
  }
}

/* This thread's share of hidden times l. 0 if there are not enough zeros: then tiles of several rows are faster. */
static __attribute__((noinline)) int run_sparse_add(const Engine *e, const Linear *l, int m, int thread) {
  int64_t total = 0, panels = l->panels, threads = e->c.threads;
  for (int i = 0; i < m; i++) total += e->num_words[i];
  if (2 * total > (int64_t)m * l->words) return 0;
  int panel = (int)(panels * thread / threads), last = (int)(panels * (thread + 1) / threads);
#define ROWS(vectors) \
  for (int i = 0; i < m; i++) \
    sparse_tile(vectors, l, panel, e->hidden + (size_t)i * e->hidden_stride, e->words + (size_t)i * e->hidden_stride, e->num_words[i], \
                e->scales[i], e->x + (size_t)i * e->x_stride)
  for (; panel + 4 <= last; panel += 4) ROWS(8);
  for (; panel < last; panel++) ROWS(2);
#undef ROWS
  return 1;
}

/* ---- quantising, LayerNorm ----------------------------------------------------------------------------------------- */

INLINE float highest_of(const float *y, int n) { /* max |y|; n in whole vectors */
  vfloat a = {0}, b = {0};
  int i = 0;
  for (; i + 2 * LANES <= n; i += 2 * LANES) {
    a = fmax_(a, fabs_(*(const vfloat *)(y + i))), b = fmax_(b, fabs_(*(const vfloat *)(y + i + LANES)));
  }
  if (i < n) a = fmax_(a, fabs_(*(const vfloat *)(y + i)));
  return highest(fmax_(a, b));
}

/* n floats, padded to whole vectors with zeros → activations, one row for each digit; returns their scale. */
INLINE float quantise(const Engine *e, const float *y, int n, int is_unsigned, act *to, int stride) {
  float levels = e->c.wide ? EX_WIDE : is_unsigned ? EX_UNSIGNED : EX_SIGNED;
  float most = highest_of(y, n), inverse = ex_inverse(most, levels);
  int offset = is_unsigned && !e->c.wide ? OFFSET_UNSIGNED : OFFSET;
  if (!e->c.wide)
    for (int i = 0; i < n; i += LANES) store_act(to + i, rounded(*(const vfloat *)(y + i) * inverse, offset));
  else
    for (int i = 0; i < n; i += LANES) {
      vint q = rounded(*(const vfloat *)(y + i) * inverse, 0) - MAGIC_BITS, high = (q + 128) >> 8;
      store_act(to + i, high + offset), store_act(to + stride + i, q - (high << 8) + offset);
    }
  return ex_scale(most, levels);
}

/* (C) of the residual stream → (C) floats. The padding of x is zeros, that of w and b too, so that of y is. */
static __attribute__((noinline)) void layer_norm(const int32_t *x, const float *w, const float *b, float *y, int c) {
  int padded = round_up(c, LANES);
  int64_t s = 0, v = 0;
  vlong squared = {0};
  for (int i = 0; i < padded;) { /* 32 vectors of at most 2^25 fit 32 bits */
    vint sum = {0};
    for (int end = i + 32 * LANES < padded ? i + 32 * LANES : padded; i < end; i += LANES) sum += *(const vint *)(x + i);
    s += long_total(sum);
  }
  int mean = ex_mean(s, c);
  for (int i = 0; i < padded; i += LANES) squared = squares(squared, *(const vint *)(x + i) - mean);
  for (int i = 0; i < LANES / 2; i++) v += squared[i];
  v -= (int64_t)(padded - c) * mean * mean; /* what the padding added */
  float r = ex_rsigma(v, c);
  for (int i = 0; i < padded; i += LANES)
    *(vfloat *)(y + i) = to_float(*(const vint *)(x + i) - mean) * r * *(const vfloat *)(w + i) + *(const vfloat *)(b + i);
}

#endif
