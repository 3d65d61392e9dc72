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

template <class T>
void bring(const std::byte* from, int64_t step, int64_t n, std::byte* to) {
  const T* x = reinterpret_cast<const T*>(from);
  T* y = reinterpret_cast<T*>(to);
  if (step == 1)
    std::copy_n(x, n, y);
  else if (step == 0)
    std::fill_n(y, n, *x);
  else
    for (int64_t i = 0; i < n; ++i) y[i] = x[i * step];
}
// n elements of `size` bytes, `step` elements apart, side by side.
void bring(int64_t size, const std::byte* from, int64_t step, int64_t n, std::byte* to) {
  if (size == 8)
    bring<uint64_t>(from, step, n, to);
  else if (size == 4)
    bring<uint32_t>(from, step, n, to);
  else if (size == 2)
    bring<uint16_t>(from, step, n, to);
  else
    bring<uint8_t>(from, step, n, to);
}

}  // namespace

void for_elements(const Context& c, std::span<const ElementInput> in, const Tensor& out, const void* f,
                  ElementLoop loop) {
  constexpr int64_t block = 512, largest = 8;  // elements at a time; bytes of one
  struct Input {
    const std::byte* at = nullptr;
    int64_t size = 0;
    bool whole = false;  // lies as the output does
    bool one = false;    // a single element
  };
  std::array<Input, max_elementwise> x;
  std::array<Shape, max_elementwise> strides;
  strides.fill(Shape::filled(out.dims(), 0));
  bool whole = true;
  for (size_t k = 0; k < in.size(); ++k) {
    if (const Tensor* t = in[k].tensor) {
      x[k] = {t->bytes_data(), itemsize(t->dtype()), t->shape() == out.shape() && t->is_contiguous(), t->numel() == 1};
      strides[k] = broadcast_strides(*t, out.shape());
    } else {
      x[k] = {static_cast<const std::byte*>(in[k].element), in[k].size, false, true};
    }
    whole &= x[k].whole;
  }
  Walk walk(out.shape(), strides);
  c.pool.parallel_for(out.numel(), pointwise_grain, [&](int64_t begin, int64_t end, int) {
    alignas(64) std::byte room[max_elementwise][block * largest];
    std::array<const void*, max_elementwise> from{};
    bool apart = false;  // some operand is brought together, block by block
    for (size_t k = 0; k < in.size(); ++k) {
      if (!x[k].whole) from[k] = room[k];
      if (!x[k].whole && x[k].one) bring(x[k].size, x[k].at, 0, std::min(block, end - begin), room[k]);
      apart |= !x[k].whole && !x[k].one;
    }
    for (int64_t b = begin, e; b < end; b = e) {
      e = whole ? end : std::min(end, b + block);
      for (size_t k = 0; k < in.size(); ++k)
        if (x[k].whole) from[k] = x[k].at + b * x[k].size;
      if (apart)
        walk.runs(b, e, [&](int64_t first, int64_t n, const Walk::Offsets& offset) {
          for (size_t k = 0; k < in.size(); ++k)
            if (!x[k].whole && !x[k].one)
              bring(x[k].size, x[k].at + offset[k] * x[k].size, walk.strides[k][0], n,
                    room[k] + (first - b) * x[k].size);
        });
      loop(e - b, out.bytes_data() + b * itemsize(out.dtype()), f, from);
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
