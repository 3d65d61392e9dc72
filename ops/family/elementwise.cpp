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

constexpr int64_t element_block = 512, largest_element = 8;  // elements at a time; bytes of one

struct Source {
  const std::byte* at;
  int64_t size;  // of an element, in bytes
  bool whole;    // lies as the output does
};

// Where some operand does not lie as the output does: what is not contiguous is brought together, block by block.
void for_apart(std::span<const Source> x, const Context& c, std::span<const ElementInput> in, const Tensor& out,
               const void* f, ElementLoop loop) {
  std::array<Shape, max_elementwise> strides;
  std::array<Bring, max_elementwise> bring{};
  strides.fill(Shape::filled(out.dims(), 0));
  for (size_t k = 0; k < in.size(); ++k) {
    if (in[k].tensor) strides[k] = broadcast_strides(*in[k].tensor, out.shape());
    bring[k] = bring_of(x[k].size);
  }
  Walk walk(out.shape(), strides);
  bool long_runs = walk.shape[0] >= 64;
  std::byte* to = out.bytes_data();
  int64_t to_size = itemsize(out.dtype());
  c.pool.parallel_for(out.numel(), pointwise_grain, [&](int64_t begin, int64_t end, int) {
    alignas(64) std::byte room[max_elementwise][element_block * largest_element];
    std::array<const void*, max_elementwise> from{};
    std::array<int64_t, max_elementwise> repeated{-1, -1, -1};  // the element that fills the operand's room
    if (long_runs)
      return walk.runs(begin, end, element_block, [&](int64_t first, int64_t n, const Walk::Offsets& offset) {
        for (size_t k = 0; k < x.size(); ++k) {
          const std::byte* at = x[k].at + offset[k] * x[k].size;
          int64_t step = walk.strides[k][0];
          if (step == 0 && repeated[k] != offset[k])
            bring[k](at, step, std::min(element_block, walk.shape[0]), room[k]), repeated[k] = offset[k];
          else if (step != 0 && step != 1)
            bring[k](at, step, n, room[k]);
          from[k] = step == 1 ? at : room[k];
        }
        loop(n, to + first * to_size, f, from);
      });
    for (int64_t b = begin, e; b < end; b = e) {  // short runs, side by side
      e = std::min(end, b + element_block);
      walk.runs(b, e, element_block, [&](int64_t first, int64_t n, const Walk::Offsets& offset) {
        for (size_t k = 0; k < x.size(); ++k)
          if (!x[k].whole)
            bring[k](x[k].at + offset[k] * x[k].size, walk.strides[k][0], n, room[k] + (first - b) * x[k].size);
      });
      for (size_t k = 0; k < x.size(); ++k) from[k] = x[k].whole ? x[k].at + b * x[k].size : room[k];
      loop(e - b, to + b * to_size, f, from);
    }
  });
}

}  // namespace

void for_elements(const Context& c, std::span<const ElementInput> in, const Tensor& out, const void* f,
                  ElementLoop loop) {
  std::array<Source, max_elementwise> x{};
  bool whole = true, plain = true;  // all operands lie as the output does; or are single elements
  for (size_t k = 0; k < in.size(); ++k) {
    const Tensor* t = in[k].tensor;
    x[k].at = t ? t->bytes_data() : static_cast<const std::byte*>(in[k].element);
    x[k].size = t ? itemsize(t->dtype()) : in[k].size;
    x[k].whole = t && t->is_contiguous() && t->shape() == out.shape();
    whole &= x[k].whole, plain &= x[k].whole || !t;
  }
  if (!plain) return for_apart({x.data(), in.size()}, c, in, out, f, loop);
  std::byte* to = out.bytes_data();
  int64_t to_size = itemsize(out.dtype());
  c.pool.parallel_for(out.numel(), pointwise_grain, [&](int64_t begin, int64_t end, int) {
    alignas(64) std::byte room[max_elementwise][element_block * largest_element];
    std::array<const void*, max_elementwise> from{};
    int64_t most = whole ? end - begin : std::min(element_block, end - begin);
    for (size_t k = 0; k < in.size(); ++k)
      if (!x[k].whole) bring_of(x[k].size)(x[k].at, 0, most, room[k]), from[k] = room[k];
    for (int64_t b = begin; b < end; b += most) {
      for (size_t k = 0; k < in.size(); ++k)
        if (x[k].whole) from[k] = x[k].at + b * x[k].size;
      loop(std::min(most, end - b), to + b * to_size, f, from);
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
