#include "ops/loss.h"

#include <cmath>

#include "dtensor/redistribute.h"
#include "ops/cpu/fused.h"
#include "ops/cpu/rows.h"
#include "ops/kernel.h"
#include "ops/pointwise.h"
#include "ops/reduce.h"

namespace dtensor::ops {
namespace {

int64_t row_grain(int64_t v) { return std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(v, 1)); }

// x [..., v], m [...] -> the sum of exp(x - m)
void sum_exp_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  int64_t v = in[0].shape().back(), l = c.leaves("v");
  check_rows(c, in, {{0, 1}, {1, 0}});
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T *x = in[0].data<T>(), *m = in[1].data<T>();
    T* y = out[0].data<T>();
    c.pool.parallel_for(in[1].numel(), row_grain(v), [&](int64_t b, int64_t e, int) {
      for (int64_t i = b; i < e; ++i) y[i] = cpu::sum_exp(v, x + i * v, m[i], static_cast<T*>(nullptr), l);
    });
  });
}

DType first_type(std::string_view op, std::span<const TensorSpec* const> in, const Attributes&, int) {
  check(in[1]->dtype == DType::i64, "[{}] targets are i64, not {}{}", op, name(in[1]->dtype), to_string(in[1]->shape));
  return in[0]->dtype;
}

// x [..., v], target [...] -> x[target], 0 where the target is ignored or another rank has it
void pick_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  int64_t v = in[0].shape().back(), ignore = c.attributes.get<int64_t>("ignore_index");
  const int64_t* target = in[1].data<int64_t>();
  check_rows(c, in, {{0, 1}, {1, 0}});
  Range here = c.range('v');
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T* x = in[0].data<T>();
    T* y = out[0].data<T>();
    for (int64_t i = 0; i < in[1].numel(); ++i) {
      int64_t t = target[i];
      check(t == ignore || (t >= 0 && t < c.size('v')), "[cross_entropy] target {} is outside the classes [0,{})", t,
            c.size('v'));
      y[i] = t != ignore && t >= here.begin && t < here.end ? x[i * v + t - here.begin] : T(0);
    }
  });
}

// m [...], log_sum [...], picked [...], target [...] -> (m - picked) + log_sum, 0 where ignored; and 1 for each that
// counts. Not lse - picked: rounded at the size of the logits, lse would lose the small loss of a confident row.
void rows_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const int64_t* target = in[3].data<int64_t>();
  int64_t ignore = c.attributes.get<int64_t>("ignore_index");
  check_rows(c, in, {{0, 0}, {1, 0}, {2, 0}, {3, 0}});
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T *m = in[0].data<T>(), *log_sum = in[1].data<T>(), *picked = in[2].data<T>();
    T *loss = out[0].data<T>(), *counts = out[1].data<T>();
    for (int64_t i = 0; i < in[0].numel(); ++i) {
      counts[i] = target[i] == ignore ? T(0) : T(1);
      loss[i] = target[i] == ignore ? T(0) : (m[i] - picked[i]) + log_sum[i];
    }
  });
}
DType rows_type(std::string_view, std::span<const TensorSpec* const> in, const Attributes&, int) {
  return in[0]->dtype;
}
const Op rows_op = {
    .name = "cross_entropy_rows", .rule = "...,...,...,...->...,...", .types = rows_type, .cpu = rows_kernel};

// x [..., v], m [...], log_sum [...], target [...], scale [...] -> (exp(x - m - log_sum) - [target]) * scale, 0 where
// ignored
void cross_entropy_backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  int64_t v = in[0].shape().back(), ignore = c.attributes.get<int64_t>("ignore_index");
  const int64_t* target = in[3].data<int64_t>();
  Range here = c.range('v');
  check_rows(c, in, {{0, 1}, {1, 0}, {2, 0}, {3, 0}});
  Tensor scales = in[4].as_strided(in[1].shape(), broadcast_strides(in[4], in[1].shape())).contiguous();
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T *x = in[0].data<T>(), *m = in[1].data<T>(), *log_sum = in[2].data<T>(), *scale = scales.data<T>();
    T* dx = out[0].data<T>();
    c.pool.parallel_for(in[1].numel(), row_grain(v), [&](int64_t b, int64_t e, int) {
      for (int64_t i = b; i < e; ++i) {
        int64_t t = target[i];
        int64_t column = t >= here.begin && t < here.end ? t - here.begin : -1;
        if (t == ignore)
          std::fill_n(dx + i * v, v, T(0));
        else
          cpu::cross_entropy_backward(v, x + i * v, m[i], log_sum[i], column, double(scale[i]), dx + i * v);
      }
    });
  });
}
DType backward_type(std::string_view, std::span<const TensorSpec* const> in, const Attributes&, int) {
  return in[0]->dtype;
}

// Only the Partial axes change: what was sharded by rows stays so.
Layout reduced(const DistributedTensor& x) {
  Layout l = x.layout();
  l.partial = 0, l.reduce = Reduce::sum;
  return l;
}

std::vector<DistributedTensor> redistribute_to_reduced(std::vector<DistributedTensor> list) {
  std::vector<Layout> to;
  for (const DistributedTensor& x : list) to.push_back(reduced(x));
  return redistribute(list, to);
}

// -> loss, maximum [...], log of the sum [...], count
std::vector<DistributedTensor> cross_entropy_composite(std::span<const DistributedTensor* const> in,
                                                       const Attributes& a) {
  const DistributedTensor &logits = *in[0], &target = *in[1];
  Attributes ignore{{"ignore_index", a.get<int64_t>("ignore_index")}};
  DistributedTensor m = amax(logits, {-1});
  m = redistribute_to_reduced({m})[0];
  auto sums = redistribute_to_reduced({call(sum_exp_op, {&logits, &m}), call(pick_op, {&logits, &target}, ignore)});
  DistributedTensor log_sum = log(sums[0]);
  auto rows = call_all(rows_op, {&m, &log_sum, &sums[1], &target}, ignore);
  auto reduction = Reduction(a.get<int64_t>("reduction"));
  if (reduction == Reduction::none) return {rows[0], m, log_sum, rows[1]};
  auto totals = redistribute_to_reduced({sum(rows[0]), sum(rows[1])});
  return {reduction == Reduction::sum ? totals[0] : div(totals[0], totals[1]), m, log_sum, totals[1]};
}

void cross_entropy_gradient(Gradient& g) {
  bool mean = Reduction(g.attributes().get<int64_t>("reduction")) == Reduction::mean;
  DistributedTensor scale = mean ? div(g.of_output(), g.output(3)) : g.of_output();
  g.set(0, call(cross_entropy_backward_op, {&g.input(0), &g.output(1), &g.output(2), &g.input(1), &scale},
                {{"ignore_index", g.attributes().get<int64_t>("ignore_index")}}, {g.wanted(0)}));
}

SampleInput ids(Shape s, int64_t bound) { return {SampleInput::Kind::index, s, bound}; }
Attributes loss(int64_t ignore, Reduction r) { return {{"ignore_index", ignore}, {"reduction", int64_t(r)}}; }
const Attributes ignore_none{{"ignore_index", int64_t(-100)}}, ignore_one{{"ignore_index", int64_t(1)}};

}  // namespace

const Op sum_exp_op = {.name = "sum_exp",
                       .rule = "...v,...->...",
                       .cpu = sum_exp_kernel,
                       .sample = {{{{4, 3, 7}, {4, 3}}}, {{{5, 1}, {5}}}}};
const Op pick_op = {.name = "pick",
                    .rule = "...v,...->...",
                    .linear = {{0}},
                    .types = first_type,
                    .cpu = pick_kernel,
                    .sample = {{{{4, 3, 7}, ids({4, 3}, 7)}, ignore_none}, {{{5, 3}, ids({5}, 3)}, ignore_one}}};
const Op cross_entropy_backward_op = {.name = "cross_entropy_backward",
                                      .rule = "...v,...,...,...,...->...v",
                                      .linear = {{4}},
                                      .types = backward_type,
                                      .cpu = cross_entropy_backward_kernel,
                                      .sample = {{{{4, 3, 7}, {4, 3}, {4, 3}, ids({4, 3}, 7), {4, 3}}, ignore_none},
                                                 {{{5, 3}, {5}, {5}, ids({5}, 3), {}}, ignore_one}}};
const Op cross_entropy_op = {.name = "cross_entropy",
                             .composite = cross_entropy_composite,
                             .gradient = cross_entropy_gradient,
                             .keeps = {.inputs = {0, 1}, .outputs = {1, 2, 3}},
                             .sample = {{{{4, 3, 7}, ids({4, 3}, 7)}, loss(-100, Reduction::mean)},
                                        {{{5, 3}, ids({5}, 3)}, loss(1, Reduction::mean)},
                                        {{{4, 3, 7}, ids({4, 3}, 7)}, loss(2, Reduction::sum)},
                                        {{{5, 8}, ids({5}, 8)}, loss(-100, Reduction::none)},
                                        {{{1, 5}, ids({1}, 5)}, loss(-100, Reduction::mean)},
                                        {{{0, 3}, ids({0}, 3)}, loss(-100, Reduction::sum)}}};

DistributedTensor cross_entropy(const DistributedTensor& logits, const DistributedTensor& target,
                                const CrossEntropyOptions& options) {
  Shape rows = logits.shape();
  if (!rows.empty()) rows.erase(rows.dims() - 1);
  check(logits.dims() > 0 && target.shape() == rows,
        "[cross_entropy] logits {} and targets {}: one target for each row, the classes last", to_string(logits),
        to_string(target));
  return call(cross_entropy_op, {&logits, &target},
              {{"ignore_index", options.ignore_index}, {"reduction", int64_t(options.reduction)}});
}

}  // namespace dtensor::ops
