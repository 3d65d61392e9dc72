#include "ops/reduction/softmax.h"

#include "ops/cards.h"
#include "ops/cpu/rows.h"
#include "ops/family/dims.h"
#include "ops/functions.h"

namespace dtensor::ops {
namespace {

using In = std::span<const Tensor>;
using Out = std::span<Tensor>;

// f(x, y) of each slice along the dimension, y being the output's.
template <class T, class F>
void map_slices(const Context& c, const Tensor& x, Tensor& out, F f) {
  Slices s = slices_of(x, dims_of(c.attributes));
  write_slices(c, out, dims_of(c.attributes), [&](Tensor& to) {
    each_slice(c, s, [&](int64_t i, int) { f(i, s.n, s.x.data<T>() + i * s.n, to.data<T>() + i * s.n); });
  });
}
template <class T>
T log_of(T v) {
  cpu::log(1, &v, &v);
  return v;
}
template <class T>
void subtract(int64_t n, const T* x, T m, T log_sum, T* y) {
  for (int64_t k = 0; k < n; ++k) y[k] = (x[k] - m) - log_sum;
}

void softmax_kernel(const Context& c, In in, Out out) {
  int64_t l = c.leaves(factors_in(dims_of(c.attributes)));
  for_floating(c, in[0].dtype(), [&]<class T>() {
    map_slices<T>(c, in[0], out[0], [&](int64_t, int64_t n, const T* x, T* y) {
      T sum = cpu::sum_exp(n, x, cpu::max(n, x), y, l);
      for (int64_t k = 0; k < n; ++k) y[k] /= sum;
    });
  });
}
void log_softmax_kernel(const Context& c, In in, Out out) {
  int64_t l = c.leaves(factors_in(dims_of(c.attributes)));
  for_floating(c, in[0].dtype(), [&]<class T>() {
    map_slices<T>(c, in[0], out[0], [&](int64_t, int64_t n, const T* x, T* y) {
      T m = cpu::max(n, x);
      subtract(n, x, m, log_of(cpu::sum_exp(n, x, m, static_cast<T*>(nullptr), l)), y);
    });
  });
}

// dy, y -> dx. `log`: dx = dy - exp(y) * sum(dy), else y * (dy - sum(dy * y)). Where the dimension is sharded the sum
// is the third operand.
template <bool log>
void backward_kernel(const Context& c, In in, Out out) {
  const Dims& dims = dims_of(c.attributes);
  int64_t l = c.leaves(factors_in(dims));
  Slices dys = slices_of(in[0], dims);
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T* given = in.size() > 2 ? in[2].data<T>() : nullptr;
    map_slices<T>(c, in[1], out[0], [&](int64_t i, int64_t n, const T* y, T* dx) {
      const T* dy = dys.x.data<T>() + i * n;
      T sum = given ? given[i] : log ? cpu::sum(n, dy, l) : cpu::dot(n, dy, y, l);
      if constexpr (log) {
        cpu::exp(n, y, dx);
        for (int64_t k = 0; k < n; ++k) dx[k] = dy[k] - dx[k] * sum;
      } else {
        for (int64_t k = 0; k < n; ++k) dx[k] = y[k] * (dy[k] - sum);
      }
    });
  });
}

// x, maximum -> exp(x - maximum), and each rank's sum of it
void exp_shifted_kernel(const Context& c, In in, Out out) {
  int64_t l = c.leaves(factors_in(dims_of(c.attributes)));
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T* m = in[1].data<T>();
    T* sum = out[1].data<T>();
    map_slices<T>(c, in[0], out[0],
                  [&](int64_t i, int64_t n, const T* x, T* y) { sum[i] = cpu::sum_exp(n, x, m[i], y, l); });
  });
}
// x, maximum, sum of exp(x - maximum) -> log softmax
void log_softmax_shifted_kernel(const Context& c, In in, Out out) {
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T *m = in[1].data<T>(), *sum = in[2].data<T>();
    map_slices<T>(c, in[0], out[0],
                  [&](int64_t i, int64_t n, const T* x, T* y) { subtract(n, x, m[i], log_of(sum[i]), y); });
  });
}

template <bool log>
std::vector<DistributedTensor> sharded(std::span<const DistributedTensor* const> in, const Attributes& a) {
  const DistributedTensor x = exact(*in[0]), m = reduced(call(amax_op, {&x}, a));
  auto e = call_all(exp_shifted_op, {&x, &m}, a);
  DistributedTensor sum = reduced(e[1]), y = log ? call(log_softmax_shifted_op, {&x, &m, &sum}, a)
                                                 : div(e[0], reshape(sum, kept_shape(x.shape(), dims_of(a))));
  return {cast(y, in[0]->dtype())};
}

void softmax_gradient(Gradient& g) {
  g.set(0, call(softmax_backward_op, {&g.of_output(), &g.output(0)}, g.attributes()));
}
void log_softmax_gradient(Gradient& g) {
  g.set(0, call(log_softmax_backward_op, {&g.of_output(), &g.output(0)}, g.attributes()));
}
void sharded_softmax_gradient(Gradient& g) {
  const DistributedTensor &dy = g.of_output(), &y = g.output(0);
  DistributedTensor s = reduced(sum(mul(exact(dy), exact(y)), dims_of(g.attributes())));
  g.set(0, call(sharded_softmax_backward_op, {&dy, &y, &s}, g.attributes()));
}
void sharded_log_softmax_gradient(Gradient& g) {
  const DistributedTensor& dy = g.of_output();
  DistributedTensor s = reduced(sum(exact(dy), dims_of(g.attributes())));
  g.set(0, call(sharded_log_softmax_backward_op, {&dy, &g.output(0), &s}, g.attributes()));
}

// "a[b]c->a[b]c", for as many operands as there are.
Rule whole_rule(std::span<const Shape* const> in, const Attributes& a) {
  std::string all = factors(in[0]->dims(), dims_of(a)), text = all;
  for (size_t i = 1; i < in.size(); ++i) text += "," + all;
  return {text + "->" + all};
}
// "abc,ac->abc,ac"
Rule shifted_rule(std::span<const Shape* const> in, const Attributes& a) {
  std::string all = factors(in[0]->dims()), kept = other_factors(in[0]->dims(), dims_of(a));
  return {all + "," + kept + "->" + all + "," + kept};
}
// "abc,ac,ac->abc", or "abc,abc,ac->abc" of a gradient
Rule log_shifted_rule(std::span<const Shape* const> in, const Attributes& a) {
  std::string all = factors(in[0]->dims()), kept = other_factors(in[0]->dims(), dims_of(a));
  return {all + "," + kept + "," + kept + "->" + all};
}
Rule sharded_backward_rule(std::span<const Shape* const> in, const Attributes& a) {
  std::string all = factors(in[0]->dims());
  return {all + "," + all + "," + other_factors(in[0]->dims(), dims_of(a)) + "->" + all};
}

DistributedTensor along(const Op& whole, const Op& sharded, const DistributedTensor& x, int64_t dim) {
  check_defined(whole.name, x);
  check(is_floating(x.dtype()), "[{}] element type {} of {}: use cast() to a floating type", whole.name,
        name(x.dtype()), x);
  Dims dims = normalized_dims(whole.name, {dim}, x.dims());
  return call(sharded_along(x, dims) ? sharded : whole, {&x}, Over{dims});
}

const std::vector<Sample> one = {{{{4, 5, 3}}, over({1})}, {{{4, 5}}, over({1})}, {{{5, 3}}, over({0})},
                                 {{{3, 0}}, over({1})},    {{{0, 3}}, over({1})}, {{{}}, over({})}};
const std::vector<Sample> two = {{{{4, 5, 3}, {4, 5, 3}}, over({1})}, {{{4, 5}, {4, 5}}, over({1})}};

}  // namespace

const Op softmax_op = {.name = "softmax",
                       .functions = {function<softmax>("softmax(x, dim=)", "exp(x) over its sum")},
                       .rule = whole_rule,
                       .types = floating_types,
                       .strided = true,
                       .cpu = softmax_kernel,
                       .gradient = softmax_gradient,
                       .keeps = {.outputs = {0}},
                       .sample = one};
const Op softmax_backward_op = {.name = "softmax_backward",
                                .rule = whole_rule,
                                .passes = {linear_in({0})},
                                .strided = true,
                                .cpu = backward_kernel<false>,
                                .sample = two};
const Op log_softmax_op = {
    .name = "log_softmax",
    .functions = {function<log_softmax>("log_softmax(x, dim=)", "x less the log of the sum of exp(x)")},
    .rule = whole_rule,
    .types = floating_types,
    .strided = true,
    .cpu = log_softmax_kernel,
    .gradient = log_softmax_gradient,
    .keeps = {.outputs = {0}},
    .sample = one};
const Op log_softmax_backward_op = {.name = "log_softmax_backward",
                                    .rule = whole_rule,
                                    .passes = {linear_in({0})},
                                    .strided = true,
                                    .cpu = backward_kernel<true>,
                                    .sample = two};

const Op sharded_softmax_op = {.name = "sharded_softmax",
                               .composite = sharded<false>,
                               .gradient = sharded_softmax_gradient,
                               .keeps = {.outputs = {0}},
                               .sample = one};
const Op sharded_log_softmax_op = {.name = "sharded_log_softmax",
                                   .composite = sharded<true>,
                                   .gradient = sharded_log_softmax_gradient,
                                   .keeps = {.outputs = {0}},
                                   .sample = one};
const Op exp_shifted_op = {.name = "exp_shifted",
                           .rule = shifted_rule,
                           .cpu = exp_shifted_kernel,
                           .sample = {{{{4, 5, 3}, {4, 3}}, over({1})}}};
const Op log_softmax_shifted_op = {.name = "log_softmax_shifted",
                                   .rule = log_shifted_rule,
                                   .cpu = log_softmax_shifted_kernel,
                                   .sample = {{{{4, 5, 3}, {4, 3}, {SampleInput::Kind::positive, {4, 3}}}, over({1})}}};
// dy, y, and the sum that the cards above take themselves
const Op sharded_softmax_backward_op = {.name = "sharded_softmax_backward",
                                        .rule = sharded_backward_rule,
                                        .passes = {linear_in({0, 2}), linear_in({1})},
                                        .types = row_types<0b100, 0b0>,
                                        .cpu = backward_kernel<false>,
                                        .sample = {{{{4, 5, 3}, {4, 5, 3}, {4, 3}}, over({1})}}};
const Op sharded_log_softmax_backward_op = {.name = "sharded_log_softmax_backward",
                                            .rule = sharded_backward_rule,
                                            .passes = {linear_in({0, 2})},
                                            .types = row_types<0b100, 0b0>,
                                            .cpu = backward_kernel<true>,
                                            .sample = {{{{4, 5, 3}, {4, 5, 3}, {4, 3}}, over({1})}}};

namespace {
constexpr const Op* softmax_ops[] = {&softmax_op,
                                     &softmax_backward_op,
                                     &log_softmax_op,
                                     &log_softmax_backward_op,
                                     &sharded_softmax_op,
                                     &sharded_log_softmax_op,
                                     &exp_shifted_op,
                                     &log_softmax_shifted_op,
                                     &sharded_softmax_backward_op,
                                     &sharded_log_softmax_backward_op};
}  // namespace
const Cards softmax_cards = softmax_ops;

DistributedTensor softmax(const DistributedTensor& x, int64_t dim) {
  return along(softmax_op, sharded_softmax_op, x, dim);
}
DistributedTensor log_softmax(const DistributedTensor& x, int64_t dim) {
  return along(log_softmax_op, sharded_log_softmax_op, x, dim);
}

}  // namespace dtensor::ops
