/* Guesses of the tokens that come next, so that one pass of the model can check several of them.
 *
 * The guesses come from a back-off n-gram model: a hash table of how often each token followed each of the last contexts,
 * learned from prompts and from what the engine draws, and, at start, from what training left beside the checkpoint
 * (model/draft.py). A guess is drawn with the random number that the model's own draw will use: where both distributions
 * are alike, so are the draws (compare arXiv 2408.07978). What counts is always the model's own draw, so a guess costs
 * time at worst, and no rule of acceptance is needed. How many guesses are worth a pass is measured as it goes.
 *
 * Letters: m items of a pass.
 */
#ifndef DRAFT_H
#define DRAFT_H

#include <stdint.h>
#include <string.h>
#include <time.h>

#include "arithmetic.h"

enum {
  ORDERS = 7, LONGEST = 10, /* contexts of the last 1, 2, … 10 tokens; model/draft.py has the same */
  FOLLOWERS = 7,            /* tokens remembered for a context */
  SLOTS = 1 << 18,          /* contexts remembered: 8 MB */
  SEEN = 8,                 /* classes of how often a context was seen: 1, 2 to 3, 4 to 7, … */
  MAX_GUESSES = 15,         /* for one row in one pass, unless the caller gives them */
  MAX_COST = 128,           /* passes of more items are taken to cost in proportion */
};
static const int context_lengths[ORDERS] = {1, 2, 3, 4, 5, 6, 10};

typedef struct { uint16_t token, count; } Follower;

typedef struct { /* half a cache line */
  uint32_t tag;             /* of the context; 0: nothing yet */
  Follower next[FOLLOWERS]; /* tokens ascending; a count of 0 ends them */
} Entry;

typedef struct { int n; int32_t tokens[LONGEST]; } History; /* a row's last n tokens, the newest first */

typedef struct { int32_t token; uint8_t order, seen; } Guess; /* token -1: no idea; where it came from */

typedef struct {
  int on;
  Entry *table;               /* (SLOTS) */
  float rate[ORDERS][SEEN];   /* how often a guess of this kind has lately been right */
  float cost[MAX_COST + 1];   /* [m]: seconds of a pass over m items, as if nothing else ran on the machine; 0: not known */
  int64_t passes, proposed, accepted;
} Draft;

static void draft_reset(Draft *d) {
  for (int i = 0; i < ORDERS; i++)
    for (int j = 0; j < SEEN; j++) d->rate[i][j] = 0.6f; /* to be tried, then measured */
}

/* ---- the n-gram model ------------------------------------------------------------------------------------------------ */

static void remember(History *h, int32_t token) {
  memmove(h->tokens + 1, h->tokens, sizeof(int32_t) * (LONGEST - 1));
  h->tokens[0] = token, h->n += h->n < LONGEST;
}

/* A hash of each context that the history is long enough for; how many. */
static int hash_contexts(const History *h, uint64_t hashes[ORDERS]) {
  uint64_t hash = 0x9E3779B97F4A7C15ull;
  int found = 0;
  for (int i = 0; i < h->n && found < ORDERS; i++) {
    hash = (hash ^ (uint32_t)(h->tokens[i] + 1)) * 0xD6E8FEB86659FD93ull, hash ^= hash >> 32;
    if (i + 1 == context_lengths[found]) hashes[found++] = hash;
  }
  return found;
}

static Entry *slot_of(const Draft *d, uint64_t hash) { return d->table + (hash & (SLOTS - 1)); }
static uint32_t tag_of(uint64_t hash) { return (uint32_t)(hash >> 32) | 1; }

static int followers(const Entry *e, int *total) {
  int n = 0;
  for (*total = 0; n < FOLLOWERS && e->next[n].count; n++) *total += e->next[n].count;
  return n;
}

static void drop(Entry *e, int n, int i) { /* follower i of n */
  memmove(e->next + i, e->next + i + 1, sizeof(Follower) * (n - i - 1));
  e->next[n - 1].count = 0;
}

static void count_token(Entry *e, uint16_t token) {
  int total, n = followers(e, &total), place = 0, rarest = 0;
  while (place < n && e->next[place].token < token) place++;
  if (place < n && e->next[place].token == token) {
    if (++e->next[place].count < UINT16_MAX) return;
    for (int i = n - 1; i >= 0; i--) /* what is old fades */
      if (!(e->next[i].count /= 2)) drop(e, n--, i);
    return;
  }
  if (n == FOLLOWERS) {
    for (int i = 1; i < n; i++) rarest = e->next[i].count < e->next[rarest].count ? i : rarest;
    drop(e, n--, rarest), place -= rarest < place;
  }
  memmove(e->next + place + 1, e->next + place, sizeof(Follower) * (n - place));
  e->next[place] = (Follower){token, 1};
}

/* Learn that `token` followed `h`. A context that was seen often wears off before another takes its slot. */
static void observe(Draft *d, const History *h, int32_t token) {
  uint64_t hashes[ORDERS];
  int n = hash_contexts(h, hashes);
  for (int i = 0; i < n; i++) {
    Entry *e = slot_of(d, hashes[i]);
    int total, kinds;
    if (e->tag != tag_of(hashes[i])) {
      kinds = followers(e, &total);
      if (total > 1) { e->next[kinds - 1].count--; continue; }
      *e = (Entry){.tag = tag_of(hashes[i])};
    }
    count_token(e, (uint16_t)token);
  }
}

typedef struct { int n; struct { int32_t token; int64_t weight; } of[ORDERS * FOLLOWERS]; } Mixture;

static void mix(Mixture *m, int32_t token, int64_t weight) { /* keeps the tokens in order */
  int i = m->n;
  while (i > 0 && m->of[i - 1].token > token) i--;
  if (i > 0 && m->of[i - 1].token == token) { m->of[i - 1].weight += weight; return; }
  memmove(m->of + i + 1, m->of + i, sizeof *m->of * (m->n - i));
  m->of[i].token = token, m->of[i].weight = weight, m->n++;
}

/* What follows `h`: all contexts together, each leaving to the shorter ones what it cannot say (Witten and Bell 1991,
 * method C). Drawn with `fraction` of 2^53 in the order of the tokens, or the likeliest if `greedy`. */
static Guess guess(const Draft *d, const History *h, uint64_t fraction, int greedy) {
  uint64_t hashes[ORDERS];
  Guess found = {-1, 0, 0};
  Mixture m = {0};
  int64_t left = 1 << 30, sum = 0, running = 0;
  for (int i = hash_contexts(h, hashes) - 1; i >= 0 && left > 1 << 24; i--) {
    const Entry *e = slot_of(d, hashes[i]);
    int total, n;
    if (e->tag != tag_of(hashes[i]) || !(n = followers(e, &total))) continue;
    if (!m.n) {
      found.order = (uint8_t)i;
      while (total >> (found.seen + 1) && found.seen < SEEN - 1) found.seen++;
    }
    for (int j = 0; j < n; j++) mix(&m, e->next[j].token, left * e->next[j].count / (total + n));
    left = left * n / (total + n);
  }
  int best = 0;
  for (int i = 0; i < m.n; i++) sum += m.of[i].weight, best = m.of[i].weight > m.of[best].weight ? i : best;
  if (!sum) return found;
  int64_t target = ex_target(fraction, sum);
  for (int i = 0; i < m.n && found.token < 0; i++)
    if ((running += m.of[i].weight) > target) found.token = m.of[i].token;
  if (greedy) found.token = m.of[best].token;
  return found;
}

/* ---- how many guesses --------------------------------------------------------------------------------------------------- */

static float pass_cost(const Draft *d, int m) {
  if (m > MAX_COST) return pass_cost(d, MAX_COST) * m / MAX_COST;
  int known = m;
  while (known > 1 && d->cost[known] == 0) known--;
  return d->cost[known] * (1 + 0.1f * (m - known)); /* what was not measured looks cheap, so that it is tried */
}

/* Whether a guess that is right with probability p pays, in a pass of m items that is expected to give `tokens`. Now and
 * then one is tried anyway, since both sides of it change. */
static int worth(const Draft *d, int m, float tokens, float p) {
  float now = pass_cost(d, m);
  return p * now > tokens * (pass_cost(d, m + 1) - now) || d->passes % 64 == 0;
}

static void judge(Draft *d, Guess g, int right) {
  float *rate = &d->rate[g.order][g.seen];
  d->proposed++, d->accepted += right, *rate += (right - *rate) / 64;
}

/* Disturbances only ever add to a time, so what is fast is believed sooner than what is slow. */
static void measure_pass(Draft *d, int m, float seconds) {
  d->passes++;
  if (m > MAX_COST) return;
  float *cost = &d->cost[m], likely = pass_cost(d, m), slowest = 2 * likely;
  if (*cost == 0) *cost = likely > 0 && seconds > slowest ? slowest : seconds;
  else if (seconds < *cost) *cost += (seconds - *cost) / 2;
  else *cost += ((seconds < slowest ? seconds : slowest) - *cost) / 50;
}

static double now_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#endif
