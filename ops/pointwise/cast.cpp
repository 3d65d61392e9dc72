#include "ops/pointwise/cast.h"

#include "ops/cards.h"
#include "ops/family/elementwise.h"
#include "ops/functions.h"
#include "ops/pointwise/functors.h"

namespace dtensor::ops {
namespace {

// bf16 is converted by way of float.
template <class T>
using By = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;

template <class F>
void for_cast_types(const Context& c, DType t, F f) {
  if (t == DType::bf16)
    f.template operator()<BFloat16>();
  else
    for_all_types(c, t, f);
}

void cast_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_cast_types(c, in[0].dtype(), [&]<class From>() {
    for_cast_types(c, out[0].dtype(), [&]<class To>() {
      elementwise<To, From>(c, {&in[0]}, out[0],
                            [](Read<From> x) { return To(functors::Cast<By<To>>{}(By<From>(x))); });
    });
  });
}

DType cast_type(std::string_view, std::span<const TensorSpec* const>, const Attributes& a, int) {
  return a.as<Cast>().dtype;
}

// To a wider floating type nothing is rounded, so a sum passes.
Rule cast_rule(std::span<const Shape* const>, const Attributes& a) {
  Rule rule{"...->..."};
  if (a.as<Cast>().widening) rule.passes = {linear_in({0})};
  return rule;
}

void cast_gradient(Gradient& g) { g.set(0, cast(g.of_output(), g.input_spec(0).dtype)); }

std::vector<Sample> samples() {
  std::vector<Sample> list;
  for (DType to : {DType::f32, DType::f64, DType::i64, DType::boolean})
    for (auto kind : {SampleInput::Kind::normal, SampleInput::Kind::index, SampleInput::Kind::boolean})
      list.push_back({{{kind, {5, 3}, 3}}, Cast{to, false}});
  return list;
}

}  // namespace

const Op cast_op = unary({.name = "cast",
                          .functions = {function<cast>("cast(x, dtype=)", "the elements converted to another type")},
                          .rule = cast_rule,
                          .types = cast_type,
                          .cpu = cast_kernel,
                          .gradient = cast_gradient,
                          .sample = samples()});

namespace {
constexpr const Op* cast_ops[] = {&cast_op};
}  // namespace
const Cards cast_cards = cast_ops;

DistributedTensor cast(const DistributedTensor& x, DType dtype) {
  check_defined("cast", x);
  return x.dtype() == dtype
             ? x
             : call(cast_op, {&x},
                    Cast{dtype, is_floating(x.dtype()) && is_floating(dtype) && itemsize(dtype) > itemsize(x.dtype())});
}

}  // namespace dtensor::ops
