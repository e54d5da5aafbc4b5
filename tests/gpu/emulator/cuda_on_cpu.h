/* What kernel.cu needs of CUDA, on a CPU. A block's threads are fibres; blocks run one after another, in random order. A rendezvous
 * (__syncthreads, shuffle, ballot) puts fibres to sleep, and the next to run is drawn at random from a seed; when nobody can run, it is a
 * deadlock and the process ends. Under ThreadSanitizer each fibre is a thread that only __syncthreads orders: a missing barrier is a race in
 * whatever order the fibres ran. */
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#define UNSEEN __attribute__((no_sanitize("thread"), noinline)) /* by ThreadSanitizer */
#else
#define UNSEEN __attribute__((noinline))
#endif
#define __device__
#define KERNEL extern "C" void
#define SHARED_BYTES (48 << 10)
#define SHARED(type, name)                                           \
  static_assert(sizeof(type) <= SHARED_BYTES, "too much shared memory"); \
  type &name = *(type *)self->block->shared

struct alignas(16) uint4 { unsigned x, y, z, w; };
struct Dim { unsigned x, y; };
struct Fibre;
struct Meeting { int arrived, expected, parity; char order[2]; Fibre *waiting; };
struct Warp { Meeting meeting; uint64_t slot[2][32]; };
struct Block { Meeting meeting; char *shared; Warp warps[32]; unsigned x, y; };
struct Fibre { void *stack_pointer; Block *block; unsigned thread; int turn; void *sanitizer; Fibre *next; };
extern Fibre *self;
#define threadIdx (Dim{self->thread, 0})
#define blockIdx (Dim{self->block->x, self->block->y})

void meet(Meeting &m, bool orders_memory);
UNSEEN inline void __syncthreads() { meet(self->block->meeting, true); }

template <class X> UNSEEN X exchange(X v, int lane) { /* lane's v; orders no memory */
  Warp &w = self->block->warps[self->thread / 32];
  int turn = self->turn ^= 1; /* two turns, since a fast fibre may be one ahead */
  uint64_t raw = 0;
  memcpy(&raw, &v, sizeof v);
  w.slot[turn][self->thread % 32] = raw;
  meet(w.meeting, false);
  memcpy(&v, &w.slot[turn][lane], sizeof v);
  return v;
}
inline int lane_() { return (int)(self->thread % 32); }
template <class X> X __shfl_xor_sync(unsigned, X v, int mask) { return exchange(v, lane_() ^ mask); }
template <class X> X __shfl_sync(unsigned, X v, int from) { return exchange(v, from & 31); }
template <class X> X __shfl_up_sync(unsigned, X v, int d) { return exchange(v, lane_() >= d ? lane_() - d : lane_()); }
UNSEEN inline unsigned __ballot_sync(unsigned, bool v) {
  Warp &w = self->block->warps[self->thread / 32];
  exchange((int)v, 0);
  unsigned bits = 0;
  for (int i = 0; i < 32; i++) bits |= (unsigned)(w.slot[self->turn][i] & 1) << i;
  return bits;
}
template <class X> X atomicAdd(X *p, X v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
inline int __popc(unsigned u) { return __builtin_popcount(u); }
inline int __ffs(int u) { return __builtin_ffs(u); }
