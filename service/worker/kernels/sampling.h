/* From logits to the next token, as model/sampling.py says it: adjust, weigh, filter, draw. Integers from the weights on.
 *
 * V vocabulary. Weights are probabilities in units of 2^-40 of the largest.
 */
#ifndef SAMPLING_H
#define SAMPLING_H

#include "engine.h"

/* ---- the heaviest candidates, as a heap: few of a large vocabulary are kept, so it is not sorted ---------------------- */

static int comes_first(Candidate a, Candidate b) { /* the heavier one, then the lower token */
  return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
}

static void sink(Candidate *heap, int n, int i) {
  for (int child; (child = 2 * i + 1) < n; i = child) {
    if (child + 1 < n && comes_first(heap[child + 1], heap[child])) child++;
    if (comes_first(heap[i], heap[child])) return;
    Candidate swapped = heap[i];
    heap[i] = heap[child], heap[child] = swapped;
  }
}

static void make_heap(Candidate *heap, int n) {
  for (int i = n / 2 - 1; i >= 0; i--) sink(heap, n, i);
}

/* The first of n moves to the end, behind the heap of the others. */
static Candidate pop(Candidate *heap, int n) {
  Candidate first = heap[0];
  heap[0] = heap[n - 1], heap[n - 1] = first, sink(heap, n - 1, 0);
  return first;
}

/* Sets the weights to 0 of what min-p, top-k and top-p, in this order, cut off. */
static void filter(const Row *r, int64_t *w, int n, Candidate *candidates) {
  int64_t least = ex_least(r->min_p), kept_total = 0, before = 0;
  int count = 0;
  for (int i = 0; i < n; i++) /* a weight of 0 is never drawn, whatever is kept */
    if (w[i] > 0 && w[i] >= least) candidates[count++] = (Candidate){w[i], i}, kept_total += w[i];
  int num_kept = r->top_k > 0 && r->top_k < count ? r->top_k : count, left = num_kept;
  if (num_kept < count) {
    make_heap(candidates, count), kept_total = 0;
    for (int i = 0; i < num_kept; i++) kept_total += pop(candidates, count - i).weight;
    candidates += count - num_kept; /* top-k's, the last first */
  }
  memset(w, 0, sizeof *w * n);
  if (r->top_p >= 1) {
    for (int i = 0; i < num_kept; i++) w[candidates[i].token] = candidates[i].weight;
    return;
  }
  int64_t enough = ex_nucleus(r->top_p, kept_total);
  make_heap(candidates, num_kept);
  for (; left > 0 && before < enough; left--) {
    Candidate c = pop(candidates, left);
    before += c.weight, w[c.token] = c.weight;
  }
}

/* (V) logits → (V) float64 after bias and penalties; returns the largest. */
static double adjust(const Engine *e, int row, const float *logits, double *v) {
  const Row *r = &e->rows[row];
  int n = e->c.vocab_size;
  size_t at = (size_t)row * n;
  if (!r->has_bias && r->repetition == 1 && r->frequency == 0 && r->presence == 0)
    for (int i = 0; i < n; i++) v[i] = logits[i];
  else
    for (int i = 0; i < n; i++)
      v[i] = ex_adjusted(logits[i], e->bias[at + i], r->repetition, r->frequency, r->presence, e->in_prompt[at + i], e->counts[at + i]);
  double most = v[0];
  for (int i = 1; i < n; i++) most = v[i] > most ? v[i] : most;
  return most;
}

static int32_t sample(const Engine *e, int row, const float *logits, const Scratch *s) {
  const Row *r = &e->rows[row];
  int n = e->c.vocab_size, drawn = 0;
  double most = adjust(e, row, logits, s->v);
  if (r->temperature == 0) {
    while (s->v[drawn] != most) drawn++;
    return drawn;
  }
  for (int i = n; i < round_up(n, LANES); i++) s->v[i] = -__builtin_inf();
  for (int i = 0; i < n; i += LANES / 2)
    *(vlong *)(s->weights + i) = vweights(*(const vdouble *)(s->v + i), most, r->temperature);
  if (r->has_filter) filter(r, s->weights, n, s->candidates);
  int64_t sum = 0, running = 0;
  for (int i = 0; i < n; i++) sum += s->weights[i];
  int64_t target = ex_target(ex_u53(r->seed, r->index), sum);
  for (int i = 0; i < n; i++) drawn += (running += s->weights[i]) <= target; /* without a branch: it is always missed */
  return drawn;
}

/* out: the token's log-probability, then (id, value) of the most probable; before bias, penalties and temperature. */
static void log_probabilities(const Engine *e, int count, const float *logits, int32_t token, double *out, const Scratch *s) {
  int n = e->c.vocab_size;
  float most = logits[0];
  int64_t sum = 0;
  for (int i = 1; i < n; i++) most = ex_max(most, logits[i]);
  for (int i = 0; i < n; i++) sum += ex_weight(logits[i], most, 1);
  double log_total = ex_log_total(sum);
  out[0] = ex_logprob(logits[token], most, log_total);
  for (int i = 0; i < n; i++) s->v[i] = logits[i];
  for (int i = 0; i < count; i++) {
    int best = 0;
    for (int j = 1; j < n; j++) best = s->v[j] > s->v[best] ? j : best;
    out[1 + 2 * i] = best, out[2 + 2 * i] = ex_logprob(logits[best], most, log_total);
    s->v[best] = -__builtin_inf();
  }
}

#endif
