// The element-wise cards.
#include "ops/elementwise.h"

#include "ops/cuda/elementwise.h"
#include "ops/cuda/kernels.h"

namespace dtensor::cuda {
namespace {

static_assert(Elementwise::max_dims >= dtensor::max_dims);

using In = std::span<const Tensor>;
using Out = std::span<Tensor>;
using Operands = std::array<const Tensor*, 3>;
using Parameters = std::array<double, 4>;

// An attribute beside elements of the type. Errors: it is none.
double scalar_of(const Context& c, DType type, std::string_view name) {
  if (type == DType::i64) scalar<int64_t>(c, name);
  if (type == DType::boolean) scalar<bool>(c, name);
  return c.attributes.get<double>(name);
}

// out = f(operands...); an absent one is the attribute of that name.
void run(const Context& c, ElementwiseFunction* f, int count, const Operands& in, Out out, std::string_view absent,
         const Parameters& parameters = {}) {
  Elementwise e;
  e.stream = c.stream();
  e.n = out[0].numel(), e.to = e.type = out[0].dtype();
  for (const Tensor* t : in)
    if (t) e.type = t->dtype();  // of the last one, as a condition is the first
  std::array<Shape, 3> strides;
  for (size_t k = 0; k < 3; ++k)
    strides[k] = in[k] ? broadcast_strides(*in[k], out[0].shape()) : Shape::filled(out[0].dims(), 0);
  Walk<3> walk(out[0].shape(), strides);
  e.dims = walk.shape.dims();
  std::copy(walk.shape.begin(), walk.shape.end(), e.size);
  for (size_t k = 0; k < size_t(count); ++k) {
    if (in[k])
      e.in[k].at = in[k]->bytes_data();
    else
      e.in[k].value = scalar_of(c, e.type, absent);
    std::copy(walk.strides[k].begin(), walk.strides[k].end(), e.in[k].stride);
  }
  for (size_t o = 0; o < out.size(); ++o) e.out[o] = out[o].bytes_data();
  std::copy(parameters.begin(), parameters.end(), e.parameter);
  if (!f(e)) fail("[{}] has no CUDA kernel for {}", c.op, name(e.type));
}

template <ElementwiseFunction* f, int count>
void plain(const Context& c, In in, Out out) {
  run(c, f, count, {present(in, 0), present(in, 1), present(in, 2)}, out, "value");
}

void pow_kernel(const Context& c, In in, Out out) {
  if (in[1].defined()) return plain<power, 2>(c, in, out);
  run(c, power_of, 1, {&in[0]}, out, "", {c.attributes.get<double>("value")});
}
void lerp_kernel(const Context& c, In in, Out out) { run(c, lerp, 3, {&in[0], &in[1], present(in, 2)}, out, "weight"); }
void addcmul_kernel(const Context& c, In in, Out out) {
  run(c, add_multiple, 3, {&in[0], &in[1], &in[2]}, out, "", {scalar_of(c, out[0].dtype(), "value")});
}
void masked_fill_kernel(const Context& c, In in, Out out) { run(c, where, 3, {&in[1], nullptr, &in[0]}, out, "value"); }

// low, high, and whether they are given.
Parameters bounds(const Context& c, DType type) {
  bool low = c.attributes.has("min"), high = c.attributes.has("max");
  return {low ? scalar_of(c, type, "min") : -INFINITY, high ? scalar_of(c, type, "max") : INFINITY, double(low),
          double(high)};
}
void clamp_kernel(const Context& c, In in, Out out) { run(c, clamp, 1, {&in[0]}, out, "", bounds(c, out[0].dtype())); }
void clamp_backward_kernel(const Context& c, In in, Out out) {
  run(c, clamp_backward, 2, {&in[0], &in[1]}, out, "", bounds(c, out[0].dtype()));
}

template <ElementwiseFunction* by_erf, ElementwiseFunction* by_tanh, int count>
void gelu_kernel(const Context& c, In in, Out out) {
  bool tanh = c.attributes.get<std::string>("approximate") == "tanh";
  run(c, tanh ? by_tanh : by_erf, count, {present(in, 0), present(in, 1)}, out, "");
}
template <ElementwiseFunction* f, int count>
void softplus_kernel(const Context& c, In in, Out out) {
  run(c, f, count, {present(in, 0), present(in, 1)}, out, "",
      {c.attributes.get<double>("beta"), c.attributes.get<double>("threshold")});
}

}  // namespace

extern const KernelTable elementwise_kernels = {
    {"add", plain<add, 2>},
    {"sub", plain<subtract, 2>},
    {"mul", plain<multiply, 2>},
    {"div", plain<divide, 2>},
    {"pow", pow_kernel},
    {"maximum", plain<maximum, 2>},
    {"minimum", plain<minimum, 2>},
    {"extreme_backward", plain<maximum_backward, 3>},
    {"remainder", plain<remainder, 2>},
    {"fmod", plain<fmod, 2>},
    {"lerp", lerp_kernel},
    {"addcmul", addcmul_kernel},
    {"add_scalar", plain<add, 2>},
    {"mul_scalar", plain<multiply, 2>},
    {"neg", plain<negative, 1>},
    {"abs", plain<absolute, 1>},
    {"sign", plain<sign, 1>},
    {"square", plain<square, 1>},
    {"clamp", clamp_kernel},
    {"clamp_backward", clamp_backward_kernel},
    {"exp", plain<exp, 1>},
    {"expm1", plain<expm1, 1>},
    {"log", plain<log, 1>},
    {"log1p", plain<log1p, 1>},
    {"sqrt", plain<square_root, 1>},
    {"rsqrt", plain<reciprocal_square_root, 1>},
    {"reciprocal", plain<reciprocal, 1>},
    {"sin", plain<sin, 1>},
    {"cos", plain<cos, 1>},
    {"erf", plain<erf, 1>},
    {"floor", plain<floor, 1>},
    {"ceil", plain<ceil, 1>},
    {"round", plain<round, 1>},
    {"relu", plain<relu, 1>},
    {"relu_backward", plain<relu_backward, 2>},
    {"gelu", gelu_kernel<gelu, gelu_tanh, 1>},
    {"gelu_backward", gelu_kernel<gelu_backward, gelu_tanh_backward, 2>},
    {"silu", plain<silu, 1>},
    {"silu_backward", plain<silu_backward, 2>},
    {"tanh", plain<tanh, 1>},
    {"sigmoid", plain<sigmoid, 1>},
    {"softplus", softplus_kernel<softplus, 1>},
    {"softplus_backward", softplus_kernel<softplus_backward, 2>},
    {"swiglu", plain<swiglu, 2>},
    {"swiglu_backward", plain<swiglu_backward, 3>},
    {"eq", plain<equal, 2>},
    {"ne", plain<not_equal, 2>},
    {"lt", plain<less, 2>},
    {"le", plain<less_equal, 2>},
    {"gt", plain<greater, 2>},
    {"ge", plain<greater_equal, 2>},
    {"logical_and", plain<logical_and, 2>},
    {"logical_or", plain<logical_or, 2>},
    {"logical_xor", plain<not_equal, 2>},
    {"logical_not", plain<logical_not, 1>},
    {"isfinite", plain<is_finite, 1>},
    {"isnan", plain<is_nan, 1>},
    {"isinf", plain<is_infinite, 1>},
    {"where", plain<where, 3>},
    {"masked_fill", masked_fill_kernel},
    {"cast", plain<cast, 1>},
};

}  // namespace dtensor::cuda
