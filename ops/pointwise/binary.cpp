#include "ops/pointwise/binary.h"

#include <cmath>

#include "ops/cards.h"
#include "ops/family/elementwise.h"
#include "ops/functions.h"
#include "ops/pointwise/functors.h"

namespace dtensor::ops {
namespace {

using Kind = SampleInput::Kind;

std::vector<Sample> numbers() {
  return joined(binary_samples(), {{{{Kind::index, {5, 3}, 9}, {Kind::index, {3}, 9}}}});
}
std::vector<Sample> by_scalar(double value) {
  return joined(unary_samples(Kind::normal, Number{value}), {{{{Kind::index, {5}, 9}}, Number{std::round(value)}}});
}

// --- what Partial placements pass

Pass average(int input) { return passes({input}, Reduce::avg); }

// a - b; a number less b is linear in nothing, as each rank would add it.
Rule sub_rule(std::span<const Shape* const> in, const Attributes&) {
  Rule rule{"...,...->...", {monotone_in({0}), antitone_in({1}), average(0), average(1)}};
  if (in[0] && in[1]) rule.passes.insert(rule.passes.begin(), linear_in({0, 1}));
  return rule;
}

// A maximum passes a product with a positive number, and becomes the minimum by a negative one. Not by zero, as
// contributions may be infinite.
void pass_extremes(Rule& rule, const Attributes& a) {
  double value = a.as<Number>().value;
  if (value > 0) rule.passes.push_back(monotone_in({0}));
  if (value < 0) rule.passes.push_back(antitone_in({0}));
}
Rule mul_scalar_rule(std::span<const Shape* const>, const Attributes& a) {
  Rule rule{"...->..."};
  if (!std::isfinite(a.as<Number>().value)) return rule;  // a contribution of zero would become NaN
  rule.passes = {linear_in({0})};
  pass_extremes(rule, a);
  return rule;
}
Rule div_rule(std::span<const Shape* const> in, const Attributes& a) {
  Rule rule{"...,...->..."};
  if (in[1] || a.as<Number>().value != 0) rule.passes = {linear_in({0})};  // zero by zero would be NaN
  if (!in[1]) pass_extremes(rule, a);
  return rule;
}

// --- arithmetic

using namespace functors;

// Common exponents are products and roots, as in PyTorch.
void pow_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_floating(c, out[0].dtype(), [&]<class T>() {
    auto each = [&](auto f) { elementwise<T, T>(c, {&in[0]}, out[0], f); };
    double e = in[1].defined() ? 0 : c.attributes.as<Number>().value;
    if (e == 2) return each([](T x) { return x * x; });
    if (e == 3) return each(Cube{});
    if (e == 0.5) return each(SquareRoot{});
    if (e == -0.5) return each(ReciprocalSquareRoot{});
    if (e == -1) return each(Reciprocal{});
    if (e == -2) return each(ReciprocalSquare{});
    if (!in[1].defined()) return each(PowerOf{e});
    elementwise_pair<T, T>(c, present(in, 0), &in[1], out[0], Power{});
  });
}

template <bool of_divisor>
void remainder_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_numbers(c, out[0].dtype(), [&]<class T>() {
    elementwise_pair<T, T>(c, &in[0], present(in, 1), out[0], [&](T a, T b) {
      if constexpr (!std::is_floating_point_v<T>) check(b != 0, "[{}] integer {} is divided by zero", c.op, a);
      return Remainder<of_divisor>{}(a, b);
    });
  });
}

// (dy, a, b) -> da. For the minimum, a and b are exchanged. One of them may be a Number.
void extreme_backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_floating(c, out[0].dtype(), [&]<class T>() {
    bool both = in[1].defined() && in[2].defined();
    T number = both ? T() : scalar<T>(c, c.attributes.as<Number>().value);
    auto operand = [&](size_t i) {
      return in[i].defined() ? ElementInput{&in[i]} : ElementInput{nullptr, &number, sizeof(T)};
    };
    for_elements<T, T, T, T>(c, {operand(0), operand(1), operand(2)}, out[0], MaximumBackward{});
  });
}

void lerp_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_floating(c, out[0].dtype(), [&]<class T>() {
    T weight = in[2].defined() ? T() : scalar<T>(c, c.attributes.as<ops::Lerp>().weight);
    ElementInput third = in[2].defined() ? ElementInput{&in[2]} : ElementInput{nullptr, &weight, sizeof(T)};
    for_elements<T, T, T, T>(c, {ElementInput{&in[0]}, ElementInput{&in[1]}, third}, out[0], functors::Lerp{});
  });
}

void addcmul_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_numbers(c, out[0].dtype(), [&]<class T>() {
    elementwise<T, T, T, T>(c, {&in[0], &in[1], &in[2]}, out[0],
                            AddMultiple<T>{scalar<T>(c, c.attributes.as<Number>().value)});
  });
}

// --- gradients

void add_gradient(Gradient& g) {
  set_reduced(g, 0, g.of_output());
  set_reduced(g, 1, g.of_output());
}
void sub_gradient(Gradient& g) {
  set_reduced(g, 0, g.of_output());
  if (g.needs(1)) set_reduced(g, 1, neg(g.of_output()));
}
void mul_gradient(Gradient& g) {
  if (g.needs(0)) set_reduced(g, 0, mul(g.of_output(), g.input(1)));
  if (g.needs(1)) set_reduced(g, 1, mul(g.of_output(), g.input(0)));
}
void div_gradient(Gradient& g) {
  if (!g.input(1).defined()) return g.set(0, div(g.of_output(), g.attributes().as<Number>().value));
  DistributedTensor dx = div(g.of_output(), g.input(1));
  set_reduced(g, 0, dx);
  if (g.needs(1)) set_reduced(g, 1, neg(mul(dx, g.output(0))));
}

// An exponent of zero makes a constant, and so does a base of zero with an exponent that is not negative: no NaN then.
void pow_gradient(Gradient& g) {
  const DistributedTensor &a = g.input(0), &b = g.input(1), &dy = g.of_output();
  if (!b.defined()) {
    double e = g.attributes().as<Number>().value;
    if (e != 0) g.set(0, mul(dy, mul(pow(a, e - 1), e)));
    return;
  }
  if (g.needs(0)) set_reduced(g, 0, masked_fill(mul(dy, mul(b, pow(a, sub(b, 1)))), eq(b, 0), 0));
  if (!g.needs(1)) return;
  if (a.defined()) {
    DistributedTensor constant = logical_and(eq(a, 0), ge(b, 0));
    set_reduced(g, 1, masked_fill(mul(dy, mul(g.output(0), log(a))), constant, 0));
    return;
  }
  double base = g.attributes().as<Number>().value;
  DistributedTensor d = mul(dy, mul(g.output(0), std::log(base)));
  g.set(1, base == 0 ? masked_fill(d, ge(b, 0), 0) : d);
}

template <bool max>
void extreme_gradient(Gradient& g) {
  for (int i : {0, 1})
    if (g.needs(i)) {
      const DistributedTensor *a = &g.input(i), *b = g.input(1 - i).defined() ? &g.input(1 - i) : nullptr;
      if (!max) std::swap(a, b);
      set_reduced(g, i, call(extreme_backward_op, {&g.of_output(), a, b}, g.attributes()));
    }
}

// a = q * b + r with a whole q: by b, the derivative is -q.
template <bool of_divisor>
void remainder_gradient(Gradient& g) {
  set_reduced(g, 0, g.of_output());
  if (!g.needs(1)) return;
  const DistributedTensor &a = g.input(0), &b = g.input(1);
  DistributedTensor q = div(a, b);
  if (of_divisor) {  // rounded down, exactly
    DistributedTensor r = fmod(a, b), below = lt(mul(sign(r), sign(b)), 0);
    q = where(eq(b, 0), q, sub(round(div(sub(a, r), b)), cast(below, q.dtype())));
  } else {
    q = mul(sign(q), floor(abs(q)));
  }
  set_reduced(g, 1, neg(mul(g.of_output(), q)));
}

void lerp_gradient(Gradient& g) {
  const DistributedTensor &dy = g.of_output(), &w = g.input(2);
  double weight = w.defined() ? 0 : g.attributes().as<Lerp>().weight;
  if (g.needs(0)) set_reduced(g, 0, w.defined() ? mul(dy, sub(1, w)) : mul(dy, 1 - weight));
  if (g.needs(1)) set_reduced(g, 1, w.defined() ? mul(dy, w) : mul(dy, weight));
  if (g.needs(2)) set_reduced(g, 2, mul(dy, sub(g.input(1), g.input(0))));
}

void addcmul_gradient(Gradient& g) {
  double value = g.attributes().as<Number>().value;
  set_reduced(g, 0, g.of_output());
  if (g.needs(1)) set_reduced(g, 1, mul(mul(g.of_output(), g.input(2)), value));
  if (g.needs(2)) set_reduced(g, 2, mul(mul(g.of_output(), g.input(1)), value));
}

// --- samples

std::vector<Sample> quotients(const Attributes& by) {
  return joined(binary_samples(Kind::normal, Kind::positive), {{{{5, 3}, absent}, by}});
}
std::vector<Sample> extremes() {
  return joined(numbers(), {{{{5, 3}, absent}, Number{0.25}}, {{{Kind::index, {5}, 9}, absent}, Number{4.0}}});
}
std::vector<Sample> powers() {
  std::vector<Sample> list = binary_samples(Kind::positive);
  for (double e : {0.0, 2.0, 3.0, 0.5, -0.5, -1.0, -2.0, 1.7})
    list.push_back({{{Kind::positive, {5}}, absent}, Number{e}});
  for (double base : {2.0, 0.0}) list.push_back({{absent, {Kind::positive, {5}}}, Number{base}});
  return list;
}
const std::vector<Sample> triples = {
    {{{5, 3}, {5, 3}, {5, 3}}}, {{{5, 1}, {4}, {5, 4}}}, {{{2, 5, 3}, {}, {1, 3}}}, {{{0}, {1}, {}}}};
std::vector<Sample> with(std::vector<Sample> list, const Attributes& a) {
  for (Sample& s : list) s.attributes = a;
  return list;
}

}  // namespace

const Op add_op = binary({.name = "add",
                          .functions = {function("add(x, y | value=)", "x + y", binary_or_value<add, add>)},
                          .passes = {linear_in({0, 1}), monotone_in({0}), monotone_in({1}), average(0), average(1)},
                          .wraps = true,
                          .cpu = binary_kernel<Add{}, Types::numbers>,
                          .gradient = add_gradient,
                          .sample = numbers()});
const Op sub_op =
    binary({.name = "sub",
            .functions = {function("sub(x, y | value=)", "x - y", binary_or_value<sub, sub>),
                          function("rsub(x, value=)", "value - x",
                                   [](Arguments& a) -> List { return {sub(a.number("value"), a.tensor(0))}; })},
            .rule = sub_rule,
            .or_number = {0},
            .wraps = true,
            .cpu =
                [](const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
                  for_numbers(c, out[0].dtype(), [&]<class T>() {
                    elementwise_pair<T, T>(c, present(in, 0), &in[1], out[0], Subtract{});
                  });
                },
            .gradient = sub_gradient,
            .sample = joined(numbers(), {{{absent, {5, 3}}, Number{1.5}}})});
const Op mul_op = binary({.name = "mul",
                          .functions = {function("mul(x, y | value=)", "x * y", binary_or_value<mul, mul>)},
                          .passes = {linear_in({0}), linear_in({1}), passes({0, 1}, Reduce::product)},
                          .cpu = binary_kernel<Multiply{}, Types::numbers>,
                          .gradient = mul_gradient,
                          .keeps = {.inputs = {0, 1}},
                          .sample = numbers()});
const Op div_op = binary({.name = "div",
                          .functions = {function("div(x, y | value=)", "x / y", binary_or_value<div, div>)},
                          .rule = div_rule,
                          .types = floating_types,
                          .or_number = {1},
                          .cpu = binary_kernel<Divide{}>,
                          .gradient = div_gradient,
                          .keeps = {.inputs = {1}, .outputs = {0}},
                          .sample = joined(quotients(Number{-1.5}), {{{{4}, absent}, Number{3.0}}})});
const Op add_scalar_op = unary({.name = "add_scalar",
                                .passes = {monotone_in({0}), average(0)},
                                .types = number_types,
                                .wraps = true,
                                .cpu = binary_kernel<Add{}, Types::numbers>,
                                .gradient = [](Gradient& g) { g.set(0, g.of_output()); },
                                .sample = by_scalar(1.5)});
const Op mul_scalar_op =
    unary({.name = "mul_scalar",
           .rule = mul_scalar_rule,
           .types = number_types,
           .wraps = true,
           .cpu = binary_kernel<Multiply{}, Types::numbers>,
           .gradient = [](Gradient& g) { g.set(0, mul(g.of_output(), g.attributes().as<Number>().value)); },
           .sample = joined(by_scalar(-1.5), by_scalar(2.5))});
const Op pow_op = binary({.name = "pow",
                          .functions = {function("pow(x, y | exponent= | base=)", "x to the power of y",
                                                 [](Arguments& a) -> List {
                                                   if (a.has("base")) return {pow(a.number("base"), a.tensor(0))};
                                                   return {a.has("exponent") ? pow(a.tensor(0), a.number("exponent"))
                                                                             : pow(a.tensor(0), a.tensor(1))};
                                                 })},
                          .types = floating_types,
                          .or_number = {0, 1},
                          .cpu = pow_kernel,
                          .gradient = pow_gradient,
                          .keeps = {.inputs = {0, 1}, .outputs = {0}},
                          .sample = powers()});
const Op maximum_op = binary({.name = "maximum",
                              .functions = {function("maximum(x, y | value=)", "the larger; NaN where either is",
                                                     binary_or_value<maximum, maximum>)},
                              .passes = {monotone_in({0}), monotone_in({1}), passes({0, 1}, Reduce::max)},
                              .or_number = {1},
                              .cpu = binary_kernel<Maximum{}, Types::numbers>,
                              .gradient = extreme_gradient<true>,
                              .keeps = {.inputs = {0, 1}},
                              .sample = extremes()});
const Op minimum_op = binary({.name = "minimum",
                              .functions = {function("minimum(x, y | value=)", "the smaller; NaN where either is",
                                                     binary_or_value<minimum, minimum>)},
                              .passes = {monotone_in({0}), monotone_in({1}), passes({0, 1}, Reduce::min)},
                              .or_number = {1},
                              .cpu = binary_kernel<Minimum{}, Types::numbers>,
                              .gradient = extreme_gradient<false>,
                              .keeps = {.inputs = {0, 1}},
                              .sample = extremes()});
const Op extreme_backward_op = {
    .name = "extreme_backward",
    .rule = "...,...,...->...",
    .passes = {linear_in({0})},
    .types = floating_types,
    .or_number = {1, 2},
    .strided = true,
    .cpu = extreme_backward_kernel,
    .sample = joined(triples, {{{{5, 3}, {5, 3}, absent}, Number{0.2}}, {{{5, 3}, absent, {5, 3}}, Number{0.2}}})};
const Op remainder_op =
    binary({.name = "remainder",
            .functions = {function("remainder(x, y | value=)", "what division leaves, with the sign of y",
                                   binary_or_value<remainder, remainder>)},
            .or_number = {1},
            .cpu = remainder_kernel<true>,
            .gradient = remainder_gradient<true>,
            .keeps = {.inputs = {0, 1}},
            .sample = quotients(Number{-0.75})});
const Op fmod_op = binary({.name = "fmod",
                           .functions = {function("fmod(x, y | value=)", "what division leaves, with the sign of x",
                                                  binary_or_value<fmod, fmod>)},
                           .or_number = {1},
                           .cpu = remainder_kernel<false>,
                           .gradient = remainder_gradient<false>,
                           .keeps = {.inputs = {0, 1}},
                           .sample = quotients(Number{-0.75})});
const Op lerp_op = {
    .name = "lerp",
    .functions = {function("lerp(start, end, weight | weight=)", "start + weight * (end - start)",
                           [](Arguments& a) -> List {
                             return {a.has("weight") ? lerp(a.tensor(0), a.tensor(1), a.number("weight"))
                                                     : lerp(a.tensor(0), a.tensor(1), a.tensor(2))};
                           })},
    .rule = "...,...,...->...",
    .passes = {linear_in({0, 1}), average(2)},
    .types = floating_types,
    .or_number = {2},
    .strided = true,
    .cpu = lerp_kernel,
    .gradient = lerp_gradient,
    .keeps = {.inputs = {0, 1, 2}},
    .sample = joined(triples, {{{{5, 3}, {3}, absent}, Lerp{0.3}}, {{{5, 1}, {1, 4}, absent}, Lerp{1.25}}})};
const Op addcmul_op = {
    .name = "addcmul",
    .functions = {function<addcmul>("addcmul(x, tensor1, tensor2, value=1)", "x + value * tensor1 * tensor2")},
    .rule = "...,...,...->...",
    .passes = {linear_in({0, 1}), linear_in({0, 2}), average(0), average(1), average(2)},
    .types = number_types,
    .strided = true,
    .cpu = addcmul_kernel,
    .gradient = addcmul_gradient,
    .keeps = {.inputs = {1, 2}},
    .sample = with(triples, Number{-1.5})};

namespace {
constexpr const Op* binary_ops[] = {
    &add_op,       &sub_op,  &mul_op,  &div_op,     &pow_op,        &maximum_op,   &minimum_op, &extreme_backward_op,
    &remainder_op, &fmod_op, &lerp_op, &addcmul_op, &add_scalar_op, &mul_scalar_op};
}  // namespace
const Cards binary_cards = binary_ops;

DistributedTensor add(const DistributedTensor& a, const DistributedTensor& b) { return call(add_op, {&a, &b}); }
DistributedTensor sub(const DistributedTensor& a, const DistributedTensor& b) { return call(sub_op, {&a, &b}); }
DistributedTensor mul(const DistributedTensor& a, const DistributedTensor& b) { return call(mul_op, {&a, &b}); }
DistributedTensor div(const DistributedTensor& a, const DistributedTensor& b) { return call(div_op, {&a, &b}); }
DistributedTensor pow(const DistributedTensor& a, const DistributedTensor& b) { return call(pow_op, {&a, &b}); }
DistributedTensor maximum(const DistributedTensor& a, const DistributedTensor& b) { return call(maximum_op, {&a, &b}); }
DistributedTensor minimum(const DistributedTensor& a, const DistributedTensor& b) { return call(minimum_op, {&a, &b}); }
DistributedTensor remainder(const DistributedTensor& a, const DistributedTensor& b) {
  return call(remainder_op, {&a, &b});
}
DistributedTensor fmod(const DistributedTensor& a, const DistributedTensor& b) { return call(fmod_op, {&a, &b}); }

DistributedTensor add(const DistributedTensor& a, double v) { return call(add_scalar_op, {&a}, Number{v}); }
DistributedTensor sub(const DistributedTensor& a, double v) {
  check_defined("sub", a);
  return add(a, -v);
}
DistributedTensor mul(const DistributedTensor& a, double v) { return call(mul_scalar_op, {&a}, Number{v}); }
DistributedTensor div(const DistributedTensor& a, double v) { return call(div_op, {&a, nullptr}, Number{v}); }
DistributedTensor pow(const DistributedTensor& a, double e) { return call(pow_op, {&a, nullptr}, Number{e}); }
DistributedTensor maximum(const DistributedTensor& a, double v) { return call(maximum_op, {&a, nullptr}, Number{v}); }
DistributedTensor minimum(const DistributedTensor& a, double v) { return call(minimum_op, {&a, nullptr}, Number{v}); }
DistributedTensor remainder(const DistributedTensor& a, double v) {
  return call(remainder_op, {&a, nullptr}, Number{v});
}
DistributedTensor fmod(const DistributedTensor& a, double v) { return call(fmod_op, {&a, nullptr}, Number{v}); }
DistributedTensor sub(double v, const DistributedTensor& b) { return call(sub_op, {nullptr, &b}, Number{v}); }
DistributedTensor div(double v, const DistributedTensor& b) { return mul(reciprocal(b), v); }
DistributedTensor pow(double v, const DistributedTensor& b) { return call(pow_op, {nullptr, &b}, Number{v}); }

DistributedTensor lerp(const DistributedTensor& start, const DistributedTensor& end, const DistributedTensor& weight) {
  return call(lerp_op, {&start, &end, &weight});
}
DistributedTensor lerp(const DistributedTensor& start, const DistributedTensor& end, double weight) {
  return call(lerp_op, {&start, &end, nullptr}, Lerp{weight});
}
DistributedTensor addcmul(const DistributedTensor& input, const DistributedTensor& a, const DistributedTensor& b,
                          double value) {
  return call(addcmul_op, {&input, &a, &b}, Number{value});
}

}  // namespace dtensor::ops
