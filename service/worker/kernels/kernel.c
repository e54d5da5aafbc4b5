/* The model on a CPU in exact arithmetic: one call runs a step over any items, or a whole burst of decode steps, sampling
 * included.
 *
 * Why it is written by hand: the model is so small that a framework spends more time between the operations than in them.
 *
 * Why neither batch, thread nor instruction set can move a byte: every sum is a sum of integers, and every float
 * operation acts on one element (arithmetic.h). So prefill, decode and the verification of several tokens of one row are
 * the same code: a step takes items, each a token at a position of a row.
 *
 *   arithmetic.h   every function of one element: the definition
 *   simd.h         the same on vectors, and what each instruction set has to give
 *   team.h         threads
 *   engine.h       memory: packed weights, cache, buffers
 *   linear.h       linear layers, quantising, LayerNorm
 *   attention.h    cache and attention
 *   sampling.h     from logits to a token
 *   probing.h      what the self-test asks of every function
 *   cpu.c          which instruction sets this processor has
 *
 * Compiled once for each instruction set with -DISA=its name, which ends the name of every function that Python calls.
 * Letters: m items, C n_embd, H heads, D head size, T positions, V vocabulary, L layers.
 */
#include "attention.h"
#include "sampling.h"
#include "probing.h"

#define JOIN(name, isa) folio_##name##_##isa
#define EXPAND(name, isa) JOIN(name, isa)
#define EXPORT(name) EXPAND(name, ISA)

/* This thread's part of n things. */
#define SHARE(i, n) int i = (int)((int64_t)(n) * thread / e->c.threads), end_##i = (int)((int64_t)(n) * (thread + 1) / e->c.threads); i < end_##i; i++

static void norm(Engine *e, const float *w, const float *b, int m, int thread) { /* x → narrow */
  float *y = e->scratch[thread].y;
  for (SHARE(i, m)) {
    layer_norm(e->x + (size_t)i * e->x_stride, w, b, y, e->c.n_embd);
    act *to = e->narrow + (size_t)i * e->digits * e->narrow_stride;
    e->scales[i] = quantise(e, y, round_up(e->c.n_embd, LANES), 0, to, e->narrow_stride);
  }
}

static void quantise_attended(Engine *e, int m, int thread) { /* the first H * D of wide → narrow */
  int padded = round_up(e->attn, LANES);
  for (SHARE(i, m)) {
    float *y = e->wide + (size_t)i * e->wide_stride;
    memset(y + e->attn, 0, sizeof(float) * (padded - e->attn));
    e->scales[i] = quantise(e, y, padded, 0, e->narrow + (size_t)i * e->digits * e->narrow_stride, e->narrow_stride);
  }
}

static void quantise_hidden(Engine *e, int m, int thread) { /* wide → hidden */
  for (SHARE(i, m)) {
    const float *y = e->wide + (size_t)i * e->wide_stride;
    act *to = e->hidden + (size_t)i * e->digits * e->hidden_stride;
    e->scales[i] = quantise(e, y, round_up(4 * e->c.n_embd, LANES), !e->c.gelu, to, e->hidden_stride);
  }
}

/* Every thread runs this, and waits at each barrier for what the others computed. Logits only if wanted. */
static void forward(Engine *e, int m, const int32_t *tokens, const int32_t *rows, const int32_t *at, int want_logits, int thread) {
  int c = e->c.n_embd, xs = e->x_stride, ws = e->wide_stride, ns = e->narrow_stride;
  for (SHARE(i, m))
    for (int j = 0; j < c; j++)
      e->x[(size_t)i * xs + j] = ex_bound(e->tokens[(size_t)tokens[i] * xs + j] + e->positions[(size_t)at[i] * xs + j]);
  for (int n = 0; n < e->c.n_layer; n++) {
    const Layer *l = &e->layers[n];
    norm(e, l->ln1_w, l->ln1_b, m, thread), barrier(&e->team);
    run_linear(e, STORE, &l->qkv, m, e->narrow, ns, e->wide, ws, thread), barrier(&e->team);
    attention(e, n, m, rows, at, thread), barrier(&e->team);
    quantise_attended(e, m, thread), barrier(&e->team);
    run_linear(e, ADD, &l->proj, m, e->narrow, ns, e->x, xs, thread), barrier(&e->team);
    norm(e, l->ln2_w, l->ln2_b, m, thread), barrier(&e->team);
    run_linear(e, e->c.gelu ? GELU : RELU, &l->up, m, e->narrow, ns, e->wide, ws, thread), barrier(&e->team);
    quantise_hidden(e, m, thread), barrier(&e->team);
    run_linear(e, ADD, &l->down, m, e->hidden, e->hidden_stride, e->x, xs, thread), barrier(&e->team);
  }
  if (!want_logits) return;
  norm(e, e->lnf_w, e->lnf_b, m, thread), barrier(&e->team);
  run_linear(e, STORE, &e->head, m, e->narrow, ns, e->logits, e->logits_stride, thread), barrier(&e->team);
}

/* ---- what Python calls --------------------------------------------------------------------------------------------- */

/* `tensors`: float32 arrays in the order of GPTConfig.parameter_shapes. NULL when memory or threads run out. */
Engine *EXPORT(create)(const Config *config, const float *const *tensors) { return engine_create(config, tensors); }
void EXPORT(destroy)(Engine *e) { engine_destroy(e); }
uint64_t EXPORT(probe)(int function) { return probe_sum(function); } /* model/exact has what it must be */
int64_t EXPORT(cache_bytes)(const Engine *e) { return cache_bytes(e); }

/* Give a row to a request with this history. */
void EXPORT(set_row)(Engine *e, int row, const Row *r, int n_bias, const int32_t *bias_ids, const double *bias,
                     int n_prompt, const int32_t *prompt, int n_generated, const int32_t *generated) {
  size_t n = e->c.vocab_size, at = row * n;
  e->rows[row] = *r;
  memset(e->bias + at, 0, sizeof *e->bias * n), memset(e->in_prompt + at, 0, n), memset(e->counts + at, 0, sizeof *e->counts * n);
  for (int i = 0; i < n_bias; i++) e->bias[at + bias_ids[i]] += bias[i];
  for (int i = 0; i < n_prompt; i++) e->in_prompt[at + prompt[i]] = 1;
  for (int i = 0; i < n_generated; i++) e->counts[at + generated[i]]++;
}

/* Where the row's next decode step goes on. */
void EXPORT(set_cursor)(Engine *e, int row, int32_t token, int32_t position) {
  e->rows[row].token = token, e->rows[row].position = position;
}

typedef struct { Engine *e; int m; const int32_t *tokens, *rows, *at; int want_logits; } Step;

static void step_job(void *argument, int thread, int threads) {
  Step *a = argument;
  (void)threads;
  forward(a->e, a->m, a->tokens, a->rows, a->at, a->want_logits, thread);
}

/* One step: m <= max_items tokens go through the model, token i at position at[i] of rows[i]; those of a row follow each
 * other. logits: (m, V), or NULL. */
void EXPORT(step)(Engine *e, int m, const int32_t *tokens, const int32_t *rows, const int32_t *at, float *logits) {
  Step a = {e, m, tokens, rows, at, logits != NULL};
  team_run(&e->team, step_job, &a);
  for (int i = 0; logits && i < m; i++)
    memcpy(logits + (size_t)i * e->c.vocab_size, e->logits + (size_t)i * e->logits_stride, sizeof(float) * e->c.vocab_size);
}

typedef struct {
  Engine *e;
  int m, max_steps, stride, active;
  const int32_t *rows, *steps;
  int32_t *out, *item, *token, *row, *at; /* the last four: (m), the active ones of this step */
  double *logprobs;
} Burst;

static void gather(Burst *b, int step) { /* who still has steps to do */
  b->active = 0;
  for (int i = 0; i < b->m; i++) {
    if (step >= b->steps[i]) continue;
    const Row *r = &b->e->rows[b->rows[i]];
    b->item[b->active] = i, b->row[b->active] = b->rows[i];
    b->token[b->active] = r->token, b->at[b->active++] = r->position;
  }
}

static void draw(const Burst *b, int active, int step, int thread) { /* a token for one row, which is fed back */
  Engine *e = b->e;
  Row *r = &e->rows[b->row[active]];
  const float *logits = e->logits + (size_t)active * e->logits_stride;
  int32_t token = sample(e, b->row[active], logits, &e->scratch[thread]);
  size_t place = (size_t)b->item[active] * b->max_steps + step;
  if (b->logprobs && r->num_logprobs >= 0)
    log_probabilities(e, r->num_logprobs, logits, token, b->logprobs + place * b->stride, &e->scratch[thread]);
  b->out[place] = token;
  e->counts[(size_t)b->row[active] * e->c.vocab_size + token]++;
  r->index++, r->token = token, r->position++;
}

static void burst_job(void *argument, int thread, int threads) {
  Burst *b = argument;
  Engine *e = b->e;
  for (int step = 0; step < b->max_steps; step++) {
    if (thread == 0) gather(b, step);
    barrier(&e->team);
    forward(e, b->active, b->token, b->row, b->at, 1, thread);
    for (int i = thread; i < b->active; i += threads) draw(b, i, step, thread);
    barrier(&e->team);
  }
}

/* A burst: row rows[i] draws steps[i] <= max_steps tokens into out (m, max_steps); logprobs (m, max_steps, stride) or NULL.
 * work: 4 m integers. */
void EXPORT(decode)(Engine *e, int m, const int32_t *rows, const int32_t *steps, int max_steps, int32_t *out,
                    double *logprobs, int stride, int32_t *work) {
  Burst b = {e, m, max_steps, stride, 0, rows, steps, out, work, work + m, work + 2 * m, work + 3 * m, logprobs};
  team_run(&e->team, burst_job, &b);
}
