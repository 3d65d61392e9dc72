// Element types and their names in the notation: f32 f64 bf16 i64 bool.
#pragma once

#include <cstdint>
#include <string_view>

namespace dtensor {

enum class DType : uint8_t { f32, f64, bf16, i64, boolean };

// Bytes of one element.
constexpr int64_t itemsize(DType t) {
  switch (t) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
      return 4;
    case DType::bf16:
      return 2;
    case DType::boolean:
      return 1;
  }
  return 0;
}

constexpr bool is_floating(DType t) { return t == DType::f32 || t == DType::f64 || t == DType::bf16; }

constexpr std::string_view name(DType t) {
  constexpr std::string_view names[] = {"f32", "f64", "bf16", "i64", "bool"};
  return names[int(t)];
}

// The element type of a C++ type, for Tensor::data<T>().
template <class T>
struct dtype_of;
template <>
struct dtype_of<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct dtype_of<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct dtype_of<int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct dtype_of<bool> {
  static constexpr DType value = DType::boolean;
};

}  // namespace dtensor
