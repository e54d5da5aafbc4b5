/* kernel.cu and probe.cu run by a CPU, see cuda_on_cpu.h. With PTX, the file that tests/gpu/ptx.py made: the same kernels by way of NVRTC. */
#include "kernel.cu"
#include "probe.cu"
#ifdef PTX
#include PTX
#define CODE(name, a, b) ptx_##name(a, b)
#define PROBE_CODE ptx_probe(p[0], p[1], p[2], p[3])
#define COPY_CODE ptx_copy_prefix(p[0], p[1], p[2], p[3])
#else
#define CODE(name, a, b) name(*(const Args *)a, *(const int *)b)
#define PROBE_CODE probe(*(ex_u64 *const *)p[0], *(const int *)p[1], *(const ex_u64 *)p[2], *(const int *)p[3])
#define COPY_CODE copy_prefix(*(const Args *)p[0], *(const int *)p[1], *(const int *)p[2], *(const int *)p[3])
#endif

typedef void Run(void **);
struct Entry { const char *name; Run *run; size_t sizes[4]; }; /* sizes: of its parameters */
#define ENTRY(name) {#name, [](void **p) { CODE(name, p[0], p[1]); }, {sizeof(Args), sizeof(int), 0, 0}}
static const Entry ENTRIES[] = {
    ENTRY(qkv_attend), ENTRY(qkv), ENTRY(attend), ENTRY(project), ENTRY(up), ENTRY(down), ENTRY(down_one), ENTRY(commit),
#if FUSED
    ENTRY(project_up),
#else
    ENTRY(project_one), ENTRY(up_one),
#endif
#if SMALL_VOCABULARY
    ENTRY(head_draw),
#else
    ENTRY(head), ENTRY(head_one), ENTRY(weigh), ENTRY(pick),
#endif
    {"copy_prefix", [](void **p) { COPY_CODE; }, {sizeof(Args), sizeof(int), sizeof(int), sizeof(int)}},
    {"probe", [](void **p) { PROBE_CODE; }, {sizeof(void *), sizeof(int), sizeof(ex_u64), sizeof(int)}},
};
static const Entry *entry_of(const char *name) {
  for (const Entry &e : ENTRIES)
    if (!strcmp(e.name, name)) return &e;
  return nullptr;
}

Fibre *self;
static Fibre fibres[THREADS], *queue[THREADS];
static int num_waiting, num_alive;
static uint64_t dice;
static void *main_stack;
static const Entry *running;
static void **parameters;
static const size_t STACK_BYTES = 256 << 10;
#ifdef __SANITIZE_THREAD__
enum { SETS = 8 }; /* of threads: making one is slow, so blocks that are this many apart share theirs, and races between those stay unseen */
static void *main_sanitizer, *sanitizers[SETS][THREADS];
static char begun, ended;
#define RELEASE(x) __tsan_release(&(x))
#define ACQUIRE(x) __tsan_acquire(&(x))
#else
#define RELEASE(x)
#define ACQUIRE(x)
#endif

extern "C" void swap_stacks(void **save, void *to);
#if defined(__x86_64__)
asm(".text\n.globl swap_stacks\nswap_stacks:\npush %rbx\npush %rbp\npush %r12\npush %r13\npush %r14\npush %r15\nmov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbp\npop %rbx\nret\n");
#else
#error "the emulator switches stacks on x86-64 only"
#endif

UNSEEN static unsigned roll(unsigned n) { /* xorshift */
  dice ^= dice << 13, dice ^= dice >> 7, dice ^= dice << 17;
  return (unsigned)((dice >> 32) * n >> 32);
}
UNSEEN static void wake(Fibre *f) { queue[num_waiting++] = f; }
UNSEEN static Fibre *draw_fibre() {
  unsigned i = roll((unsigned)num_waiting);
  Fibre *f = queue[i];
  queue[i] = queue[--num_waiting];
  return f;
}
UNSEEN static void switch_to(Fibre *to, void **save) { /* nullptr: back to `launch` */
  self = to;
#ifdef __SANITIZE_THREAD__
  __tsan_switch_to_fiber(to ? to->sanitizer : main_sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
  swap_stacks(save, to ? to->stack_pointer : main_stack);
}
UNSEEN static void go_on(Fibre *me) {
  if (!num_waiting) {
    if (num_alive) {
      fprintf(stderr, "deadlock in %s: %d threads wait, none can run\n", running->name, num_alive);
      _exit(3);
    }
    switch_to(nullptr, &me->stack_pointer);
  }
  Fibre *next = draw_fibre();
  if (next != me) switch_to(next, &me->stack_pointer);
}
UNSEEN static void release_all(Meeting &m) {
  m.arrived = 0, m.parity ^= 1;
  for (Fibre *f = m.waiting, *next; f; f = next) next = f->next, wake(f);
  m.waiting = nullptr;
}
UNSEEN void meet(Meeting &m, bool orders_memory) {
  int parity = m.parity;
  (void)parity;
  if (orders_memory) { RELEASE(m.order[parity]); }
  if (++m.arrived == m.expected) release_all(m), wake(self);
  else self->next = m.waiting, m.waiting = self;
  go_on(self);
  if (orders_memory) { ACQUIRE(m.order[parity]); }
}
UNSEEN static void thread_body() {
  ACQUIRE(begun);
  running->run(parameters);
  RELEASE(ended);
  num_alive--;
  Fibre *me = self;
  Meeting &m = me->block->meeting; /* a thread that has returned counts for no barrier, as on Volta and later */
  if (--m.expected && m.arrived == m.expected) release_all(m);
  go_on(me);
  abort();
}
UNSEEN static void run_block(int number, unsigned x, unsigned y, char *shared, char *stacks) {
  static Block block; /* its fields are set one by one: the sanitizer would see a memset */
  block.shared = shared, block.x = x, block.y = y;
  memset(shared, 0xa5, SHARED_BYTES); /* nothing may depend on what was there */
  for (int w = 0; w <= WARPS; w++) {
    Meeting &m = w < WARPS ? block.warps[w].meeting : block.meeting;
    m.expected = w < WARPS ? 32 : THREADS, m.arrived = 0, m.waiting = nullptr;
  }
  num_waiting = num_alive = 0;
  for (int i = 0; i < THREADS; i++) {
    Fibre &f = fibres[i];
    f.block = &block, f.thread = (unsigned)i, f.turn = 0;
    void **top = (void **)(stacks + STACK_BYTES * (i + 1) - 64);
    *--top = nullptr;
    *--top = (void *)thread_body;
    top -= 6;
    memset(top, 0, 48);
    f.stack_pointer = top;
#ifdef __SANITIZE_THREAD__
    f.sanitizer = sanitizers[number % SETS][i];
    if (!f.sanitizer) f.sanitizer = sanitizers[number % SETS][i] = __tsan_create_fiber(0);
#endif
    num_alive++, wake(&f);
  }
  RELEASE(begun); /* what was written here, which knows of no earlier block of this launch */
  switch_to(draw_fibre(), &main_stack);
}
/* Every block of one kernel, in an order that the seed draws. -1: no such kernel. */
extern "C" UNSEEN int emulate(const char *kernel, void **arguments, int grid_x, int grid_y, unsigned seed) {
  static char *shared, *stacks;
  running = entry_of(kernel), parameters = arguments, dice = 0x9E3779B97F4A7C15ull * (seed + 1ull);
  if (!running) return -1;
  if (!stacks) stacks = (char *)mmap(nullptr, STACK_BYTES * THREADS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
#ifdef __SANITIZE_THREAD__
  main_sanitizer = __tsan_get_current_fiber();
#endif
  int blocks = grid_x * grid_y, *order = (int *)malloc((size_t)blocks * sizeof(int));
  for (int i = 0; i < blocks; i++) order[i] = i;
  for (int i = blocks - 1; i > 0; i--) {
    int j = (int)roll((unsigned)i + 1), t = order[i];
    order[i] = order[j], order[j] = t;
  }
  for (int b = 0; b < blocks; b++) {
#ifdef __SANITIZE_THREAD__ /* two blocks do not share this memory: the sanitizer forgets it when it is mapped anew */
    if (shared) munmap(shared, SHARED_BYTES), shared = nullptr;
#endif
    if (!shared) /* an address in shared memory has 32 bits */
      shared = (char *)mmap(nullptr, SHARED_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    run_block(b, (unsigned)(order[b] % grid_x), (unsigned)(order[b] / grid_x), shared, stacks);
  }
  ACQUIRE(ended);
  free(order);
  return 0;
}
/* Bytes of Args, Layer and Row: what service/worker/cuda/layout.py has to agree with. */
extern "C" int size_of(int which) { return (int)(which == 0 ? sizeof(Args) : which == 1 ? sizeof(Layer) : sizeof(Row)); }
/* The probes as this compiler computes them in a plain loop. */
extern "C" ex_u64 probe_sum(int function, ex_u64 arguments) {
  ex_u64 sum = 0;
  for (ex_u64 i = 0; i < arguments; i++) sum += ex_probe(function, i);
  return sum;
}
