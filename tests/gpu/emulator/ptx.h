/* What the translated PTX calls: instructions that C++ has no operator for, and loads that check their alignment. */
#pragma once
template <class T, class F> inline T as(F v) { /* the same bits; a narrower T takes the lower ones */
  T t{};
  memcpy(&t, &v, sizeof(T) < sizeof(F) ? sizeof(T) : sizeof(F));
  return t;
}
inline void check_alignment(uint64_t address, uint64_t size) {
  if (address % size) fprintf(stderr, "misaligned access of %d bytes\n", (int)size), _exit(5);
}
template <class T> T *aligned(uint64_t address) {
  check_alignment(address, sizeof(T));
  return (T *)address;
}
template <class T> inline T abs_ptx(T a) { return a < 0 || (a == 0 && __builtin_signbit((double)a)) ? -a : a; }
template <class T> inline T max_ptx(T a, T b) { /* a NaN counts for nothing, -0 is less than 0 */
  return a != a ? b : b != b ? a : a > b ? a : b > a ? b : __builtin_signbit((double)a) ? b : a;
}
template <class T> inline T shl_ptx(T a, uint32_t n) { return n >= sizeof(T) * 8 ? 0 : a << n; }
template <class T> inline T shr_ptx(T a, uint32_t n) { return n >= sizeof(T) * 8 ? (a < 0 ? -1 : 0) : a >> n; }
template <class T> inline T bfi_ptx(T a, T b, uint32_t from, uint32_t count) {
  T mask = count >= sizeof(T) * 8 ? ~(T)0 : ((T)1 << count) - 1;
  return from >= sizeof(T) * 8 ? b : (b & ~(mask << from)) | ((a & mask) << from);
}
inline uint32_t bfind_shift(uint32_t a) { return a ? (uint32_t)__builtin_clz(a) : ~0u; }
inline uint32_t brev_ptx(uint32_t a) {
  uint32_t r = 0;
  for (int i = 0; i < 32; i++) r |= (a >> i & 1) << (31 - i);
  return r;
}
template <bool UNSIGNED> inline uint32_t dp4a_ptx(uint32_t a, uint32_t b, uint32_t c) {
  int32_t s = (int32_t)c;
  for (int i = 0; i < 32; i += 8) s += (UNSIGNED ? (int)(uint8_t)(a >> i) : (int)(int8_t)(a >> i)) * (int8_t)(b >> i);
  return (uint32_t)s;
}
inline uint32_t prmt_ptx(uint32_t a, uint32_t b, uint32_t selector) {
  uint64_t bytes = (uint64_t)b << 32 | a;
  uint32_t r = 0;
  for (int i = 0; i < 4; i++) {
    uint32_t s = selector >> 4 * i & 15, byte = (uint32_t)(bytes >> 8 * (s & 7)) & 255;
    r |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
  }
  return r;
}
