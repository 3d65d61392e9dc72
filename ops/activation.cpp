#include "ops/activation.h"

#include "ops/cpu/elementwise.h"
#include "ops/cpu/fused.h"
#include "ops/cpu/rows.h"
#include "ops/elementwise.h"
#include "ops/functors.h"
#include "ops/pointwise.h"

namespace dtensor::ops {
namespace {

using Kind = SampleInput::Kind;

void gelu_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  if (c.attributes.get<std::string>("approximate") == "tanh")
    on_arrays<1>(c, in, out, [](auto... a) { cpu::gelu_tanh(a...); });
  else
    on_arrays<1>(c, in, out, [](auto... a) { cpu::gelu(a...); });
}
void gelu_backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  if (c.attributes.get<std::string>("approximate") == "tanh")
    on_arrays<2>(c, in, out, [](auto... a) { cpu::gelu_tanh_gradient(a...); });
  else
    on_arrays<2>(c, in, out, [](auto... a) { cpu::gelu_gradient(a...); });
}

void softplus_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  double beta = c.attributes.get<double>("beta"), threshold = c.attributes.get<double>("threshold");
  on_arrays<1>(c, in, out, [=](int64_t n, auto... a) { cpu::softplus(n, beta, threshold, a...); });
}
void softplus_backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  double beta = c.attributes.get<double>("beta"), threshold = c.attributes.get<double>("threshold");
  on_arrays<2>(c, in, out, [=](int64_t n, auto... a) { cpu::softplus_gradient(n, beta, threshold, a...); });
}

void swiglu_gradient(Gradient& g) {
  auto d = call_all(swiglu_backward_op, {&g.of_output(), &g.input(0), &g.input(1)});
  g.set(0, d[0]);
  g.set(1, d[1]);
}
// Operands that may not broadcast: it would cost their gradients a sum.
Rule same_shapes(std::span<const Shape* const> in, const Attributes&) {
  for (const Shape* s : in)
    if (s && in[0] && *s != *in[0]) fail("[swiglu] shapes differ: {} and {}", to_string(*in[0]), to_string(*s));
  return {in.size() == 3 ? "...,...,...->...,..." : "...,...->..."};
}

const Attributes erf_form{{"approximate", std::string("none")}}, tanh_form{{"approximate", std::string("tanh")}};
const Attributes plain{{"beta", 1.0}, {"threshold", 20.0}}, sharp{{"beta", -1.5}, {"threshold", 1.0}};
const std::vector<Sample> pairs = {{{{5, 3}, {5, 3}}}, {{{2, 1, 4}, {2, 1, 4}}}};

}  // namespace

const Op relu_op = unary({.name = "relu",
                          .passes = {monotone_in({0})},
                          .cpu = unary_kernel<functors::Relu{}>,
                          .gradient =
                              [](Gradient& g) {
                                g.set(0, call(relu_backward_op, {&g.of_output(), &g.input(0)}));
                              },
                          .keeps = {.inputs = {0}}});
const Op relu_backward_op = gradient_op({.name = "relu_backward", .cpu = binary_kernel<functors::ReluBackward{}>});
const Op gelu_op =
    unary({.name = "gelu",
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
const Op silu_op = unary({.name = "silu",
                          .cpu = array_kernel<[](auto... a) { cpu::silu(a...); }>,
                          .gradient =
                              [](Gradient& g) {
                                g.set(0, call(silu_backward_op, {&g.of_output(), &g.input(0)}));
                              },
                          .keeps = {.inputs = {0}}});
const Op silu_backward_op =
    gradient_op({.name = "silu_backward", .cpu = array_kernel<[](auto... a) { cpu::silu_gradient(a...); }, 2>});
const Op tanh_op =
    unary({.name = "tanh",
           .passes = {monotone_in({0})},
           .cpu = array_kernel<[](auto... a) { cpu::tanh(a...); }>,
           .gradient = [](Gradient& g) { g.set(0, sub(g.of_output(), mul(g.of_output(), square(g.output(0))))); },
           .keeps = {.outputs = {0}}});
const Op sigmoid_op = unary({.name = "sigmoid",
                             .passes = {monotone_in({0})},
                             .cpu = array_kernel<[](auto... a) { cpu::sigmoid(a...); }>,
                             .gradient =
                                 [](Gradient& g) {
                                   DistributedTensor d = mul(g.of_output(), g.output(0));
                                   g.set(0, sub(d, mul(d, g.output(0))));
                                 },
                             .keeps = {.outputs = {0}}});
// Not monotone: it steps down at the threshold, to x.
const Op softplus_op = unary({.name = "softplus",

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

DistributedTensor relu(const DistributedTensor& x) { return call(relu_op, {&x}); }
DistributedTensor gelu(const DistributedTensor& x, std::string_view approximate) {
  check(approximate == "none" || approximate == "tanh", "[gelu] approximate={}: it is none or tanh", approximate);
  return call(gelu_op, {&x}, approximate == "tanh" ? tanh_form : erf_form);
}
DistributedTensor silu(const DistributedTensor& x) { return call(silu_op, {&x}); }
DistributedTensor tanh(const DistributedTensor& x) { return call(tanh_op, {&x}); }
DistributedTensor sigmoid(const DistributedTensor& x) { return call(sigmoid_op, {&x}); }
DistributedTensor softplus(const DistributedTensor& x, double beta, double threshold) {
  return call(softplus_op, {&x}, {{"beta", beta}, {"threshold", threshold}});
}
DistributedTensor swiglu(const DistributedTensor& gate, const DistributedTensor& up) {
  return call(swiglu_op, {&gate, &up});
}

}  // namespace dtensor::ops
