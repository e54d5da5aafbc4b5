/* Every function of arithmetic.h on the card, see probe.h. Integers are summed, so the order of threads is free. */
#ifdef __CUDACC__
#define PROBE extern "C" __global__ void __launch_bounds__(256, 1)
#else
#include "cuda_on_cpu.h" /* the emulator of tests/gpu */
#define PROBE extern "C" void
#endif
#include "probe.h"

PROBE probe(ex_u64 *sums, int function, ex_u64 first, int each) { /* arguments first + (thread, each) */
  ex_u64 sum = 0, thread = (ex_u64)blockIdx.x * 256 + threadIdx.x;
  for (int i = 0; i < each; i++) sum += ex_probe(function, first + thread * each + i);
  for (int m = 16; m; m >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, m);
  if (threadIdx.x % 32 == 0) atomicAdd(sums + function, sum);
}
