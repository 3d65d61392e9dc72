#include "ops/reduction/statistics.h"

#include <fmt/format.h>
#include <cmath>

#include "ops/cards.h"
#include "ops/cpu/layer_norm.h"
#include "ops/cpu/rows.h"
#include "ops/family/dims.h"
#include "ops/functions.h"

namespace dtensor::ops {
namespace {

using In = std::span<const Tensor>;
using Out = std::span<Tensor>;

// "a[b]c->ac": the dimensions are whole. One more output for each further one that the cards below have.
Rule reduced_rule(std::span<const Shape* const> in, const Attributes& a) {
  return {factors(in[0]->dims(), dims_of(a)) + "->" + other_factors(in[0]->dims(), dims_of(a))};
}
Rule reduced_rule_of_two(std::span<const Shape* const> in, const Attributes& a) {
  Rule r = reduced_rule(in, a);
  return {r.text + "," + other_factors(in[0]->dims(), dims_of(a))};
}
int64_t leaves_of(const Context& c) { return c.leaves(factors_in(dims_of(c.attributes))); }
// The global number of elements of a slice.
template <class T>
T slice_count(const Context& c) {
  double n = 1;
  for (char f : factors_in(dims_of(c.attributes))) n *= double(c.size(f));
  return T(n);
}

// Room for a slice, one per worker.
template <class T>
T* row_of(const Context& c, int worker, int64_t n) {
  return c.scratch(worker).get<T>(cpu::Slot::caller, n);
}

Var var_of(const Dims& dims, double correction, bool root) { return {{dims}, correction, root}; }
VectorNorm norm_of(const Dims& dims, double p) { return {{dims}, p}; }

// --- variance

// x -> var or std, sum of x
void var_kernel(const Context& c, In in, Out out) {
  Slices s = slices_of(in[0], dims_of(c.attributes));
  int64_t l = leaves_of(c);
  bool root = c.attributes.as<Var>().std;
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T* x = s.x.data<T>();
    T *y = out[0].data<T>(), *sum = out[1].data<T>();
    T factor = T(variance_factor(double(s.n), c.attributes.as<Var>().correction));
    each_slice(c, s, [&](int64_t i, int) {
      sum[i] = cpu::sum(s.n, x + i * s.n, l);
      T v = factor * cpu::centred_squares(s.n, x + i * s.n, sum[i] / T(s.n), l);
      y[i] = root ? std::sqrt(v) : v;
    });
  });
}
// x, sum of x (or none: zero) -> each rank's sum of (x - mean)^2
void centred_squares_kernel(const Context& c, In in, Out out) {
  Slices s = slices_of(in[0], dims_of(c.attributes));
  int64_t l = leaves_of(c);
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T *x = s.x.data<T>(), *sum = in[1].defined() ? in[1].data<T>() : nullptr;
    T *y = out[0].data<T>(), n = slice_count<T>(c);
    each_slice(c, s,
               [&](int64_t i, int) { y[i] = cpu::centred_squares(s.n, x + i * s.n, sum ? sum[i] / n : T(0), l); });
  });
}
std::vector<DistributedTensor> sharded_var(std::span<const DistributedTensor* const> in, const Attributes& a) {
  const DistributedTensor& x = *in[0];
  Over dims{dims_of(a)};
  DistributedTensor s = reduced(sum(exact(x), dims_of(a)));
  DistributedTensor squares = reduced(call(centred_squares_op, {&x, &s}, dims));
  double n = double(slice_size(x.shape(), dims_of(a)));
  DistributedTensor v = mul(squares, variance_factor(n, a.as<Var>().correction));
  return {cast(a.as<Var>().std ? sqrt(v) : v, x.dtype()), s};
}

// dy, x, sum of x, var or std -> dx
void var_backward_kernel(const Context& c, In in, Out out) {
  Slices s = slices_of(in[1], dims_of(c.attributes));
  bool root = c.attributes.as<Var>().std;
  for_floating(c, in[1].dtype(), [&]<class T>() {
    const T *dy = in[0].data<T>(), *x = s.x.data<T>(), *sum = in[2].data<T>(), *y = in[3].data<T>();
    T n = slice_count<T>(c), factor = T(variance_factor(double(n), c.attributes.as<Var>().correction));
    write_slices(c, out[0], dims_of(c.attributes), [&](Tensor& to) {
      T* dx = to.data<T>();
      each_slice(c, s, [&](int64_t i, int) {
        T mean = sum[i] / n, slope = (root ? (y[i] == 0 ? T(0) : dy[i] / y[i]) : 2 * dy[i]) * factor;
        for (int64_t k = i * s.n; k < (i + 1) * s.n; ++k) dx[k] = slope * (x[k] - mean);
      });
    });
  });
}
void var_gradient(Gradient& g) {
  g.set(0, call(var_backward_op, {&g.of_output(), &g.input(0), &g.output(1), &g.output(0)}, g.attributes(),
                {g.wanted(0)}));
}

// --- norms

// The power of two below m, which scales terms so that their powers neither overflow nor vanish.
template <class T>
T scale_of(T m, double p) {
  return p == 0 || p == 1 || m == 0 || !std::isfinite(m) ? T(1) : std::ldexp(T(1), std::ilogb(m));
}
template <class T>
void powers(int64_t n, const T* x, T scale, double p, T* y) {
  if (p == 0)
    for (int64_t k = 0; k < n; ++k) y[k] = T(x[k] != 0);
  else if (p == 1)
    for (int64_t k = 0; k < n; ++k) y[k] = std::abs(x[k]);
  else if (p == 2)
    for (int64_t k = 0; k < n; ++k) y[k] = (x[k] / scale) * (x[k] / scale);
  else
    for (int64_t k = 0; k < n; ++k) y[k] = std::pow(std::abs(x[k] / scale), T(p));
}
template <class T>
T root_of(T sum, T scale, double p) {
  return p == 0 || p == 1 ? sum : scale * (p == 2 ? std::sqrt(sum) : std::pow(sum, T(1 / p)));
}

void norm_kernel(const Context& c, In in, Out out) {
  Slices s = slices_of(in[0], dims_of(c.attributes));
  int64_t l = leaves_of(c);
  double p = c.attributes.as<VectorNorm>().p;
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T* x = s.x.data<T>();
    T* y = out[0].data<T>();
    each_slice(c, s, [&](int64_t i, int worker) {
      T* row = row_of<T>(c, worker, s.n);
      powers(s.n, x + i * s.n, T(1), 1, row);
      T scale = scale_of(p < 0 ? cpu::min(s.n, row) : cpu::max(s.n, row), p);
      powers(s.n, x + i * s.n, scale, p, row);
      y[i] = root_of(cpu::sum(s.n, row, l), scale, p);
    });
  });
}
// x, largest |x| -> each rank's sum of powers, scaled
void power_sum_kernel(const Context& c, In in, Out out) {
  Slices s = slices_of(in[0], dims_of(c.attributes));
  int64_t l = leaves_of(c);
  double p = c.attributes.as<VectorNorm>().p;
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T *x = s.x.data<T>(), *m = in[1].data<T>();
    T* y = out[0].data<T>();
    each_slice(c, s, [&](int64_t i, int worker) {
      T* row = row_of<T>(c, worker, s.n);
      powers(s.n, x + i * s.n, scale_of(m[i], p), p, row);
      y[i] = cpu::sum(s.n, row, l);
    });
  });
}
// sum of powers, largest |x| -> norm
void norm_root_kernel(const Context& c, In in, Out out) {
  double p = c.attributes.as<Root>().p;
  check_rows(c, in, {{0, 0}, {1, 0}});
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T *sum = in[0].data<T>(), *m = in[1].data<T>();
    for (int64_t i = 0; i < in[0].numel(); ++i) out[0].data<T>()[i] = root_of(sum[i], scale_of(m[i], p), p);
  });
}
std::vector<DistributedTensor> sharded_norm(std::span<const DistributedTensor* const> in, const Attributes& a) {
  const DistributedTensor &x = *in[0], size = abs(x);
  double p = a.as<VectorNorm>().p;
  DistributedTensor m = exact(reduced(call(p < 0 ? amin_op : amax_op, {&size}, Over{dims_of(a)})));
  DistributedTensor s = reduced(call(power_sum_op, {&x, &m}, a));
  return {cast(call(norm_root_op, {&s, &m}, Root{p}), x.dtype())};
}

// dy, x, y -> dx = dy * sign(x) * (|x| / y)^(p-1); 0 where x or y is 0, and for p = 0
void norm_backward_kernel(const Context& c, In in, Out out) {
  Slices s = slices_of(in[1], dims_of(c.attributes));
  double p = c.attributes.as<VectorNorm>().p;
  for_floating(c, in[1].dtype(), [&]<class T>() {
    const T *dy = in[0].data<T>(), *x = s.x.data<T>(), *y = in[2].data<T>();
    auto slope = [p](T v, T size) {
      if (v == 0 || size == 0 || p == 0) return T(0);
      if (p == 1) return std::copysign(T(1), v);
      return p == 2 ? v / size : std::copysign(std::pow(std::abs(v) / size, T(p - 1)), v);
    };
    write_slices(c, out[0], dims_of(c.attributes), [&](Tensor& to) {
      T* dx = to.data<T>();
      each_slice(c, s, [&](int64_t i, int) {
        for (int64_t k = i * s.n; k < (i + 1) * s.n; ++k) dx[k] = dy[i] * slope(x[k], y[i]);
      });
    });
  });
}
void norm_gradient(Gradient& g) {
  g.set(0, call(norm_backward_op, {&g.of_output(), &g.input(0), &g.output(0)}, g.attributes(), {g.wanted(0)}));
}

// --- log of the sum of exponentials

// What is subtracted before exp: an infinite maximum would leave inf - inf.
template <class T>
T exp_sum(int64_t n, const T* x, T m, int64_t l) {
  return cpu::sum_exp(n, x, std::isinf(m) ? T(0) : m, static_cast<T*>(nullptr), l);
}

void logsumexp_kernel(const Context& c, In in, Out out) {
  Slices s = slices_of(in[0], dims_of(c.attributes));
  int64_t l = leaves_of(c);
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T* x = s.x.data<T>();
    T* y = out[0].data<T>();
    each_slice(c, s, [&](int64_t i, int) {
      T m = cpu::max(s.n, x + i * s.n), sum = exp_sum(s.n, x + i * s.n, m, l);
      cpu::log(1, &sum, &sum);
      y[i] = sum + m;
    });
  });
}
// x, maximum -> each rank's sum of exp(x - maximum)
void exp_sum_kernel(const Context& c, In in, Out out) {
  Slices s = slices_of(in[0], dims_of(c.attributes));
  int64_t l = leaves_of(c);
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T *x = s.x.data<T>(), *m = in[1].data<T>();
    T* y = out[0].data<T>();
    each_slice(c, s, [&](int64_t i, int) { y[i] = exp_sum(s.n, x + i * s.n, m[i], l); });
  });
}
std::vector<DistributedTensor> sharded_logsumexp(std::span<const DistributedTensor* const> in, const Attributes& a) {
  const DistributedTensor &x = *in[0], m = exact(reduced(call(amax_op, {&x}, a)));
  return {cast(add(log(reduced(call(exp_sum_op, {&x, &m}, a))), m), x.dtype())};
}
// dy, x, y -> dx = dy * exp(x - y)
void logsumexp_backward_kernel(const Context& c, In in, Out out) {
  Slices s = slices_of(in[1], dims_of(c.attributes));
  for_floating(c, in[1].dtype(), [&]<class T>() {
    const T *dy = in[0].data<T>(), *x = s.x.data<T>(), *y = in[2].data<T>();
    write_slices(c, out[0], dims_of(c.attributes), [&](Tensor& to) {
      each_slice(c, s, [&](int64_t i, int) {
        T* dx = to.data<T>() + i * s.n;
        cpu::sum_exp(s.n, x + i * s.n, y[i], dx);
        cpu::scale(s.n, dy[i], dx, dx);
      });
    });
  });
}
void logsumexp_gradient(Gradient& g) {
  g.set(0, call(logsumexp_backward_op, {&g.of_output(), &g.input(0), &g.output(0)}, g.attributes(), {g.wanted(0)}));
}

// The card where the dimensions are whole, else the composite.
DistributedTensor along(const Op& whole, const Op& sharded, const DistributedTensor& x, const Dims& dims, bool keepdim,
                        const Attributes& a) {
  check_defined(whole.name, x);
  check(is_floating(x.dtype()), "[{}] element type {} of {}: use cast() to a floating type", whole.name,
        name(x.dtype()), x);
  DistributedTensor y = call(sharded_along(x, dims) ? sharded : whole, {&x}, a);
  return keepdim ? reshape(y, kept_shape(x.shape(), dims)) : y;
}
DistributedTensor variance(std::string_view who, bool root, const DistributedTensor& x, const Dims& dims,
                           double correction, bool keepdim) {
  check_defined(who, x);
  Dims all = normalized_dims(who, dims, x.dims());
  return along(var_op, sharded_var_op, x, all, keepdim, var_of(all, correction, root));
}

const std::vector<Sample> var_samples = {
    {{{4, 5, 3}}, var_of({1}, 1, false)},      {{{4, 5}}, var_of({1}, 1, true)},  {{{5, 3}}, var_of({0, 1}, 0, true)},
    {{{3, 4, 2}}, var_of({0, 2}, 0.5, false)}, {{{0, 5}}, var_of({1}, 1, false)}, {{{}}, var_of({}, 0, false)}};
const std::vector<Sample> norm_samples = {{{{4, 5, 3}}, norm_of({1}, 2)}, {{{4, 5}}, norm_of({1}, 3)},
                                          {{{5, 3}}, norm_of({0, 1}, 1)}, {{{5, 3}}, norm_of({0}, 0.5)},
                                          {{{4, 3}}, norm_of({1}, -1.5)}, {{{5, 3}}, norm_of({0}, 0)},
                                          {{{0, 5}}, norm_of({1}, 2)},    {{{}}, norm_of({}, 2)}};
const std::vector<Sample> exp_samples = {
    {{{4, 5, 3}}, over({1})}, {{{4, 5}}, over({0, 1})}, {{{5, 4}}, over({0})}, {{{0, 5}}, over({1})}, {{{}}, over({})}};
const SampleInput counts{SampleInput::Kind::positive, {4, 3}};

}  // namespace

const Op var_op = {.name = "var",
                   .functions = {function<ops::var>("var(x, dim=all, correction=1, keepdim=false)",
                                                    "the variance, of n - correction degrees of freedom"),
                                 function<ops::std>("std(x, dim=all, correction=1, keepdim=false)", "its square root")},
                   .rule = reduced_rule_of_two,
                   .types = row_types<0b0, 0b10>,
                   .strided = true,
                   .cpu = var_kernel,
                   .gradient = var_gradient,
                   .keeps = {.inputs = {0}, .outputs = {0, 1}},
                   .sample = var_samples};
const Op sharded_var_op = {.name = "sharded_var",
                           .composite = sharded_var,
                           .gradient = var_gradient,
                           .keeps = {.inputs = {0}, .outputs = {0, 1}},
                           .sample = var_samples};
const Op centred_squares_op = {
    .name = "centred_squares",
    .rule = with_slices_rule,
    .types = row_types<0b10, 0b1>,
    .optional = {1},
    .cpu = centred_squares_kernel,
    .sample = {{{{4, 5, 3}, {4, 3}}, over({1})}, {{{7}, {SampleInput::Kind::absent, {}}}, over({0})}}};
const Op var_backward_op = {.name = "var_backward",
                            .rule = onto_slices_rule,
                            .passes = {linear_in({0}), linear_in({1, 2})},
                            .types = row_types<0b100, 0b0>,
                            .cpu = var_backward_kernel,
                            .sample = {{{{4, 3}, {4, 5, 3}, {4, 3}, counts}, var_of({1}, 0.5, false)},
                                       {{{4, 3}, {4, 5, 3}, {4, 3}, counts}, var_of({1}, 0.5, true)}}};

const Op norm_op = {
    .name = "norm",
    .functions = {function<norm>("norm(x, p=2, dim=all, keepdim=false)", "the sum of |x|^p, to the power of 1/p")},
    .rule = reduced_rule,
    .types = floating_types,
    .strided = true,
    .cpu = norm_kernel,
    .gradient = norm_gradient,
    .keeps = {.inputs = {0}, .outputs = {0}},
    .sample = norm_samples};
const Op sharded_norm_op = {.name = "sharded_norm",
                            .composite = sharded_norm,
                            .gradient = norm_gradient,
                            .keeps = {.inputs = {0}, .outputs = {0}},
                            .sample = norm_samples};
const Op power_sum_op = {.name = "power_sum",
                         .rule = with_slices_rule,
                         .types = row_types<0b10, 0b1>,
                         .cpu = power_sum_kernel,
                         .sample = {{{{4, 5, 3}, {4, 3}}, norm_of({1}, 2)}, {{{7}, {}}, norm_of({0}, 3)}}};
const Op norm_root_op = {.name = "norm_root",
                         .rule = "...,...->...",
                         .types = statistics_types<>,
                         .cpu = norm_root_kernel,
                         .sample = {{{counts, counts}, Root{3}}, {{counts, counts}, Root{2}}}};
const Op norm_backward_op = {
    .name = "norm_backward",
    .rule = onto_slices_rule,
    .passes = {linear_in({0})},
    .cpu = norm_backward_kernel,
    .sample = {{{{4, 3}, {4, 5, 3}, counts}, norm_of({1}, 2)}, {{{4, 3}, {4, 5, 3}, counts}, norm_of({1}, 3)}}};

const Op logsumexp_op = {
    .name = "logsumexp",
    .functions = {function<logsumexp>("logsumexp(x, dim=all, keepdim=false)", "log of the sum of exp(x)")},
    .rule = reduced_rule,
    .types = floating_types,
    .strided = true,
    .cpu = logsumexp_kernel,
    .gradient = logsumexp_gradient,
    .keeps = {.inputs = {0}, .outputs = {0}},
    .sample = exp_samples};
const Op sharded_logsumexp_op = {.name = "sharded_logsumexp",
                                 .composite = sharded_logsumexp,
                                 .gradient = logsumexp_gradient,
                                 .keeps = {.inputs = {0}, .outputs = {0}},
                                 .sample = exp_samples};
const Op exp_sum_op = {.name = "exp_sum",
                       .rule = with_slices_rule,
                       .types = row_types<0b10, 0b1>,
                       .cpu = exp_sum_kernel,
                       .sample = {{{{4, 5, 3}, {4, 3}}, over({1})}, {{{7}, {}}, over({0})}}};
const Op logsumexp_backward_op = {.name = "logsumexp_backward",
                                  .rule = onto_slices_rule,
                                  .passes = {linear_in({0})},
                                  .cpu = logsumexp_backward_kernel,
                                  .sample = {{{{4, 3}, {4, 5, 3}, {4, 3}}, over({1})}}};

namespace {
constexpr const Op* statistics_ops[] = {&var_op,
                                        &sharded_var_op,
                                        &centred_squares_op,
                                        &var_backward_op,
                                        &norm_op,
                                        &sharded_norm_op,
                                        &power_sum_op,
                                        &norm_root_op,
                                        &norm_backward_op,
                                        &logsumexp_op,
                                        &sharded_logsumexp_op,
                                        &exp_sum_op,
                                        &logsumexp_backward_op};
}  // namespace
const Cards statistics_cards = statistics_ops;

double variance_factor(double n, double correction) { return n > 0 ? 1 / std::max(0.0, n - correction) : NAN; }

DistributedTensor var(const DistributedTensor& x, const Dims& dims, double correction, bool keepdim) {
  return variance("var", false, x, dims, correction, keepdim);
}
DistributedTensor std(const DistributedTensor& x, const Dims& dims, double correction, bool keepdim) {
  return variance("std", true, x, dims, correction, keepdim);
}
DistributedTensor norm(const DistributedTensor& x, double p, const Dims& dims, bool keepdim) {
  check_defined("norm", x);
  Dims all = normalized_dims("norm", dims, x.dims());
  if (p < 0 || p == INFINITY)
    check(slice_size(x.shape(), all) > 0, "[norm] p={} of no elements: {} over {}", p, x, fmt::join(all, ","));
  if (std::isinf(p)) return p > 0 ? amax(abs(x), all, keepdim) : amin(abs(x), all, keepdim);
  return along(norm_op, sharded_norm_op, x, all, keepdim, norm_of(all, p));
}
DistributedTensor logsumexp(const DistributedTensor& x, const Dims& dims, bool keepdim) {
  check_defined("logsumexp", x);
  Dims all = normalized_dims("logsumexp", dims, x.dims());
  return along(logsumexp_op, sharded_logsumexp_op, x, all, keepdim, over(all));
}

}  // namespace dtensor::ops
