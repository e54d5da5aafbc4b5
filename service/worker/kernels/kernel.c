/* The model on a CPU: one call runs a whole burst of decode steps, sampling included.
 *
 * Why it is written by hand: the model is so small that a framework spends more time between the operations than in them.
 *
 * Why a row's numbers never depend on its neighbours: every output element is accumulated by one thread, in one order (k from 0
 * up), by the same instruction, however many rows there are. Prefill and decode are the same code, so they agree bitwise too.
 *
 * Compiled three times over `DTYPE`: 0 = float64 (tests), 1 = float32, 2 = bfloat16 inputs with float32 sums.
 * Shape letters: M items (tokens of this pass), K inputs, N outputs, C n_embd, H heads, D head size, T positions, V vocabulary.
 */
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---- numbers: `real` is what sums are kept in, `elem` what weights, activations and the cache are stored in, ---------------
 *      `word` one lane of a dot product: G elements that are multiplied and added to one sum together.                        */

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define MAX_TILE 12 /* rows of a register tile: 12 x 2 sums and 3 temporaries fill 32 registers */
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define MAX_TILE 6
#else
#define VECTOR_BYTES 16
#define MAX_TILE 8
#endif

#if DTYPE == 0
typedef double real, elem, word;
#define G 1
#else
typedef float real;
#if DTYPE == 1
typedef float elem, word;
#define G 1
#else
typedef uint16_t elem;
typedef uint32_t word;
#define G 2
#endif
#endif

#define LANES ((int)(VECTOR_BYTES / sizeof(real)))
#define PANEL (2 * LANES) /* output columns that are stored, and computed, side by side */
typedef real vreal __attribute__((vector_size(VECTOR_BYTES), aligned(VECTOR_BYTES)));
typedef word vword __attribute__((vector_size(VECTOR_BYTES), aligned(VECTOR_BYTES)));
#define INLINE static inline __attribute__((always_inline))

#if DTYPE == 2
#if defined(__AVX512BF16__)
#include <immintrin.h>
INLINE vreal dot(vreal sum, vword w, word x) {
  return (vreal)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32((int)x));
}
#else
INLINE float upper(word x) { float f; memcpy(&f, &x, 4); return f; }
INLINE vreal dot(vreal sum, vword w, word x) { /* a bfloat16 is the upper half of a float32 */
  sum += (vreal)(w << 16) * upper(x << 16);
  return sum + (vreal)(w & 0xffff0000u) * upper(x & 0xffff0000u);
}
#endif
INLINE elem to_elem(real x) { /* round to nearest even; activations are finite */
  uint32_t u;
  memcpy(&u, &x, 4);
  return (elem)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
INLINE void store(elem *to, vreal x) { /* LANES of them */
  typedef elem velem __attribute__((vector_size(VECTOR_BYTES / 2)));
  vword u = (vword)x;
  velem rounded = __builtin_convertvector((u + 0x7fff + ((u >> 16) & 1)) >> 16, velem);
  memcpy(to, &rounded, sizeof rounded);
}
#else
INLINE vreal dot(vreal sum, vword w, word x) { return sum + w * x; }
INLINE elem to_elem(real x) { return x; }
INLINE void store(elem *to, vreal x) { memcpy(to, &x, sizeof x); }
#endif

INLINE vreal load(const real *from) { vreal x; memcpy(&x, from, sizeof x); return x; } /* need not be aligned */
typedef __typeof__((vreal){0} > (vreal){0}) vmask;
INLINE vreal larger(vreal a, vreal b) { vmask m = a > b; return (vreal)(((vmask)a & m) | ((vmask)b & ~m)); }

INLINE int round_up(int n, int to) { return (n + to - 1) / to * to; }

#define HUGE_PAGE ((size_t)2 << 20)

static void *allocate(size_t bytes) {
  size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : 64, rounded = (bytes / alignment + 1) * alignment;
  void *memory = aligned_alloc(alignment, rounded);
#ifdef MADV_HUGEPAGE
  if (memory && alignment == HUGE_PAGE) madvise(memory, rounded, MADV_HUGEPAGE); /* the cache is read all over in every step */
#endif
  if (memory) memset(memory, 0, rounded);
  return memory;
}

/* ---- threads: a team that sleeps between calls and meets at barriers within one -------------------------------------------
 * A barrier spins for some microseconds, then yields: the cores are shared with the HTTP side, and a thread that spins on
 * while the one it waits for has no core would cost both.                                                                    */

#define SPINS 2000

typedef struct {
  pthread_mutex_t lock;
  pthread_cond_t wake;
  pthread_t *members;
  int threads, started, epoch, quit;
  void (*job)(void *, int thread, int threads);
  void *argument;
  _Atomic int arrived, generation;
} Team;

static void barrier(Team *t) {
  int generation = atomic_load_explicit(&t->generation, memory_order_relaxed);
  if (t->threads == 1) return;
  if (atomic_fetch_add_explicit(&t->arrived, 1, memory_order_acq_rel) == t->threads - 1) {
    atomic_store_explicit(&t->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&t->generation, generation + 1, memory_order_release);
    return;
  }
  for (int spins = 0; atomic_load_explicit(&t->generation, memory_order_acquire) == generation; spins++) {
    if (spins >= SPINS) sched_yield();
#if defined(__x86_64__)
    else __builtin_ia32_pause();
#endif
  }
}

typedef struct { Team *team; int thread; } Member;

static void *member(void *argument) {
  Member self = *(Member *)argument;
  Team *t = self.team;
  free(argument);
  for (int seen = 0;;) {
    pthread_mutex_lock(&t->lock);
    while (t->epoch == seen && !t->quit) pthread_cond_wait(&t->wake, &t->lock);
    seen = t->epoch;
    int quit = t->quit;
    pthread_mutex_unlock(&t->lock);
    if (quit) return NULL;
    t->job(t->argument, self.thread, t->threads);
    barrier(t);
  }
}

static int team_start(Team *t, int threads) {
  pthread_mutex_init(&t->lock, NULL), pthread_cond_init(&t->wake, NULL);
  t->threads = threads;
  t->members = allocate(sizeof(pthread_t) * threads);
  for (t->started = 1; t->members && t->started < threads; t->started++) {
    Member *m = malloc(sizeof *m);
    if (!m) return 0;
    *m = (Member){t, t->started};
    if (pthread_create(&t->members[t->started], NULL, member, m)) return free(m), 0;
  }
  return t->members != NULL;
}

static void team_run(Team *t, void (*job)(void *, int, int), void *argument) {
  if (t->threads > 1) {
    pthread_mutex_lock(&t->lock);
    t->job = job, t->argument = argument, t->epoch++;
    pthread_cond_broadcast(&t->wake);
    pthread_mutex_unlock(&t->lock);
  }
  job(argument, 0, t->threads);
  barrier(t);
}

static void team_stop(Team *t) {
  pthread_mutex_lock(&t->lock);
  t->quit = 1;
  pthread_cond_broadcast(&t->wake);
  pthread_mutex_unlock(&t->lock);
  for (int i = 1; i < t->started; i++) pthread_join(t->members[i], NULL);
  free(t->members);
  pthread_mutex_destroy(&t->lock), pthread_cond_destroy(&t->wake);
}

/* ---- the engine -------------------------------------------------------------------------------------------------------- */

typedef struct { int32_t n_layer, n_head, n_embd, head_size, block_size, vocab_size, gelu, qkv_bias, rows, max_items, threads; } Config;

typedef struct { /* (N, K) weights as panels of PANEL outputs, each [K/G][PANEL][G], and a bias padded with zeros */
  int n, k, words, panels;
  elem *w;
  real *bias;
} Linear;

typedef struct { real *ln1_w, *ln1_b, *ln2_w, *ln2_b; Linear qkv, proj, up, down; } Layer;

typedef struct { /* a request's parameters and how far it is; see model/params.py */
  int64_t seed, index;
  double temperature, top_p, min_p, repetition, frequency, presence;
  int32_t top_k, num_logprobs; /* -1: none */
  int32_t token, position;     /* the next token to encode and where */
  int32_t has_bias, has_filter;
} Row;

typedef struct {
  Config c;
  Team team;
  int attn, t_pad, d_pad; /* H·D; T and D rounded up to whole vectors */
  real *tokens, *positions, *lnf_w, *lnf_b;
  Layer *layers;
  Linear head;
  elem *k, *v; /* (L, rows, H): keys [T/LANES][D/G][LANES][G], values [T/G][D][G], padded: both are read from front to back */
  size_t k_head, v_head;
  real *x, *wide, *logits; /* (items, C), (items, 3A), (items, V) */
  elem *narrow, *hidden;   /* (items, max(C, A)), (items, 4C), padded to whole words */
  int narrow_stride, hidden_stride, wide_stride, logits_stride;
  real *scores; /* (threads, T) */
  Row *rows;
  double *bias, *scratch;
  uint8_t *in_prompt;
  int32_t *counts, *order;
} Engine;

static int pack(Linear *l, const float *weight, const float *bias, int n, int k) {
  l->n = n, l->k = k, l->words = round_up(k, G) / G, l->panels = round_up(n, PANEL) / PANEL;
  l->w = allocate(sizeof(elem) * l->panels * l->words * PANEL * G);
  l->bias = allocate(sizeof(real) * l->panels * PANEL);
  if (!l->w || !l->bias) return 0;
  for (int o = 0; o < n; o++) {
    for (int i = 0; i < k; i++)
      l->w[(((size_t)(o / PANEL) * l->words + i / G) * PANEL + o % PANEL) * G + i % G] = to_elem(weight[(size_t)o * k + i]);
    l->bias[o] = bias ? bias[o] : 0;
  }
  return 1;
}

static real *copy(const float *from, size_t count) {
  real *to = allocate(sizeof(real) * count);
  for (size_t i = 0; to && i < count; i++) to[i] = from[i];
  return to;
}

void folio_destroy(Engine *e) {
  if (!e) return;
  team_stop(&e->team);
  for (int i = 0; e->layers && i < e->c.n_layer; i++) {
    Layer *l = &e->layers[i];
    Linear *linears[] = {&l->qkv, &l->proj, &l->up, &l->down};
    for (int j = 0; j < 4; j++) free(linears[j]->w), free(linears[j]->bias);
    free(l->ln1_w), free(l->ln1_b), free(l->ln2_w), free(l->ln2_b);
  }
  void *all[] = {e->layers, e->tokens, e->positions, e->lnf_w, e->lnf_b, e->head.w, e->head.bias, e->k, e->v, e->x, e->wide, e->logits,
                 e->narrow, e->hidden, e->scores, e->rows, e->bias, e->scratch, e->in_prompt, e->counts, e->order, e};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* `tensors`: float32 arrays in the order of GPTConfig.parameter_shapes. NULL when memory runs out. */
Engine *folio_create(const Config *config, const float *const *tensors) {
  Engine *e = allocate(sizeof *e);
  if (!e) return NULL;
  Config c = e->c = *config;
  int threads = c.threads, items = c.max_items, ok = team_start(&e->team, threads);
  e->attn = c.n_head * c.head_size;
  e->t_pad = round_up(c.block_size, LANES * G), e->d_pad = round_up(c.head_size, LANES);
  e->layers = allocate(sizeof(Layer) * c.n_layer);
  ok &= (e->tokens = copy(*tensors++, (size_t)c.vocab_size * c.n_embd)) != NULL;
  ok &= (e->positions = copy(*tensors++, (size_t)c.block_size * c.n_embd)) != NULL;
  for (int i = 0; e->layers && i < c.n_layer; i++) {
    Layer *l = &e->layers[i];
    ok &= (l->ln1_w = copy(*tensors++, c.n_embd)) != NULL;
    ok &= (l->ln1_b = copy(*tensors++, c.n_embd)) != NULL;
    const float *weight = *tensors++;
    ok &= pack(&l->qkv, weight, c.qkv_bias ? *tensors++ : NULL, 3 * e->attn, c.n_embd);
    ok &= pack(&l->proj, tensors[0], tensors[1], c.n_embd, e->attn), tensors += 2;
    ok &= (l->ln2_w = copy(*tensors++, c.n_embd)) != NULL;
    ok &= (l->ln2_b = copy(*tensors++, c.n_embd)) != NULL;
    ok &= pack(&l->up, tensors[0], tensors[1], 4 * c.n_embd, c.n_embd), tensors += 2;
    ok &= pack(&l->down, tensors[0], tensors[1], c.n_embd, 4 * c.n_embd), tensors += 2;
  }
  ok &= (e->lnf_w = copy(*tensors++, c.n_embd)) != NULL;
  ok &= (e->lnf_b = copy(*tensors++, c.n_embd)) != NULL;
  ok &= pack(&e->head, tensors[0], tensors[1], c.vocab_size, c.n_embd);

  e->k_head = (size_t)round_up(c.head_size, G) * e->t_pad, e->v_head = (size_t)e->t_pad * e->d_pad;
  size_t heads = (size_t)c.n_layer * c.rows * c.n_head;
  e->narrow_stride = round_up(c.n_embd > e->attn ? c.n_embd : e->attn, PANEL), e->hidden_stride = round_up(4 * c.n_embd, PANEL);
  e->wide_stride = e->layers[0].qkv.panels * PANEL, e->logits_stride = e->head.panels * PANEL;
  ok &= (e->k = allocate(sizeof(elem) * heads * e->k_head)) != NULL;
  ok &= (e->v = allocate(sizeof(elem) * heads * e->v_head)) != NULL;
  ok &= (e->x = allocate(sizeof(real) * items * round_up(c.n_embd, PANEL))) != NULL;
  ok &= (e->wide = allocate(sizeof(real) * items * e->wide_stride)) != NULL;
  ok &= (e->logits = allocate(sizeof(real) * items * e->logits_stride)) != NULL;
  ok &= (e->narrow = allocate(sizeof(elem) * items * e->narrow_stride)) != NULL;
  ok &= (e->hidden = allocate(sizeof(elem) * items * e->hidden_stride)) != NULL;
  ok &= (e->scores = allocate(sizeof(real) * threads * (e->t_pad + LANES))) != NULL;
  ok &= (e->rows = allocate(sizeof(Row) * c.rows)) != NULL;
  ok &= (e->bias = allocate(sizeof(double) * c.rows * c.vocab_size)) != NULL;
  ok &= (e->scratch = allocate(sizeof(double) * threads * c.vocab_size * 2)) != NULL;
  ok &= (e->in_prompt = allocate((size_t)c.rows * c.vocab_size)) != NULL;
  ok &= (e->counts = allocate(sizeof(int32_t) * c.rows * c.vocab_size)) != NULL;
  ok &= (e->order = allocate(sizeof(int32_t) * threads * c.vocab_size)) != NULL;
  if (ok && e->layers) return e;
  folio_destroy(e);
  return NULL;
}

int64_t folio_cache_bytes(const Engine *e) {
  return (int64_t)(sizeof(elem) * e->c.n_layer * e->c.rows * e->c.n_head * (e->k_head + e->v_head));
}

/* ---- linear layers ------------------------------------------------------------------------------------------------------ */

enum { STORE, ADD, RELU, GELU }; /* what becomes of x·Wᵀ + b: a real, added to a real, or an elem after a non-linearity */

static real gelu(real x) { /* the tanh form of GPT-2 (Hendrycks and Gimpel 2016) */
  return (real)0.5 * x * (1 + (real)tanh(0.7978845608028654 * ((double)x + 0.044715 * (double)x * x * x)));
}

INLINE void finish(int kind, vreal sum, const real *bias, void *y) {
  vreal r = sum + *(const vreal *)bias;
  if (kind == STORE) *(vreal *)y = r;
  else if (kind == ADD) *(vreal *)y += r;
  else {
    if (kind == GELU) for (int i = 0; i < LANES; i++) r[i] = gelu(r[i]);
    else r = larger(r, (vreal){0});
    store(y, r);
  }
}

/* `rows` rows times `vectors` vectors of outputs, all sums in registers. Both are constants once inlined. */
INLINE void tile(int rows, int vectors, int kind, const Linear *l, int panel, const elem *x, int x_stride, void *y, int y_stride) {
  vreal sums[12 * 2];
  for (int i = 0; i < rows * vectors; i++) sums[i] = (vreal){0};
  const vword *w = (const vword *)(l->w + (size_t)panel * l->words * PANEL * G);
  for (int k = 0; k < l->words; k++)
    for (int r = 0; r < rows; r++) {
      word value = ((const word *)(x + (size_t)r * x_stride))[k];
      for (int v = 0; v < vectors; v++) sums[r * vectors + v] = dot(sums[r * vectors + v], w[(size_t)(v / 2 * l->words + k) * 2 + v % 2], value);
    }
  size_t size = kind >= RELU ? sizeof(elem) : sizeof(real);
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < vectors; v++) {
      int column = panel * PANEL + v * LANES;
      finish(kind, sums[r * vectors + v], l->bias + column, (char *)y + ((size_t)r * y_stride + column) * size);
    }
}

INLINE void tiles(int kind, const Linear *l, int panel, int last, int m, const elem *x, int x_stride, void *y, int y_stride) {
  size_t size = kind >= RELU ? sizeof(elem) : sizeof(real);
#define AT(r, f) f, x + (size_t)(r) * x_stride, x_stride, (char *)y + (size_t)(r) * y_stride * size, y_stride
#define ROWS(n) case n: tile(n, 2, kind, l, AT(r, panel)); break;
  if (m == 1) { /* one row waits for the last sum, not for the multiplier: keep more sums in flight */
    for (; panel + 4 <= last; panel += 4) tile(1, 8, kind, l, AT(0, panel));
  } else if (m == 2)
    for (; panel + 4 <= last; panel += 4) tile(2, 8, kind, l, AT(0, panel));
  for (; panel < last; panel++)
    for (int r = 0, n; r < m; r += n) {
      n = m - r < MAX_TILE ? m - r : MAX_TILE;
      switch (n) { ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#if MAX_TILE > 6
        ROWS(7) ROWS(8)
#endif
#if MAX_TILE > 8
        ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#endif
      }
    }
}

/* This thread's share of the outputs for m rows: whole panels, so that an element has one owner. */
INLINE void linear(int kind, const Linear *l, int m, const elem *x, int x_stride, void *y, int y_stride, int thread, int threads) {
  int first = (int)((int64_t)l->panels * thread / threads), last = (int)((int64_t)l->panels * (thread + 1) / threads);
  tiles(kind, l, first, last, m, x, x_stride, y, y_stride);
}

static void linear_store(const Linear *l, int m, const elem *x, int xs, real *y, int ys, int t, int n) { linear(STORE, l, m, x, xs, y, ys, t, n); }
static void linear_add(const Linear *l, int m, const elem *x, int xs, real *y, int ys, int t, int n) { linear(ADD, l, m, x, xs, y, ys, t, n); }
static void linear_relu(const Linear *l, int m, const elem *x, int xs, elem *y, int ys, int t, int n) { linear(RELU, l, m, x, xs, y, ys, t, n); }
static void linear_gelu(const Linear *l, int m, const elem *x, int xs, elem *y, int ys, int t, int n) { linear(GELU, l, m, x, xs, y, ys, t, n); }

/* ---- LayerNorm, attention ------------------------------------------------------------------------------------------------ */

static void layer_norm(const real *x, const real *w, const real *b, elem *y, int n) { /* eps as in torch */
  real mean = 0, variance = 0;
  vreal sum = {0};
  int i = 0, l;
  for (; i + LANES <= n; i += LANES) sum += load(x + i);
  for (l = 0; l < LANES; l++) mean += sum[l];
  for (; i < n; i++) mean += x[i];
  mean /= n;
  sum = (vreal){0};
  for (i = 0; i + LANES <= n; i += LANES) { vreal t = load(x + i) - mean; sum += t * t; }
  for (l = 0; l < LANES; l++) variance += sum[l];
  for (; i < n; i++) variance += (x[i] - mean) * (x[i] - mean);
  real scale = 1 / (real)sqrt((double)(variance / n) + 1e-5);
  for (i = 0; i + LANES <= n; i += LANES) store(y + i, (load(x + i) - mean) * scale * load(w + i) + load(b + i));
  for (; i < n; i++) y[i] = to_elem((x[i] - mean) * scale * w[i] + b[i]);
}

#if DTYPE == 0
INLINE vreal exponential(vreal x) { for (int i = 0; i < LANES; i++) x[i] = exp(x[i]); return x; }
#else
typedef int32_t vint __attribute__((vector_size(VECTOR_BYTES), aligned(VECTOR_BYTES)));
INLINE vreal exponential(vreal x) { /* x <= 0. 2^n · 2^f with |f| <= 1/2; degree-6 Taylor series of 2^f, relative error 2e-7 */
  x = (vreal)((vint)(x < -87.0f) & (vint)((vreal){0} - 87.0f)) + (vreal)(~(vint)(x < -87.0f) & (vint)x);
  vreal t = x * 1.44269504f, n = (t + 12582912.0f) - 12582912.0f, f = t - n;
  vreal p = f * 1.54035304e-4f + 1.33335581e-3f;
  p = p * f + 9.61812911e-3f, p = p * f + 5.55041087e-2f, p = p * f + 2.40226507e-1f, p = p * f + 6.93147181e-1f, p = p * f + 1.0f;
  vint exponent = __builtin_convertvector(n, vint) << 23;
  return (vreal)((vint)p + exponent);
}
#endif

/* The weighted sum of `words` positions' values, for up to 4 vectors of features. Four sums of each are in flight; which one takes a
 * position depends on the position alone. */
INLINE void weigh(int vectors, const Engine *e, const elem *values, const word *weights, int words, real share, elem *out, int features) {
  vreal a[4][4];
  for (int i = 0; i < 4; i++)
    for (int v = 0; v < vectors; v++) a[i][v] = (vreal){0};
  int t = 0;
  for (; t + 4 <= words; t += 4)
    for (int i = 0; i < 4; i++)
      for (int v = 0; v < vectors; v++)
        {
          const elem *place = values + ((size_t)(t + i) * e->d_pad + v * LANES) * G;
          __builtin_prefetch(place + e->v_head);
          a[i][v] = dot(a[i][v], *(const vword *)place, weights[t + i]);
        }
  for (int i = 0; t + i < words; i++)
    for (int v = 0; v < vectors; v++)
      a[i][v] = dot(a[i][v], *(const vword *)(values + ((size_t)(t + i) * e->d_pad + v * LANES) * G), weights[t + i]);
  for (int v = 0; v < vectors; v++) {
    vreal r = ((a[0][v] + a[1][v]) + (a[2][v] + a[3][v])) * share;
    for (int i = 0; i < LANES && v * LANES + i < features; i++) out[v * LANES + i] = to_elem(r[i]);
  }
}

/* One query of one head over positions 0 … p of its row. `q` (D), `out` (D). */
static void attend(const Engine *e, const real *q, const elem *keys, const elem *values, int p, real *scores, elem *out) {
  int d_size = e->c.head_size, words = round_up(d_size, G) / G, blocks = p / LANES + 1;
  real scale = 1 / (real)sqrt((double)d_size);
  elem query[1024 + G], *weights = (elem *)scores;
  for (int d = 0; d < d_size; d++) query[d] = to_elem(q[d] * scale);
  if (d_size % G) query[d_size] = 0;
  const word *query_words = (const word *)query;
  real top = -INFINITY, sum = 0;
  vreal tops = (vreal){0} - INFINITY, total = {0};
  for (int b = 0; b < blocks; b++) {
    vreal s = {0};
    const vword *block = (const vword *)keys + (size_t)b * words;
    for (int w = 0; w < words; w++) {
      __builtin_prefetch((const elem *)(block + w) + e->k_head); /* the next head's, which lies right behind: caches are too small for all */
      s = dot(s, block[w], query_words[w]);
    }
    int valid = p + 1 - b * LANES;
    for (int i = valid; i < LANES; i++) s[i] = -INFINITY;
    *(vreal *)(scores + b * LANES) = s;
    tops = larger(tops, s);
  }
  for (int i = 0; i < LANES; i++) top = tops[i] > top ? tops[i] : top;
  for (int b = 0; b < blocks; b++) {
    vreal s = exponential(*(vreal *)(scores + b * LANES) - top);
    int valid = p + 1 - b * LANES;
    for (int i = valid; i < LANES; i++) s[i] = 0;
    store(weights + b * LANES, s); /* in place: elems are no wider than reals, so nothing is written before it is read */
    total += s;
  }
  for (int i = 0; i < LANES; i++) sum += total[i];
  int count = round_up(p + 1, G);
  const word *weight_words = (const word *)weights;
  real share = 1 / sum;
  for (int v = 0, n; v < e->d_pad / LANES; v += n) {
    n = e->d_pad / LANES - v < 4 ? e->d_pad / LANES - v : 4;
    const elem *column = values + (size_t)v * LANES * G;
    switch (n) {
      case 1: weigh(1, e, column, weight_words, count / G, share, out + v * LANES, d_size - v * LANES); break;
      case 2: weigh(2, e, column, weight_words, count / G, share, out + v * LANES, d_size - v * LANES); break;
      case 3: weigh(3, e, column, weight_words, count / G, share, out + v * LANES, d_size - v * LANES); break;
      case 4: weigh(4, e, column, weight_words, count / G, share, out + v * LANES, d_size - v * LANES); break;
    }
  }
}

/* One head of items first … end − 1, which follow each other in one row: store their keys and values, then let each look. */
static void attention(Engine *e, int layer, int head, int first, int end, const int32_t *rows, const int32_t *at, real *scores) {
  int d_size = e->c.head_size, words = round_up(d_size, G) / G;
  size_t index = ((size_t)layer * e->c.rows + rows[first]) * e->c.n_head + head;
  elem *keys = e->k + index * e->k_head, *values = e->v + index * e->v_head;
  for (int m = first; m < end; m++) {
    const real *k = e->wide + (size_t)m * e->wide_stride + e->attn + head * d_size, *v = k + e->attn;
    int t = at[m];
    for (int d = 0; d < d_size; d++) {
      keys[(((size_t)(t / LANES) * words + d / G) * LANES + t % LANES) * G + d % G] = to_elem(k[d]);
      values[((size_t)(t / G) * e->d_pad + d) * G + t % G] = to_elem(v[d]);
    }
  }
  for (int m = first; m < end; m++)
    attend(e, e->wide + (size_t)m * e->wide_stride + head * d_size, keys, values, at[m], scores, e->narrow + (size_t)m * e->narrow_stride + head * d_size);
}

/* ---- the forward pass: every thread runs this, and waits at each barrier for what the others computed --------------------- */

#define BARRIER barrier(&e->team);
#define SHARE(n) int begin = (int)((int64_t)(n) * thread / threads), stop = (int)((int64_t)(n) * (thread + 1) / threads)

static void forward(Engine *e, int m, const int32_t *tokens, const int32_t *rows, const int32_t *at, int want_logits, int thread, int threads) {
  int c = e->c.n_embd, h = e->c.n_head, xs = round_up(c, PANEL), ns = e->narrow_stride;
  real *scores = e->scores + (size_t)thread * (e->t_pad + LANES);
  SHARE(m);
  for (int i = begin; i < stop; i++) {
    const real *token = e->tokens + (size_t)tokens[i] * c, *position = e->positions + (size_t)at[i] * c;
    for (int j = 0; j < c; j++) e->x[(size_t)i * xs + j] = token[j] + position[j];
  }
  for (int n = 0; n < e->c.n_layer; n++) {
    const Layer *l = &e->layers[n];
    for (int i = begin; i < stop; i++) layer_norm(e->x + (size_t)i * xs, l->ln1_w, l->ln1_b, e->narrow + (size_t)i * ns, c);
    BARRIER
    linear_store(&l->qkv, m, e->narrow, ns, e->wide, e->wide_stride, thread, threads);
    BARRIER
    for (int first = 0, end, unit = 0; first < m; first = end) { /* units of work: (row, head) pairs, dealt out in turn */
      for (end = first + 1; end < m && rows[end] == rows[first]; end++) {}
      for (int head = 0; head < h; head++, unit++)
        if (unit % threads == thread) attention(e, n, head, first, end, rows, at, scores);
    }
    BARRIER
    linear_add(&l->proj, m, e->narrow, ns, e->x, xs, thread, threads);
    BARRIER
    for (int i = begin; i < stop; i++) layer_norm(e->x + (size_t)i * xs, l->ln2_w, l->ln2_b, e->narrow + (size_t)i * ns, c);
    BARRIER
    (e->c.gelu ? linear_gelu : linear_relu)(&l->up, m, e->narrow, ns, e->hidden, e->hidden_stride, thread, threads);
    BARRIER
    linear_add(&l->down, m, e->hidden, e->hidden_stride, e->x, xs, thread, threads);
    BARRIER
  }
  if (!want_logits) return;
  for (int i = begin; i < stop; i++) layer_norm(e->x + (size_t)i * xs, e->lnf_w, e->lnf_b, e->narrow + (size_t)i * ns, c);
  BARRIER
  linear_store(&e->head, m, e->narrow, ns, e->logits, e->logits_stride, thread, threads);
  BARRIER
}

/* ---- sampling: the arithmetic of model/sampling.py, in float64 ------------------------------------------------------------ */

static uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

static double uniform(int64_t seed, int64_t index) {
  uint64_t golden = 0x9E3779B97F4A7C15u, state = mix64((uint64_t)seed + golden) + (uint64_t)(index + 1) * golden;
  return (double)(mix64(state) >> 11) * 0x1p-53;
}

typedef struct { const double *weight; } Ranking;
static _Thread_local Ranking ranking;

static int by_weight(const void *a, const void *b) { /* heavier first, the lower id first on a tie */
  int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
  double x = ranking.weight[i], y = ranking.weight[j];
  return x != y ? (x > y ? -1 : 1) : i - j;
}

static void rank(const double *weight, int32_t *order, int n) {
  for (int i = 0; i < n; i++) order[i] = i;
  ranking.weight = weight;
  qsort(order, n, sizeof *order, by_weight);
}

static void filter(const Row *r, double *weight, int32_t *order, int n) { /* min-p, top-k, top-p: the dropped get weight 0 */
  rank(weight, order, n);
  double least = r->min_p * weight[order[0]], total = 0, sum = 0;
  int kept = 0, limit = r->top_k > 0 && r->top_k < n ? r->top_k : n;
  while (kept < limit && weight[order[kept]] >= least) total += weight[order[kept++]];
  if (r->top_p < 1) {
    int i = 0;
    for (; i < kept; i++) {
      double w = weight[order[i]], before = (sum += w) - w;
      if (i > 0 && !(before < r->top_p * total)) break;
    }
    kept = i;
  }
  for (int i = kept; i < n; i++) weight[order[i]] = 0;
}

static int32_t sample(Engine *e, int row, const real *logits, int thread) {
  const Row *r = &e->rows[row];
  int n = e->c.vocab_size, best = 0, drawn = 0, last = 0;
  double *x = e->scratch + (size_t)thread * 2 * n;
  const double *bias = e->bias + (size_t)row * n;
  const uint8_t *in_prompt = e->in_prompt + (size_t)row * n;
  const int32_t *counts = e->counts + (size_t)row * n;
  double temperature = r->temperature == 0 ? 1 : r->temperature;
  for (int i = 0; i < n; i++) {
    double v = r->has_bias ? logits[i] + bias[i] : logits[i];
    if (r->repetition != 1 && (in_prompt[i] || counts[i])) v = v > 0 ? v / r->repetition : v * r->repetition;
    v = v - r->frequency * counts[i] - r->presence * (counts[i] > 0);
    x[i] = v / temperature;
    if (x[i] > x[best]) best = i;
  }
  if (r->temperature == 0) return best;
  double top = x[best], total = 0, sum = 0;
  for (int i = 0; i < n; i++) x[i] = exp(x[i] - top);
  if (r->has_filter) filter(r, x, e->order + (size_t)thread * n, n);
  for (int i = 0; i < n; i++) total += x[i];
  double target = uniform(r->seed, r->index) * total;
  for (int i = 0; i < n; i++) {
    if (x[i] > 0) last = i;
    if ((sum += x[i]) <= target) drawn = i + 1;
  }
  return drawn < last ? drawn : last; /* rounding must not lead past the last candidate */
}

/* `out`: the chosen token's log-probability, then (id, log-probability) pairs of the most probable ones. */
static void log_probabilities(Engine *e, int row, const real *logits, int32_t token, double *out, int thread) {
  int n = e->c.vocab_size, count = e->rows[row].num_logprobs < n ? e->rows[row].num_logprobs : n;
  double *x = e->scratch + (size_t)thread * 2 * n, top = -INFINITY, sum = 0;
  int32_t *order = e->order + (size_t)thread * n;
  for (int i = 0; i < n; i++) top = logits[i] > top ? logits[i] : top;
  for (int i = 0; i < n; i++) sum += exp(logits[i] - top);
  double normaliser = top + log(sum);
  for (int i = 0; i < n; i++) x[i] = logits[i] - normaliser;
  out[0] = x[token];
  if (count > 0) rank(x, order, n);
  for (int i = 0; i < count; i++) out[1 + 2 * i] = order[i], out[2 + 2 * i] = x[order[i]];
}

/* ---- what Python calls ---------------------------------------------------------------------------------------------------- */

/* Give `row` to a request: its parameters, and its history for the penalties. */
void folio_set_row(Engine *e, int row, const Row *r, int n_bias, const int32_t *bias_ids, const double *bias, int n_prompt,
                   const int32_t *prompt, int n_generated, const int32_t *generated) {
  int n = e->c.vocab_size;
  e->rows[row] = *r;
  memset(e->bias + (size_t)row * n, 0, sizeof(double) * n);
  memset(e->in_prompt + (size_t)row * n, 0, n);
  memset(e->counts + (size_t)row * n, 0, sizeof(int32_t) * n);
  for (int i = 0; i < n_bias; i++) e->bias[(size_t)row * n + bias_ids[i]] += bias[i];
  for (int i = 0; i < n_prompt; i++) e->in_prompt[(size_t)row * n + prompt[i]] = 1;
  for (int i = 0; i < n_generated; i++) e->counts[(size_t)row * n + generated[i]]++;
}

void folio_set_cursor(Engine *e, int row, int32_t token, int32_t position) { e->rows[row].token = token, e->rows[row].position = position; }

typedef struct { Engine *e; int m; const int32_t *tokens, *rows, *at; int want_logits; } Encode;

static void encode(void *argument, int thread, int threads) {
  const Encode *a = argument;
  forward(a->e, a->m, a->tokens, a->rows, a->at, a->want_logits, thread, threads);
}

/* Encode m <= max_items tokens; those of one row follow each other. `logits` may be NULL, else (m, V). */
void folio_encode(Engine *e, int m, const int32_t *tokens, const int32_t *rows, const int32_t *at, float *logits) {
  Encode job = {e, m, tokens, rows, at, logits != NULL};
  team_run(&e->team, encode, &job);
  for (int i = 0; logits && i < m; i++)
    for (int j = 0; j < e->c.vocab_size; j++) logits[(size_t)i * e->c.vocab_size + j] = (float)e->logits[(size_t)i * e->logits_stride + j];
}

typedef struct {
  Engine *e;
  int m, max_steps, stride, active;
  const int32_t *rows, *steps;
  int32_t *out, *item, *token, *row, *at; /* the items of the present step, m each */
  double *logprobs;
} Decode;

static void gather(Decode *d, int step) { /* the rows that still have steps to go become the items of this one */
  d->active = 0;
  for (int i = 0; i < d->m; i++)
    if (step < d->steps[i]) {
      const Row *r = &d->e->rows[d->rows[i]];
      d->item[d->active] = i, d->token[d->active] = r->token, d->row[d->active] = d->rows[i], d->at[d->active++] = r->position;
    }
}

static void decode(void *argument, int thread, int threads) {
  Decode *d = argument;
  Engine *e = d->e;
  for (int step = 0; step < d->max_steps; step++) {
    if (thread == 0) gather(d, step);
    BARRIER
    forward(e, d->active, d->token, d->row, d->at, 1, thread, threads);
    SHARE(d->active);
    for (int a = begin; a < stop; a++) {
      Row *r = &e->rows[d->row[a]];
      const real *logits = e->logits + (size_t)a * e->logits_stride;
      int32_t token = sample(e, d->row[a], logits, thread);
      size_t place = (size_t)d->item[a] * d->max_steps + step;
      if (d->logprobs && r->num_logprobs >= 0) log_probabilities(e, d->row[a], logits, token, d->logprobs + place * d->stride, thread);
      d->out[place] = token;
      e->counts[(size_t)d->row[a] * e->c.vocab_size + token]++;
      r->index++, r->token = token, r->position++;
    }
    BARRIER
  }
}

/* A burst: up to steps[i] <= max_steps tokens for each of m rows, into out (m, max_steps). `logprobs` (m, max_steps, stride) or NULL.
 * `work`: 4 m integers of scratch. */
void folio_decode(Engine *e, int m, const int32_t *rows, const int32_t *steps, int max_steps, int32_t *out, double *logprobs, int stride,
                  int32_t *work) {
  Decode job = {e, m, max_steps, stride, 0, rows, steps, out, work, work + m, work + 2 * m, work + 3 * m, logprobs};
  team_run(&e->team, decode, &job);
}
