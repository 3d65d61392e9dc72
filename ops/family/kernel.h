// What CPU kernels share: dispatch over element types, broadcasting, splitting over threads.
#pragma once

#include "ops/core/op.h"

namespace dtensor {

constexpr int64_t pointwise_grain = 16384;  // elements that are worth a thread

// Calls f with the C++ type of a floating element type as its template argument.
template <class F>
void for_floating(const Context& c, DType t, F f) {
  if (t == DType::f32)
    f.template operator()<float>();
  else if (t == DType::f64)
    f.template operator()<double>();
  else
    fail("[{}] has no CPU kernel for {}", c.op, name(t));
}

// The same for the types of numbers: f32, f64, i64.
template <class F>
void for_numbers(const Context& c, DType t, F f) {
  if (t == DType::i64)
    f.template operator()<int64_t>();
  else
    for_floating(c, t, f);
}

// The same for all types that have CPU kernels: f32, f64, i64, bool.
template <class F>
void for_all_types(const Context& c, DType t, F f) {
  if (t == DType::boolean)
    f.template operator()<bool>();
  else
    for_numbers(c, t, f);
}

// `t` where its last dimension is contiguous, whatever the others are, else a copy.
inline Tensor with_whole_rows(const Tensor& t) {
  return t.strides().back() == 1 || t.shape().back() == 1 ? t : t.clone();
}

// Strides with which `t` reads as a tensor of `shape`, aligned from the right: 0 where it is broadcast.
inline Shape broadcast_strides(const Tensor& t, const Shape& shape) {
  Shape s = Shape::filled(shape.dims(), 0);
  int ahead = shape.dims() - t.dims();
  for (int d = 0; d < t.dims(); ++d)
    if (t.size(d) != 1 || shape[ahead + d] == 1) s[ahead + d] = t.strides()[d];
  return s;
}

// Calls f(row, offset of the row in each operand) for every row of `shape`: all dimensions but the last.
template <size_t N, class F>
void for_rows(const Shape& shape, const std::array<Shape, N>& strides, int64_t begin, int64_t end, F f) {
  int dims = shape.dims() - 1;
  for (int64_t row = begin; row < end; ++row) {
    std::array<int64_t, N> offset{};
    int64_t rest = row;
    for (int d = dims - 1; d >= 0; --d) {
      int64_t i = rest % shape[d];
      rest /= shape[d];
      for (size_t k = 0; k < N; ++k) offset[k] += i * strides[k][d];
    }
    f(row, offset);
  }
}

// An error where operands that a kernel walks together differ in their leading dimensions: its "..." does not
// broadcast.
struct Rows {
  int operand, trailing;  // the dimensions after "..."
};
inline void check_rows(const Context& c, std::span<const Tensor> in, std::initializer_list<Rows> list) {
  auto leading = [&](const Rows& r) {
    const Shape& s = in[size_t(r.operand)].shape();
    return Shape(s.begin(), s.end() - r.trailing);
  };
  Shape first = leading(*list.begin());
  for (const Rows& r : list)
    check(leading(r) == first, "[{}] leading dimensions {} and {} differ; they do not broadcast here", c.op, first,
          leading(r));
}

// All dimensions but the last `kept`: how many rows.
inline int64_t rows_of(const Tensor& t, int kept = 1) {
  int64_t n = 1;
  for (int d = 0; d + kept < t.dims(); ++d) n *= t.size(d);
  return n;
}

}  // namespace dtensor
