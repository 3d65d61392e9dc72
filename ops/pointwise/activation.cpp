#include "ops/pointwise/activation.h"

#include "ops/cards.h"
#include "ops/cpu/elementwise.h"
#include "ops/cpu/fused.h"
#include "ops/cpu/rows.h"
#include "ops/family/elementwise.h"
#include "ops/functions.h"
#include "ops/pointwise/attributes.h"
#include "ops/pointwise/functors.h"

namespace dtensor::ops {
namespace {

using Kind = SampleInput::Kind;

void gelu_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  if (c.attributes.as<Gelu>().approximate == "tanh")
    on_arrays<1>(c, in, out, [](auto... a) { cpu::gelu_tanh(a...); });
  else
    on_arrays<1>(c, in, out, [](auto... a) { cpu::gelu(a...); });
}
void gelu_backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  if (c.attributes.as<Gelu>().approximate == "tanh")
    on_arrays<2>(c, in, out, [](auto... a) { cpu::gelu_tanh_gradient(a...); });
  else
    on_arrays<2>(c, in, out, [](auto... a) { cpu::gelu_gradient(a...); });
}

void softplus_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  auto [beta, threshold] = c.attributes.as<Softplus>();
  on_arrays<1>(c, in, out,
               [beta = beta, threshold = threshold](int64_t n, auto... a) { cpu::softplus(n, beta, threshold, a...); });
}
void softplus_backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  auto [beta, threshold] = c.attributes.as<Softplus>();
  on_arrays<2>(c, in, out, [beta = beta, threshold = threshold](int64_t n, auto... a) {
    cpu::softplus_gradient(n, beta, threshold, a...);
  });
}

void swiglu_gradient(Gradient& g) {
  auto d = call_all(swiglu_backward_op, {&g.of_output(), &g.input(0), &g.input(1)});
  g.set(0, d[0]);
  g.set(1, d[1]);
}
// Operands that may not broadcast: it would cost their gradients a sum.
Rule same_shapes(std::span<const Shape* const> in, const Attributes&) {
  for (const Shape* s : in)
    if (s && in[0] && *s != *in[0]) fail("[swiglu] shapes differ: {} and {}", *in[0], *s);
  return {in.size() == 3 ? "...,...,...->...,..." : "...,...->..."};
}

// --- clamp

template <class T>
struct Bounds {
  T low, high;
  explicit Bounds(const Context& c)
      : low(bound(c, c.attributes.as<Clamp>().min, std::numeric_limits<T>::lowest(), -1)),
        high(bound(c, c.attributes.as<Clamp>().max, std::numeric_limits<T>::max(), 1)) {}

 private:
  static T bound(const Context& c, std::optional<double> given, T otherwise, int sign) {
    if (given) return scalar<T>(c, *given);
    return std::numeric_limits<T>::has_infinity ? T(sign) * std::numeric_limits<T>::infinity() : otherwise;
  }
};

void clamp_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_numbers(c, out[0].dtype(), [&]<class T>() {
    Bounds<T> b(c);
    elementwise<T, T>(c, {&in[0]}, out[0], functors::Clamp<T>{b.low, b.high});
  });
}

void clamp_backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_floating(c, out[0].dtype(), [&]<class T>() {
    const auto& [min, max] = c.attributes.as<Clamp>();
    Bounds<T> b(c);
    elementwise<T, T, T>(c, {&in[0], &in[1]}, out[0],
                         functors::ClampBackward<T>{b.low, b.high, min.has_value(), max.has_value()});
  });
}

// --- samples

const Gelu erf_form{"none"}, tanh_form{"tanh"};
const Softplus plain{1, 20}, sharp{-1.5, 1};
const Clamp both{-0.7, 0.55}, least{-0.4, {}}, most{{}, 0.6};
const std::vector<Sample> pairs = {{{{5, 3}, {5, 3}}}, {{{2, 1, 4}, {2, 1, 4}}}};

}  // namespace

const Op gelu_op =
    unary({.name = "gelu",
           .functions = {function<gelu>("gelu(x, approximate=none)",
                                        "x times the normal distribution function of x; or the tanh form")},
           .cpu = gelu_kernel,
           .gradient =
               [](Gradient& g) {
                 g.set(0, call(gelu_backward_op, {&g.of_output(), &g.input(0)}, g.attributes()));
               },
           .keeps = {.inputs = {0}},
           .sample = joined(unary_samples(Kind::normal, erf_form), unary_samples(Kind::normal, tanh_form))});
const Op gelu_backward_op = gradient_op({.name = "gelu_backward",
                                         .cpu = gelu_backward_kernel,
                                         .sample = {{{{5, 3}, {5, 3}}, erf_form}, {{{2, 4}, {2, 4}}, tanh_form}}});
// Not monotone: it steps down at the threshold, to x.
const Op softplus_op =
    unary({.name = "softplus",
           .functions = {function<softplus>("softplus(x, beta=1, threshold=20)",
                                            "log(1 + exp(beta * x)) / beta; x where beta * x > threshold")},
           .cpu = softplus_kernel,
           .gradient =
               [](Gradient& g) {
                 g.set(0, call(softplus_backward_op, {&g.of_output(), &g.input(0)}, g.attributes()));
               },
           .keeps = {.inputs = {0}},
           .sample = joined(unary_samples(Kind::normal, plain), {{{{5, 3}}, sharp}})});
const Op softplus_backward_op = gradient_op({.name = "softplus_backward",
                                             .cpu = softplus_backward_kernel,
                                             .sample = {{{{5, 3}, {5, 3}}, plain}, {{{4}, {4}}, sharp}}});
const Op swiglu_op = {.name = "swiglu",
                      .functions = {function<swiglu>("swiglu(gate, up)", "silu(gate) * up")},
                      .rule = same_shapes,
                      .passes = {linear_in({1})},
                      .types = floating_types,
                      .strided = true,
                      .cpu = array_kernel<[](auto... a) { cpu::swiglu(a...); }, 2>,
                      .gradient = swiglu_gradient,
                      .keeps = {.inputs = {0, 1}},
                      .sample = pairs};
const Op swiglu_backward_op = {.name = "swiglu_backward",
                               .rule = same_shapes,
                               .passes = {linear_in({0}), passes({2}, Reduce::sum).only_to({0})},
                               .types = floating_types,
                               .strided = true,
                               .cpu = array_kernel<[](auto... a) { cpu::swiglu_backward(a...); }, 3, 2>,
                               .sample = {{{{5, 3}, {5, 3}, {5, 3}}}}};

const Op clamp_op =
    unary({.name = "clamp",
           .functions = {function<clamp>("clamp(x, min=none, max=none)", "at least min and at most max")},
           .passes = {monotone_in({0})},
           .types = number_types,
           .cpu = clamp_kernel,
           .gradient =
               [](Gradient& g) {
                 g.set(0, call(clamp_backward_op, {&g.of_output(), &g.input(0)}, g.attributes()));
               },
           .keeps = {.inputs = {0}},
           .sample = joined(joined(unary_samples(Kind::normal, both), unary_samples(Kind::index, Clamp{2.0, 5.0})),
                            {{{{5, 3}}, least}, {{{5, 3}}, most}, {{{Kind::index, {5}, 9}}, Clamp{3.0, {}}}})});
const Op clamp_backward_op =
    gradient_op({.name = "clamp_backward",
                 .cpu = clamp_backward_kernel,
                 .sample = {{{{5, 3}, {5, 3}}, both}, {{{4}, {4}}, least}, {{{4}, {4}}, most}}});

namespace {
constexpr const Op* activation_ops[] = {&clamp_op,    &clamp_backward_op,    &gelu_op,   &gelu_backward_op,
                                        &softplus_op, &softplus_backward_op, &swiglu_op, &swiglu_backward_op};
}  // namespace
const Cards activation_cards = activation_ops;

DistributedTensor gelu(const DistributedTensor& x, const std::string& approximate) {
  check(approximate == "none" || approximate == "tanh", "[gelu] approximate={}: it is none or tanh", approximate);
  return call(gelu_op, {&x}, approximate == "tanh" ? tanh_form : erf_form);
}
DistributedTensor softplus(const DistributedTensor& x, double beta, double threshold) {
  return call(softplus_op, {&x}, Softplus{beta, threshold});
}
DistributedTensor swiglu(const DistributedTensor& gate, const DistributedTensor& up) {
  return call(swiglu_op, {&gate, &up});
}

DistributedTensor clamp(const DistributedTensor& x, std::optional<double> min, std::optional<double> max) {
  check_defined("clamp", x);
  check(min || max, "[clamp] neither min nor max is given for {}", x);
  return call(clamp_op, {&x}, Clamp{min, max});
}

}  // namespace dtensor::ops
