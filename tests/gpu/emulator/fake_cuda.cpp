/* A libcuda.so.1 without a GPU: memory is this process's, kernels run in the emulator. cuda.h, where there is one, checks every signature.
 *
 * CUDA_FAKE, comma-separated: `cuMemAlloc=2` makes every call of it fail with error 2, `cuGraphLaunch=700@5` the fifth and, as the real ones do,
 * every call after that; `none` shows no GPU, `old` a driver for CUDA 12.4, `volta` a card that is too old, `small` one with 8 MiB, `hang` one that
 * never finishes, `once=FILE` only lets calls fail, and be counted, when there is that file, `bit=7` a card whose last bits are wrong in the seventh launch and all later ones.
 * Its name is that of no card: "no GPU: kernels emulated on this CPU". */
#include "emulator.cpp"
#undef threadIdx
#undef blockIdx
#include <map>
#include <string>
#include <vector>
#if __has_include(<cuda.h>)
#define cuGetExportTable cuGetExportTable_declared /* with a type that we have not */
#include <cuda.h>
#undef cuGetExportTable
#else /* what we need of it */
typedef int CUresult, CUdevice, CUdevice_attribute, CUstreamCaptureMode;
typedef unsigned long long CUdeviceptr;
typedef struct CUgraph_st *CUgraph;
typedef void *CUcontext, *CUmodule, *CUfunction, *CUstream, *CUgraphExec;
#define CUDAAPI
#define cuDevicePrimaryCtxRelease cuDevicePrimaryCtxRelease_v2
#define cuMemGetInfo cuMemGetInfo_v2
#define cuMemAlloc cuMemAlloc_v2
#define cuMemcpyHtoDAsync cuMemcpyHtoDAsync_v2
#define cuMemcpyDtoHAsync cuMemcpyDtoHAsync_v2
#define cuStreamBeginCapture cuStreamBeginCapture_v2
#define cuGraphInstantiate cuGraphInstantiateWithFlags
#endif

struct Launched { const Entry *entry; std::vector<char> parameters; int grid_x, grid_y; };
struct CUgraph_st { std::vector<Launched> launches; };
static CUgraph_st *capturing;
static std::map<std::string, int> calls;
static int broken, launched, pending;
static const int INVALID_VALUE = 1, NO_DEVICE = 100, UNKNOWN = 999, INVALID_IMAGE = 200, NOT_FOUND = 500, BUSY = 600, CAPTURING = 900;

static std::string setting(const std::string &name, bool &found) { /* the text after `name=` */
  const char *given = getenv("CUDA_FAKE");
  std::string all = given ? std::string(given) + "," : "";
  for (size_t at = 0, comma; (comma = all.find(',', at)) != std::string::npos; at = comma + 1) {
    std::string one = all.substr(at, comma - at), key = one.substr(0, one.find('='));
    if (key == name) return found = true, one.size() > key.size() ? one.substr(key.size() + 1) : "";
  }
  return found = false, "";
}
static bool is_set(const char *name) {
  bool found;
  setting(name, found);
  return found;
}
static int failure(const char *function) { /* the error that this call is to give */
  std::string name = function;
  if (size_t at = name.find("_v2"); at != std::string::npos) name.resize(at);
  bool found;
  std::string file = setting("once", found);
  if (found && access(file.c_str(), F_OK)) return broken;
  int number = ++calls[name];
  std::string text = setting(name, found);
  size_t at = text.find('@');
  if (found && (at == std::string::npos || number >= atoi(text.c_str() + at + 1))) {
    broken = at == std::string::npos ? broken : atoi(text.c_str());
    return atoi(text.c_str());
  }
  return broken;
}
static bool hangs() { /* kernels that never end */
  bool later;
  std::string file = setting("once", later);
  return launched && is_set("hang") && (!later || !access(file.c_str(), F_OK));
}
static int held_up(const char *function) { /* what waits for kernels inside the driver; it says so instead of waiting for ever */
  if (hangs()) fprintf(stderr, "%s waits for ever\n", function);
  return hangs();
}
#define API(name, ...)                              \
  extern "C" CUresult CUDAAPI name(__VA_ARGS__) {   \
    if (int error = failure(__func__)) return (CUresult)error;
#define DONE return (CUresult)0; }
#define ERROR(code) return (CUresult)(code)

API(cuInit, unsigned)
  if (is_set("none")) ERROR(NO_DEVICE);
DONE
API(cuDriverGetVersion, int *version) *version = is_set("old") ? 12040 : 13000; DONE
API(cuDeviceGetCount, int *count) *count = 1; DONE
API(cuDeviceGet, CUdevice *device, int) *device = 0; DONE
API(cuDeviceGetName, char *name, int size, CUdevice) snprintf(name, (size_t)size, "no GPU: kernels emulated on this CPU"); DONE
API(cuDeviceGetAttribute, int *value, CUdevice_attribute which, CUdevice)
  *value = (int)which == 75 ? (is_set("volta") ? 7 : 9) : (int)which == 16 ? 1 : 0;
DONE
API(cuDevicePrimaryCtxRetain, CUcontext *context, CUdevice) *context = (CUcontext)1; DONE
API(cuDevicePrimaryCtxRelease, CUdevice) held_up(__func__); DONE
API(cuCtxSetCurrent, CUcontext) DONE
API(cuMemGetInfo, size_t *free, size_t *total) *free = *total = is_set("small") ? (256ull << 20) + (8 << 20) : 16ull << 30; DONE
API(cuMemAlloc, CUdeviceptr *at, size_t size) *at = (CUdeviceptr)aligned_alloc(256, (size + 255) / 256 * 256); DONE
API(cuMemcpyHtoDAsync, CUdeviceptr to, const void *from, size_t size, CUstream)
  if (capturing) ERROR(CAPTURING);
  if (held_up(__func__)) ERROR(UNKNOWN); /* from pageable memory: the driver may first wait for the stream */
  memcpy((void *)to, from, size);
DONE
API(cuMemcpyDtoHAsync, void *to, CUdeviceptr from, size_t size, CUstream)
  if (capturing) ERROR(CAPTURING);
  if (held_up(__func__)) ERROR(UNKNOWN); /* to pageable memory: the driver waits until it is there */
  memcpy(to, (void *)from, size);
DONE
API(cuMemsetD8Async, CUdeviceptr to, unsigned char value, size_t size, CUstream) memset((void *)to, value, size); DONE
API(cuModuleLoadData, CUmodule *module, const void *image)
  if (memcmp(image, "\x7f" "ELF", 4)) ERROR(INVALID_IMAGE);
  *module = (CUmodule)1;
DONE
API(cuModuleGetFunction, CUfunction *function, CUmodule, const char *name)
  const Entry *entry = entry_of(name);
  if (!entry) ERROR(NOT_FOUND);
  *function = (CUfunction)entry;
DONE
API(cuStreamCreate, CUstream *stream, unsigned) *stream = (CUstream)1; DONE
API(cuStreamQuery, CUstream)
  if (capturing) ERROR(CAPTURING);
  if (pending || hangs()) { /* the first question comes too early */
    pending = 0;
    ERROR(BUSY);
  }
DONE
API(cuStreamBeginCapture, CUstream, CUstreamCaptureMode) capturing = new CUgraph_st; DONE
API(cuStreamEndCapture, CUstream, CUgraph *graph) *graph = capturing, capturing = nullptr; DONE
API(cuGraphInstantiate, CUgraphExec *executable, CUgraph graph, unsigned long long) *executable = (CUgraphExec)new CUgraph_st(*graph); DONE
API(cuGraphDestroy, CUgraph graph) delete graph; DONE

static void run(const Launched &l) {
  void *pointers[4];
  const char *data = l.parameters.data();
  for (int i = 0; i < 4; data += l.entry->sizes[i++]) pointers[i] = (void *)data;
  emulate(l.entry->name, pointers, l.grid_x, l.grid_y, (unsigned)++launched);
  pending = 1;
  bool found;
  std::string from = setting("bit", found);
  if (found && launched >= atoi(from.c_str()) && l.entry->sizes[0] == sizeof(Args)) { /* a card of another arithmetic */
    const Args *a = (const Args *)pointers[0];
    for (int i = 0; i < a->num_items * V; i++) a->logits[i] = ex_from_bits(ex_bits(a->logits[i]) ^ 1);
  }
}
API(cuLaunchKernel, CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
    unsigned shared, CUstream, void **parameters, void **extra)
  if (block_x != THREADS || block_y != 1 || block_z != 1 || grid_z != 1 || shared || extra || !grid_x || grid_x > 2147483647u || !grid_y || grid_y > 65535)
    ERROR(INVALID_VALUE);
  Launched l = {(const Entry *)function, {}, (int)grid_x, (int)grid_y};
  for (int i = 0; i < 4 && l.entry->sizes[i]; i++) l.parameters.insert(l.parameters.end(), (char *)parameters[i], (char *)parameters[i] + l.entry->sizes[i]);
  if (capturing) capturing->launches.push_back(l);
  else run(l);
DONE
API(cuGraphLaunch, CUgraphExec executable, CUstream)
  if (capturing) ERROR(CAPTURING);
  for (const Launched &l : ((CUgraph_st *)executable)->launches) run(l);
DONE
/* NVRTC asks for the driver's inner tables, and does without. */
extern "C" CUresult CUDAAPI cuGetExportTable(const void **table, const void *) { return *table = nullptr, (CUresult)NOT_FOUND; }
extern "C" CUresult CUDAAPI cuGetErrorName(CUresult error, const char **name) {
  static const std::map<int, const char *> NAMES = {{2, "CUDA_ERROR_OUT_OF_MEMORY"}, {100, "CUDA_ERROR_NO_DEVICE"}, {209, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
                                                    {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {719, "CUDA_ERROR_LAUNCH_FAILED"}, {999, "CUDA_ERROR_UNKNOWN"}};
  auto found = NAMES.find((int)error);
  *name = found == NAMES.end() ? "CUDA_ERROR" : found->second;
  return (CUresult)0;
}
