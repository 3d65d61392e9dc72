#include "ops/layer/norm.h"

#include "ops/cards.h"
#include "ops/cpu/fused.h"
#include "ops/family/dims.h"
#include "ops/functions.h"

namespace dtensor::ops {
namespace {

// x, weight -> y, and of each row 1 / sqrt(mean(x^2) + eps), which the gradient keeps
void rms_norm_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  int64_t rows = rows_of(in[0]), d = in[0].shape().back();
  double eps = c.attributes.as<RmsNorm>().eps;
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T *x = in[0].data<T>(), *w = in[1].data<T>();
    T *y = out[0].data<T>(), *rstd = out[1].data<T>();
    c.pool.parallel_for(
        rows, std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(d, 1)),
        [&](int64_t b, int64_t e, int) { cpu::rms_norm(e - b, d, x + b * d, w, eps, y + b * d, rstd + b); });
  });
}

// x, residual, weight -> y, h = x + residual, rstd: row by row, while they are in the cache
void add_rms_norm_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  int64_t rows = rows_of(in[0]), d = in[0].shape().back();
  double eps = c.attributes.as<RmsNorm>().eps;
  check_rows(c, in, {{0, 1}, {1, 1}});
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T *x = in[0].data<T>(), *residual = in[1].data<T>(), *w = in[2].data<T>();
    T *y = out[0].data<T>(), *h = out[1].data<T>(), *rstd = out[2].data<T>();
    c.pool.parallel_for(rows, std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(d, 1)),
                        [&](int64_t b, int64_t e, int) {
                          for (int64_t r = b; r < e; ++r) {
                            for (int64_t j = r * d; j < (r + 1) * d; ++j) h[j] = x[j] + residual[j];
                            cpu::rms_norm(1, d, h + r * d, w, eps, y + r * d, rstd + r);
                          }
                        });
  });
}

// dy, x, weight, rstd and perhaps dx0 -> dx (+ dx0), dweight
void rms_norm_backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  int64_t rows = rows_of(in[1]), d = in[1].shape().back();
  bool more = in.size() > 4;
  check_rows(c, in.first(4), {{0, 1}, {1, 1}, {3, 0}});
  if (more) check_rows(c, in, {{0, 1}, {4, 1}});
  for_floating(c, in[1].dtype(), [&]<class T>() {
    const T *dy = in[0].data<T>(), *x = in[1].data<T>(), *w = in[2].data<T>(), *rstd = in[3].data<T>();
    const T* dx0 = more ? in[4].data<T>() : nullptr;
    T *dx = out[0].data<T>(), *dw = out[1].data<T>();
    c.pool.parallel_for(rows, std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(d, 1)),
                        [&](int64_t b, int64_t e, int) {
                          cpu::rms_norm_backward(e - b, d, dy + b * d, x + b * d, w, rstd + b, dx + b * d);
                          if (more)
                            for (int64_t j = b * d; j < e * d; ++j) dx[j] += dx0[j];
                        });
    int64_t l = c.leaves_of_dots();
    c.pool.parallel_for(
        d, 64, [&](int64_t b, int64_t e, int) { cpu::rms_norm_backward_weight(rows, d, b, e, dy, x, rstd, dw, l); });
  });
}

// What came for x before, as from a residual path round the norm, is added while the rows are at hand.
void rms_norm_gradient(Gradient& g) {
  const DistributedTensor& dy = g.of_output();
  DistributedTensor* sum = g.needs(0) ? g.sum(0) : nullptr;
  DistributedTensor before;
  if (sum && sum->layout() == dy.layout() && sum->dtype() == dy.dtype()) before = std::exchange(*sum, {});
  auto d = before.defined() ? call_all(add_rms_norm_backward_op, {&dy, &g.input(0), &g.input(1), &g.output(1), &before})
                            : call_all(rms_norm_backward_op, {&dy, &g.input(0), &g.input(1), &g.output(1)});
  g.set(0, d[0]);
  g.set(1, d[1]);
}

void add_rms_norm_gradient(Gradient& g) {
  const DistributedTensor &dy = g.of_output(0), &dh = g.of_output(1);
  DistributedTensor dx = dh;
  if (dy.defined()) {
    auto d = dh.defined() ? call_all(add_rms_norm_backward_op, {&dy, &g.output(1), &g.input(2), &g.output(2), &dh})
                          : call_all(rms_norm_backward_op, {&dy, &g.output(1), &g.input(2), &g.output(2)});
    dx = d[0];
    g.set(2, d[1]);
  }
  g.set(0, dx);
  g.set(1, dx);
}

const RmsNorm eps{1e-5};

}  // namespace

const Op rms_norm_op = {
    .name = "rms_norm",
    .functions = {function<rms_norm>("rms_norm(x, weight, eps=1e-6)", "x / sqrt(mean(x^2) + eps) * weight")},
    .rule = "...[d],[d]->...[d],...",
    .passes = {passes({1}, Reduce::sum).only_to({0})},
    .types = row_types<0b00, 0b10>,
    .cpu = rms_norm_kernel,
    .gradient = rms_norm_gradient,
    .keeps = {.inputs = {0, 1}, .outputs = {1}},
    .sample = {{{{4, 3, 6}, {6}}, eps}, {{{1, 5}, {5}}, eps}, {{{0, 5}, {5}}, eps}}};
const Op rms_norm_backward_op = {.name = "rms_norm_backward",
                                 .rule = "...[d],...[d],[d],...->...[d],[d]",
                                 .passes = {linear_in({0}), passes({2}, Reduce::sum).only_to({0})},
                                 .types = row_types<0b1000, 0b00>,
                                 .cpu = rms_norm_backward_kernel,
                                 .sample = {{{{4, 3, 6}, {4, 3, 6}, {6}, {SampleInput::Kind::positive, {4, 3}}}}}};

const Op add_rms_norm_op = {
    .name = "add_rms_norm",
    .rule = "...[d],...[d],[d]->...[d],...[d],...",
    .passes = {passes({2}, Reduce::sum).only_to({0})},
    .types = row_types<0b000, 0b100>,
    .cpu = add_rms_norm_kernel,
    .gradient = add_rms_norm_gradient,
    .keeps = {.inputs = {2}, .outputs = {1, 2}},
    .sample = {{{{4, 3, 6}, {4, 3, 6}, {6}}, eps}, {{{1, 5}, {1, 5}, {5}}, eps}, {{{0, 5}, {0, 5}, {5}}, eps}}};
// dy, h, weight, rstd, dh -> dx, which is also the gradient of the residual, and dweight
const Op add_rms_norm_backward_op = {
    .name = "add_rms_norm_backward",
    .rule = "...[d],...[d],[d],...,...[d]->...[d],[d]",
    .passes = {linear_in({0, 4}), passes({2, 4}, Reduce::sum).only_to({0})},
    .types = row_types<0b01000, 0b00>,
    .cpu = rms_norm_backward_kernel,
    .sample = {{{{4, 3, 6}, {4, 3, 6}, {6}, {SampleInput::Kind::positive, {4, 3}}, {4, 3, 6}}}}};

namespace {
constexpr const Op* norm_ops[] = {&rms_norm_op, &rms_norm_backward_op, &add_rms_norm_op, &add_rms_norm_backward_op};
}  // namespace
const Cards norm_cards = norm_ops;

DistributedTensor rms_norm(const DistributedTensor& x, const DistributedTensor& weight, double e) {
  check_defined("rms_norm", x);
  if (x.dims() > 0 && sharded_along(x, {x.dims() - 1}))
    return call(sharded_rms_norm_op, {&x, &weight}, LayerNorm{{1}, e});
  return call(rms_norm_op, {&x, &weight}, RmsNorm{e});
}

std::tuple<DistributedTensor, DistributedTensor> add_rms_norm(const DistributedTensor& x,
                                                              const DistributedTensor& residual,
                                                              const DistributedTensor& weight, double e) {
  auto outputs = call_all(add_rms_norm_op, {&x, &residual, &weight}, RmsNorm{e});
  return {outputs[0], outputs[1]};
}

}  // namespace dtensor::ops
