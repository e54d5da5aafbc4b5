/* What this processor can run: the instruction sets that kernel.c is compiled for, fastest first. */
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

static int has_avx_vnni(void) { /* older compilers do not know the name; AVX2's check covers the operating system's part */
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

int folio_supports(const char *isa) {
  __builtin_cpu_init();
  int avx2 = __builtin_cpu_supports("avx2");
  if (!strcmp(isa, "generic")) return 1;
  if (!strcmp(isa, "avx2")) return avx2;
  if (!strcmp(isa, "avxvnni")) return avx2 && has_avx_vnni();
  if (!strcmp(isa, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
  return 0;
}

#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
static int has_dotprod(void) { return getauxval(AT_HWCAP) >> 20 & 1; } /* HWCAP_ASIMDDP */
#elif defined(__APPLE__)
static int has_dotprod(void) { return 1; } /* every Apple processor since the A13 */
#else
static int has_dotprod(void) { return 0; }
#endif

int folio_supports(const char *isa) {
  if (!strcmp(isa, "dotprod")) return has_dotprod();
  return !strcmp(isa, "neon") || !strcmp(isa, "generic");
}

#else
int folio_supports(const char *isa) { return !strcmp(isa, "generic"); }
#endif
