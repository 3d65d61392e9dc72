#include "ops/family/elementwise.h"

#include "ops/functions.h"

namespace dtensor {

using Kind = SampleInput::Kind;

DType number_types(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a, int output) {
  DType t = same_types(op, in, a, output);
  for (const TensorSpec* x : in)
    if (x) check(t != DType::boolean, "[{}] element type bool of {}: use cast() to a type of numbers", op, x->shape);
  return t;
}

DType compared_types(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a, int output) {
  same_types(op, in, a, output);
  return DType::boolean;
}

DType bool_types(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a, int output) {
  DType t = same_types(op, in, a, output);
  for (const TensorSpec* x : in)
    if (x)
      check(t == DType::boolean, "[{}] element type {} of {}: use ne(x, 0) or cast() to bool", op, name(t), x->shape);
  return t;
}

Walk::Walk(const Shape& out, const std::array<Shape, max_elementwise>& steps) {
  for (int d = out.dims() - 1; d >= 0; --d) {
    if (out[d] == 1) continue;
    bool joins = !shape.empty();
    for (size_t k = 0; joins && k < max_elementwise; ++k) joins = steps[k][d] == strides[k].back() * shape.back();
    if (joins) {
      shape.back() *= out[d];
      continue;
    }
    shape.push_back(out[d]);
    for (size_t k = 0; k < max_elementwise; ++k) strides[k].push_back(steps[k][d]);
  }
  if (shape.empty()) {
    shape.push_back(1);
    for (Shape& s : strides) s.push_back(0);
  }
}

namespace {

// n elements, `step` elements apart, side by side.
template <class T>
void bring(const std::byte* from, int64_t step, int64_t n, std::byte* to) {
  const T* x = reinterpret_cast<const T*>(from);
  T* y = reinterpret_cast<T*>(to);
  if (step == 0)
    for (int64_t i = 0; i < n; ++i) y[i] = *x;
  else
    for (int64_t i = 0; i < n; ++i) y[i] = x[i * step];
}
using Bring = void (*)(const std::byte* from, int64_t step, int64_t n, std::byte* to);
Bring bring_of(int64_t size) {
  return size == 8 ? bring<uint64_t> : size == 4 ? bring<uint32_t> : size == 2 ? bring<uint16_t> : bring<uint8_t>;
}

}  // namespace

void for_elements(const Context& c, std::span<const ElementInput> in, const Tensor& out, const void* f,
                  ElementLoop loop) {
  constexpr int64_t block = 512, largest = 8;  // elements at a time; bytes of one
  struct Input {
    const std::byte* at;
    int64_t size;
    bool whole;  // lies as the output does
    Bring bring;
  };
  std::array<Input, max_elementwise> x{};
  std::array<Shape, max_elementwise> strides;
  strides.fill(Shape::filled(out.dims(), 0));
  bool whole = true;
  for (size_t k = 0; k < in.size(); ++k) {
    const Tensor* t = in[k].tensor;
    if (t) strides[k] = broadcast_strides(*t, out.shape());
    x[k].at = t ? t->bytes_data() : static_cast<const std::byte*>(in[k].element);
    x[k].size = t ? itemsize(t->dtype()) : in[k].size;
    x[k].whole = t && t->shape() == out.shape() && t->is_contiguous();
    x[k].bring = bring_of(x[k].size);
    whole &= x[k].whole;
  }
  std::byte* to = out.bytes_data();
  int64_t to_size = itemsize(out.dtype());
  Walk walk(out.shape(), strides);
  bool long_runs = walk.shape[0] >= 64;
  c.pool.parallel_for(out.numel(), pointwise_grain, [&](int64_t begin, int64_t end, int) {
    alignas(64) std::byte room[max_elementwise][block * largest];
    std::array<const void*, max_elementwise> from{};
    std::array<int64_t, max_elementwise> repeated{-1, -1, -1};  // the element that fills the operand's room
    // Elements [b, e) of what lies as the output does.
    auto compute = [&](int64_t b, int64_t e) {
      for (size_t k = 0; k < in.size(); ++k)
        if (x[k].whole) from[k] = x[k].at + b * x[k].size;
      loop(e - b, to + b * to_size, f, from);
    };
    if (whole) return compute(begin, end);
    if (long_runs)
      return walk.runs(begin, end, block, [&](int64_t first, int64_t n, const Walk::Offsets& offset) {
        for (size_t k = 0; k < in.size(); ++k) {
          const std::byte* at = x[k].at + offset[k] * x[k].size;
          int64_t step = walk.strides[k][0];
          if (step == 0 && repeated[k] != offset[k])
            x[k].bring(at, step, block, room[k]), repeated[k] = offset[k];
          else if (step != 0 && step != 1)
            x[k].bring(at, step, n, room[k]);
          from[k] = step == 1 ? at : room[k];
        }
        loop(n, to + first * to_size, f, from);
      });
    for (size_t k = 0; k < in.size(); ++k) from[k] = room[k];
    for (int64_t b = begin, e; b < end; b = e) {  // short runs, side by side
      e = std::min(end, b + block);
      walk.runs(b, e, block, [&](int64_t first, int64_t n, const Walk::Offsets& offset) {
        for (size_t k = 0; k < in.size(); ++k)
          if (!x[k].whole)
            x[k].bring(x[k].at + offset[k] * x[k].size, walk.strides[k][0], n, room[k] + (first - b) * x[k].size);
      });
      compute(b, e);
    }
  });
}

Op unary(Op card) {
  if (!card.rule.function()) card.rule = "...->...";
  if (card.types == same_types) card.types = floating_types;
  card.strided = true;
  if (card.sample.empty()) card.sample = ops::unary_samples();
  return card;
}

Op unary_card(UnaryTypes types, Op card) {
  bool numbers = types == UnaryTypes::numbers, tests = types == UnaryTypes::tests, logic = types == UnaryTypes::logic;
  card.types = numbers ? number_types : tests ? compared_types : logic ? bool_types : floating_types;
  if (card.sample.empty()) card.sample = ops::unary_samples(logic ? Kind::boolean : Kind::normal);
  if (numbers || tests) card.sample = ops::joined(std::move(card.sample), ops::unary_samples(Kind::index));
  return unary(std::move(card));
}

Op binary(Op card) {
  if (!card.rule.function()) card.rule = "...,...->...";
  if (card.types == same_types) card.types = number_types;
  card.strided = true;
  if (card.sample.empty()) card.sample = ops::binary_samples();
  return card;
}

Op gradient_op(Op card) {
  card.passes = {linear_in({0})};
  card.types = floating_types;
  if (card.sample.empty()) card.sample = {{{{5, 3}, {5, 3}}}, {{{2, 1, 4}, {2, 1, 4}}}};
  return binary(std::move(card));
}

void set_reduced(Gradient& g, int i, const DistributedTensor& gradient) {
  if (g.needs(i)) g.set(i, ops::sum_to(gradient, g.input_spec(i).shape));
}
void zero_gradient(Gradient&) {}

}  // namespace dtensor
