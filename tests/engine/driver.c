/* Runs kernel.c on the model and tokens of its standard input, and writes what it computed: a program rather than a
 * library, so that an emulator of another processor can run it. Out: logits of one pass, of pieces of 3, all probes. */
#include <stdio.h>

#include "kernel.c"

static void get(void *to, size_t bytes) {
  if (fread(to, 1, bytes, stdin) != bytes) exit(2);
}

static int32_t get_int(void) {
  int32_t x;
  get(&x, sizeof x);
  return x;
}

int main(void) {
  Config config;
  static const float *tensors[4096];
  int32_t tokens[1024], rows[1024] = {0}, at[1024];
  get(&config, sizeof config);
  for (int i = 0, n = get_int(); i < n; i++) {
    int count = get_int();
    float *tensor = malloc(sizeof(float) * count);
    get(tensor, sizeof(float) * count);
    tensors[i] = tensor;
  }
  int n = get_int();
  get(tokens, sizeof *tokens * n);
  for (int i = 0; i < n; i++) at[i] = i;
  Engine *e = EXPORT(create)(&config, tensors);
  float *logits = malloc(sizeof(float) * n * config.vocab_size);
  EXPORT(step)(e, n, tokens, rows, at, logits);
  fwrite(logits, sizeof(float), (size_t)n * config.vocab_size, stdout);
  for (int i = 0; i < n; i++) rows[i] = 1;
  for (int i = 0, m; i < n; i += m) {
    m = n - i < 3 ? n - i : 3;
    EXPORT(step)(e, m, tokens + i, rows, at + i, logits);
    fwrite(logits, sizeof(float), (size_t)m * config.vocab_size, stdout);
  }
  for (int i = 0; i < EX_PROBES; i++) {
    uint64_t sum = EXPORT(probe)(i);
    fwrite(&sum, sizeof sum, 1, stdout);
  }
  EXPORT(destroy)(e);
  return 0;
}
