/* The engine's memory: packed weights, the cache of keys and values, and what one step works with.
 *
 * All of it is one allocation, laid out twice: first to learn its size, then for good.
 */
#ifndef ENGINE_H
#define ENGINE_H

#include <sys/mman.h>

#include "draft.h"
#include "simd.h"
#include "team.h"

typedef struct { /* service/worker/runners/native.py has the same */
  int32_t n_layer, n_head, n_embd, head_size, block_size, vocab_size;
  int32_t gelu, qkv_bias, wide; /* wide: activations have 16 bits */
  int32_t rows, max_items, threads, speculation;
} Config;

typedef struct { /* a request's parameters and how far it is; see model/params.py */
  int64_t seed, index;
  double temperature, top_p, min_p, repetition, frequency, presence;
  int32_t top_k, num_logprobs; /* -1: none */
  int32_t token, position;     /* the next token to go through the model, and where */
  int32_t has_bias, has_filter;
} Row;

typedef struct { /* (N, K) weights as panels of PANEL outputs, each [K/G][PANEL][G]; sums begin with `start` (N),
                    which takes the activations' offset out again */
  int n, k, words, panels;
  int8_t *w;
  int32_t *start;
  float *scale, *bias; /* (N) */
} Linear;

typedef struct { float *ln1_w, *ln1_b, *ln2_w, *ln2_b; Linear qkv, proj, up, down; } Layer;

typedef struct { int64_t weight; int32_t token; } Candidate; /* a token that a filter may keep */

typedef struct { /* one row's part of a burst and of its current pass */
  int row, steps, done, first, n; /* n items from `first`: the row's next token, then guesses of those after it */
  int drawn, passes, hints;       /* drawn: in this pass. hints: whether the caller's guesses still hold */
  Guess guesses[MAX_GUESSES];
} Slot;

typedef struct { /* of one thread */
  float *y;        /* (C) after LayerNorm */
  float *scores;   /* (UNITS, T) */
  act *shares;     /* (UNITS, T) attention weights */
  query_act *query; /* (UNITS, D) */
  int8_t *bytes;   /* (D) a key on its way into the cache */
  double *v;       /* (V) logits of the sampler */
  int64_t *weights; /* (V) */
  Candidate *candidates; /* (V) for its filters */
} Scratch;

enum { UNITS = 8 }; /* queries that attention works on side by side */

typedef struct {
  Config c;
  Team team;
  char *memory;
  size_t memory_bytes;
  int attn, t_pad, d_pad, d_words; /* H * D; T and D in whole vectors; D in words */
  int digits, query_stride;        /* digits: rows of `narrow` for each item, 2 if activations have 16 bits */
  int skips;                       /* whether zeros of `hidden` are worth looking for */
  float root;                      /* D^-0.5 */

  int32_t *tokens, *positions; /* (V, C), (T, C) embeddings */
  float *lnf_w, *lnf_b;
  Layer *layers; /* (L) */
  Linear head;
  int8_t *cache; /* (L, rows, H), each: blocks of LANES positions {k scales, v scales, keys [D/G][LANES][G]}, then
                    values [T/G][D][G] */
  size_t block, values, head_bytes; /* bytes of a block, of all blocks, of a head */

  int32_t *x;             /* (items, C) residual stream */
  float *wide, *logits;   /* (items, max(3A, 4C)), (items, V) */
  act *narrow, *hidden;   /* (items, digits, max(A, C)), (items, digits, 4C): inputs of linear layers */
  float *scales;          /* (items) of narrow or hidden */
  int32_t *words, *num_words; /* (items, 4C / G), (items): which words of hidden are not 0 */
  int x_stride, wide_stride, logits_stride, narrow_stride, hidden_stride;

  Row *rows;
  double *bias;       /* (rows, V) */
  uint8_t *in_prompt; /* (rows, V) */
  int32_t *counts;    /* (rows, V): how often each token was generated */
  Scratch *scratch;   /* (threads) */

  Draft draft;
  History *histories; /* (rows) */
  Slot *slots; /* (rows) of a burst */
  int32_t *item_tokens, *item_rows, *item_positions; /* (items) of a pass */
} Engine;

/* ---- layout -------------------------------------------------------------------------------------------------------- */

typedef struct { char *base; size_t used; } Arena; /* base NULL: only counts */

static void *take(Arena *a, size_t count, size_t size) {
  void *here = a->base ? a->base + a->used : NULL;
  a->used += (count * size + 127) / 64 * 64; /* at least 64 bytes that a vector may reach into */
  return here;
}

static void layout_linear(Arena *a, Linear *l, int n, int k) {
  *l = (Linear){.n = n, .k = k, .words = round_up(k, G) / G, .panels = round_up(n, PANEL) / PANEL};
  size_t padded = (size_t)l->panels * PANEL;
  l->w = take(a, padded * l->words, G), l->start = take(a, padded, 4);
  l->scale = take(a, padded, 4), l->bias = take(a, padded, 4);
}

static void layout_weights(Engine *e, Arena *a, Layer *layers) {
  Config c = e->c;
  int vector = round_up(c.n_embd, PANEL);
  e->tokens = take(a, c.vocab_size, sizeof(int32_t) * e->x_stride);
  e->positions = take(a, c.block_size, sizeof(int32_t) * e->x_stride);
  e->lnf_w = take(a, vector, 4), e->lnf_b = take(a, vector, 4);
  for (int i = 0; i < c.n_layer; i++) {
    Layer *l = &layers[i];
    l->ln1_w = take(a, vector, 4), l->ln1_b = take(a, vector, 4);
    l->ln2_w = take(a, vector, 4), l->ln2_b = take(a, vector, 4);
    layout_linear(a, &l->qkv, 3 * e->attn, c.n_embd), layout_linear(a, &l->proj, c.n_embd, e->attn);
    layout_linear(a, &l->up, 4 * c.n_embd, c.n_embd), layout_linear(a, &l->down, c.n_embd, 4 * c.n_embd);
  }
  layout_linear(a, &e->head, c.vocab_size, c.n_embd);
}

static void layout_scratch(Engine *e, Arena *a, Scratch *s) {
  s->y = take(a, round_up(e->c.n_embd, PANEL), 4);
  s->scores = take(a, (size_t)UNITS * e->t_pad, 4), s->shares = take(a, (size_t)UNITS * e->t_pad + 64, sizeof(act));
  s->query = take(a, (size_t)UNITS * e->query_stride, sizeof(query_act)), s->bytes = take(a, e->query_stride, 1);
  int v = round_up(e->c.vocab_size, LANES);
  s->v = take(a, v, sizeof(double)), s->weights = take(a, v, sizeof(int64_t)), s->candidates = take(a, v, sizeof(Candidate));
}

/* Sizes and pointers of everything; `layers` and `scratch` stand in until there is memory. Returns the bytes. */
static size_t layout(Engine *e, char *base, Layer *layers, Scratch *scratch) {
  Arena arena = {base, 0}, *a = &arena;
  Config c = e->c;
  size_t items = c.max_items, rows = c.rows;
  int inputs = c.n_embd > e->attn ? c.n_embd : e->attn, outputs = 3 * e->attn > 4 * c.n_embd ? 3 * e->attn : 4 * c.n_embd;
  e->x_stride = round_up(c.n_embd, PANEL), e->logits_stride = round_up(c.vocab_size, PANEL);
  e->wide_stride = round_up(outputs, PANEL) + PANEL;
  e->narrow_stride = round_up(inputs, 64) + 64, e->hidden_stride = round_up(4 * c.n_embd, 64) + 64; /* + 64: spread over cache sets */
  layout_weights(e, a, layers);
  e->block = (size_t)round_up(LANES * (8 + e->d_words * G), BYTES), e->values = e->block * (e->t_pad / LANES);
  e->head_bytes = e->values + (size_t)e->t_pad * e->d_pad;
  e->cache = take(a, (size_t)c.n_layer * rows * c.n_head, e->head_bytes);
  e->x = take(a, items * e->x_stride, 4), e->wide = take(a, items * e->wide_stride + LANES, 4);
  e->logits = take(a, items * e->logits_stride, 4), e->scales = take(a, items, 4);
  e->narrow = take(a, items * e->digits * e->narrow_stride, sizeof(act));
  e->hidden = take(a, items * e->digits * e->hidden_stride, sizeof(act));
  e->words = take(a, items * e->hidden_stride, sizeof(int32_t)), e->num_words = take(a, items, sizeof(int32_t));
  e->rows = take(a, rows, sizeof(Row)), e->bias = take(a, rows * c.vocab_size, sizeof(double));
  e->in_prompt = take(a, rows * c.vocab_size, 1), e->counts = take(a, rows * c.vocab_size, sizeof(int32_t));
  e->histories = take(a, rows, sizeof(History)), e->slots = take(a, rows, sizeof(Slot));
  e->item_tokens = take(a, items, 4), e->item_rows = take(a, items, 4), e->item_positions = take(a, items, 4);
  e->draft.table = c.speculation && c.vocab_size <= UINT16_MAX ? take(a, SLOTS, sizeof(Entry)) : NULL;
  for (int i = 0; i < c.threads; i++) layout_scratch(e, a, &scratch[i]);
  return arena.used;
}

#define HUGE_PAGE ((size_t)2 << 20)

/* Zeros, every page of them touched: what a step needs is there before the first request. NULL when memory runs out. */
static char *map_memory(size_t bytes) {
  char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
  madvise(memory, bytes, MADV_HUGEPAGE); /* the cache is read all over in every step */
#endif
  return memset(memory, 0, bytes);
}

/* ---- weights, as they come from the checkpoint: float32 in the order of GPTConfig.parameter_shapes ------------------ */

static void pack(Linear *l, const float *weight, const float *bias, int offset) {
  for (int o = 0; o < l->n; o++) {
    const float *from = weight + (size_t)o * l->k;
    int8_t *to = l->w + ((size_t)(o / PANEL) * l->words * PANEL + o % PANEL) * G;
    float most = 0;
    int32_t sum = 0;
    for (int i = 0; i < l->k; i++) most = ex_max(most, ex_abs(from[i]));
    float inverse = ex_inverse(most, EX_SIGNED);
    for (int i = 0; i < l->k; i++) {
      int q = ex_quantise(from[i], inverse);
      sum += q, to[(size_t)(i / G) * PANEL * G + i % G] = (int8_t)q;
    }
    l->start[o] = (int32_t)(-(int64_t)offset * sum), l->scale[o] = ex_scale(most, EX_SIGNED);
    l->bias[o] = bias ? ex_parameter(bias[o]) : 0;
  }
}

static void copy_parameters(float *to, const float *from, int count) {
  for (int i = 0; i < count; i++) to[i] = ex_parameter(from[i]);
}

static void copy_embedding(int32_t *to, const float *from, int rows, int c, int stride) {
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < c; j++) to[(size_t)i * stride + j] = ex_embedding(from[(size_t)i * c + j]);
}

static void load_weights(Engine *e, const float *const *t) {
  Config c = e->c;
  copy_embedding(e->tokens, *t++, c.vocab_size, c.n_embd, e->x_stride);
  copy_embedding(e->positions, *t++, c.block_size, c.n_embd, e->x_stride);
  for (int i = 0; i < c.n_layer; i++) {
    Layer *l = &e->layers[i];
    copy_parameters(l->ln1_w, *t++, c.n_embd), copy_parameters(l->ln1_b, *t++, c.n_embd);
    const float *qkv = *t++;
    pack(&l->qkv, qkv, c.qkv_bias ? *t++ : NULL, OFFSET);
    pack(&l->proj, t[0], t[1], OFFSET), t += 2;
    copy_parameters(l->ln2_w, *t++, c.n_embd), copy_parameters(l->ln2_b, *t++, c.n_embd);
    pack(&l->up, t[0], t[1], OFFSET), t += 2;
    pack(&l->down, t[0], t[1], c.gelu || c.wide ? OFFSET : OFFSET_UNSIGNED), t += 2;
  }
  copy_parameters(e->lnf_w, *t++, c.n_embd), copy_parameters(e->lnf_b, *t++, c.n_embd);
  pack(&e->head, t[0], t[1], OFFSET);
}

/* ---- create, destroy ----------------------------------------------------------------------------------------------- */

static void engine_destroy(Engine *e) {
  team_stop(&e->team);
  if (e->memory) munmap(e->memory, e->memory_bytes);
  free(e->layers), free(e->scratch), free(e);
}

/* NULL when memory or threads run out. */
static Engine *engine_create(const Config *config, const float *const *tensors) {
  Engine *e = calloc(1, sizeof *e);
  if (!e) return NULL;
  Config c = e->c = *config;
  e->attn = c.n_head * c.head_size, e->root = ex_root(c.head_size), e->digits = c.wide ? 2 : 1;
  e->skips = OFFSET_UNSIGNED == 0 && !c.gelu && !c.wide; /* with an offset a 0 is stored as something that counts */
  e->t_pad = round_up(c.block_size, LANES * 4), e->d_pad = round_up(c.head_size, LANES);
  e->d_words = round_up(c.head_size, G) / G, e->query_stride = round_up(c.head_size, 64) + 64;
  e->layers = calloc(c.n_layer, sizeof(Layer)), e->scratch = calloc(c.threads, sizeof(Scratch));
  int ready = team_start(&e->team, c.threads) && e->layers && e->scratch;
  if (ready) {
    e->memory_bytes = (layout(e, NULL, e->layers, e->scratch) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    e->memory = map_memory(e->memory_bytes);
  }
  if (!ready || !e->memory) return engine_destroy(e), NULL;
  layout(e, e->memory, e->layers, e->scratch);
  load_weights(e, tensors);
  draft_reset(&e->draft);
  return e;
}

static int64_t cache_bytes(const Engine *e) {
  return (int64_t)((size_t)e->c.n_layer * e->c.rows * e->c.n_head * e->head_bytes);
}

#endif
