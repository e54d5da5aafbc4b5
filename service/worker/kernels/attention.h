/* Attention: stores keys and values of this step in the cache, then attends.
 *
 * Letters: H heads, D head size, T positions. A unit is one query of one head; several are worked on side by side, stage
 * by stage, so that the chain of one hides behind the others'.
 */
#ifndef ATTENTION_H
#define ATTENTION_H

#include "linear.h"

INLINE float quantise_head(const float *y, int d, float *inverse) { /* (D), not padded; returns the scale */
  vfloat top = {0};
  int i = 0;
  for (; i + LANES <= d; i += LANES) top = fmax_(top, fabs_(load(y + i)));
  if (i < d) top = fmax_(top, (vfloat)((vint)fabs_(load(y + i)) & first_lanes(d - i)));
  float most = highest(top);
  *inverse = ex_inverse(most, EX_SIGNED);
  return ex_scale(most, EX_SIGNED);
}

INLINE void store_key(const Engine *e, int8_t *block, const float *k, int lane, int8_t *bytes) {
  float inverse;
  ((float *)block)[lane] = quantise_head(k, e->c.head_size, &inverse);
  for (int i = 0; i < e->c.head_size; i += LANES) {
    lanes8 b = narrow8(rounded(load(k + i) * inverse, OFFSET_KEY));
    memcpy(bytes + i, &b, sizeof b); /* what lies beyond D is met by zeros of the query */
  }
  int8_t *to = block + 8 * LANES + lane * G;
  for (int w = 0; w < e->d_words; w++) memcpy(to + w * LANES * G, bytes + w * G, G);
}

INLINE void store_value(const Engine *e, int8_t *values, const float *v, float inverse, int t) {
  int d = e->c.head_size;
  values += (size_t)(t / G) * e->d_pad * G;
  for (int i = 0; i < d; i += LANES) {
    vint q = rounded(load(v + i) * inverse, 0);
#if G == 4 /* one byte of each word */
    int shift = t % 4 * 8;
    vint *to = (vint *)(values + i * 4);
    *to = (*to & ~((vint){0} + (int)(0xffu << shift))) | ((q & 0xff) << shift);
#else /* one byte of each pair */
    typedef VECTOR(int16_t, LANES * 2) pairs_t;
    pairs_t *to = (pairs_t *)(values + i * 2), b = (pairs_t)narrow16(q) & 0xff;
    *to = t % 2 ? (*to & 0xff) | (b << 8) : (*to & (int16_t)0xff00) | b;
#endif
  }
}

INLINE void store_position(const Engine *e, int8_t *cache, const float *k, const float *v, int t, int8_t *bytes) {
  int8_t *block = cache + t / LANES * e->block;
  float inverse;
  store_key(e, block, k, t % LANES, bytes);
  ((float *)block)[LANES + t % LANES] = quantise_head(v, e->c.head_size, &inverse);
  store_value(e, cache + e->values, v, inverse, t);
}

typedef struct {
  float *q; /* (D): the query, later the output */
  const int8_t *cache;
  int last, start; /* last position that is seen; what undoes the keys' offset */
  float scale, factor; /* of the query, of the output */
  float *scores;
  act *shares;
  query_act *query;
} Unit;

INLINE void quantise_query(const Engine *e, Unit *u) {
  int d = e->c.head_size;
  float inverse;
  u->scale = quantise_head(u->q, d, &inverse);
  vint sum = {0};
  for (int i = 0; i < d; i += LANES) {
    vint x = (rounded(load(u->q + i) * inverse, 0) - MAGIC_BITS) & first_lanes(d - i);
    store_act((act *)u->query + i, x);
    sum += x;
  }
  u->start = OFFSET_KEY ? -OFFSET_KEY * total(sum) : 0;
}

/* Scores of n blocks of LANES positions, from block b on; those after the last position are -infinity. */
INLINE vfloat score_blocks(int n, const Engine *e, const Unit *u, int b, vfloat most) {
  vint acc[4];
  const int8_t *block = u->cache + b * e->block;
  for (int i = 0; i < n; i++) acc[i] = (vint){0} + u->start;
  for (int w = 0; w < e->d_words; w++) {
    word x;
    memcpy(&x, u->query + w * G, 4);
    for (int i = 0; i < n; i++)
      acc[i] = dot_key(acc[i], widen((const vbytes *)(block + i * e->block + 8 * LANES) + w), x);
  }
  for (int i = 0; i < n; i++) {
    int beyond = u->last + 1 - (b + i) * LANES;
    vfloat r = to_float(acc[i]) * ((*(const vfloat *)(block + i * e->block) * u->scale) * e->root); /* ex_score */
    if (beyond < LANES) r = pick(first_lanes(beyond), r, spread(-__builtin_inff()));
    *(vfloat *)(u->scores + (b + i) * LANES) = r;
    most = fmax_(most, r);
  }
  return most;
}

INLINE float score(const Engine *e, const Unit *u) { /* returns the largest score */
  vfloat most = spread(-__builtin_inff());
  int b = 0, blocks = u->last / LANES + 1;
  for (; b + 4 <= blocks; b += 4) most = score_blocks(4, e, u, b, most);
  if (b + 2 <= blocks) most = score_blocks(2, e, u, b, most), b += 2;
  if (b < blocks) most = score_blocks(1, e, u, b, most);
  return highest(most);
}

/* Scores → attention weights, times the values' scales, from 0 to 255; and the factor that makes an output of them. */
INLINE void soften(const Engine *e, Unit *u, float most) {
  int blocks = u->last / LANES + 1;
  int64_t z = 0;
  vfloat tops = {0};
  for (int b = 0; b < blocks;) {
    vint part = {0}; /* 1024 counts of at most 2^20 fit 32 bits */
    for (int end = b + 1024 < blocks ? b + 1024 : blocks; b < end; b++) {
      vfloat *at = (vfloat *)(u->scores + b * LANES), w = vexp(*at - most);
      part += rounded(w * 1048576.0f, 0) - MAGIC_BITS; /* ex_count */
      *at = w = w * *(const vfloat *)(u->cache + b * e->block + 4 * LANES);
      tops = fmax_(tops, w);
    }
    z += long_total(part);
  }
  float top = highest(tops), inverse = ex_inverse_share(top);
  for (int b = 0; b < blocks; b++)
    store_act(u->shares + b * LANES, rounded(*(const vfloat *)(u->scores + b * LANES) * inverse, OFFSET_UNSIGNED));
  if (LANES == G) store_act(u->shares + blocks * LANES, (vint){0} + OFFSET_UNSIGNED); /* words are taken in pairs */
  u->factor = ex_attended(top, z);
}

/* `vectors` vectors of the output, from `values` on, where `left` of D are left. Weights behind the last are 0. */
INLINE void weigh(int vectors, const Engine *e, const Unit *u, const int8_t *values, float *out, int left) {
  vint sums[2][4] = {0}, ones[4] = {0};
  for (int t = 0; t < u->last / G + 1; t += 2)
    for (int i = 0; i < 2; i++) {
      word x;
      memcpy(&x, u->shares + (t + i) * G, 4);
      for (int v = 0; v < vectors; v++) {
        weights b = widen((const vbytes *)(values + ((size_t)(t + i) * e->d_pad + v * LANES) * G));
        sums[i][v] = dot(sums[i][v], b, x);
        if (OFFSET_UNSIGNED) ones[v] = dot(ones[v], b, 0x01010101); /* what undoes the offset */
      }
    }
  for (int v = 0; v < vectors; v++) {
    vfloat r = to_float(sums[0][v] + sums[1][v] - ones[v] * OFFSET_UNSIGNED) * u->factor;
    int n = left - v * LANES < LANES ? left - v * LANES : LANES;
    memcpy(out + v * LANES, &r, sizeof(float) * n);
  }
}

static __attribute__((noinline)) void attend(const Engine *e, Unit *units, int n) {
  float most[UNITS];
  for (int i = 0; i < n; i++) quantise_query(e, units + i);
  for (int i = 0; i < n; i++) most[i] = score(e, units + i);
  for (int i = 0; i < n; i++) soften(e, units + i, most[i]);
  for (int i = 0; i < n; i++)
    for (int v = 0, k, vectors = e->d_pad / LANES; v < vectors; v += k) {
      const Unit *u = units + i;
      const int8_t *values = u->cache + e->values + (size_t)v * LANES * G;
      float *out = u->q + v * LANES;
      int left = e->c.head_size - v * LANES;
      k = vectors - v < 4 ? vectors - v : 4;
      if (k == 4) weigh(4, e, u, values, out, left);
      else if (k == 3) weigh(3, e, u, values, out, left);
      else if (k == 2) weigh(2, e, u, values, out, left);
      else weigh(1, e, u, values, out, left);
    }
}

/* This thread's (row, head) pairs. `wide` has (items, 3, H, D); the output takes the query's place. Items of a row
 * follow each other, in the order of their positions: all are stored before the first attends. */
static void attention(Engine *e, int layer, int m, const int32_t *rows, const int32_t *at, int thread) {
  const Scratch *s = &e->scratch[thread];
  int d = e->c.head_size, n = 0, pair = 0;
  Unit units[UNITS];
  for (int i = 0; i < UNITS; i++) {
    size_t t = (size_t)i * e->t_pad;
    units[i] = (Unit){.scores = s->scores + t, .shares = s->shares + t, .query = s->query + (size_t)i * e->query_stride};
  }
  for (int first = 0, end; first < m; first = end) {
    for (end = first + 1; end < m && rows[end] == rows[first]; end++) {}
    int8_t *cache = e->cache + ((size_t)layer * e->c.rows + rows[first]) * e->c.n_head * e->head_bytes;
    for (int head = 0; head < e->c.n_head; head++, pair++, cache += e->head_bytes) {
      if (pair % e->c.threads != thread) continue;
      float *q = e->wide + (size_t)first * e->wide_stride + head * d;
      for (int i = first; i < end; i++) {
        const float *k = q + (size_t)(i - first) * e->wide_stride + e->attn;
        store_position(e, cache, k, k + e->attn, at[i], s->bytes);
      }
      for (int i = first; i < end; i++, q += e->wide_stride) {
        units[n].q = q, units[n].cache = cache, units[n].last = at[i];
        if (++n == UNITS) attend(e, units, n), n = 0;
      }
    }
  }
  if (n) attend(e, units, n);
}

#endif
