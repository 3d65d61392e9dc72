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

// --- Walking operands that broadcast.

// Dimensions of an output and what each of N operands steps in them, as few as there can be: neighbours that every
// operand walks as one are one.
template <size_t N>
struct Walk {
  Shape shape;  // at least one dimension
  std::array<Shape, N> strides;

  Walk(const Shape& out, const std::array<Shape, N>& steps) {
    for (int d = out.dims() - 1; d >= 0; --d) {
      if (out[d] == 1) continue;
      bool joins = !shape.empty();
      for (size_t k = 0; joins && k < N; ++k) joins = steps[k][d] == strides[k].back() * shape.back();
      if (joins) {
        shape.back() *= out[d];
        continue;
      }
      shape.push_back(out[d]);
      for (size_t k = 0; k < N; ++k) strides[k].push_back(steps[k][d]);
    }
    if (shape.empty()) {
      shape.push_back(1);
      for (Shape& s : strides) s.push_back(0);
    }
  }

  // Calls f(first element, count, its offset in each operand) for runs along dimension 0, here the innermost, that
  // make up the elements [begin, end) of the output.
  template <class F>
  void runs(int64_t begin, int64_t end, F f) const {
    while (begin < end) {
      std::array<int64_t, N> offset{};
      int64_t rest = begin, inner = begin % shape[0];
      for (int d = 0; d < shape.dims(); ++d) {
        for (size_t k = 0; k < N; ++k) offset[k] += rest % shape[d] * strides[k][d];
        rest /= shape[d];
      }
      int64_t count = std::min(shape[0] - inner, end - begin);
      f(begin, count, offset);
      begin += count;
    }
  }
};

template <class To, class F, class... From>
void each_element(int64_t n, To* to, F f, const From*... x) {
  for (int64_t i = 0; i < n; ++i) to[i] = f(x[i]...);
}

// A run of operands that step by `s`. One that stays where it is beside one that steps by 1, as a bias or a mean does,
// is a constant: the loop is the plain one.
template <class To, class F, class... From>
void run_of_elements(int64_t n, To* to, F f, const std::array<int64_t, sizeof...(From)>& s, const From*... x) {
  if (std::all_of(s.begin(), s.end(), [](int64_t step) { return step == 1; })) return each_element(n, to, f, x...);
  if constexpr (sizeof...(From) == 2) {
    auto [a, b] = std::tuple(x...);
    if (s[0] == 1 && s[1] == 0)
      return each_element(
          n, to, [f, v = *b](auto u) { return f(u, v); }, a);
    if (s[0] == 0 && s[1] == 1)
      return each_element(
          n, to, [f, u = *a](auto v) { return f(u, v); }, b);
  }
  [&]<size_t... k>(std::index_sequence<k...>) {
    for (int64_t i = 0; i < n; ++i) to[i] = f(x[i * s[k]]...);
  }
  (std::index_sequence_for<From...>());
}

// How an element is read: g++ vectorizes no loop that reads bools.
template <class T>
using Read = std::conditional_t<std::is_same_v<T, bool>, uint8_t, T>;

// out = f(x...) by element. The inputs, of types From, broadcast to the output and have any strides.
template <class To, class... From, class F>
void elementwise(const Context& c, const std::array<const Tensor*, sizeof...(From)>& in, Tensor& out, F f) {
  constexpr size_t count = sizeof...(From);
  To* to = out.data<To>();
  [&]<size_t... k>(std::index_sequence<k...>) {
    std::tuple x{reinterpret_cast<const Read<From>*>(in[k]->template data<From>())...};
    bool plain = ((in[k]->shape() == out.shape() && in[k]->is_contiguous()) && ...);
    if (plain)
      return c.pool.parallel_for(out.numel(), pointwise_grain, [&](int64_t begin, int64_t end, int) {
        each_element(end - begin, to + begin, f, std::get<k>(x) + begin...);
      });
    Walk<count> walk(out.shape(), {broadcast_strides(*in[k], out.shape())...});
    std::array<int64_t, count> steps{walk.strides[k][0]...};
    c.pool.parallel_for(out.numel(), pointwise_grain, [&](int64_t begin, int64_t end, int) {
      walk.runs(begin, end, [&](int64_t first, int64_t n, const auto& at) {
        run_of_elements(n, to + first, f, steps, std::get<k>(x) + at[k]...);
      });
    });
  }
  (std::index_sequence_for<From...>());
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
void elementwise_pair(const Context& c, const Tensor* a, const Tensor* b, Tensor& out, F f) {
  if (a && b) return elementwise<To, T, T>(c, {a, b}, out, f);
  T v = scalar<T>(c, c.attributes.as<ops::Number>().value);
  if (a)
    elementwise<To, T>(c, {a}, out, [f, v](T x) { return f(x, v); });
  else
    elementwise<To, T>(c, {b}, out, [f, v](T x) { return f(v, x); });
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
