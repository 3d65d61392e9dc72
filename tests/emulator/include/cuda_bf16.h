// Stands for CUDA's header of this name, as far as the library uses it.
#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstring>

#include <cuda_runtime_api.h>

struct alignas(2) __nv_bfloat16 {
  __nv_bfloat16() = default;
  __nv_bfloat16(float x) : bits(rounded(x)) {}
  __nv_bfloat16(double x) : bits(rounded(x)) {}
  template <std::integral T>
  __nv_bfloat16(T x) : bits(rounded(double(x))) {}
  operator float() const {
    uint32_t wide = uint32_t(bits) << 16;
    float x;
    std::memcpy(&x, &wide, 4);
    return x;
  }

  uint16_t bits;

 private:
  // To the nearest, ties to even; every NaN is 0x7fff, as from the device's instruction.
  static uint16_t rounded(float x) {
    if (x != x) return 0x7fff;
    uint32_t wide;
    std::memcpy(&wide, &x, 4);
    return uint16_t((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
  }
  // By way of float, rounded to odd, so that it is rounded once.
  static uint16_t rounded(double x) {
    float f = float(x);
    uint32_t wide;
    std::memcpy(&wide, &f, 4);
    if (double(f) != x && x == x && !(wide & 1)) {
      wide += std::abs(double(f)) > std::abs(x) ? -1 : 1;
      std::memcpy(&f, &wide, 4);
    }
    return rounded(f);
  }
};
typedef __nv_bfloat16 nv_bfloat16;

struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
typedef __nv_bfloat162 nv_bfloat162;

inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline __nv_bfloat16 __double2bfloat16(double x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  __nv_bfloat16 x;
  x.bits = bits;
  return x;
}

inline __nv_bfloat16 operator+(const __nv_bfloat16& a, const __nv_bfloat16& b) { return float(a) + float(b); }
inline __nv_bfloat16 operator-(const __nv_bfloat16& a, const __nv_bfloat16& b) { return float(a) - float(b); }
inline __nv_bfloat16 operator*(const __nv_bfloat16& a, const __nv_bfloat16& b) { return float(a) * float(b); }
inline __nv_bfloat16 operator/(const __nv_bfloat16& a, const __nv_bfloat16& b) { return float(a) / float(b); }
inline __nv_bfloat16 operator-(const __nv_bfloat16& a) { return -float(a); }
inline bool operator==(const __nv_bfloat16& a, const __nv_bfloat16& b) { return float(a) == float(b); }
inline bool operator!=(const __nv_bfloat16& a, const __nv_bfloat16& b) { return float(a) != float(b); }
inline bool operator<(const __nv_bfloat16& a, const __nv_bfloat16& b) { return float(a) < float(b); }
inline bool operator>(const __nv_bfloat16& a, const __nv_bfloat16& b) { return float(a) > float(b); }
inline bool operator<=(const __nv_bfloat16& a, const __nv_bfloat16& b) { return float(a) <= float(b); }
inline bool operator>=(const __nv_bfloat16& a, const __nv_bfloat16& b) { return float(a) >= float(b); }
