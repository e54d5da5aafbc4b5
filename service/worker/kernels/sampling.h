/* From logits to the next token, as model/sampling.py says it: adjust, weigh, filter, draw. Integers from the weights on.
 *
 * V vocabulary. Weights are probabilities in units of 2^-40 of the largest.
 */
#ifndef SAMPLING_H
#define SAMPLING_H

#include "engine.h"

static int by_weight(const void *a, const void *b) { /* heaviest first, then the lower token */
  const Candidate *x = a, *y = b;
  return x->weight != y->weight ? (x->weight > y->weight ? -1 : 1) : x->token - y->token;
}

/* Sets the weights to 0 of what min-p, top-k and top-p, in this order, cut off. */
static void filter(const Row *r, int64_t *w, int n, Candidate *candidates) {
  int64_t least = ex_least(r->min_p), kept_total = 0, before = 0;
  int count = 0, kept = 0;
  for (int i = 0; i < n; i++) /* a weight of 0 is never drawn, whatever is kept */
    if (w[i] > 0 && w[i] >= least) candidates[count++] = (Candidate){w[i], i};
  qsort(candidates, count, sizeof *candidates, by_weight);
  memset(w, 0, sizeof *w * n);
  if (r->top_k > 0 && r->top_k < count) count = r->top_k;
  for (int i = 0; i < count; i++) kept_total += candidates[i].weight;
  int64_t enough = r->top_p < 1 ? ex_nucleus(r->top_p, kept_total) : INT64_MAX;
  for (; kept < count && before < enough; kept++) {
    before += candidates[kept].weight;
    w[candidates[kept].token] = candidates[kept].weight;
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
