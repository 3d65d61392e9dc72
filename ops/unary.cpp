#include "ops/unary.h"

#include <cmath>

#include "ops/cpu/elementwise.h"
#include "ops/cpu/rows.h"
#include "ops/elementwise.h"
#include "ops/functors.h"
#include "ops/pointwise.h"

namespace dtensor::ops {
namespace {

using Kind = SampleInput::Kind;

// Whole numbers too.
std::vector<Sample> numbers() { return joined(unary_samples(), unary_samples(Kind::index)); }
std::vector<Sample> positive() { return unary_samples(Kind::positive); }

// --- clamp

template <class T>
struct Bounds {
  T low, high;
  explicit Bounds(const Context& c)
      : low(bound(c, "min", std::numeric_limits<T>::lowest(), -1)),
        high(bound(c, "max", std::numeric_limits<T>::max(), 1)) {}

 private:
  static T bound(const Context& c, std::string_view name, T otherwise, int sign) {
    if (c.attributes.has(name)) return scalar<T>(c, name);
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
    bool low = c.attributes.has("min"), high = c.attributes.has("max");
    Bounds<T> b(c);
    elementwise<T, T, T>(c, {&in[0], &in[1]}, out[0], functors::ClampBackward<T>{b.low, b.high, low, high});
  });
}

const Attributes both{{"min", -0.7}, {"max", 0.55}}, least{{"min", -0.4}}, most{{"max", 0.6}};

}  // namespace

const Op neg_op = unary({.name = "neg",
                         .passes = {linear_in({0}), antitone_in({0})},
                         .types = number_types,
                         .wraps = true,
                         .cpu = unary_kernel<functors::Negative{}, Types::numbers>,
                         .gradient = [](Gradient& g) { g.set(0, neg(g.of_output())); },
                         .sample = numbers()});
const Op abs_op = unary({.name = "abs",
                         .passes = {passes({0}, Reduce::product)},
                         .types = number_types,
                         .cpu = unary_kernel<functors::Absolute{}, Types::numbers>,
                         .gradient = [](Gradient& g) { g.set(0, mul(g.of_output(), sign(g.input(0)))); },
                         .keeps = {.inputs = {0}},
                         .sample = numbers()});
// Not monotone for NaN, as its sign is 0.
const Op sign_op = unary({.name = "sign",
                          .types = number_types,
                          .cpu = unary_kernel<functors::Sign{}, Types::numbers>,
                          .gradient = zero_gradient,
                          .sample = numbers()});
const Op square_op = unary({.name = "square",
                            .passes = {passes({0}, Reduce::product)},
                            .types = number_types,
                            .cpu = unary_kernel<functors::Square{}, Types::numbers>,
                            .gradient = [](Gradient& g) { g.set(0, mul(mul(g.of_output(), g.input(0)), 2)); },
                            .keeps = {.inputs = {0}},
                            .sample = numbers()});
const Op clamp_op =
    unary({.name = "clamp",
           .passes = {monotone_in({0})},
           .types = number_types,
           .cpu = clamp_kernel,
           .gradient =
               [](Gradient& g) {
                 g.set(0, call(clamp_backward_op, {&g.of_output(), &g.input(0)}, g.attributes()));
               },
           .keeps = {.inputs = {0}},
           .sample = joined(
               joined(unary_samples(Kind::normal, both), unary_samples(Kind::index, {{"min", 2.0}, {"max", 5.0}})),
               {{{{5, 3}}, least}, {{{5, 3}}, most}, {{{Kind::index, {5}, 9}}, {{"min", 3.0}}}})});
const Op clamp_backward_op =
    gradient_op({.name = "clamp_backward",
                 .cpu = clamp_backward_kernel,
                 .sample = {{{{5, 3}, {5, 3}}, both}, {{{4}, {4}}, least}, {{{4}, {4}}, most}}});

const Op exp_op = unary({.name = "exp",
                         .passes = {monotone_in({0})},
                         .cpu = array_kernel<[](auto... a) { cpu::exp(a...); }>,
                         .gradient = [](Gradient& g) { g.set(0, mul(g.of_output(), g.output(0))); },
                         .keeps = {.outputs = {0}}});
const Op expm1_op = unary({.name = "expm1",
                           .passes = {monotone_in({0})},
                           .cpu = array_kernel<[](auto... a) { cpu::expm1(a...); }>,
                           .gradient = [](Gradient& g) { g.set(0, mul(g.of_output(), add(g.output(0), 1))); },
                           .keeps = {.outputs = {0}}});
// Not monotone, as log1p and sqrt: contributions to a maximum may lie where the function is not defined.
const Op log_op = unary({.name = "log",
                         .cpu = array_kernel<[](auto... a) { cpu::log(a...); }>,
                         .gradient = [](Gradient& g) { g.set(0, div(g.of_output(), g.input(0))); },
                         .keeps = {.inputs = {0}},
                         .sample = positive()});
const Op log1p_op = unary({.name = "log1p",
                           .cpu = array_kernel<[](auto... a) { cpu::log1p(a...); }>,
                           .gradient = [](Gradient& g) { g.set(0, div(g.of_output(), add(g.input(0), 1))); },
                           .keeps = {.inputs = {0}},
                           .sample = positive()});
const Op sqrt_op = unary({.name = "sqrt",
                          .cpu = unary_kernel<functors::SquareRoot{}>,
                          .gradient = [](Gradient& g) { g.set(0, div(g.of_output(), mul(g.output(0), 2))); },
                          .keeps = {.outputs = {0}},
                          .sample = positive()});
const Op rsqrt_op = unary({.name = "rsqrt",
                           .cpu = unary_kernel<functors::ReciprocalSquareRoot{}>,
                           .gradient =
                               [](Gradient& g) {
                                 const DistributedTensor& y = g.output(0);
                                 g.set(0, mul(mul(g.of_output(), mul(y, square(y))), -0.5));
                               },
                           .keeps = {.outputs = {0}},
                           .sample = positive()});
const Op reciprocal_op = unary({.name = "reciprocal",
                                .cpu = unary_kernel<functors::Reciprocal{}>,
                                .gradient = [](Gradient& g) { g.set(0, neg(mul(g.of_output(), square(g.output(0))))); },
                                .keeps = {.outputs = {0}},
                                .sample = positive()});
const Op sin_op = unary({.name = "sin",
                         .cpu = array_kernel<[](auto... a) { cpu::sin(a...); }>,
                         .gradient = [](Gradient& g) { g.set(0, mul(g.of_output(), cos(g.input(0)))); },
                         .keeps = {.inputs = {0}}});
const Op cos_op = unary({.name = "cos",
                         .cpu = array_kernel<[](auto... a) { cpu::cos(a...); }>,
                         .gradient = [](Gradient& g) { g.set(0, neg(mul(g.of_output(), sin(g.input(0))))); },
                         .keeps = {.inputs = {0}}});
const Op erf_op = unary({.name = "erf",
                         .passes = {monotone_in({0})},
                         .cpu = array_kernel<[](auto... a) { cpu::erf(a...); }>,
                         .gradient =
                             [](Gradient& g) {  // 2 / sqrt(pi) * exp(-x^2)
                               g.set(0, mul(mul(g.of_output(), exp(neg(square(g.input(0))))), 1.12837916709551257390));
                             },
                         .keeps = {.inputs = {0}}});

const Op floor_op = unary({.name = "floor",
                           .passes = {monotone_in({0})},
                           .cpu = array_kernel<[](auto... a) { cpu::floor(a...); }>,
                           .gradient = zero_gradient});
const Op ceil_op = unary({.name = "ceil",
                          .passes = {monotone_in({0})},
                          .cpu = array_kernel<[](auto... a) { cpu::ceil(a...); }>,
                          .gradient = zero_gradient});
const Op round_op = unary({.name = "round",
                           .passes = {monotone_in({0})},
                           .cpu = array_kernel<[](auto... a) { cpu::round(a...); }>,
                           .gradient = zero_gradient});

DistributedTensor neg(const DistributedTensor& x) { return call(neg_op, {&x}); }
DistributedTensor abs(const DistributedTensor& x) { return call(abs_op, {&x}); }
DistributedTensor sign(const DistributedTensor& x) { return call(sign_op, {&x}); }
DistributedTensor square(const DistributedTensor& x) { return call(square_op, {&x}); }
DistributedTensor clamp(const DistributedTensor& x, std::optional<double> min, std::optional<double> max) {
  check_defined("clamp", x);
  check(min || max, "[clamp] neither min nor max is given for {}", to_string(x));
  Attributes bounds;
  if (min) bounds.set("min", *min);
  if (max) bounds.set("max", *max);
  return call(clamp_op, {&x}, bounds);
}
DistributedTensor exp(const DistributedTensor& x) { return call(exp_op, {&x}); }
DistributedTensor expm1(const DistributedTensor& x) { return call(expm1_op, {&x}); }
DistributedTensor log(const DistributedTensor& x) { return call(log_op, {&x}); }
DistributedTensor log1p(const DistributedTensor& x) { return call(log1p_op, {&x}); }
DistributedTensor sqrt(const DistributedTensor& x) { return call(sqrt_op, {&x}); }
DistributedTensor rsqrt(const DistributedTensor& x) { return call(rsqrt_op, {&x}); }
DistributedTensor reciprocal(const DistributedTensor& x) { return call(reciprocal_op, {&x}); }
DistributedTensor sin(const DistributedTensor& x) { return call(sin_op, {&x}); }
DistributedTensor cos(const DistributedTensor& x) { return call(cos_op, {&x}); }
DistributedTensor erf(const DistributedTensor& x) { return call(erf_op, {&x}); }
DistributedTensor floor(const DistributedTensor& x) { return call(floor_op, {&x}); }
DistributedTensor ceil(const DistributedTensor& x) { return call(ceil_op, {&x}); }
DistributedTensor round(const DistributedTensor& x) { return call(round_op, {&x}); }

}  // namespace dtensor::ops
