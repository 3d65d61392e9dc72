#include "ops/pointwise/compare.h"

#include "ops/cards.h"
#include "ops/family/elementwise.h"
#include "ops/functions.h"
#include "ops/pointwise/functors.h"

namespace dtensor::ops {
namespace {

using namespace functors;
using Kind = SampleInput::Kind;

template <auto f>
void compare_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_types<Types::all>(c, in[0].dtype(),
                        [&]<class T>() { elementwise_pair<bool, T>(c, &in[0], present(in, 1), out[0], f); });
}
template <auto f>
void logic_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  elementwise<bool, bool, bool>(c, {&in[0], &in[1]}, out[0], f);
}

// No Partial passes a comparison: of contributions to a maximum one may be NaN, which makes the result false.
template <auto f>
Op comparison(Function function) {
  return binary({.name = function.name,
                 .functions = {function},
                 .types = compared_types,
                 .or_number = {1},
                 .cpu = compare_kernel<f>,
                 .sample = joined(joined(binary_samples(), binary_samples(Kind::index, Kind::index)),
                                  {{{{Kind::boolean, {5, 3}}, {Kind::boolean, {3}}}},
                                   {{{5, 3}, absent}, Number{0.25}},
                                   {{{Kind::index, {5}, 4}, absent}, Number{2.0}}})});
}

// Any passes or, all passes and: a maximum and a minimum of bools.
template <auto f>
Op logic(Function function, std::vector<Pass> passes = {}) {
  return binary({.name = function.name,
                 .functions = {function},
                 .passes = std::move(passes),
                 .types = bool_types,
                 .cpu = logic_kernel<f>,
                 .sample = binary_samples(Kind::boolean, Kind::boolean)});
}

DType selected_types(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a, int output) {
  bool fills = !a.empty();  // masked_fill(x, mask) or where(condition, a, b)
  const TensorSpec* choice = in[fills ? 1 : 0];
  check(choice->dtype == DType::boolean, "[{}] the {} is bool, not {}{}: compare, or use cast()", op,
        fills ? "mask" : "condition", name(choice->dtype), choice->shape);
  return same_types(op, fills ? in.first(1) : in.subspan(1), a, output);
}

void where_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_all_types(c, out[0].dtype(), [&]<class T>() {
    elementwise<T, bool, T, T>(c, {&in[0], &in[1], &in[2]}, out[0], Where{});
  });
}
void where_gradient(Gradient& g) {
  if (g.needs(1)) set_reduced(g, 1, masked_fill(g.of_output(), logical_not(g.input(0)), 0));
  if (g.needs(2)) set_reduced(g, 2, masked_fill(g.of_output(), g.input(0), 0));
}

void masked_fill_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_all_types(c, out[0].dtype(), [&]<class T>() {
    elementwise<T, T, bool>(
        c, {&in[0], &in[1]}, out[0],
        [v = scalar<T>(c, c.attributes.as<Number>().value)](T x, bool p) { return Where{}(p, v, x); });
  });
}
// Filled with zeros it is linear, as a gradient needs; each rank would add another value.
Rule masked_fill_rule(std::span<const Shape* const>, const Attributes& a) {
  bool zero = a.as<Number>().value == 0;
  return {"...,...->...", {monotone_in({0}), zero ? linear_in({0}) : passes({0}, Reduce::avg)}};
}

}  // namespace

const Op eq_op = comparison<Equal{}>(function("eq(x, y | value=)", "x == y, to bool", binary_or_value<eq, eq>));
const Op ne_op = comparison<NotEqual{}>(function("ne(x, y | value=)", "x != y, to bool", binary_or_value<ne, ne>));
const Op lt_op = comparison<Less{}>(function("lt(x, y | value=)", "x < y, to bool", binary_or_value<lt, lt>));
const Op le_op = comparison<LessEqual{}>(function("le(x, y | value=)", "x <= y, to bool", binary_or_value<le, le>));
const Op gt_op = comparison<Greater{}>(function("gt(x, y | value=)", "x > y, to bool", binary_or_value<gt, gt>));
const Op ge_op = comparison<GreaterEqual{}>(function("ge(x, y | value=)", "x >= y, to bool", binary_or_value<ge, ge>));

const Op logical_and_op = logic<And{}>(function<logical_and>("logical_and(x, y)", "whether both are true"),
                                       {monotone_in({0}), monotone_in({1}), passes({0, 1}, Reduce::min)});
const Op logical_or_op = logic<Or{}>(function<logical_or>("logical_or(x, y)", "whether either is true"),
                                     {monotone_in({0}), monotone_in({1}), passes({0, 1}, Reduce::max)});
const Op logical_xor_op = logic<NotEqual{}>(function<logical_xor>("logical_xor(x, y)", "whether they differ"));
const Op where_op = {
    .name = "where",
    .functions = {function("where(condition, x, y)", "x where the condition is true, y elsewhere",
                           [](Arguments& a) -> List { return {where(a.tensor(0), a.tensor(1), a.tensor(2))}; })},
    .rule = "...,...,...->...",
    .passes = {linear_in({1, 2}), monotone_in({1}), monotone_in({2}), monotone_in({1, 2}), passes({1}, Reduce::avg),
               passes({2}, Reduce::avg)},
    .types = selected_types,
    .strided = true,
    .cpu = where_kernel,
    .gradient = where_gradient,
    .keeps = {.inputs = {0}},
    .sample = {{{{Kind::boolean, {5, 3}}, {5, 3}, {5, 3}}},
               {{{Kind::boolean, {5, 1}}, {5, 3}, {3}}},
               {{{Kind::boolean, {2, 5, 3}}, {5, 1}, {}}},
               {{{Kind::boolean, {}}, {1}, {0}}},
               {{{Kind::boolean, {4}}, {Kind::index, {4}, 9}, {Kind::index, {1}, 9}}}}};
const Op masked_fill_op = {
    .name = "masked_fill",
    .functions = {function<masked_fill>("masked_fill(x, mask, value=)", "value where the mask is true, x elsewhere")},
    .rule = masked_fill_rule,
    .types = selected_types,
    .strided = true,
    .cpu = masked_fill_kernel,
    .gradient = [](Gradient& g) { set_reduced(g, 0, masked_fill(g.of_output(), g.input(1), 0)); },
    .keeps = {.inputs = {1}},
    .sample = {{{{5, 3}, {Kind::boolean, {5, 3}}}, Number{-1.5}},
               {{{5, 3}, {Kind::boolean, {3}}}, Number{0.0}},
               {{{5, 1}, {Kind::boolean, {2, 1, 3}}}, Number{0.5}},
               {{{0}, {Kind::boolean, {}}}, Number{0.0}},
               {{{Kind::index, {4}, 9}, {Kind::boolean, {4}}}, Number{3.0}}}};

namespace {
constexpr const Op* compare_ops[] = {&eq_op,          &ne_op,    &lt_op,          &le_op,
                                     &gt_op,          &ge_op,    &logical_and_op, &logical_or_op,
                                     &logical_xor_op, &where_op, &masked_fill_op};
}  // namespace
const Cards compare_cards = compare_ops;

DistributedTensor eq(const DistributedTensor& a, const DistributedTensor& b) { return call(eq_op, {&a, &b}); }
DistributedTensor ne(const DistributedTensor& a, const DistributedTensor& b) { return call(ne_op, {&a, &b}); }
DistributedTensor lt(const DistributedTensor& a, const DistributedTensor& b) { return call(lt_op, {&a, &b}); }
DistributedTensor le(const DistributedTensor& a, const DistributedTensor& b) { return call(le_op, {&a, &b}); }
DistributedTensor gt(const DistributedTensor& a, const DistributedTensor& b) { return call(gt_op, {&a, &b}); }
DistributedTensor ge(const DistributedTensor& a, const DistributedTensor& b) { return call(ge_op, {&a, &b}); }
DistributedTensor eq(const DistributedTensor& a, double v) { return call(eq_op, {&a, nullptr}, Number{v}); }
DistributedTensor ne(const DistributedTensor& a, double v) { return call(ne_op, {&a, nullptr}, Number{v}); }
DistributedTensor lt(const DistributedTensor& a, double v) { return call(lt_op, {&a, nullptr}, Number{v}); }
DistributedTensor le(const DistributedTensor& a, double v) { return call(le_op, {&a, nullptr}, Number{v}); }
DistributedTensor gt(const DistributedTensor& a, double v) { return call(gt_op, {&a, nullptr}, Number{v}); }
DistributedTensor ge(const DistributedTensor& a, double v) { return call(ge_op, {&a, nullptr}, Number{v}); }

DistributedTensor logical_and(const DistributedTensor& a, const DistributedTensor& b) {
  return call(logical_and_op, {&a, &b});
}
DistributedTensor logical_or(const DistributedTensor& a, const DistributedTensor& b) {
  return call(logical_or_op, {&a, &b});
}
DistributedTensor logical_xor(const DistributedTensor& a, const DistributedTensor& b) {
  return call(logical_xor_op, {&a, &b});
}

DistributedTensor where(const DistributedTensor& condition, const DistributedTensor& a, const DistributedTensor& b) {
  return call(where_op, {&condition, &a, &b});
}
DistributedTensor where(const DistributedTensor& condition, const DistributedTensor& a, double b) {
  return masked_fill(a, logical_not(condition), b);
}
DistributedTensor where(const DistributedTensor& condition, double a, const DistributedTensor& b) {
  return masked_fill(b, condition, a);
}
DistributedTensor masked_fill(const DistributedTensor& x, const DistributedTensor& mask, double value) {
  return call(masked_fill_op, {&x, &mask}, Number{value});
}

}  // namespace dtensor::ops
