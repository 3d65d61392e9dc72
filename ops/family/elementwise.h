// How element-wise cards are made: a kernel from a function of single elements or of whole arrays, and what a family of
// cards has in common. A simple op is a name, a function and its gradient.
#pragma once

#include <cmath>
#include <limits>
#include <tuple>

#include "ops/family/kernel.h"
#include "ops/family/samples.h"

namespace dtensor {

// --- Element types, checked before anything is communicated.

// One type of numbers: not bool.
DType number_types(std::string_view op, std::span<const TensorSpec* const>, const Attributes&, int);
// One type of any kind, and a bool result.
DType compared_types(std::string_view op, std::span<const TensorSpec* const>, const Attributes&, int);
// Bools only, for logic.
DType bool_types(std::string_view op, std::span<const TensorSpec* const>, const Attributes&, int);

// --- Operands that broadcast.

constexpr size_t max_elementwise = 3;  // operands

// Dimensions of an output and what each operand steps in them, the innermost first, as few as there can be: neighbours
// that every operand walks as one are one.
struct Walk {
  using Offsets = std::array<int64_t, max_elementwise>;
  Shape shape;  // at least one dimension
  std::array<Shape, max_elementwise> strides;

  Walk(const Shape& out, const std::array<Shape, max_elementwise>& steps);
  // Calls f(first element, count, its offset in each operand) for runs along the innermost dimension that make up the
  // elements [begin, end) of the output, each at most `most` long.
  template <class F>
  void runs(int64_t begin, int64_t end, int64_t most, F f) const {
    Offsets offset{};
    std::array<int64_t, max_dims> index{};
    for (int64_t d = 0, rest = begin; d < shape.dims(); ++d) {
      index[size_t(d)] = rest % shape[int(d)], rest /= shape[int(d)];
      for (size_t k = 0; k < max_elementwise; ++k) offset[k] += index[size_t(d)] * strides[k][int(d)];
    }
    auto step = [&](int d, int64_t by) {
      index[size_t(d)] += by;
      for (size_t k = 0; k < max_elementwise; ++k) offset[k] += by * strides[k][d];
    };
    while (begin < end) {
      int64_t count = std::min({shape[0] - index[0], end - begin, most});
      f(begin, count, offset);
      begin += count;
      step(0, count);
      for (int d = 0; d + 1 < shape.dims() && index[size_t(d)] == shape[d]; ++d) step(d, -shape[d]), step(d + 1, 1);
    }
  }
};

// A tensor of any strides that broadcasts to the output, or an element for all.
struct ElementInput {
  const Tensor* tensor;
  const void* element = nullptr;
  int64_t size = 0;  // of the element, in bytes
};
// y[i] = f(x[0][i], ...) of arrays.
using ElementLoop = void (*)(int64_t n, void* y, const void* f, const std::array<const void*, max_elementwise>& x);
// Runs the loop over all elements of `out`, on blocks: what is not contiguous is brought together first, so that a
// function needs one loop only.
void for_elements(const Context& c, std::span<const ElementInput> in, const Tensor& out, const void* f,
                  ElementLoop loop);

// How an element is read: g++ vectorizes no loop that reads bools.
template <class T>
using Read = std::conditional_t<std::is_same_v<T, bool>, uint8_t, T>;

// out = f(x...) by element, of inputs of types From.
template <class To, class... From, class F>
void for_elements(const Context& c, const std::array<ElementInput, sizeof...(From)>& in, const Tensor& out, F f) {
  for_elements(c, std::span<const ElementInput>(in), out, &f,
               [](int64_t n, void* y, const void* of, const std::array<const void*, max_elementwise>& x) {
                 [&]<size_t... k>(std::index_sequence<k...>) {
                   const F g = *static_cast<const F*>(of);
                   To* to = static_cast<To*>(y);
                   std::tuple from{static_cast<const Read<From>*>(x[k])...};
                   for (int64_t i = 0; i < n; ++i) to[i] = g(std::get<k>(from)[i]...);
                 }
                 (std::index_sequence_for<From...>());
               });
}
template <class To, class... From, class F>
void elementwise(const Context& c, const std::array<const Tensor*, sizeof...(From)>& in, const Tensor& out, F f) {
  std::array<ElementInput, sizeof...(From)> inputs;
  for (size_t k = 0; k < in.size(); ++k) inputs[k] = {in[k]};
  for_elements<To, From...>(c, inputs, out, f);
}

// --- Kernels.

enum class Types { floating, numbers, all };
template <Types types, class F>
void for_types(const Context& c, DType t, F f) {
  if constexpr (types == Types::floating)
    for_floating(c, t, f);
  else if constexpr (types == Types::numbers)
    for_numbers(c, t, f);
  else
    for_all_types(c, t, f);
}

// A number as a T. Errors: a fraction, or one out of range, beside integers.
template <class T>
T scalar(const Context& c, double v) {
  if constexpr (std::is_same_v<T, bool>)
    check(v == 0 || v == 1, "[{}] {} is neither 0 nor 1, but the tensor is bool", c.op, v);
  if constexpr (std::is_same_v<T, int64_t>)
    check(v == std::floor(v) && std::abs(v) < 0x1p63, "[{}] {} is no integer, but the tensor is i64: use cast()", c.op,
          v);
  return T(v);
}

// f(a...), integers wrapping around, as unsigned ones do by definition.
template <class F, class T, class... Same>
T wrapping(F f, T a, Same... rest) {
  if constexpr (std::is_same_v<T, int64_t>)
    return int64_t(f(uint64_t(a), uint64_t(rest)...));
  else
    return f(a, rest...);
}

// Two operands to a To; an absent one is a Number.
template <class To, class T, class F>
void elementwise_pair(const Context& c, const Tensor* a, const Tensor* b, const Tensor& out, F f) {
  T number = a && b ? T() : scalar<T>(c, c.attributes.as<ops::Number>().value);
  ElementInput absent{nullptr, &number, sizeof(T)};
  for_elements<To, T, T>(c, {a ? ElementInput{a} : absent, b ? ElementInput{b} : absent}, out, f);
}
inline const Tensor* present(std::span<const Tensor> in, size_t i) {
  return i < in.size() && in[i].defined() ? &in[i] : nullptr;
}

template <auto f, Types types = Types::floating>
void unary_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_types<types>(c, out[0].dtype(), [&]<class T>() { elementwise<T, T>(c, {&in[0]}, out[0], f); });
}
template <auto f>
void test_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_types<Types::all>(c, in[0].dtype(), [&]<class T>() { elementwise<bool, T>(c, {&in[0]}, out[0], f); });
}
template <auto f, Types types = Types::floating>
void binary_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_types<types>(c, out[0].dtype(), [&]<class T>() { elementwise_pair<T, T>(c, &in[0], present(in, 1), out[0], f); });
}

// Whole arrays of one size: f(n, inputs..., outputs...).
template <size_t inputs, size_t outputs = 1, class F>
void on_arrays(const Context& c, std::span<const Tensor> in, std::span<Tensor> out, F f) {
  for_floating(c, out[0].dtype(), [&]<class T>() {
    std::array<Tensor, inputs> whole;
    for (size_t k = 0; k < inputs; ++k)
      whole[k] =
          (in[k].shape() == out[0].shape() ? in[k]
                                           : in[k].as_strided(out[0].shape(), broadcast_strides(in[k], out[0].shape())))
              .contiguous();
    [&]<size_t... i, size_t... o>(std::index_sequence<i...>, std::index_sequence<o...>) {
      std::tuple from{static_cast<const T*>(whole[i].template data<T>())...};
      std::tuple to{out[o].template data<T>()...};
      c.pool.parallel_for(out[0].numel(), pointwise_grain, [&](int64_t begin, int64_t end, int) {
        f(end - begin, std::get<i>(from) + begin..., std::get<o>(to) + begin...);
      });
    }
    (std::make_index_sequence<inputs>(), std::make_index_sequence<outputs>());
  });
}
template <auto f, size_t inputs = 1, size_t outputs = 1>
void array_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  on_arrays<inputs, outputs>(c, in, out, f);
}

// --- Cards: what a family has in common is filled in where the card does not say it.

Op unary(Op card);        // one floating operand
Op binary(Op card);       // two operands of numbers
Op gradient_op(Op card);  // (dy, x) -> dx, linear in dy

// Of unary.inc: operands of one floating type, or of one type of numbers, or of any type to bool, or bools to bool.
enum class UnaryTypes { floating, numbers, tests, logic };
Op unary_card(UnaryTypes types, Op card);
template <UnaryTypes types, auto f>
Op unary_card(Op card) {
  if (!card.cpu) {
    if constexpr (types == UnaryTypes::floating)
      card.cpu = unary_kernel<f>;
    else if constexpr (types == UnaryTypes::numbers)
      card.cpu = unary_kernel<f, Types::numbers>;
    else
      card.cpu = test_kernel<f>;
  }
  return unary_card(types, std::move(card));
}
template <auto f>
Op backward_card(Op card) {
  if (!card.cpu) card.cpu = binary_kernel<f>;
  return gradient_op(std::move(card));
}

// Gradients of operands that were broadcast are summed.
void set_reduced(Gradient& g, int i, const DistributedTensor& gradient);
// The gradient of a step function is zero: nothing is contributed.
void zero_gradient(Gradient& g);

}  // namespace dtensor
