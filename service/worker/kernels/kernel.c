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
 *   draft.h        guesses of the tokens to come
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
    if (e->skips) e->num_words[i] = find_words(to, round_up(4 * e->c.n_embd, G) / G, e->words + (size_t)i * e->hidden_stride);
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
    if (!e->skips || !run_sparse_add(e, &l->down, m, thread))
      run_linear(e, ADD, &l->down, m, e->hidden, e->hidden_stride, e->x, xs, thread);
    barrier(&e->team);
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

enum { MAX_LEARNED = 1024 }; /* tokens of a prompt that guesses learn from: its end */

/* Give a row to a request with this history. */
void EXPORT(set_row)(Engine *e, int row, const Row *r, int n_bias, const int32_t *bias_ids, const double *bias,
                     int n_prompt, const int32_t *prompt, int n_generated, const int32_t *generated) {
  size_t n = e->c.vocab_size, at = row * n;
  e->rows[row] = *r;
  memset(e->bias + at, 0, sizeof *e->bias * n), memset(e->in_prompt + at, 0, n), memset(e->counts + at, 0, sizeof *e->counts * n);
  for (int i = 0; i < n_bias; i++) e->bias[at + bias_ids[i]] += bias[i];
  for (int i = 0; i < n_prompt; i++) e->in_prompt[at + prompt[i]] = 1;
  for (int i = 0; i < n_generated; i++) e->counts[at + generated[i]]++;
  History *h = &e->histories[row];
  h->n = 0;
  for (int i = n_prompt > MAX_LEARNED ? n_prompt - MAX_LEARNED : 0; i < n_prompt; i++) {
    if (e->draft.on) observe(&e->draft, h, prompt[i]);
    remember(h, prompt[i]);
  }
  for (int i = n_generated > LONGEST ? n_generated - LONGEST : 0; i < n_generated; i++) remember(h, generated[i]);
}

/* The first `positions` of row `source`'s cache become those of row `target`. What it has behind them is overwritten before it is seen. */
void EXPORT(copy_prefix)(Engine *e, int source, int target, int positions) {
  size_t keys = (size_t)(round_up(positions, LANES) / LANES) * e->block, values = (size_t)round_up(positions, G) * e->d_pad;
  for (int layer = 0; layer < e->c.n_layer; layer++)
    for (int head = 0; head < e->c.n_head; head++) {
      size_t of_layer = (size_t)layer * e->c.rows, h = e->c.n_head;
      int8_t *from = e->cache + ((of_layer + source) * h + head) * e->head_bytes;
      int8_t *to = e->cache + ((of_layer + target) * h + head) * e->head_bytes;
      memcpy(to, from, keys), memcpy(to + e->values, from + e->values, values);
    }
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

/* ---- a burst: decode steps with sampling inside, checking guesses of the tokens to come ---------------------------------- */

typedef struct {
  Engine *e;
  int m, max_steps, stride, items, learns;
  Slot *slots;
  const int32_t *hints; /* (m, max_steps): what the caller guesses, -1: nothing; or NULL */
  int32_t *out, *token, *row, *at; /* the last three: (max_items) */
  double *logprobs, began;
} Burst;

static void add_item(Burst *b, int row, int32_t token, int32_t position) {
  b->token[b->items] = token, b->row[b->items] = row, b->at[b->items++] = position;
}

/* The caller's guesses of the slot's next tokens, at most `most`; how many. */
static int add_hints(Burst *b, Slot *s, int most) {
  const int32_t *hints = b->hints + (s - b->slots) * (size_t)b->max_steps + s->done;
  int n = 0;
  for (; n < most && hints[n] >= 0; n++) add_item(b, s->row, hints[n], b->e->rows[s->row].position + 1 + n);
  return n;
}

/* Our own guesses, as long as they pay: `tokens` is what the pass is expected to give so far, over m items. */
static int add_guesses(Burst *b, Slot *s, int most, float *tokens, int *m) {
  Draft *d = &b->e->draft;
  Row *r = &b->e->rows[s->row];
  History h = b->e->histories[s->row];
  float p = 1;
  int n = 0;
  for (; n < most && n < MAX_GUESSES; n++) {
    Guess g = guess(d, &h, ex_u53(r->seed, r->index + n), r->temperature == 0);
    if (g.token < 0 || g.token >= b->e->c.vocab_size) break;
    p *= d->rate[g.order][g.seen];
    if (!worth(d, *m, *tokens, p)) break;
    s->guesses[n] = g, *tokens += p, ++*m;
    add_item(b, s->row, g.token, r->position + 1 + n);
    remember(&h, g.token);
  }
  return n;
}

/* The items of the next pass: of each slot that is not done its next token, and guesses. */
static void gather(Burst *b) {
  Engine *e = b->e;
  int active = 0, room, m;
  for (int i = 0; i < b->m; i++) active += b->slots[i].done < b->slots[i].steps;
  m = active, room = e->c.max_items - active, b->items = 0, b->learns = e->draft.passes % 8 == 0;
  float tokens = (float)active;
  for (int i = 0; i < b->m; i++) {
    Slot *s = &b->slots[i];
    if (s->done == s->steps) continue;
    int most = s->steps - s->done - 1, share = room / active, extra = 0;
    if (most > share) most = share;
    s->first = b->items;
    add_item(b, s->row, e->rows[s->row].token, e->rows[s->row].position);
    if (s->hints) m += extra = add_hints(b, s, most);
    else if (e->draft.on) extra = add_guesses(b, s, most, &tokens, &m), b->learns |= extra > 0;
    s->n = 1 + extra;
  }
  b->began = now_s();
}

/* Draw the slot's tokens, as long as what was guessed is what is drawn. */
static void draw(const Burst *b, Slot *s, const Scratch *scratch) {
  Engine *e = b->e;
  Row *r = &e->rows[s->row];
  s->drawn = 0;
  for (int right = 1; right && s->drawn < s->n; s->drawn++) {
    const float *logits = e->logits + (size_t)(s->first + s->drawn) * e->logits_stride;
    size_t place = (size_t)(s - b->slots) * b->max_steps + s->done + s->drawn;
    int32_t token = sample(e, s->row, logits, scratch);
    if (b->logprobs && r->num_logprobs >= 0)
      log_probabilities(e, r->num_logprobs, logits, token, b->logprobs + place * b->stride, scratch);
    b->out[place] = token;
    e->counts[(size_t)s->row * e->c.vocab_size + token]++;
    r->index++, r->token = token, r->position++;
    right = s->drawn + 1 < s->n && b->token[s->first + s->drawn + 1] == token;
  }
}

/* After a pass: enter what was drawn, and learn from it. */
static void settle(Burst *b) {
  Engine *e = b->e;
  measure_pass(&e->draft, b->items, (float)(now_s() - b->began));
  for (int i = 0; i < b->m; i++) {
    Slot *s = &b->slots[i];
    if (s->done == s->steps) continue;
    const int32_t *drawn = b->out + (size_t)i * b->max_steps + s->done;
    for (int j = 0; j < s->drawn; j++) {
      if (e->draft.on && b->learns) observe(&e->draft, &e->histories[s->row], drawn[j]);
      remember(&e->histories[s->row], drawn[j]);
      if (!s->hints && j + 1 < s->n) judge(&e->draft, s->guesses[j], j + 1 < s->drawn);
    }
    s->hints = s->hints && s->drawn == s->n && s->n > 1;
    s->done += s->drawn, s->passes++;
  }
}

static void burst_job(void *argument, int thread, int threads) {
  Burst *b = argument;
  Engine *e = b->e;
  for (;;) {
    if (thread == 0) gather(b);
    barrier(&e->team);
    if (b->items == 0) return;
    forward(e, b->items, b->token, b->row, b->at, 1, thread);
    for (int i = thread; i < b->m; i += threads)
      if (b->slots[i].done < b->slots[i].steps) draw(b, &b->slots[i], &e->scratch[thread]);
    barrier(&e->team);
    if (thread == 0) settle(b);
  }
}

/* A burst: row rows[i] draws steps[i] <= max_steps tokens into out (m, max_steps), in passes[i] passes; logprobs
 * (m, max_steps, stride) or NULL. hints (m, max_steps) or NULL: the caller's guesses of the tokens, -1 where it has none.
 * They change how fast it is, and nothing else. */
void EXPORT(decode)(Engine *e, int m, const int32_t *rows, const int32_t *steps, int max_steps, const int32_t *hints,
                    int32_t *out, int32_t *passes, double *logprobs, int stride) {
  Burst b = {.e = e, .m = m, .max_steps = max_steps, .stride = stride, .slots = e->slots, .hints = hints, .out = out,
             .token = e->item_tokens, .row = e->item_rows, .at = e->item_positions, .logprobs = logprobs};
  for (int i = 0; i < m; i++) e->slots[i] = (Slot){.row = rows[i], .steps = steps[i], .hints = hints != NULL};
  team_run(&e->team, burst_job, &b);
  for (int i = 0; i < m; i++) passes[i] = e->slots[i].passes;
}

/* Begin to guess, from how often n contexts were followed by what, as training has counted (model/draft.py): entry i has
 * sizes[i] of the tokens and their counts. Only if the engine was created for it. */
void EXPORT(teach)(Engine *e, int n, const uint32_t *slots, const uint32_t *tags, const uint8_t *sizes,
                   const uint16_t *tokens, const uint16_t *counts) {
  if (!e->draft.table) return;
  for (int i = 0; i < n; i++) {
    Entry entry = {.tag = tags[i]};
    for (int j = 0; j < sizes[i]; j++) entry.next[j] = (Follower){*tokens++, *counts++};
    e->draft.table[slots[i]] = entry;
  }
  e->draft.on = 1;
}

/* Passes, and how many guesses were made and were right, since the start. */
void EXPORT(draft_counts)(const Engine *e, int64_t out[3]) {
  out[0] = e->draft.passes, out[1] = e->draft.proposed, out[2] = e->draft.accepted;
}
