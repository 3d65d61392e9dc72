// bfloat16 on the host: for casts, printing and tests. Kernels that compute in it are CUDA's.
#pragma once

#include <bit>
#include <cstdint>

#include "placement/dtype.h"

namespace dtensor {

// The upper half of a float32, rounded to the nearest, ties to even; NaN stays NaN.
struct BFloat16 {
  uint16_t bits = 0;

  BFloat16() = default;
  explicit BFloat16(float x) {
    uint32_t word = std::bit_cast<uint32_t>(x);
    bits = x != x ? uint16_t(word >> 16 | 0x40) : uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16);
  }
  operator float() const { return std::bit_cast<float>(uint32_t(bits) << 16); }
};

template <>
struct dtype_of<BFloat16> {
  static constexpr DType value = DType::bf16;
};

}  // namespace dtensor
