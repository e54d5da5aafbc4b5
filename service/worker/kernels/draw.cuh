/* Sampling on the GPU, part of kernel.cu: penalties, filters, the draw and log-probabilities, all in integers but for single elements.
 * A large vocabulary is weighed by many blocks (head's last part, `weigh`), and one block an item picks; a small one is one block's work. */

__device__ inline bool draws(const Args &a, int item) { return !is_idle(a, item) && a.drawn[item] < a.limit[item]; }

/* The logit of a token after bias and penalties. Guessed tokens of the same row before this item count as generated. */
__device__ inline double adjusted(const Args &a, int item, int token, float logit) {
  size_t at = (size_t)a.row[item] * V + token;
  const Row &p = a.rows[a.row[item]];
  int count = a.counts[at];
  for (int i = 0; i < a.draft[item]; i++) count += a.token[item - i] == token;
  return ex_adjusted(logit, a.bias[at], p.repetition, p.frequency, p.presence, a.in_prompt[at], count);
}

struct Best { /* the largest adjusted logit, the lowest token that has it, and the largest logit as it came from the head */
  double most;
  int token;
  float logit;
};
__device__ inline void improve(Best &b, double most, int token, float logit) {
  if (most > b.most || (most == b.most && token < b.token)) b.most = most, b.token = token;
  b.logit = ex_max(b.logit, logit);
}
__device__ inline Best nothing() { return {-1e308, V, -3e38f}; }
__device__ inline Best warp_best(Best b) {
  UNROLL for (int m = 16; m; m >>= 1) {
    double most = __shfl_xor_sync(ALL_LANES, b.most, m);
    int token = __shfl_xor_sync(ALL_LANES, b.token, m);
    improve(b, most, token, __shfl_xor_sync(ALL_LANES, b.logit, m));
  }
  return b;
}
__device__ inline Best block_best(Best b, Best *parts) { /* parts: WARPS */
  b = warp_best(b);
  if (!LANE) parts[WARP] = b;
  BARRIER(19);
  UNROLL for (int w = 0; w < WARPS; w++) improve(b, parts[w].most, parts[w].token, parts[w].logit);
  return b; /* nobody writes `parts` again */
}

struct DrawShared {
  Best best[WARPS];
  Parts parts;
  i64 histogram[256], totals[WARPS], rest, available, sums[4];
  u64 keys[WARPS];
  int digit, token, bound, ties[WARPS];
};

/* ---- filters: what is kept has a weight above `cut`, or exactly that and an id below `bound` ---------------------------------------------- */

struct Kept { i64 cut; int bound; };
__device__ inline bool keeps(const Kept &k, i64 weight, int token) { return weight > k.cut || (weight == k.cut && token < k.bound); }

__device__ inline i64 warp_scan(i64 v) { /* inclusive */
  UNROLL for (int d = 1; d < 32; d *= 2) {
    i64 below = __shfl_up_sync(ALL_LANES, v, d);
    if (LANE >= d) v += below;
  }
  return v;
}
__device__ inline i64 kept_total(const i64 *weights, const Kept &kept, DrawShared &s) {
  i64 sum = 0;
  for (int i = threadIdx.x; i < V; i += THREADS) sum += keeps(kept, weights[i], i) ? weights[i] : 0;
  return team_sum<WARPS>(sum, s.parts);
}
/* The id after the `ties`-th token of exactly this weight. Each warp has a span of the vocabulary. */
__device__ inline int bound_of(const i64 *weights, i64 weight, i64 ties, DrawShared &s) {
  constexpr int SPAN = round_up((V + WARPS - 1) / WARPS, 32);
  int start = WARP * SPAN, end = least(start + SPAN, V), own = 0;
  for (int i = start; i < end; i += 32) own += __popc(__ballot_sync(ALL_LANES, i + LANE < end && weights[i + LANE] == weight));
  if (!LANE) s.ties[WARP] = own;
  BARRIER(20);
  i64 before = 0;
  for (int w = 0; w < WARP; w++) before += s.ties[w];
  if (before < ties && ties <= before + own)
    for (int i = start; i < end; i += 32) {
      bool tie = i + LANE < end && weights[i + LANE] == weight;
      u32 mask = __ballot_sync(ALL_LANES, tie);
      if (tie && before + __popc(mask & ((2u << LANE) - 1)) == ties) s.bound = i + LANE + 1;
      before += __popc(mask);
    }
  BARRIER(21);
  return s.bound;
}
/* Narrow what is kept to its heaviest tokens, on a tie those with the lower ids: `need` of them, or (BY_WEIGHT) those before which less than
 * `need` weighs. A search by digits of eight bits, the heaviest first; weights have 41 bits. */
template <bool BY_WEIGHT> __device__ inline void narrow(const i64 *weights, i64 need, Kept &kept, DrawShared &s) {
  int tid = threadIdx.x;
  i64 prefix = 0, available = 0;
  for (int shift = 40; shift >= 0; shift -= 8) {
    s.histogram[tid] = 0;
    if (!tid) s.digit = -1;
    BARRIER(22);
    for (int i = tid; i < V; i += THREADS) {
      i64 w = weights[i];
      if (keeps(kept, w, i) && w >> (shift + 8) == prefix) atomicAdd((u64 *)&s.histogram[w >> shift & 255], (u64)(BY_WEIGHT ? w : 1));
    }
    BARRIER(23);
    i64 own = s.histogram[255 - tid], sum = warp_scan(own);
    if (LANE == 31) s.totals[WARP] = sum;
    BARRIER(24);
    for (int w = 0; w < WARP; w++) sum += s.totals[w];
    if (sum >= need && sum - own < need) s.digit = 255 - tid, s.rest = need - (sum - own), s.available = own;
    BARRIER(25);
    int digit = s.digit;
    need = s.rest, available = s.available;
    BARRIER(26);
    if (digit < 0) return; /* less is kept than asked for: all stay */
    prefix = prefix << 8 | digit;
  }
  i64 ties = BY_WEIGHT ? (need + prefix - 1) / prefix : need;
  if (ties < (BY_WEIGHT ? available / prefix : available)) kept = {prefix, bound_of(weights, prefix, ties, s)};
  else if (prefix > kept.cut) kept = {prefix - 1, 0};
}

/* ---- the draw ---------------------------------------------------------------------------------------------------------------------------------- */

/* One warp: the first i of from ... to - 1 at which the running sum of value(i), begun with `before`, exceeds the target. */
template <class Value> __device__ inline int first_over(int from, int to, const Value &value, i64 target, i64 &before) {
  for (int i = from; i < to; i += 32) {
    i64 own = i + LANE < to ? value(i + LANE) : 0, sum = warp_scan(own);
    u32 over = __ballot_sync(ALL_LANES, before + sum > target);
    if (over) {
      int lane = __ffs((int)over) - 1;
      before += __shfl_sync(ALL_LANES, sum - own, lane);
      return i + lane;
    }
    before += __shfl_sync(ALL_LANES, sum, 31);
  }
  return to; /* never: the target is below the total */
}
/* A token, drawn by weight. `sums` has the weight of each segment, unless something was filtered. */
__device__ inline int weighted_draw(const Args &a, int item, const i64 *weights, i64 *sums, bool summed, DrawShared &s) {
  constexpr int SEGMENTS = (V + SEGMENT - 1) / SEGMENT;
  const Row &p = a.rows[a.row[item]];
  Kept kept = {ex_least(p.min_p) - 1, 0};
  if (p.top_k > 0 && p.top_k < V) narrow<false>(weights, p.top_k, kept, s);
  if (p.top_p < 1) narrow<true>(weights, ex_nucleus(p.top_p, kept_total(weights, kept, s)), kept, s);
  if (!summed || kept.cut >= 0)
    for (int segment = WARP; segment < SEGMENTS; segment += WARPS) {
      i64 sum = 0;
      for (int i = segment * SEGMENT + LANE; i < least((segment + 1) * SEGMENT, V); i += 32) sum += keeps(kept, weights[i], i) ? weights[i] : 0;
      sum = warp_sum(sum);
      if (!LANE) sums[segment] = sum;
    }
  BARRIER(27);
  if (!WARP) {
    i64 total = 0, before = 0;
    for (int i = LANE; i < SEGMENTS; i += 32) total += sums[i];
    i64 target = ex_target(ex_u53(p.seed, p.index + a.draft[item]), warp_sum(total));
    int segment = first_over(0, SEGMENTS, [=](int i) { return sums[i]; }, target, before);
    auto weight = [=](int i) { return keeps(kept, weights[i], i) ? weights[i] : 0; };
    int token = first_over(segment * SEGMENT, least((segment + 1) * SEGMENT, V), weight, target, before);
    if (!LANE) s.token = token;
  }
  BARRIER(28);
  return s.token;
}

/* ---- log-probabilities: of the model's own distribution, before any parameter ---------------------------------------------------------------------- */

__device__ inline u64 rank_key(float logit, int token) { /* larger for larger logits, on a tie for lower ids */
  u32 b = ex_bits(logit);
  return (u64)(b >> 31 ? ~b : b | 0x80000000u) << 32 | (u32)~token;
}
__device__ inline u64 block_max_key(u64 v, u64 *parts) {
  UNROLL for (int m = 16; m; m >>= 1) {
    u64 other = __shfl_xor_sync(ALL_LANES, v, m);
    v = other > v ? other : v;
  }
  if (!LANE) parts[WARP] = v;
  BARRIER(29);
  UNROLL for (int w = 0; w < WARPS; w++) v = parts[w] > v ? parts[w] : v;
  BARRIER(30);
  return v;
}
__device__ inline void write_logprobs(const Args &a, int item, int token, const float *logits, float most, i64 plain_total, DrawShared &s) {
  int count = a.rows[a.row[item]].num_logprobs;
  double *to = a.logprobs + ((size_t)item * a.steps + a.drawn[item]) * (1 + 2 * MOST_LOGPROBS), log_total = ex_log_total(plain_total);
  if (!threadIdx.x) to[0] = ex_logprob(logits[token], most, log_total);
  u64 last = ~0ull;
  for (int n = 0; n < count; n++) {
    u64 key = 0;
    for (int i = threadIdx.x; i < V; i += THREADS) {
      u64 k = rank_key(logits[i], i);
      if (k < last && k > key) key = k;
    }
    last = block_max_key(key, s.keys);
    int next = (int)~(u32)last;
    if (!threadIdx.x) to[1 + 2 * n] = next, to[2 + 2 * n] = ex_logprob(logits[next], most, log_total);
  }
}
__device__ inline i64 plain_weight(float logit, float most) { return ex_weight((double)logit, (double)most, 1.0); }

/* ---- one item's token, and what follows from it ------------------------------------------------------------------------------------------------------ */

__device__ inline void enter(const Args &a, int item, int token) { /* one thread: the token is the row's next input */
  int row = a.row[item], n = a.drawn[item];
  a.out[(size_t)item * a.steps + n] = token;
  a.drawn[item] = n + 1;
  if (a.verifying) return; /* `commit` decides */
  a.counts[(size_t)row * V + token]++, a.rows[row].index++;
  a.token[item] = token, a.position[item]++;
  if (n + 1 == a.limit[item]) a.row[item] = -1; /* or the next step would encode it */
}
__device__ inline void draw_small(const Args &a, int item, const float *logits, i64 *weights, DrawShared &s) {
  if (!draws(a, item)) return;
  const Row &p = a.rows[a.row[item]];
  Best best = nothing();
  for (int i = threadIdx.x; i < V; i += THREADS) improve(best, adjusted(a, item, i, logits[i]), i, logits[i]);
  best = block_best(best, s.best);
  int token = best.token;
  if (p.temperature != 0) {
    for (int i = threadIdx.x; i < V; i += THREADS) weights[i] = ex_weight(adjusted(a, item, i, logits[i]), best.most, p.temperature);
    BARRIER(31);
    token = weighted_draw(a, item, weights, s.sums, false, s);
  }
  if (p.num_logprobs >= 0) {
    i64 plain = 0;
    for (int i = threadIdx.x; i < V; i += THREADS) plain += plain_weight(logits[i], best.logit);
    write_logprobs(a, item, token, logits, best.logit, team_sum<WARPS>(plain, s.parts), s);
  }
  BARRIER(32);
  if (!threadIdx.x) enter(a, item, token);
}

enum { HEAD_TILES = (V + TILE - 1) / TILE };
__device__ inline void best_of_tile(const Args &a, int item, int tile, int token, float logit) { /* one warp, in `head` */
  if (!draws(a, item)) return;
  Best b = nothing();
  if (token < V) improve(b, adjusted(a, item, token, logit), token, logit);
  b = warp_best(b);
  size_t at = (size_t)item * HEAD_TILES + tile;
  if (!LANE) a.tile_most[at] = b.most, a.tile_best[at] = b.token, a.tile_logit[at] = b.logit;
}
__device__ inline Best best_of_tiles(const Args &a, int item, Best *parts) {
  Best b = nothing();
  size_t at = (size_t)item * HEAD_TILES;
  for (int i = threadIdx.x; i < HEAD_TILES; i += THREADS) improve(b, a.tile_most[at + i], a.tile_best[at + i], a.tile_logit[at + i]);
  return block_best(b, parts);
}
struct WeighShared { Best best[WARPS]; Parts parts, plain; };
__device__ inline void weigh_segment(const Args &a, int item, int segment, WeighShared &s) {
  if (!draws(a, item)) return;
  const Row &p = a.rows[a.row[item]];
  Best best = best_of_tiles(a, item, s.best);
  int token = segment * SEGMENT + threadIdx.x;
  float logit = token < V ? a.logits[(size_t)item * V + token] : 0;
  i64 weight = 0, plain = 0;
  if (token < V && p.temperature != 0) {
    weight = ex_weight(adjusted(a, item, token, logit), best.most, p.temperature);
    a.weights[(size_t)item * V + token] = weight;
  }
  if (token < V && p.num_logprobs >= 0) plain = plain_weight(logit, best.logit);
  weight = team_sum<WARPS>(weight, s.parts), plain = team_sum<WARPS>(plain, s.plain);
  size_t at = (size_t)item * ((V + SEGMENT - 1) / SEGMENT) + segment;
  if (!threadIdx.x) a.weight_sums[at] = weight, a.plain_sums[at] = plain;
}
__device__ inline void pick_large(const Args &a, int item, DrawShared &s) {
  if (!draws(a, item)) return;
  constexpr int SEGMENTS = (V + SEGMENT - 1) / SEGMENT;
  const Row &p = a.rows[a.row[item]];
  Best best = best_of_tiles(a, item, s.best);
  int token = best.token;
  if (p.temperature != 0) token = weighted_draw(a, item, a.weights + (size_t)item * V, a.weight_sums + (size_t)item * SEGMENTS, true, s);
  if (p.num_logprobs >= 0) {
    i64 plain = 0;
    for (int i = threadIdx.x; i < SEGMENTS; i += THREADS) plain += a.plain_sums[(size_t)item * SEGMENTS + i];
    write_logprobs(a, item, token, a.logits + (size_t)item * V, best.logit, team_sum<WARPS>(plain, s.parts), s);
  }
  BARRIER(33);
  if (!threadIdx.x) enter(a, item, token);
}

/* After a pass over guesses, by the thread of a row's first item: a guess holds as long as it is what was drawn before it. */
__device__ inline void commit_drafts(const Args &a, int item) {
  if (is_idle(a, item) || a.draft[item] || !a.limit[item]) return;
  int row = a.row[item], n = 0, token;
  do {
    token = a.out[(size_t)(item + n) * a.steps];
    a.counts[(size_t)row * V + token]++, n++;
  } while (item + n < a.num_items && a.row[item + n] == row && a.draft[item + n] == n && a.token[item + n] == token);
  a.rows[row].index += n;
  a.drawn[item] = n;
}
