/* Threads: a team that sleeps between calls and meets at barriers within one.
 *
 * A barrier spins for some microseconds, then yields: the cores are shared with the HTTP side, and a thread that spins
 * on while the one it waits for has no core would cost both.
 */
#ifndef TEAM_H
#define TEAM_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#define SPINS 2000

typedef struct {
  pthread_mutex_t lock;
  pthread_cond_t wake;
  pthread_t *members;
  int threads, started, epoch, quit;
  void (*job)(void *argument, int thread, int threads);
  void *argument;
  _Atomic int arrived, generation;
} Team;

typedef struct { Team *team; int thread; } Member;

/* Waits until every thread of the team is here. What they wrote before is seen by all after. */
static void barrier(Team *t) {
  if (t->threads == 1) return;
  int generation = atomic_load_explicit(&t->generation, memory_order_relaxed);
  if (atomic_fetch_add_explicit(&t->arrived, 1, memory_order_acq_rel) == t->threads - 1) {
    atomic_store_explicit(&t->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&t->generation, generation + 1, memory_order_release);
    return;
  }
  for (int spins = 0; atomic_load_explicit(&t->generation, memory_order_acquire) == generation; spins++) {
    if (spins >= SPINS) sched_yield();
#if defined(__x86_64__)
    else __builtin_ia32_pause();
#elif defined(__aarch64__)
    else __asm__ volatile("yield");
#endif
  }
}

static void *member_main(void *argument) {
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

static void team_stop(Team *t) {
  pthread_mutex_lock(&t->lock);
  t->quit = 1;
  pthread_cond_broadcast(&t->wake);
  pthread_mutex_unlock(&t->lock);
  for (int i = 1; i < t->started; i++) pthread_join(t->members[i], NULL);
  free(t->members);
  pthread_mutex_destroy(&t->lock), pthread_cond_destroy(&t->wake);
}

/* 0 when a thread cannot be started; team_stop is due either way. */
static int team_start(Team *t, int threads) {
  pthread_mutex_init(&t->lock, NULL), pthread_cond_init(&t->wake, NULL);
  t->threads = threads;
  t->members = malloc(sizeof(pthread_t) * (size_t)threads);
  for (t->started = 1; t->members && t->started < threads; t->started++) {
    Member *m = malloc(sizeof *m);
    if (!m) return 0;
    *m = (Member){t, t->started};
    if (pthread_create(&t->members[t->started], NULL, member_main, m)) return free(m), 0;
  }
  return t->members != NULL;
}

/* Every thread runs the job once, the caller as thread 0; returns when all are through. */
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

#endif
