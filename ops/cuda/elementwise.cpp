// The element-wise cards.
#include "ops/family/elementwise.h"

#include "ops/cuda/elementwise.h"
#include "ops/cuda/kernels.h"
#include "ops/pointwise/activation.h"
#include "ops/pointwise/binary.h"
#include "ops/pointwise/cast.h"
#include "ops/pointwise/compare.h"
#include "ops/pointwise/unary.h"

namespace dtensor::cuda {
namespace {

static_assert(Elementwise::max_dims >= dtensor::max_dims);

using In = std::span<const Tensor>;
using Out = std::span<Tensor>;
using Operands = std::array<const Tensor*, 3>;
using Parameters = std::array<double, 4>;

// A number beside elements of the type. Errors: it is none of it.
double scalar_of(const Context& c, DType type, double number) {
  if (type == DType::i64) scalar<int64_t>(c, number);
  if (type == DType::boolean) scalar<bool>(c, number);
  return number;
}
double number_of(const Context& c) { return c.attributes.as<ops::Number>().value; }

// out = f(operands...); an absent one is absent(c).
void run(const Context& c, ElementwiseFunction* f, int count, const Operands& in, Out out,
         double (*absent)(const Context&), const Parameters& parameters = {}) {
  Elementwise e;
  e.stream = c.stream();
  e.n = out[0].numel(), e.to = e.type = out[0].dtype();
  for (const Tensor* t : in)
    if (t) e.type = t->dtype();  // of the last one, as a condition is the first
  std::array<Shape, 3> strides;
  for (size_t k = 0; k < 3; ++k)
    strides[k] = in[k] ? broadcast_strides(*in[k], out[0].shape()) : Shape::filled(out[0].dims(), 0);
  Walk walk(out[0].shape(), strides);
  e.dims = walk.shape.dims();
  std::copy(walk.shape.begin(), walk.shape.end(), e.size);
  for (size_t k = 0; k < size_t(count); ++k) {
    if (in[k])
      e.in[k].at = in[k]->bytes_data();
    else
      e.in[k].value = scalar_of(c, e.type, absent(c));
    std::copy(walk.strides[k].begin(), walk.strides[k].end(), e.in[k].stride);
  }
  for (size_t o = 0; o < out.size(); ++o) e.out[o] = out[o].bytes_data();
  std::copy(parameters.begin(), parameters.end(), e.parameter);
  if (!f(e)) fail("[{}] has no CUDA kernel for {}", c.op, name(e.type));
}

template <ElementwiseFunction* f, int count>
void plain(const Context& c, In in, Out out) {
  run(c, f, count, {present(in, 0), present(in, 1), present(in, 2)}, out, number_of);
}

void pow_kernel(const Context& c, In in, Out out) {
  if (in[1].defined()) return plain<power, 2>(c, in, out);
  run(c, power_of, 1, {&in[0]}, out, nullptr, {number_of(c)});
}
void lerp_kernel(const Context& c, In in, Out out) {
  run(c, lerp, 3, {&in[0], &in[1], present(in, 2)}, out,
      [](const Context& of) { return of.attributes.as<ops::Lerp>().weight; });
}
void addcmul_kernel(const Context& c, In in, Out out) {
  run(c, add_multiple, 3, {&in[0], &in[1], &in[2]}, out, nullptr, {scalar_of(c, out[0].dtype(), number_of(c))});
}
void masked_fill_kernel(const Context& c, In in, Out out) {
  run(c, where, 3, {&in[1], nullptr, &in[0]}, out, number_of);
}

// low, high, and whether they are given.
Parameters bounds(const Context& c, DType type) {
  const auto& [low, high] = c.attributes.as<ops::Clamp>();
  return {low ? scalar_of(c, type, *low) : -INFINITY, high ? scalar_of(c, type, *high) : INFINITY,
          double(low.has_value()), double(high.has_value())};
}
void clamp_kernel(const Context& c, In in, Out out) {
  run(c, clamp, 1, {&in[0]}, out, nullptr, bounds(c, out[0].dtype()));
}
void clamp_backward_kernel(const Context& c, In in, Out out) {
  run(c, clamp_backward, 2, {&in[0], &in[1]}, out, nullptr, bounds(c, out[0].dtype()));
}

template <ElementwiseFunction* by_erf, ElementwiseFunction* by_tanh, int count>
void gelu_kernel(const Context& c, In in, Out out) {
  bool tanh = c.attributes.as<ops::Gelu>().approximate == "tanh";
  run(c, tanh ? by_tanh : by_erf, count, {present(in, 0), present(in, 1)}, out, nullptr);
}
template <ElementwiseFunction* f, int count>
void softplus_kernel(const Context& c, In in, Out out) {
  run(c, f, count, {present(in, 0), present(in, 1)}, out, nullptr,
      {c.attributes.as<ops::Softplus>().beta, c.attributes.as<ops::Softplus>().threshold});
}

}  // namespace

extern const KernelTable elementwise_kernels = {
#define DTENSOR_UNARY(name, ...) {&ops::name##_op, plain<name, 1>},
#define DTENSOR_BACKWARD(name, ...) {&ops::name##_op, plain<name, 2>},
#include "ops/pointwise/trigonometry.inc"
#include "ops/pointwise/unary.inc"
#undef DTENSOR_BACKWARD
#undef DTENSOR_UNARY
    {&ops::add_op, plain<add, 2>},
    {&ops::sub_op, plain<subtract, 2>},
    {&ops::mul_op, plain<multiply, 2>},
    {&ops::div_op, plain<divide, 2>},
    {&ops::pow_op, pow_kernel},
    {&ops::maximum_op, plain<maximum, 2>},
    {&ops::minimum_op, plain<minimum, 2>},
    {&ops::extreme_backward_op, plain<maximum_backward, 3>},
    {&ops::remainder_op, plain<remainder, 2>},
    {&ops::fmod_op, plain<fmod, 2>},
    {&ops::lerp_op, lerp_kernel},
    {&ops::addcmul_op, addcmul_kernel},
    {&ops::add_scalar_op, plain<add, 2>},
    {&ops::mul_scalar_op, plain<multiply, 2>},
    {&ops::clamp_op, clamp_kernel},
    {&ops::clamp_backward_op, clamp_backward_kernel},
    {&ops::gelu_op, gelu_kernel<gelu, gelu_tanh, 1>},
    {&ops::gelu_backward_op, gelu_kernel<gelu_backward, gelu_tanh_backward, 2>},
    {&ops::softplus_op, softplus_kernel<softplus, 1>},
    {&ops::softplus_backward_op, softplus_kernel<softplus_backward, 2>},
    {&ops::swiglu_op, plain<swiglu, 2>},
    {&ops::swiglu_backward_op, plain<swiglu_backward, 3>},
    {&ops::eq_op, plain<equal, 2>},
    {&ops::ne_op, plain<not_equal, 2>},
    {&ops::lt_op, plain<less, 2>},
    {&ops::le_op, plain<less_equal, 2>},
    {&ops::gt_op, plain<greater, 2>},
    {&ops::ge_op, plain<greater_equal, 2>},
    {&ops::logical_and_op, plain<logical_and, 2>},
    {&ops::logical_or_op, plain<logical_or, 2>},
    {&ops::logical_xor_op, plain<not_equal, 2>},
    {&ops::where_op, plain<where, 3>},
    {&ops::masked_fill_op, masked_fill_kernel},
    {&ops::cast_op, plain<cast, 1>},
};

}  // namespace dtensor::cuda
