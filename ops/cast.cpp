#include "ops/cast.h"

#include "ops/elementwise.h"

namespace dtensor::ops {
namespace {

// A conversion to i64 of what it cannot hold is undefined in C++; here it is the smallest one, as x86-64 has it.
template <class To, class From>
To converted(From v) {
  if constexpr (std::is_same_v<To, bool>)
    return v != From(0);
  else if constexpr (std::is_floating_point_v<From> && std::is_same_v<To, int64_t>)
    return v >= From(-0x1p63) && v < From(0x1p63) ? To(v) : std::numeric_limits<To>::min();
  else
    return To(v);
}

void cast_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_all_types(c, in[0].dtype(), [&]<class From>() {
    for_all_types(c, out[0].dtype(), [&]<class To>() {
      elementwise<To, From>(c, {&in[0]}, out[0], [](From v) { return converted<To>(v); });
    });
  });
}

DType cast_type(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a, int) {
  DType to = a.get<DType>("dtype");
  for (DType t : {in[0]->dtype, to}) check(t != DType::bf16, "[{}] bf16 is not supported on the CPU", op);
  return to;
}

// From one floating type to another a sum passes: what it rounds is what the types round.
Rule cast_rule(std::span<const Shape* const>, const Attributes& a) {
  Rule rule{"...->..."};
  if (a.get<bool>("floating")) rule.linear = {{0}};
  return rule;
}

void cast_gradient(Gradient& g) { g.set(0, cast(g.of_output(), g.input_spec(0).dtype)); }

std::vector<Sample> samples() {
  std::vector<Sample> list;
  for (DType to : {DType::f32, DType::f64, DType::i64, DType::boolean})
    for (auto kind : {SampleInput::Kind::normal, SampleInput::Kind::index, SampleInput::Kind::boolean})
      list.push_back(
          {{{kind, {5, 3}, 3}}, {{"dtype", to}, {"floating", kind == SampleInput::Kind::normal && is_floating(to)}}});
  return list;
}

}  // namespace

const Op cast_op = unary({.name = "cast",
                          .rule = cast_rule,
                          .types = cast_type,
                          .cpu = cast_kernel,
                          .gradient = cast_gradient,
                          .sample = samples()});

DistributedTensor cast(const DistributedTensor& x, DType dtype) {
  return x.dtype() == dtype
             ? x
             : call(cast_op, {&x}, {{"dtype", dtype}, {"floating", is_floating(x.dtype()) && is_floating(dtype)}});
}

}  // namespace dtensor::ops
