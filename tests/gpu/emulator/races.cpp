/* Runs a recorded script of launches (tests/gpu/races.py) and prints a digest of all memory: `races SCRIPT SEED BARRIER`, where BARRIER is the
 * number of one that is left out, 0 for none. Built with -fsanitize=thread it reports races; built without, the order of threads tells. */
static int left_out;
#define MUTANT left_out
#include "emulator.cpp"

enum { WRITE, WRITE_LAYER, LAUNCH };
struct Record { int kind, index, layer, bytes; };                               /* followed by `bytes` of data */
struct Start { char kernel[32]; int layer, grid_x, grid_y, num_rows, num_items, steps, verifying; float root; }; /* the data of a launch */

static const int POINTERS = (int)((sizeof(Args) - 4 * sizeof(int) - sizeof(float)) / sizeof(void *));
static void **arrays; /* Args begins with its pointers */
static int sizes[64];

static void fill(void **to, int *size, const char *data, int bytes) {
  if (!*to) *to = aligned_alloc(256, (size_t)(bytes + 255) / 256 * 256), *size = bytes;
  memcpy(*to, data, (size_t)bytes);
}
int main(int, char **argv) {
  static Args a;
  static Layer layers[L];
  arrays = (void **)&a;
  left_out = atoi(argv[3]);
  unsigned seed = (unsigned)atoi(argv[2]) * 1000;
  FILE *script = fopen(argv[1], "rb");
  Record r;
  int layer_bytes[sizeof(Layer) / sizeof(void *)];
  while (script && fread(&r, sizeof r, 1, script) == 1) {
    char *data = (char *)malloc((size_t)r.bytes + 1);
    if (fread(data, 1, (size_t)r.bytes, script) != (size_t)r.bytes) return 2;
    if (r.kind == WRITE) fill(arrays + r.index, sizes + r.index, data, r.bytes);
    if (r.kind == WRITE_LAYER) fill((void **)&layers[r.layer] + r.index, layer_bytes, data, r.bytes);
    if (r.kind == LAUNCH) {
      const Start *s = (const Start *)data;
      a.layers = layers, a.num_rows = s->num_rows, a.num_items = s->num_items, a.steps = s->steps, a.verifying = s->verifying, a.root = s->root;
      void *parameters[] = {&a, (void *)&s->layer};
      if (emulate(s->kernel, parameters, s->grid_x, s->grid_y, ++seed)) return 2;
    }
    free(data);
  }
  u64 hash = 14695981039346656037ull; /* FNV-1a */
  for (int i = 1; i < POINTERS; i++)
    for (int b = 0; b < sizes[i]; b++) hash = (hash ^ ((u8 *)arrays[i])[b]) * 1099511628211ull;
  printf("%016llx\n", hash);
}
