/* The model on an NVIDIA GPU: the twin of kernel.c. Plain kernels for a CUDA graph: no cluster, no grid barrier, no block that waits for
 * another, so a card cannot hang in them. Every sum is one of integers and every float belongs to one element (arithmetic.h), so tiles,
 * split sums and the order of threads change no bit.
 *
 * A step computes M items; an item is one token at one position of one row. Blocks have 256 threads; R items share a block.
 *
 *   decode, rows differ       qkv_attend (H, M)           LayerNorm, q k v of one head into the cache, attention of one head
 *   prefill, several tokens   qkv (H, M/R), attend (H, M) the same in two, because item j looks at what item j-1 wrote
 *   one or two items          project_up (F/32, M)        attention's projection, residual sum, LayerNorm, MLP's first half
 *   more                      project (C/32, M/R), up (F/64, M/R)
 *                             down (C/32, M/R)            MLP's second half, residual sum
 *   small vocabulary          head_draw (1, M)            LayerNorm, logits, draw
 *   large                     head (V/64, M/R), weigh (V/256, M), pick (1, M)
 *   after drafts              commit (M/256)              enters the drafts that were right into their rows
 *   between steps             copy_prefix (H, L)          what a row has cached, for another row
 *
 * A block computes LayerNorm and quantised inputs of its items again instead of waiting for a block that has done it.
 * Weights: tiles of 32 outputs, [outputs/32][K/16][32] of 16 bytes, so a warp reads 512 bytes in a row and a lane owns an output.
 * Keys: [D/4][T] words of 4 features; values: [T/4][D] words of 4 positions; both read coalesced. What is stale or padded meets a zero.
 *
 * Letters: L layers, C n_embd, H heads, D head size, A = H*D, F = 4*C, T positions, V vocabulary, M items, K inputs of a product.
 */
#ifdef __CUDACC__
#define SHARED(type, name) __shared__ type name
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS, 1)
#define UNROLL _Pragma("unroll")
#define UNROLL_BY(n) _Pragma(#n)
#else
#include "cuda_on_cpu.h" /* the emulator of tests/gpu */
#define UNROLL
#endif
#include "arithmetic.h"

/* A build is for one shape: L_ C_ H_ D_ T_ V_, GELU (0: ReLU), WIDE (1: activations of 16 bits) and the launch plan (cuda/launches.py). */
#define THREADS 256
#define WARPS (THREADS / 32)
#define TILE 32 /* outputs of a tile of weights: one for each lane */
#ifndef TEAM_ELEMENTS
#define TEAM_ELEMENTS 128 /* of a vector, for each warp that measures it */
#endif
#ifndef MUTANT
#define MUTANT 0 /* tests leave one barrier out */
#endif
#define BARRIER(n) do { if (MUTANT != n) __syncthreads(); } while (0) /* every one has a number of its own */

typedef ex_u32 u32;
typedef ex_i64 i64;
typedef ex_u64 u64;
typedef unsigned char u8;

__device__ constexpr int round_up(int n, int k) { return (n + k - 1) / k * k; }
__device__ constexpr int least(int a, int b) { return a < b ? a : b; }
__device__ constexpr int most_of(int a, int b) { return a > b ? a : b; }
enum {
  L = L_, C = C_, H = H_, D = D_, T = T_, V = V_, A = H * D, F = 4 * C,
  DIGITS = WIDE ? 2 : 1,          /* bytes of an activation */
  UNSIGNED_HIDDEN = !GELU && !WIDE, /* after ReLU eight bits hold 0 ... 255 */
  DW = (D + 3) / 4,               /* words of a query or a key */
  TP = round_up(T, 4),            /* positions, padded to words of a value */
  HEAD_OUT = round_up(3 * D, TILE), /* outputs of q, k and v of one head */
  SEGMENT = 256                   /* tokens of the vocabulary whose weights are summed together */
};
#define LEVELS (WIDE ? EX_WIDE : EX_SIGNED)
#define HIDDEN_LEVELS (WIDE ? EX_WIDE : GELU ? EX_SIGNED : EX_UNSIGNED)

struct Layer {
  const uint4 *qkv, *project, *up, *down; /* int8 tiles; qkv by head, 3*D outputs padded to HEAD_OUT */
  const float *qkv_scale, *qkv_bias, *project_scale, *project_bias, *up_scale, *up_bias, *down_scale, *down_bias;
  const float *ln1_weight, *ln1_bias, *ln2_weight, *ln2_bias;
};
struct Row { /* a request's sampling parameters and its history */
  i64 seed, index;
  double temperature, top_p, min_p, repetition, frequency, presence;
  int top_k, num_logprobs; /* num_logprobs: -1 for none */
};
struct Args {
  /* the model */
  const Layer *layers;
  const int *tokens, *positions; /* (V, C) (T, C), units of 2^-12 */
  const float *lnf_weight, *lnf_bias;
  const uint4 *head;
  const float *head_scale, *head_bias;
  /* the cache, a line for each (layer, row, head) */
  u8 *keys, *values;               /* DW*TP words, TP/4*D words */
  float *key_scales, *value_scales; /* T, T */
  /* between kernels */
  int *x, *y;           /* (M, C) the residual stream before and after attention */
  u8 *queries;          /* (M, H, DW*4) */
  float *query_scales;  /* (M, H) */
  float *attended;      /* (M, A) */
  float *hidden;        /* (M, F) */
  float *logits;        /* (M, V) */
  i64 *weights;         /* (M, V) where the vocabulary is large */
  i64 *weight_sums, *plain_sums; /* (M, V/SEGMENT) sums of weights, and of weights without any parameter, for log-probabilities */
  double *tile_most;    /* (M, V/TILE) largest adjusted logit of a tile of the head, */
  int *tile_best;       /* its token, */
  float *tile_logit;    /* and the tile's largest logit */
  /* sampling */
  Row *rows;            /* (rows) */
  const double *bias;   /* (rows, V) */
  const u8 *in_prompt;  /* (rows, V) */
  int *counts;          /* (rows, V) how often a token was generated */
  /* items */
  int *row, *token, *position; /* (M); row -1 is idle */
  const int *draft;     /* (M) how many items before this one hold guessed tokens of the same row */
  const int *limit;     /* (M) tokens to draw in this burst; 0 computes logits alone */
  int *drawn;           /* (M) tokens drawn in this burst so far */
  int *out;             /* (M, steps) */
  double *logprobs;     /* (M, steps, 1 + 2*MOST_LOGPROBS): of the token, then (id, value) of the most probable ones */
  int num_rows, num_items, steps;
  int verifying;        /* whether rows may have several items that draw */
  float root;           /* D^-0.5 */
};

/* ---- warps and blocks ---------------------------------------------------------------------------------------------------------- */

#define ALL_LANES 0xffffffffu
#define LANE ((int)threadIdx.x & 31)
#define WARP ((int)threadIdx.x >> 5)

__device__ inline int dot4(u32 a, u32 b, int c) { /* four products, signed by signed */
#ifdef __CUDACC__
  int d;
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
#else
  for (int i = 0; i < 32; i += 8) c += (signed char)(a >> i) * (signed char)(b >> i);
  return c;
#endif
}
__device__ inline int dot4_unsigned(u32 a, u32 b, int c) { /* unsigned by signed */
#ifdef __CUDACC__
  int d;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
#else
  for (int i = 0; i < 32; i += 8) c += (u8)(a >> i) * (signed char)(b >> i);
  return c;
#endif
}
template <bool UNSIGNED> __device__ inline int dot16(uint4 a, uint4 b, int c) {
  if (UNSIGNED) return dot4_unsigned(a.x, b.x, dot4_unsigned(a.y, b.y, dot4_unsigned(a.z, b.z, dot4_unsigned(a.w, b.w, c))));
  return dot4(a.x, b.x, dot4(a.y, b.y, dot4(a.z, b.z, dot4(a.w, b.w, c))));
}

__device__ inline i64 warp_sum(i64 v) {
  UNROLL for (int m = 16; m; m >>= 1) v += __shfl_xor_sync(ALL_LANES, v, m);
  return v;
}
__device__ inline float warp_max(float v) {
  UNROLL for (int m = 16; m; m >>= 1) v = ex_max(v, __shfl_xor_sync(ALL_LANES, v, m));
  return v;
}

/* A team: the warps that share one of R items. More than one only where there are elements enough to share. */
__device__ constexpr int team_of(int elements, int items) {
  int warps = WARPS / items;
  while (warps > 1 && elements < warps * TEAM_ELEMENTS) warps /= 2;
  return warps;
}
union Parts { i64 sum[WARPS]; float most[WARPS]; };

template <int TEAM> __device__ inline i64 team_sum(i64 v, Parts &parts) {
  v = warp_sum(v);
  if (TEAM == 1) return v;
  if (!LANE) parts.sum[WARP] = v;
  BARRIER(1);
  v = 0;
  UNROLL for (int w = 0; w < TEAM; w++) v += parts.sum[WARP / TEAM * TEAM + w];
  BARRIER(2);
  return v;
}
template <int TEAM> __device__ inline float team_max(float v, Parts &parts) {
  v = warp_max(v);
  if (TEAM == 1) return v;
  if (!LANE) parts.most[WARP] = v;
  BARRIER(3);
  UNROLL for (int w = 0; w < TEAM; w++) v = ex_max(v, parts.most[WARP / TEAM * TEAM + w]);
  BARRIER(4);
  return v;
}

/* ---- what goes into a product: vectors that are quantised on the way ------------------------------------------------------------------ */

__device__ inline bool is_idle(const Args &a, int item) { return item >= a.num_items || a.row[item] < 0; }

struct Residual { /* one item's residual stream; layer 0 adds it up from the embeddings */
  const int *x, *position;
  __device__ int operator()(int k) const { return position ? ex_bound(x[k] + position[k]) : x[k]; }
};
struct Stats { int mean; float rsigma, inverse, scale; }; /* of a quantised vector; mean and rsigma where it comes from a LayerNorm */

struct Normed { /* elements after LayerNorm */
  const float *weight, *bias;
  __device__ float operator()(const Residual &x, const Stats &s, int k) const {
    return ex_norm(x(k) - s.mean, s.rsigma, weight[k], bias[k]);
  }
};
struct Plain { /* elements as they are stored */
  __device__ float operator()(const float *x, const Stats &, int k) const { return x[k]; }
};

/* Stats of R vectors of K elements. The caller has a barrier before they are read. An idle item counts as zeros. */
template <int R> __device__ inline void measure_norm(const Residual *x, const bool *live, const Normed &norm, Stats *stats, Parts &parts) {
  constexpr int TEAM = team_of(C, R), STRIDE = TEAM * 32;
  int r = WARP / TEAM, first = WARP % TEAM * 32 + LANE;
  int n = r < R && live[r] ? C : 0;
  Residual xr = x[r < R ? r : 0];
  i64 sum = 0, squares = 0;
  for (int k = first; k < n; k += STRIDE) sum += xr(k);
  Stats s = {ex_mean(team_sum<TEAM>(sum, parts), C), 0, 0, 0};
  for (int k = first; k < n; k += STRIDE) {
    int d = xr(k) - s.mean;
    squares += (i64)d * d;
  }
  s.rsigma = ex_rsigma(team_sum<TEAM>(squares, parts), C);
  float most = 0;
  for (int k = first; k < n; k += STRIDE) most = ex_max(most, ex_abs(norm(xr, s, k)));
  most = team_max<TEAM>(most, parts);
  s.inverse = ex_inverse(most, LEVELS), s.scale = ex_scale(most, LEVELS);
  if (r < R && first == 0) stats[r] = s;
}
template <int R, int K> __device__ inline void measure_plain(const float *const *x, const bool *live, float levels, Stats *stats, Parts &parts) {
  constexpr int TEAM = team_of(K, R), STRIDE = TEAM * 32;
  int r = WARP / TEAM, first = WARP % TEAM * 32 + LANE;
  int n = r < R && live[r] ? K : 0;
  const float *xr = x[r < R ? r : 0];
  float most = 0;
  for (int k = first; k < n; k += STRIDE) most = ex_max(most, ex_abs(xr[k]));
  most = team_max<TEAM>(most, parts);
  if (r < R && first == 0) stats[r] = {0, 0, ex_inverse(most, levels), ex_scale(most, levels)};
}

/* ---- products: TILES tiles of 32 outputs for R vectors ------------------------------------------------------------------------------------ */

template <int R, int K> struct Vectors { /* quantised, as many elements at a time as fit */
  static constexpr int CHUNK = least(round_up(K, 16), VECTOR_BYTES / (R * DIGITS) / 16 * 16);
  uint4 digit[DIGITS][R][CHUNK / 16]; /* 16 bits: digit 0 is the high one */
};
template <int R, int TILES> struct Sums { int of[DIGITS][R][TILES * TILE]; };

template <int R, int TILES> __device__ inline void clear(Sums<R, TILES> &sums) {
  int *s = &sums.of[0][0][0];
  for (int i = threadIdx.x; i < DIGITS * R * TILES * TILE; i += THREADS) s[i] = 0;
}
template <int R, int TILES> __device__ inline float output(const Sums<R, TILES> &s, int r, int o, float scale, float scale_w, float bias) {
#if WIDE
  return ex_linear_wide(s.of[0][r][o], s.of[1][r][o], scale, scale_w, bias);
#else
  return ex_linear(s.of[0][r][o], scale, scale_w, bias);
#endif
}

/* `sums` must be clear and `stats` complete after the next barrier, which is in here; sums are complete when it returns. A warp takes a tile
 * and a share of K; shares meet in shared memory by integer atomics. */
template <int R, int K, int TILES, bool UNSIGNED, class Element, class Source>
__device__ inline void product(const uint4 *w, const Element &element, const Source *x, const bool *live, const Stats *stats, Vectors<R, K> &v,
                               Sums<R, TILES> &sums) {
  constexpr int PIECES = (K + 15) / 16, CHUNK = Vectors<R, K>::CHUNK / 16; /* of 16 elements */
  BARRIER(5);
  for (int c = 0; c < PIECES; c += CHUNK) {
    int n = least(CHUNK, PIECES - c), r = threadIdx.x / (THREADS / R);
    if (c) BARRIER(6);
    for (int i = threadIdx.x % (THREADS / R); i < n * 16; i += THREADS / R) {
      int k = c * 16 + i, q = 0;
      if (k < K && live[r]) q = ex_quantise(element(x[r], stats[r], k), stats[r].inverse);
#if WIDE
      ((u8 *)v.digit[0][r])[i] = (u8)ex_high(q), ((u8 *)v.digit[1][r])[i] = (u8)ex_low(q);
#else
      ((u8 *)v.digit[0][r])[i] = (u8)q;
#endif
    }
    BARRIER(7);
    constexpr int STEP = (CHUNK * TILES + WARPS - 1) / WARPS, SHARE = least(STEP, CHUNK), SHARES = (CHUNK + SHARE - 1) / SHARE;
    for (int unit = WARP; unit < TILES * SHARES; unit += WARPS) {
      int tile = unit / SHARES, from = unit % SHARES * SHARE, to = least(from + SHARE, n), acc[DIGITS][R];
      UNROLL for (int d = 0; d < DIGITS; d++) UNROLL for (int i = 0; i < R; i++) acc[d][i] = 0;
#ifdef __CUDACC__
#pragma unroll 4
#endif
      for (int k = from; k < to; k++) {
        uint4 weight = w[((size_t)tile * PIECES + c + k) * TILE + LANE];
        UNROLL for (int d = 0; d < DIGITS; d++)
          UNROLL for (int i = 0; i < R; i++) acc[d][i] = dot16<UNSIGNED>(v.digit[d][i][k], weight, acc[d][i]);
      }
      UNROLL for (int d = 0; d < DIGITS; d++)
        UNROLL for (int i = 0; i < R; i++) atomicAdd(&sums.of[d][i][tile * TILE + LANE], acc[d][i]);
    }
  }
  BARRIER(8);
}
__device__ constexpr size_t tile_words(int inputs) { return (size_t)((inputs + 15) / 16) * TILE; } /* uint4 of one tile of weights */

/* ---- attention ------------------------------------------------------------------------------------------------------------------------------ */

struct Line { /* one head's part of the cache in one row and layer */
  u8 *keys, *values;
  float *key_scales, *value_scales;
};
__device__ inline Line line_of(const Args &a, int layer, int row, int head) {
  size_t i = ((size_t)layer * a.num_rows + row) * H + head;
  return {a.keys + i * DW * TP * 4, a.values + i * TP * D, a.key_scales + i * T, a.value_scales + i * T};
}

template <int R> struct QkvShared {
  Vectors<R, C> vectors;
  Sums<R, HEAD_OUT / TILE> sums;
  Stats stats[R];
  Residual x[R];
  bool live[R];
  Parts parts;
};
/* q, k and v of one head for R items: quantised each by itself; k and v go to the cache. */
template <int R> __device__ inline void compute_qkv(const Args &a, int layer, int head, int first, QkvShared<R> &s) {
  const Layer &l = a.layers[layer];
  clear(s.sums);
  for (int r = threadIdx.x; r < R; r += THREADS) {
    int item = first + r;
    s.live[r] = !is_idle(a, item);
    if (!s.live[r]) s.x[r] = {nullptr, nullptr};
    else if (layer) s.x[r] = {a.x + (size_t)item * C, nullptr};
    else s.x[r] = {a.tokens + (size_t)a.token[item] * C, a.positions + (size_t)a.position[item] * C};
  }
  BARRIER(9);
  if (!layer && !head)
    for (int r = 0; r < R; r++)
      for (int k = threadIdx.x; s.live[r] && k < C; k += THREADS) a.x[(size_t)(first + r) * C + k] = s.x[r](k);
  Normed norm = {l.ln1_weight, l.ln1_bias};
  measure_norm<R>(s.x, s.live, norm, s.stats, s.parts);
  product<R, C, HEAD_OUT / TILE, false>(l.qkv + head * (HEAD_OUT / TILE) * tile_words(C), norm, s.x, s.live, s.stats, s.vectors, s.sums);
  for (int i = threadIdx.x; i < R * HEAD_OUT; i += THREADS) { /* floats take the place of their sums */
    int r = i / HEAD_OUT, o = i % HEAD_OUT;
    float y = output(s.sums, r, o, s.stats[r].scale, l.qkv_scale[head * HEAD_OUT + o], l.qkv_bias[head * HEAD_OUT + o]);
    s.sums.of[0][r][o] = (int)ex_bits(y);
  }
  BARRIER(10);
  for (int part = WARP; part < R * 3; part += WARPS) { /* a warp: q, k or v of one item */
    int r = part / 3, which = part % 3, item = first + r;
    if (!s.live[r]) continue;
    const int *y = s.sums.of[0][r] + which * D;
    float most = 0;
    for (int d = LANE; d < D; d += 32) most = ex_max(most, ex_abs(ex_from_bits((u32)y[d])));
    most = warp_max(most);
    float inverse = ex_inverse(most, EX_SIGNED), scale = ex_scale(most, EX_SIGNED);
    int t = a.position[item];
    Line line = line_of(a, layer, a.row[item], head);
    u8 *query = a.queries + ((size_t)item * H + head) * DW * 4, *key = line.keys + t * 4, *value = line.values + (size_t)(t >> 2) * D * 4 + (t & 3);
    for (int d = LANE; d < DW * 4; d += 32) {
      u8 q = d < D ? (u8)ex_quantise(ex_from_bits((u32)y[d]), inverse) : 0;
      if (which == 0) query[d] = q;
      if (which == 1) key[(size_t)(d >> 2) * TP * 4 + (d & 3)] = q;
      if (which == 2 && d < D) value[d * 4] = q;
    }
    if (!LANE) *(which == 0 ? a.query_scales + (size_t)item * H + head : (which == 1 ? line.key_scales : line.value_scales) + t) = scale;
  }
}

struct AttendShared {
  u32 query[DW], shares[TP / 4]; /* bytes: attention weights of 0 ... 255 */
  float score[TP];
  Parts parts, sums;
  int out[D];
};
/* Attention of one head and item over positions 0 ... position. */
__device__ inline void compute_attention(const Args &a, int layer, int head, int item, AttendShared &s) {
  int tid = threadIdx.x, n = a.position[item] + 1;
  Line line = line_of(a, layer, a.row[item], head);
  const u32 *keys = (const u32 *)line.keys, *values = (const u32 *)line.values;
  for (int i = tid; i < DW; i += THREADS) s.query[i] = ((const u32 *)a.queries)[((size_t)item * H + head) * DW + i];
  for (int d = tid; d < D; d += THREADS) s.out[d] = 0;
  BARRIER(11);
  float query_scale = a.query_scales[(size_t)item * H + head], most = -3e38f, top = 0;
  for (int t = tid; t < n; t += THREADS) {
    int acc = 0;
    UNROLL for (int w = 0; w < DW; w++) acc = dot4(keys[w * TP + t], s.query[w], acc);
    most = ex_max(most, s.score[t] = ex_score(acc, query_scale, line.key_scales[t], a.root));
  }
  most = team_max<WARPS>(most, s.parts);
  i64 z = 0;
  for (int t = tid; t < n; t += THREADS) {
    float e = ex_exp(ex_sub(s.score[t], most));
    z += ex_count(e);
    top = ex_max(top, s.score[t] = ex_mul(e, line.value_scales[t]));
  }
  top = team_max<WARPS>(top, s.parts);
  z = team_sum<WARPS>(z, s.sums);
  float inverse = ex_inverse_share(top);
  for (int t = tid; t < round_up(n, 4); t += THREADS) ((u8 *)s.shares)[t] = t < n ? (u8)ex_quantise(s.score[t], inverse) : 0;
  BARRIER(12);
  constexpr int GROUPS = D < THREADS ? THREADS / D : 1; /* groups of threads share the positions */
  if (tid < GROUPS * D || D >= THREADS)
    for (int d = tid % D; d < D; d += THREADS) {
      int acc = 0;
#ifdef __CUDACC__
#pragma unroll 8
#endif
      for (int t = tid / D; t * 4 < n; t += GROUPS) acc = dot4_unsigned(s.shares[t], values[(size_t)t * D + d], acc);
      atomicAdd(&s.out[d], acc);
    }
  BARRIER(13);
  float attended = ex_attended(top, z);
  for (int d = tid; d < D; d += THREADS) a.attended[(size_t)item * A + head * D + d] = ex_attention(s.out[d], attended);
}

/* ---- the other products --------------------------------------------------------------------------------------------------------------------- */

template <int R, int K, int TILES, class Source> struct LinearShared {
  Vectors<R, K> vectors;
  Sums<R, TILES> sums;
  Stats stats[R];
  Source x[R];
  bool live[R];
  Parts parts;
};
template <int R, int K, int TILES> __device__ inline void load_plain(const Args &a, const float *from, int first, LinearShared<R, K, TILES, const float *> &s) {
  clear(s.sums);
  for (int r = threadIdx.x; r < R; r += THREADS) s.live[r] = !is_idle(a, first + r), s.x[r] = from + (size_t)(first + r) * K;
  BARRIER(14);
}
template <int R, int TILES> __device__ inline void load_residual(const Args &a, const int *from, int first, LinearShared<R, C, TILES, Residual> &s) { /* from: of item `first` */
  clear(s.sums);
  for (int r = threadIdx.x; r < R; r += THREADS) s.live[r] = !is_idle(a, first + r), s.x[r] = {from + (size_t)r * C, nullptr};
  BARRIER(15);
}

/* to = from + a linear layer of `input`: attention's projection, and the second half of the MLP. Grid (C/(32*TILES), M/R). */
template <int R, int K, int TILES, bool UNSIGNED>
__device__ inline void add_linear(const Args &a, const float *input, float levels, const uint4 *w, const float *scale, const float *bias, const int *from, int *to,
                                  LinearShared<R, K, TILES, const float *> &s) {
  int first = blockIdx.y * R, tile = blockIdx.x * TILES;
  load_plain(a, input, first, s);
  measure_plain<R, K>(s.x, s.live, levels, s.stats, s.parts);
  product<R, K, TILES, UNSIGNED>(w + tile * tile_words(K), Plain(), s.x, s.live, s.stats, s.vectors, s.sums);
  for (int i = threadIdx.x; i < R * TILES * TILE; i += THREADS) {
    int r = i / (TILES * TILE), o = i % (TILES * TILE), out = tile * TILE + o;
    if (out >= C || !s.live[r]) continue;
    size_t at = (size_t)(first + r) * C + out;
    to[at] = ex_residual(from[at], output(s.sums, r, o, s.stats[r].scale, scale[out], bias[out]));
  }
}
template <int R, int TILES> __device__ inline void compute_hidden(const Args &a, const Layer &l, LinearShared<R, C, TILES, Residual> &s) { /* of the items in s.x */
  int first = blockIdx.y * R, tile = blockIdx.x * TILES;
  Normed norm = {l.ln2_weight, l.ln2_bias};
  measure_norm<R>(s.x, s.live, norm, s.stats, s.parts);
  product<R, C, TILES, false>(l.up + tile * tile_words(C), norm, s.x, s.live, s.stats, s.vectors, s.sums);
  for (int i = threadIdx.x; i < R * TILES * TILE; i += THREADS) {
    int r = i / (TILES * TILE), o = i % (TILES * TILE), out = tile * TILE + o;
    if (out >= F || !s.live[r]) continue;
    float y = output(s.sums, r, o, s.stats[r].scale, l.up_scale[out], l.up_bias[out]);
    a.hidden[(size_t)(first + r) * F + out] = GELU ? ex_gelu(y) : ex_relu(y);
  }
}

#include "draw.cuh"

/* ---- kernels ------------------------------------------------------------------------------------------------------------------------------------ */

KERNEL qkv_attend(Args a, int layer) { /* rows differ, so a block needs nothing that another one writes in this launch */
  union Shared { QkvShared<1> qkv; AttendShared attend; };
  SHARED(Shared, s);
  if (is_idle(a, blockIdx.y)) return;
  compute_qkv<1>(a, layer, blockIdx.x, blockIdx.y, s.qkv);
  BARRIER(16);
  compute_attention(a, layer, blockIdx.x, blockIdx.y, s.attend);
}
KERNEL qkv(Args a, int layer) {
  SHARED(QkvShared<QKV_ITEMS>, s);
  compute_qkv<QKV_ITEMS>(a, layer, blockIdx.x, blockIdx.y * QKV_ITEMS, s);
}
KERNEL attend(Args a, int layer) {
  SHARED(AttendShared, s);
  if (!is_idle(a, blockIdx.y)) compute_attention(a, layer, blockIdx.x, blockIdx.y, s);
}

template <int R> __device__ inline void project_items(const Args &a, int layer, LinearShared<R, A, 1, const float *> &s) {
  const Layer &l = a.layers[layer];
  add_linear<R, A, 1, false>(a, a.attended, LEVELS, l.project, l.project_scale, l.project_bias, a.x, a.y, s);
}
template <int R, int TILES> __device__ inline void up_items(const Args &a, int layer, LinearShared<R, C, TILES, Residual> &s) {
  load_residual(a, a.y + (size_t)blockIdx.y * R * C, blockIdx.y * R, s);
  compute_hidden(a, a.layers[layer], s);
}
template <int R> __device__ inline void down_items(const Args &a, int layer, LinearShared<R, F, 1, const float *> &s) {
  const Layer &l = a.layers[layer];
  add_linear<R, F, 1, UNSIGNED_HIDDEN>(a, a.hidden, HIDDEN_LEVELS, l.down, l.down_scale, l.down_bias, a.y, a.x, s);
}
typedef const float *Floats;
#define LINEAR(R, K, TILES, Source) LinearShared<R, K, TILES, Source>
KERNEL project(Args a, int layer) { SHARED(LINEAR(PROJECT_ITEMS, A, 1, Floats), s); project_items<PROJECT_ITEMS>(a, layer, s); }
KERNEL up(Args a, int layer) { SHARED(LINEAR(UP_ITEMS, C, 2, Residual), s); up_items<UP_ITEMS, 2>(a, layer, s); }
KERNEL down(Args a, int layer) { SHARED(LINEAR(DOWN_ITEMS, F, 1, Floats), s); down_items<DOWN_ITEMS>(a, layer, s); }
KERNEL down_one(Args a, int layer) { SHARED(LINEAR(1, F, 1, Floats), s); down_items<1>(a, layer, s); }

#if FUSED /* the projection is small: every block of the MLP's first half computes it whole */
KERNEL project_up(Args a, int layer) {
  struct Shared {
    union { LinearShared<1, A, (C + TILE - 1) / TILE, const float *> project; LinearShared<1, C, 1, Residual> up; };
    int y[C];
  };
  SHARED(Shared, s);
  int item = blockIdx.y;
  if (is_idle(a, item)) return;
  const Layer &l = a.layers[layer];
  load_plain(a, a.attended, item, s.project);
  measure_plain<1, A>(s.project.x, s.project.live, LEVELS, s.project.stats, s.project.parts);
  product<1, A, (C + TILE - 1) / TILE, false>(l.project, Plain(), s.project.x, s.project.live, s.project.stats, s.project.vectors, s.project.sums);
  for (int o = threadIdx.x; o < C; o += THREADS) {
    s.y[o] = ex_residual(a.x[(size_t)item * C + o], output(s.project.sums, 0, o, s.project.stats[0].scale, l.project_scale[o], l.project_bias[o]));
    if (!blockIdx.x) a.y[(size_t)item * C + o] = s.y[o]; /* for `down` */
  }
  BARRIER(17);
  load_residual(a, s.y, item, s.up);
  compute_hidden(a, l, s.up);
}
#else
KERNEL project_one(Args a, int layer) { SHARED(LINEAR(1, A, 1, Floats), s); project_items<1>(a, layer, s); }
KERNEL up_one(Args a, int layer) { SHARED(LINEAR(1, C, 1, Residual), s); up_items<1, 1>(a, layer, s); }
#endif

#if SMALL_VOCABULARY
KERNEL head_draw(Args a, int) {
  constexpr int TILES = (V + TILE - 1) / TILE;
  struct Shared { LinearShared<1, C, TILES, Residual> head; DrawShared draw; float logits[V]; i64 weights[V]; };
  SHARED(Shared, s);
  int item = blockIdx.y;
  if (is_idle(a, item)) return;
  load_residual(a, a.x + (size_t)item * C, item, s.head);
  Normed norm = {a.lnf_weight, a.lnf_bias};
  measure_norm<1>(s.head.x, s.head.live, norm, s.head.stats, s.head.parts);
  product<1, C, TILES, false>(a.head, norm, s.head.x, s.head.live, s.head.stats, s.head.vectors, s.head.sums);
  for (int i = threadIdx.x; i < V; i += THREADS) {
    /* a thread first reads the logits that it wrote itself */
    s.logits[i] = output(s.head.sums, 0, i, s.head.stats[0].scale, a.head_scale[i], a.head_bias[i]);
    a.logits[(size_t)item * V + i] = s.logits[i];
  }
  draw_small(a, item, s.logits, s.weights, s.draw);
}
#else
template <int R, int TILES> __device__ inline void head_items(const Args &a, LinearShared<R, C, TILES, Residual> &s) {
  int first = blockIdx.y * R, tile = blockIdx.x * TILES;
  load_residual(a, a.x + (size_t)first * C, first, s);
  Normed norm = {a.lnf_weight, a.lnf_bias};
  measure_norm<R>(s.x, s.live, norm, s.stats, s.parts);
  product<R, C, TILES, false>(a.head + tile * tile_words(C), norm, s.x, s.live, s.stats, s.vectors, s.sums);
  for (int i = WARP; i < R * TILES; i += WARPS) { /* a warp: one tile of one item */
    int r = i / TILES, t = tile + i % TILES, o = i % TILES * TILE + LANE, token = t * TILE + LANE;
    if (!s.live[r] || t * TILE >= V) continue;
    float logit = token < V ? output(s.sums, r, o, s.stats[r].scale, a.head_scale[token], a.head_bias[token]) : 0;
    if (token < V) a.logits[(size_t)(first + r) * V + token] = logit;
    best_of_tile(a, first + r, t, token, logit);
  }
}
KERNEL head(Args a, int) { SHARED(LINEAR(HEAD_ITEMS, C, 2, Residual), s); head_items<HEAD_ITEMS, 2>(a, s); }
KERNEL head_one(Args a, int) { SHARED(LINEAR(1, C, 2, Residual), s); head_items<1, 2>(a, s); }
KERNEL weigh(Args a, int) { SHARED(WeighShared, s); weigh_segment(a, blockIdx.y, blockIdx.x, s); }
KERNEL pick(Args a, int) { SHARED(DrawShared, s); pick_large(a, blockIdx.y, s); }
#endif
KERNEL commit(Args a, int) { commit_drafts(a, blockIdx.x * THREADS + threadIdx.x); }
KERNEL copy_prefix(Args a, int source, int target, int n) { /* positions 0 ... n-1 of one head and layer */
  Line from = line_of(a, blockIdx.y, source, blockIdx.x), to = line_of(a, blockIdx.y, target, blockIdx.x);
  for (int t = threadIdx.x; t < n; t += THREADS) {
    for (int w = 0; w < DW; w++) ((u32 *)to.keys)[w * TP + t] = ((const u32 *)from.keys)[w * TP + t];
    to.key_scales[t] = from.key_scales[t], to.value_scales[t] = from.value_scales[t];
  }
  for (int i = threadIdx.x; i < (n + 3) / 4 * D; i += THREADS) ((u32 *)to.values)[i] = ((const u32 *)from.values)[i]; /* whole words */
}
