#include "ops/layer/convolution.h"

#include <fmt/format.h>

#include "dtensor/creation.h"
#include "ops/cards.h"
#include "ops/cpu/convolution.h"
#include "ops/family/kernel.h"
#include "ops/family/samples.h"
#include "ops/functions.h"

namespace dtensor::ops {
namespace {

constexpr const char* who = "causal_convolution";
constexpr int64_t channel_grain = 64;

int64_t tail_of(const Tensor& before) { return before.defined() ? before.size(before.dims() - 2) : 0; }

// body(batch entry, its channels)
template <class Body>
void each_entry(const Context& c, const Tensor& x, const Tensor& weight, const Tensor& before, Body body) {
  int64_t rows = x.size(x.dims() - 2), channels = x.shape().back(),
          pieces = (channels + channel_grain - 1) / channel_grain;
  c.pool.parallel_for(
      rows_of(x, 2) * pieces, std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(1, rows * channel_grain)),
      [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          int64_t first = i % pieces * channel_grain;
          body(i / pieces, cpu::Convolution{rows, channels, first, std::min(channels, first + channel_grain),
                                            weight.size(1), tail_of(before)});
        }
      });
}
template <class T>
T* entry(const Tensor& t, int64_t i) {
  return t.defined() ? t.data<T>() + i * t.size(t.dims() - 2) * t.shape().back() : nullptr;
}
void check_batch(const Context& c, std::span<const Tensor> in, int x, int before) {
  if (in[size_t(before)].defined()) check_rows(c, in, {{x, 2}, {before, 2}});
}

// x, weight, before -> y
void convolution_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  check_batch(c, in, 0, 2);
  for_floating(c, in[0].dtype(), [&]<class T>() {
    each_entry(c, in[0], in[1], in[2], [&](int64_t i, const cpu::Convolution& a) {
      cpu::convolution<T>(a, entry<T>(in[0], i), entry<T>(in[2], i), in[1].data<T>(), entry<T>(out[0], i));
    });
  });
}

// The sum over all rows of the batch, as a tree whose leaves are parts of them.
template <class T>
struct WeightGradient {
  cpu::Convolution shape;
  const Tensor &dy, &x, &before;
  int64_t all_rows;

  // Leaves [from, to) of l, into `sums` [channels, width], which is 0.
  void add(int64_t l, int64_t from, int64_t to, T* sums) const {
    if (to - from == 1) {
      int64_t row = from * all_rows / l, end = to * all_rows / l;
      while (row < end) {
        int64_t i = row / shape.rows, first = row % shape.rows, last = std::min(shape.rows, first + end - row);
        cpu::convolution_weight<T>(shape, first, last, entry<T>(dy, i), entry<T>(x, i), entry<T>(before, i), sums);
        row += last - first;
      }
      return;
    }
    int64_t middle = (from + to) / 2, begin = shape.begin * shape.width, size = shape.end * shape.width - begin;
    std::vector<T> other(size_t(shape.channels * shape.width), T(0));
    add(l, from, middle, sums);
    add(l, middle, to, other.data());
    for (int64_t j = begin; j < begin + size; ++j) sums[j] += other[size_t(j)];
  }
};

// dy, x, weight, before -> dx, dweight, and dbefore where there is that
void convolution_backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> grad) {
  check_rows(c, in, {{0, 2}, {1, 2}});
  check_batch(c, in, 1, 3);
  Tensor dbefore = in[3].defined() ? grad[2] : Tensor();
  int64_t rows = in[1].size(in[1].dims() - 2), channels = in[1].shape().back(), width = in[2].size(1),
          l = c.leaves("ABCDEFGHs");
  for_floating(c, in[1].dtype(), [&]<class T>() {
    each_entry(c, in[1], in[2], in[3], [&](int64_t i, const cpu::Convolution& a) {
      cpu::convolution_backward<T>(a, entry<T>(in[0], i), in[2].data<T>(), entry<T>(grad[0], i), entry<T>(dbefore, i));
    });
    fill(grad[1], 0);
    c.pool.parallel_for(channels, channel_grain, [&](int64_t begin, int64_t end, int) {
      WeightGradient<T> sum{
          {rows, channels, begin, end, width, tail_of(in[3])}, in[0], in[1], in[3], rows_of(in[1], 1)};
      sum.add(l, 0, l, grad[1].data<T>());
    });
  });
}

Rule convolution_rule(std::span<const Shape* const> in, const Attributes&) {
  return {fmt::format("...[s]c,c[w],{}->...[s]c", in[2] ? "...[p]c" : "")};
}
Rule convolution_backward_rule(std::span<const Shape* const> in, const Attributes&) {
  return {fmt::format("...[s]c,...[s]c,c[w],{}->...[s]c,c[w]{}", in[3] ? "...[p]c" : "", in[3] ? ",...[p]c" : "")};
}
void convolution_gradient(Gradient& g) {
  auto d = call_all(causal_convolution_backward_op, {&g.of_output(), &g.input(0), &g.input(1), &g.input(2)});
  for (size_t i = 0; i < d.size(); ++i) g.set(int(i), d[i]);
}

}  // namespace

const Op causal_convolution_op = {
    .name = "causal_convolution",
    .functions = {function<causal_convolution>("causal_convolution(x, weight, before=none)",
                                               "each channel's convolution over the tokens up to each")},
    .rule = convolution_rule,
    .passes = {linear_in({0, 2}), linear_in({1})},
    .types = floating_types,
    .optional = {2},
    .cpu = convolution_kernel,
    .gradient = convolution_gradient,
    .keeps = {.inputs = {0, 1, 2}},
    .sample = {{{{2, 5, 3}, {3, 4}, absent}}, {{{2, 5, 3}, {3, 3}, {2, 2, 3}}}, {{{2, 2, 3}, {3, 1}, absent}}}};
const Op causal_convolution_backward_op = {
    .name = "causal_convolution_backward",
    .rule = convolution_backward_rule,
    .passes = {linear_in({0})},
    .types = floating_types,
    .optional = {3},
    .cpu = convolution_backward_kernel,
    .sample = {{{{2, 5, 3}, {2, 5, 3}, {3, 4}, absent}}, {{{2, 5, 3}, {2, 5, 3}, {3, 3}, {2, 2, 3}}}}};

namespace {
constexpr const Op* convolution_ops[] = {&causal_convolution_op, &causal_convolution_backward_op};

// The sequence lies in equal parts: each is a row of its own, before which the last tokens of the part before come.
DistributedTensor over_parts(const DistributedTensor& x, const DistributedTensor& weight,
                             const DistributedTensor& before) {
  const MeshShape& mesh = x.mesh().shape();
  AxisSet axes = x.layout().split[1].set();
  int64_t parts = mesh.product(axes), length = x.size(1) / parts, tail = weight.size(1) - 1;
  check(x.size(1) % parts == 0 && length >= tail,
        "[{}] a sequence of {} over {} ranks ({}): parts must be equal and have at least {} tokens", who, x.size(1),
        parts, mesh.names(axes), tail);
  DistributedTensor rows = view(x, {x.size(0), parts, length, x.size(2)}),
                    tails = slice(rows, 2, length - tail, length);
  Layout divided = tails.layout(), whole = divided;
  for (int axis : x.layout().split[1]) whole = whole.with(axis, Replicate());
  Shape first_shape{x.size(0), 1, tail, x.size(2)};
  DistributedTensor first =
      before.defined() ? view(before, first_shape) : cast(zeros(x.mesh(), {DType::f32, first_shape, whole}), x.dtype());
  DistributedTensor all = cat({first, slice(tails.redistribute(whole), 1, 0, parts - 1)}, 1),
                    befores = all.redistribute(divided);
  return view(call(causal_convolution_op, {&rows, &weight, &befores}), x.shape());
}
}  // namespace
const Cards convolution_cards = convolution_ops;

DistributedTensor causal_convolution(const DistributedTensor& x, const DistributedTensor& weight,
                                     const DistributedTensor& before) {
  check_defined(who, x);
  check_defined(who, weight, 1);
  check(x.dims() == 3 && weight.dims() == 2 && weight.size(0) == x.size(2) && weight.size(1) > 0,
        "[{}] x {} and weight {}: x is [batch, sequence, channels], and weight [channels, width]", who, x, weight);
  if (before.defined())
    check(before.shape() == Shape({x.size(0), weight.size(1) - 1, x.size(2)}),
          "[{}] before {} is not [batch, width - 1, channels] {}", who, before,
          Shape({x.size(0), weight.size(1) - 1, x.size(2)}));
  if (x.layout().split[1].count > 0) return over_parts(x, weight, before);
  return call(causal_convolution_op, {&x, &weight, &before});
}

}  // namespace dtensor::ops
