#include "nn/checkpoint/crc32c.h"

#include <array>
#include <cstring>

namespace dtensor::nn {
namespace {

// tables[k][b]: the register after byte b and k zero bytes. Eight bytes at a time ("slicing by 8", Kounavis and Berry,
// 2005).
using Tables = std::array<std::array<uint32_t, 256>, 8>;
constexpr Tables make_tables() {
  Tables t{};
  for (uint32_t b = 0; b < 256; ++b) {
    uint32_t crc = b;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    t[0][b] = crc;
  }
  for (size_t k = 1; k < 8; ++k)
    for (size_t b = 0; b < 256; ++b) t[k][b] = t[k - 1][b] >> 8 ^ t[0][t[k - 1][b] & 255];
  return t;
}
constexpr Tables tables = make_tables();

uint64_t word_at(const std::byte* p) {
  uint64_t word;
  std::memcpy(&word, p, 8);  // little-endian, as all that is written here
  return word;
}

uint32_t one_byte(uint32_t crc, std::byte b) { return crc >> 8 ^ tables[0][(crc ^ uint32_t(b)) & 255]; }

uint32_t by_tables(uint32_t crc, const std::byte* p, size_t n) {
  for (; n >= 8; p += 8, n -= 8) {
    uint64_t word = word_at(p) ^ crc;
    crc = 0;
    for (size_t k = 0; k < 8; ++k) crc ^= tables[7 - k][word >> 8 * k & 255];
  }
  for (; n > 0; ++p, --n) crc = one_byte(crc, *p);
  return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t by_instruction(uint32_t crc, const std::byte* p, size_t n) {
  uint64_t wide = crc;
  for (; n >= 8; p += 8, n -= 8) wide = __builtin_ia32_crc32di(wide, word_at(p));
  for (crc = uint32_t(wide); n > 0; ++p, --n) crc = one_byte(crc, *p);
  return crc;
}
#endif

}  // namespace

uint32_t crc32c(std::span<const std::byte> bytes, uint32_t before) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("sse4.2")) return ~by_instruction(~before, bytes.data(), bytes.size());
#endif
  return ~by_tables(~before, bytes.data(), bytes.size());
}

}  // namespace dtensor::nn
