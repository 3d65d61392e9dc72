#include "ops/layer/loss.h"

#include <cmath>

#include "dtensor/redistribute.h"
#include "ops/cards.h"
#include "ops/cpu/fused.h"
#include "ops/cpu/rows.h"
#include "ops/family/dims.h"
#include "ops/family/kernel.h"
#include "ops/family/samples.h"
#include "ops/functions.h"

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

// The sum of m - x: what label smoothing needs of a row, without the rounding of large logits.
template <class T>
T sum_below(const Context& c, int worker, int64_t v, const T* x, T m, int64_t l) {
  T* below = c.scratch(worker).template get<T>(cpu::Slot::caller, v);
  for (int64_t j = 0; j < v; ++j) below[j] = m - x[j];
  return cpu::sum(v, below, l);
}

// x [..., v], m [...] -> that sum
void sum_below_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  int64_t v = in[0].shape().back(), l = c.leaves("v");
  check_rows(c, in, {{0, 1}, {1, 0}});
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T *x = in[0].data<T>(), *m = in[1].data<T>();
    T* y = out[0].data<T>();
    c.pool.parallel_for(in[1].numel(), row_grain(v), [&](int64_t b, int64_t e, int worker) {
      for (int64_t i = b; i < e; ++i) y[i] = sum_below(c, worker, v, x + i * v, m[i], l);
    });
  });
}

void check_target(int64_t t, int64_t ignore, int64_t classes) {
  check(t == ignore || (t >= 0 && t < classes), "[cross_entropy] target {} is outside the classes [0,{})", t, classes);
}

// x [..., v], target [...] -> x[target], 0 where the target is ignored or another rank has it
void pick_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  int64_t v = in[0].shape().back(), ignore = c.attributes.as<Ignore>().ignore_index;
  const int64_t* target = in[1].data<int64_t>();
  check_rows(c, in, {{0, 1}, {1, 0}});
  Range here = c.range('v');
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T* x = in[0].data<T>();
    T* y = out[0].data<T>();
    for (int64_t i = 0; i < in[1].numel(); ++i) {
      int64_t t = target[i];
      check_target(t, ignore, c.size('v'));
      y[i] = t != ignore && t >= here.begin && t < here.end ? x[i * v + t - here.begin] : T(0);
    }
  });
}

// (m - picked) + log_sum. Not lse - picked: rounded at the size of the logits, lse would lose the small loss of a
// confident row. With smoothing s, (1 - s) of m - picked and s of the mean of m - x, whose sum is `below`.
template <class T>
T loss_of_row(T m, T log_sum, T picked, T below, double smoothing, double classes) {
  T d = m - picked;
  if (smoothing > 0) d = T(1 - smoothing) * d + T(smoothing / classes) * below;
  return d + log_sum;
}

// m [...], log_sum [...], picked [...], target [...], below [...] -> the loss, 0 where ignored; and 1 for each that
// counts
void rows_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const int64_t* target = in[3].data<int64_t>();
  int64_t ignore = c.attributes.as<Ignore>().ignore_index;
  check_rows(c, in, {{0, 0}, {1, 0}, {2, 0}, {3, 0}});
  if (in[4].defined()) check_rows(c, in, {{0, 0}, {4, 0}});
  double smoothing = c.attributes.as<Smoothed>().label_smoothing, classes = double(c.attributes.as<LossRows>().classes);
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T *m = in[0].data<T>(), *log_sum = in[1].data<T>(), *picked = in[2].data<T>();
    const T* below = in[4].defined() ? in[4].data<T>() : nullptr;
    T *loss = out[0].data<T>(), *counts = out[1].data<T>();
    for (int64_t i = 0; i < in[0].numel(); ++i) {
      bool ignored = target[i] == ignore;
      counts[i] = T(!ignored);
      loss[i] = ignored ? T(0) : loss_of_row(m[i], log_sum[i], picked[i], below ? below[i] : T(0), smoothing, classes);
    }
  });
}

// x [..., v], target [...] -> the loss, m, log_sum and counts of above, where the classes are whole: a row at a time
void forward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  int64_t v = in[0].shape().back(), ignore = c.attributes.as<Ignore>().ignore_index, l = c.leaves("v");
  const int64_t* target = in[1].data<int64_t>();
  check_rows(c, in, {{0, 1}, {1, 0}});
  double smoothing = c.attributes.as<Smoothed>().label_smoothing;
  for_floating(c, in[0].dtype(), [&]<class T>() {
    T *loss = out[0].data<T>(), *m = out[1].data<T>(), *log_sum = out[2].data<T>(), *counts = out[3].data<T>();
    c.pool.parallel_for(in[1].numel(), row_grain(v), [&](int64_t b, int64_t e, int worker) {
      for (int64_t i = b; i < e; ++i) {
        const T* x = in[0].data<T>() + i * v;
        bool ignored = target[i] == ignore;
        check_target(target[i], ignore, v);
        m[i] = cpu::max(v, x);
        log_sum[i] = cpu::sum_exp(v, x, m[i], static_cast<T*>(nullptr), l);
        cpu::log(1, log_sum + i, log_sum + i);
        T below = smoothing > 0 ? sum_below(c, worker, v, x, m[i], l) : T(0);
        counts[i] = T(!ignored);
        loss[i] = ignored ? T(0) : loss_of_row(m[i], log_sum[i], x[target[i]], below, smoothing, double(v));
      }
    });
  });
}

// dx += the gradient of the part of the loss that smoothing moves from the target (column t, -1 if elsewhere) to all
// classes.
template <class T>
void smooth(int64_t v, int64_t t, double moved, double classes, T* dx) {
  for (int64_t j = 0; j < v; ++j) dx[j] -= T(moved / classes);
  if (t >= 0) dx[t] += T(moved);
}

// x [..., v], m [...], log_sum [...], target [...], scale [...] -> (exp(x - m - log_sum) - [target]) * scale, 0 where
// ignored
void cross_entropy_backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  int64_t v = in[0].shape().back(), ignore = c.attributes.as<Ignore>().ignore_index;
  const int64_t* target = in[3].data<int64_t>();
  Range here = c.range('v');
  check_rows(c, in, {{0, 1}, {1, 0}, {2, 0}, {3, 0}});
  double smoothing = c.attributes.as<Smoothed>().label_smoothing;
  Tensor scales = in[4].as_strided(in[1].shape(), broadcast_strides(in[4], in[1].shape())).contiguous();
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T *x = in[0].data<T>(), *m = in[1].data<T>(), *log_sum = in[2].data<T>(), *scale = scales.data<T>();
    T* dx = out[0].data<T>();
    c.pool.parallel_for(in[1].numel(), row_grain(v), [&](int64_t b, int64_t e, int) {
      for (int64_t i = b; i < e; ++i) {
        int64_t t = target[i];
        int64_t column = t >= here.begin && t < here.end ? t - here.begin : -1;
        if (t == ignore) {
          std::fill_n(dx + i * v, v, T(0));
          continue;
        }
        cpu::cross_entropy_backward(v, x + i * v, m[i], log_sum[i], column, double(scale[i]), dx + i * v);
        if (smoothing > 0) smooth(v, column, smoothing * double(scale[i]), double(c.size('v')), dx + i * v);
      }
    });
  });
}
// Kernels read the logits several times: turned ones (classes were not last) are put in order once.
DistributedTensor contiguous(const DistributedTensor& x) {
  if (x.is_meta() || x.local().is_contiguous()) return x;
  return DistributedTensor::from_local(x.local().contiguous(), x.mesh(), x.layout(), x.shape());
}

// -> loss, maximum [...], log of the sum [...], count
std::vector<DistributedTensor> cross_entropy_composite(std::span<const DistributedTensor* const> in,
                                                       const Attributes& a) {
  auto rows = cross_entropy_rows(contiguous(*in[0]), *in[1], a.as<Smoothed>());
  Reduction reduction = a.as<CrossEntropy>().reduction;
  if (reduction == Reduction::none) return rows;
  auto totals = reduced({sum(rows[0]), sum(rows[3])});
  return {reduction == Reduction::sum ? totals[0] : div(totals[0], totals[1]), rows[1], rows[2], totals[1]};
}

void cross_entropy_gradient(Gradient& g) {
  const auto& a = g.attributes().as<CrossEntropy>();
  bool mean = a.reduction == Reduction::mean;
  DistributedTensor scale = mean ? div(g.of_output(), g.output(3)) : g.of_output();
  g.set(0, call(cross_entropy_backward_op, {&g.input(0), &g.output(1), &g.output(2), &g.input(1), &scale}, Smoothed(a),
                {g.wanted(0)}));
}

Smoothed smoothed(int64_t ignore, double smoothing) { return {{ignore}, smoothing}; }
CrossEntropy loss(int64_t ignore, Reduction r, double smoothing = 0) { return {smoothed(ignore, smoothing), r}; }
LossRows of_rows(int64_t ignore, double smoothing) { return {smoothed(ignore, smoothing), 7}; }

}  // namespace

const Op sum_exp_op = {.name = "sum_exp",
                       .rule = "...v,...->...",
                       .types = row_types<0b10, 0b1>,
                       .cpu = sum_exp_kernel,
                       .sample = {{{{4, 3, 7}, {4, 3}}}, {{{5, 1}, {5}}}}};
const Op pick_op = {.name = "pick",
                    .rule = "...v,...->...",
                    .passes = {linear_in({0})},
                    .types = row_types<0b00, 0b1, 0b10>,
                    .cpu = pick_kernel,
                    .sample = {{{{4, 3, 7}, ids({4, 3}, 7)}, Ignore{-100}}, {{{5, 3}, ids({5}, 3)}, Ignore{1}}}};
const Op sum_below_op = {.name = "sum_below",
                         .rule = "...v,...->...",
                         .passes = {linear_in({0, 1})},
                         .types = row_types<0b10, 0b1>,
                         .cpu = sum_below_kernel,
                         .sample = {{{{4, 3, 7}, {4, 3}}}, {{{5, 1}, {5}}}}};
const Op cross_entropy_backward_op = {
    .name = "cross_entropy_backward",
    .rule = "...v,...,...,...,...->...v",
    .passes = {linear_in({4})},
    .types = row_types<0b10110, 0b0, 0b1000>,
    .cpu = cross_entropy_backward_kernel,
    .sample = {{{{4, 3, 7}, {4, 3}, {4, 3}, ids({4, 3}, 7), {4, 3}}, smoothed(-100, 0)},
               {{{4, 3, 7}, {4, 3}, {4, 3}, ids({4, 3}, 7), {4, 3}}, smoothed(-100, 0.1)},
               {{{5, 3}, {5}, {5}, ids({5}, 3), {}}, smoothed(1, 0.5)}}};
const Op cross_entropy_rows_op = {
    .name = "cross_entropy_rows",
    .rule = "...,...,...,...,...->...,...",
    .passes = {passes({0, 1, 2, 4}, Reduce::sum).only_to({0})},
    .types = statistics_types<0b1000>,
    .optional = {4},
    .cpu = rows_kernel,
    .sample = {{{{4, 3}, {4, 3}, {4, 3}, ids({4, 3}, 7), {4, 3}}, of_rows(-100, 0.5)},
               {{{5}, {5}, {5}, ids({5}, 3), {SampleInput::Kind::absent, {}}}, of_rows(1, 0)}}};
const Op cross_entropy_forward_op = {
    .name = "cross_entropy_forward",
    .rule = "...[v],...->...,...,...,...",
    .types = row_types<0b00, 0b1111, 0b10>,
    .cpu = forward_kernel,
    .sample = {{{{4, 3, 7}, ids({4, 3}, 7)}, smoothed(-100, 0)}, {{{5, 3}, ids({5}, 3)}, smoothed(1, 0.2)}}};
const Op cross_entropy_op = {
    .name = "cross_entropy",
    .functions =
        {function("cross_entropy(logits, target, ignore_index=-100, reduction=mean, label_smoothing=0, class_dim=-1)",
                  "the negative log-likelihood of the target classes",
                  [](Arguments& a) -> List {
                    return {cross_entropy(a.tensor(0), a.tensor(1),
                                          {.ignore_index = a.integer("ignore_index", -100),
                                           .reduction = reduction_of(a),
                                           .label_smoothing = a.number("label_smoothing", 0),
                                           .class_dim = a.integer("class_dim", -1)})};
                  }),
         function("mse_loss(input, target, reduction=mean)", "(input - target)^2",
                  [](Arguments& a) -> List { return {mse_loss(a.tensor(0), a.tensor(1), reduction_of(a))}; })},
    .composite = cross_entropy_composite,
    .gradient = cross_entropy_gradient,
    .keeps = {.inputs = {0, 1}, .outputs = {1, 2, 3}},
    .sample = {{{{4, 3, 7}, ids({4, 3}, 7)}, loss(-100, Reduction::mean)},
               {{{5, 3}, ids({5}, 3)}, loss(1, Reduction::mean)},
               {{{4, 3, 7}, ids({4, 3}, 7)}, loss(2, Reduction::sum)},
               {{{4, 3, 7}, ids({4, 3}, 7)}, loss(1, Reduction::mean, 0.2)},
               {{{5, 8}, ids({5}, 8)}, loss(-100, Reduction::none, 1)},
               {{{5, 8}, ids({5}, 8)}, loss(-100, Reduction::none)},
               {{{1, 5}, ids({1}, 5)}, loss(-100, Reduction::mean)},
               {{{0, 3}, ids({0}, 3)}, loss(-100, Reduction::sum)}}};

namespace {
constexpr const Op* loss_ops[] = {&sum_exp_op,
                                  &sum_below_op,
                                  &pick_op,
                                  &cross_entropy_forward_op,
                                  &cross_entropy_rows_op,
                                  &cross_entropy_backward_op,
                                  &cross_entropy_op};
}  // namespace
const Cards loss_cards = loss_ops;

Reduction reduction_of(Arguments& a) {
  std::string r = a.text("reduction", "mean");
  for (Reduction reduction : {Reduction::none, Reduction::sum, Reduction::mean})
    if (r == name(reduction)) return reduction;
  fail("[{}] reduction={}: it is none, sum or mean", a.function(), r);
}

std::vector<DistributedTensor> cross_entropy_rows(const DistributedTensor& logits, const DistributedTensor& target,
                                                  const Smoothed& a) {
  double smoothing = a.label_smoothing;
  if (!sharded_along(logits, {logits.dims() - 1})) return call_all(cross_entropy_forward_op, {&logits, &target}, a);
  DistributedTensor m = exact(reduced(amax(logits, {-1})));
  std::vector<DistributedTensor> sums{call(sum_exp_op, {&logits, &m}), call(pick_op, {&logits, &target}, Ignore(a))};
  if (smoothing > 0) sums.push_back(call(sum_below_op, {&logits, &m}));
  sums = reduced(std::move(sums));
  DistributedTensor log_sum = log(sums[0]), below = smoothing > 0 ? sums[2] : DistributedTensor();
  auto rows = call_all(cross_entropy_rows_op, {&m, &log_sum, &sums[1], &target, &below}, LossRows{a, logits.size(-1)});
  return {rows[0], m, log_sum, rows[1]};
}

DistributedTensor reduced_once(const char* who, const DistributedTensor& x) {
  if (!x.layout().partial) return x;
  LabelScope label(x.mesh().rank_state(), Label::Kind::reason, who);
  return reduced(x);
}

DistributedTensor cross_entropy(const DistributedTensor& logits, const DistributedTensor& target,
                                const CrossEntropyOptions& options) {
  check_defined("cross_entropy", logits);
  check_defined("cross_entropy", target, 1);
  check(!is_floating(target.dtype()),
        "[cross_entropy] targets are i64, not {}{}: class indices; of class probabilities take "
        "-(probabilities * log_softmax(logits)).sum(class_dim) instead",
        name(target.dtype()), target.shape());
  check(logits.dims() > 0, "[cross_entropy] logits {} have no dimension of classes", logits);
  int classes = normalize_dim("cross_entropy", options.class_dim, logits.dims());
  check(logits.shape()[classes] > 0, "[cross_entropy] logits {} have no classes in dimension {} (class_dim)", logits,
        classes);
  Shape rows = logits.shape();
  rows.erase(classes);
  check(target.shape() == rows,
        "[cross_entropy] logits {} and targets {}: one target for each row, the classes are dimension {} (class_dim)",
        logits, target, classes);
  check(options.label_smoothing >= 0 && options.label_smoothing <= 1,
        "[cross_entropy] label_smoothing {} is outside [0,1]", options.label_smoothing);
  DistributedTensor x = reduced_once("cross_entropy", logits);
  if (classes != logits.dims() - 1) {
    Dims order;
    for (int d = 0; d < logits.dims(); ++d)
      if (d != classes) order.push_back(d);
    order.push_back(classes);
    x = permute(x, order);
  }
  return call(cross_entropy_op, {&x, &target},
              CrossEntropy{{{options.ignore_index}, options.label_smoothing}, options.reduction});
}

DistributedTensor mse_loss(const DistributedTensor& input, const DistributedTensor& target, Reduction reduction) {
  check_defined("mse_loss", input);
  check_defined("mse_loss", target, 1);
  check(input.shape() == target.shape(), "[mse_loss] input {} and target {} have two shapes; use expand()", input,
        target);
  check(is_floating(input.dtype()), "[mse_loss] input {} is of no floating type; use cast()", input);
  bool alike = input.layout().partial == target.layout().partial;  // then the difference is reduced, not both
  DistributedTensor difference =
      alike ? sub(input, target) : sub(reduced_once("mse_loss", input), reduced_once("mse_loss", target));
  DistributedTensor each = square(reduced_once("mse_loss", difference));
  if (reduction == Reduction::none) return each;
  DistributedTensor total = reduced_once("mse_loss", sum(each));
  return reduction == Reduction::sum ? total : mul(total, 1 / double(numel(input.shape())));
}

}  // namespace dtensor::ops
