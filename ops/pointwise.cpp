#include "ops/pointwise.h"

#include <cmath>

#include "ops/cpu/fused.h"
#include "ops/cpu/rows.h"
#include "ops/kernel.h"
#include "ops/reduce.h"

namespace dtensor::ops {
namespace {

// out = f(x) by element, x of any strides.
template <class From, class To, class F>
void map(const Context& c, const Tensor& x, Tensor& out, F f) {
  Tensor flat = x.contiguous();
  const From* from = flat.data<From>();
  To* to = out.data<To>();
  c.pool.parallel_for(out.numel(), pointwise_grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) to[i] = f(from[i]);
  });
}

template <class F>
void unary(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_floating(c, out[0].dtype(), [&]<class T>() { map<T, T>(c, in[0], out[0], F{}); });
}

// As unary, where f works on whole arrays: f(n, x, y) or, with dy, f(n, dy, x, dx).
template <auto F32, auto F64>
void unary_rows(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_floating(c, out[0].dtype(), [&]<class T>() {
    const T *a = in[0].data<T>(), *b = in.size() > 1 ? in[1].data<T>() : nullptr;
    T* y = out[0].data<T>();
    c.pool.parallel_for(out[0].numel(), pointwise_grain, [&](int64_t begin, int64_t end, int) {
      if constexpr (std::is_same_v<T, float>) {
        if constexpr (std::is_invocable_v<decltype(F32), int64_t, const T*, T*>)
          F32(end - begin, a + begin, y + begin);
        else
          F32(end - begin, a + begin, b + begin, y + begin);
      } else {
        if constexpr (std::is_invocable_v<decltype(F64), int64_t, const T*, T*>)
          F64(end - begin, a + begin, y + begin);
        else
          F64(end - begin, a + begin, b + begin, y + begin);
      }
    });
    (void)b;
  });
}

// out = f(a, b) by element, both broadcast to the output.
template <class T, class F>
void zip(const Context& c, const Tensor& a, const Tensor& b, Tensor& out, F f) {
  T* to = out.data<T>();
  const T *pa = a.data<T>(), *pb = b.data<T>();
  if (a.shape() == out.shape() && b.shape() == out.shape() && a.is_contiguous() && b.is_contiguous()) {
    return c.pool.parallel_for(out.numel(), pointwise_grain, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) to[i] = f(pa[i], pb[i]);
    });
  }
  if (out.dims() == 0) {
    *to = f(*pa, *pb);
    return;
  }
  std::array<Shape, 2> strides{broadcast_strides(a, out.shape()), broadcast_strides(b, out.shape())};
  int64_t n = out.shape().back(), sa = strides[0].back(), sb = strides[1].back();
  c.pool.parallel_for(rows_of(out), std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(n, 1)),
                      [&](int64_t begin, int64_t end, int) {
                        for_rows<2>(out.shape(), strides, begin, end, [&](int64_t row, const auto& at) {
                          const T *x = pa + at[0], *y = pb + at[1];
                          T* z = to + row * n;
                          if (sa == 1 && sb == 1)
                            for (int64_t i = 0; i < n; ++i) z[i] = f(x[i], y[i]);
                          else
                            for (int64_t i = 0; i < n; ++i) z[i] = f(x[i * sa], y[i * sb]);
                        });
                      });
}

template <class F>
void binary(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  if (out[0].dtype() == DType::i64) return zip<int64_t>(c, in[0], in[1], out[0], F{});
  for_floating(c, out[0].dtype(), [&]<class T>() { zip<T>(c, in[0], in[1], out[0], F{}); });
}

template <class F>
void with_scalar(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  double value = c.attributes.get<double>("value");
  check(out[0].dtype() != DType::i64 || value == std::floor(value),
        "[{}] {} is no integer, but the tensor is i64: use cast()", c.op, value);
  if (out[0].dtype() == DType::i64)
    return map<int64_t, int64_t>(c, in[0], out[0], [v = int64_t(value)](int64_t x) { return F{}(x, v); });
  for_floating(c, out[0].dtype(),
               [&]<class T>() { map<T, T>(c, in[0], out[0], [v = T(value)](T x) { return F{}(x, v); }); });
}

struct Add {
  template <class T>
  T operator()(T a, T b) const {
    return a + b;
  }
};
struct Sub {
  template <class T>
  T operator()(T a, T b) const {
    return a - b;
  }
};
struct Mul {
  template <class T>
  T operator()(T a, T b) const {
    return a * b;
  }
};
struct Div {
  template <class T>
  T operator()(T a, T b) const {
    return a / b;
  }
};
struct Max {
  template <class T>
  T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};
struct Min {
  template <class T>
  T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Neg {
  template <class T>
  T operator()(T a) const {
    return -a;
  }
};
struct Abs {
  template <class T>
  T operator()(T a) const {
    return std::abs(a);
  }
};
struct Sqrt {
  template <class T>
  T operator()(T a) const {
    return std::sqrt(a);
  }
};
struct Rsqrt {
  template <class T>
  T operator()(T a) const {
    return 1 / std::sqrt(a);
  }
};
struct Square {
  template <class T>
  T operator()(T a) const {
    return a * a;
  }
};
struct Reciprocal {
  template <class T>
  T operator()(T a) const {
    return 1 / a;
  }
};
struct Relu {
  template <class T>
  T operator()(T a) const {
    return a < 0 ? T(0) : a;
  }
};
struct ReluBackward {
  template <class T>
  T operator()(T dy, T x) const {
    return x > 0 ? dy : T(0);
  }
};
struct AbsBackward {
  template <class T>
  T operator()(T dy, T x) const {
    return x > 0 ? dy : x < 0 ? -dy : T(0);
  }
};

// Sets the gradient of a broadcast operand.
void set_reduced(Gradient& g, int i, const DistributedTensor& gradient) {
  if (g.needs(i)) g.set(i, sum_to(gradient, g.input_spec(i).shape));
}

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
  DistributedTensor dx = div(g.of_output(), g.input(1));
  set_reduced(g, 0, dx);
  if (g.needs(1)) set_reduced(g, 1, neg(mul(dx, g.output(0))));
}
void add_scalar_gradient(Gradient& g) { g.set(0, g.of_output()); }
void mul_scalar_gradient(Gradient& g) { g.set(0, mul(g.of_output(), g.attributes().get<double>("value"))); }
void neg_gradient(Gradient& g) { g.set(0, neg(g.of_output())); }
void abs_gradient(Gradient& g) { g.set(0, call(abs_backward_op, {&g.of_output(), &g.input(0)})); }
void exp_gradient(Gradient& g) { g.set(0, mul(g.of_output(), g.output(0))); }
void log_gradient(Gradient& g) { g.set(0, div(g.of_output(), g.input(0))); }
void sqrt_gradient(Gradient& g) { g.set(0, mul(div(g.of_output(), g.output(0)), 0.5)); }
void rsqrt_gradient(Gradient& g) {
  const DistributedTensor& y = g.output(0);
  g.set(0, mul(mul(g.of_output(), mul(y, square(y))), -0.5));
}
void square_gradient(Gradient& g) { g.set(0, mul(mul(g.of_output(), g.input(0)), 2)); }
void reciprocal_gradient(Gradient& g) { g.set(0, neg(mul(g.of_output(), square(g.output(0))))); }
void tanh_gradient(Gradient& g) { g.set(0, sub(g.of_output(), mul(g.of_output(), square(g.output(0))))); }
void sigmoid_gradient(Gradient& g) {
  DistributedTensor d = mul(g.of_output(), g.output(0));
  g.set(0, sub(d, mul(d, g.output(0))));
}
void relu_gradient(Gradient& g) { g.set(0, call(relu_backward_op, {&g.of_output(), &g.input(0)})); }
void gelu_gradient(Gradient& g) { g.set(0, call(gelu_backward_op, {&g.of_output(), &g.input(0)})); }
void silu_gradient(Gradient& g) { g.set(0, call(silu_backward_op, {&g.of_output(), &g.input(0)})); }

void swiglu_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_floating(c, out[0].dtype(), [&]<class T>() {
    const T *gate = in[0].data<T>(), *up = in[1].data<T>();
    T* y = out[0].data<T>();
    c.pool.parallel_for(out[0].numel(), pointwise_grain,
                        [&](int64_t b, int64_t e, int) { cpu::swiglu(e - b, gate + b, up + b, y + b); });
  });
}
void swiglu_backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_floating(c, out[0].dtype(), [&]<class T>() {
    const T *dy = in[0].data<T>(), *gate = in[1].data<T>(), *up = in[2].data<T>();
    T *dgate = out[0].data<T>(), *dup = out[1].data<T>();
    c.pool.parallel_for(out[0].numel(), pointwise_grain, [&](int64_t b, int64_t e, int) {
      cpu::swiglu_backward(e - b, dy + b, gate + b, up + b, dgate + b, dup + b);
    });
  });
}
void swiglu_gradient(Gradient& g) {
  auto d = call_all(swiglu_backward_op, {&g.of_output(), &g.input(0), &g.input(1)});
  g.set(0, d[0]);
  g.set(1, d[1]);
}

// Operands that may not broadcast: the kernels walk them as one array.
Rule same_shapes(std::span<const Shape* const> in, const Attributes&) {
  for (const Shape* s : in)
    if (s && in[0] && *s != *in[0]) fail("[swiglu] shapes differ: {} and {}", to_string(*in[0]), to_string(*s));
  return {in.size() == 3 ? "...,...,...->...,..." : "...,...->..."};
}

template <class From>
void cast_from(const Context& c, const Tensor& x, Tensor& out) {
  switch (out.dtype()) {
    case DType::f32:
      return map<From, float>(c, x, out, [](From v) { return float(v); });
    case DType::f64:
      return map<From, double>(c, x, out, [](From v) { return double(v); });
    case DType::i64:
      return map<From, int64_t>(c, x, out, [](From v) { return int64_t(v); });
    case DType::boolean:
      return map<From, bool>(c, x, out, [](From v) { return v != From(0); });
    case DType::bf16:
      break;
  }
  fail("[cast] bf16 is not supported on the CPU");
}
void cast_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  switch (in[0].dtype()) {
    case DType::f32:
      return cast_from<float>(c, in[0], out[0]);
    case DType::f64:
      return cast_from<double>(c, in[0], out[0]);
    case DType::i64:
      return cast_from<int64_t>(c, in[0], out[0]);
    case DType::boolean:
      return cast_from<bool>(c, in[0], out[0]);
    case DType::bf16:
      break;
  }
  fail("[cast] bf16 is not supported on the CPU");
}
// A quotient of integers is rounded, and so not linear.
DType quotient_type(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a, int output) {
  DType t = same_types(op, in, a, output);
  check(is_floating(t), "[{}] element type {} of {}: use cast() to a floating type", op, name(t),
        to_string(in[0]->shape));
  return t;
}

DType cast_type(std::string_view, std::span<const TensorSpec* const>, const Attributes& a, int) {
  return a.get<DType>("dtype");
}
void cast_gradient(Gradient& g) { g.set(0, cast(g.of_output(), g.input_spec(0).dtype)); }

const std::vector<Sample> one = {{{{5, 3}}}, {{{}}}, {{{0, 3}}}, {{{1, 7}}}};
const std::vector<Sample> one_positive = {{{{SampleInput::Kind::positive, {5, 3}}}},
                                          {{{SampleInput::Kind::positive, {2, 1, 4}}}}};
const std::vector<Sample> two = {{{{5, 3}, {5, 3}}},
                                 {{{5, 3}, {3}}},
                                 {{{5, 1}, {1, 4}}},
                                 {{{2, 5, 3}, {5, 1}}},
                                 {{{1}, {0}}},
                                 {{{}, {2, 3}}},
                                 {{{SampleInput::Kind::index, {5, 3}, 9}, {SampleInput::Kind::index, {3}, 9}}}};
const std::vector<Sample> two_same = {{{{5, 3}, {5, 3}}}, {{{2, 1, 4}, {2, 1, 4}}}};

}  // namespace

const Op add_op = {.name = "add",
                   .rule = "...,...->...",
                   .linear = {{0, 1}},
                   .monotone = {{0}, {1}},
                   .strided = true,
                   .cpu = binary<Add>,
                   .gradient = add_gradient,
                   .sample = two};
const Op sub_op = {.name = "sub",
                   .rule = "...,...->...",
                   .linear = {{0, 1}},
                   .monotone = {{0}},
                   .strided = true,
                   .cpu = binary<Sub>,
                   .gradient = sub_gradient,
                   .sample = two};
const Op mul_op = {.name = "mul",
                   .rule = "...,...->...",
                   .linear = {{0}, {1}},
                   .strided = true,
                   .cpu = binary<Mul>,
                   .gradient = mul_gradient,
                   .keeps = {.inputs = {0, 1}},
                   .sample = two};
const Op div_op = {
    .name = "div",
    .rule = "...,...->...",
    .linear = {{0}},
    .types = quotient_type,
    .strided = true,
    .cpu = binary<Div>,
    .gradient = div_gradient,
    .keeps = {.inputs = {1}, .outputs = {0}},
    .sample = {{{{5, 3}, {SampleInput::Kind::positive, {5, 3}}}}, {{{5, 3}, {SampleInput::Kind::positive, {3}}}}}};
const Op maximum_op = {.name = "maximum",
                       .rule = "...,...->...",
                       .monotone = {{0}, {1}},
                       .strided = true,
                       .cpu = binary<Max>,
                       .sample = two};
const Op minimum_op = {.name = "minimum",
                       .rule = "...,...->...",
                       .monotone = {{0}, {1}},
                       .strided = true,
                       .cpu = binary<Min>,
                       .sample = two};
const Op add_scalar_op = {
    .name = "add_scalar",
    .rule = "...->...",
    .monotone = {{0}},
    .strided = true,
    .cpu = with_scalar<Add>,
    .gradient = add_scalar_gradient,
    .sample = {{{{5, 3}}, {{"value", 1.5}}}, {{{SampleInput::Kind::index, {5}, 9}}, {{"value", 2.0}}}}};
const Op mul_scalar_op = {
    .name = "mul_scalar",
    .rule = "...->...",
    .linear = {{0}},
    .strided = true,
    .cpu = with_scalar<Mul>,
    .gradient = mul_scalar_gradient,
    .sample = {{{{5, 3}}, {{"value", -1.5}}}, {{{SampleInput::Kind::index, {5}, 9}}, {{"value", -2.0}}}}};

const Op neg_op = {.name = "neg",
                   .rule = "...->...",
                   .linear = {{0}},
                   .strided = true,
                   .cpu = unary<Neg>,
                   .gradient = neg_gradient,
                   .sample = one};
const Op abs_op = {.name = "abs",
                   .rule = "...->...",
                   .strided = true,
                   .cpu = unary<Abs>,
                   .gradient = abs_gradient,
                   .keeps = {.inputs = {0}},
                   .sample = one};
const Op abs_backward_op = {.name = "abs_backward",
                            .rule = "...,...->...",
                            .linear = {{0}},
                            .strided = true,
                            .cpu = binary<AbsBackward>,
                            .sample = two_same};
const Op exp_op = {.name = "exp",
                   .rule = "...->...",
                   .monotone = {{0}},
                   .cpu = unary_rows<cpu::exp<float>, cpu::exp<double>>,
                   .gradient = exp_gradient,
                   .keeps = {.outputs = {0}},
                   .sample = one};
// Not monotone, as sqrt: contributions to a maximum may be negative, where the function is not defined.
const Op log_op = {.name = "log",
                   .rule = "...->...",
                   .cpu = unary_rows<cpu::log<float>, cpu::log<double>>,
                   .gradient = log_gradient,
                   .keeps = {.inputs = {0}},
                   .sample = one_positive};
const Op sqrt_op = {.name = "sqrt",
                    .rule = "...->...",
                    .strided = true,
                    .cpu = unary<Sqrt>,
                    .gradient = sqrt_gradient,
                    .keeps = {.outputs = {0}},
                    .sample = one_positive};
const Op rsqrt_op = {.name = "rsqrt",
                     .rule = "...->...",
                     .strided = true,
                     .cpu = unary<Rsqrt>,
                     .gradient = rsqrt_gradient,
                     .keeps = {.outputs = {0}},
                     .sample = one_positive};
const Op square_op = {.name = "square",
                      .rule = "...->...",
                      .strided = true,
                      .cpu = unary<Square>,
                      .gradient = square_gradient,
                      .keeps = {.inputs = {0}},
                      .sample = one};
const Op reciprocal_op = {.name = "reciprocal",
                          .rule = "...->...",
                          .strided = true,
                          .cpu = unary<Reciprocal>,
                          .gradient = reciprocal_gradient,
                          .keeps = {.outputs = {0}},
                          .sample = one_positive};
const Op tanh_op = {.name = "tanh",
                    .rule = "...->...",
                    .monotone = {{0}},
                    .cpu = unary_rows<cpu::tanh<float>, cpu::tanh<double>>,
                    .gradient = tanh_gradient,
                    .keeps = {.outputs = {0}},
                    .sample = one};
const Op sigmoid_op = {.name = "sigmoid",
                       .rule = "...->...",
                       .monotone = {{0}},
                       .cpu = unary_rows<cpu::sigmoid<float>, cpu::sigmoid<double>>,
                       .gradient = sigmoid_gradient,
                       .keeps = {.outputs = {0}},
                       .sample = one};
const Op relu_op = {.name = "relu",
                    .rule = "...->...",
                    .monotone = {{0}},
                    .strided = true,
                    .cpu = unary<Relu>,
                    .gradient = relu_gradient,
                    .keeps = {.inputs = {0}},
                    .sample = one};
const Op relu_backward_op = {.name = "relu_backward",
                             .rule = "...,...->...",
                             .linear = {{0}},
                             .strided = true,
                             .cpu = binary<ReluBackward>,
                             .sample = two_same};
const Op gelu_op = {.name = "gelu",
                    .rule = "...->...",
                    .cpu = unary_rows<cpu::gelu<float>, cpu::gelu<double>>,
                    .gradient = gelu_gradient,
                    .keeps = {.inputs = {0}},
                    .sample = one};
const Op gelu_backward_op = {.name = "gelu_backward",
                             .rule = same_shapes,
                             .linear = {{0}},
                             .cpu = unary_rows<cpu::gelu_gradient<float>, cpu::gelu_gradient<double>>,
                             .sample = two_same};
const Op silu_op = {.name = "silu",
                    .rule = "...->...",
                    .cpu = unary_rows<cpu::silu<float>, cpu::silu<double>>,
                    .gradient = silu_gradient,
                    .keeps = {.inputs = {0}},
                    .sample = one};
const Op silu_backward_op = {.name = "silu_backward",
                             .rule = same_shapes,
                             .linear = {{0}},
                             .cpu = unary_rows<cpu::silu_gradient<float>, cpu::silu_gradient<double>>,
                             .sample = two_same};
const Op swiglu_op = {.name = "swiglu",
                      .rule = same_shapes,
                      .linear = {{1}},
                      .cpu = swiglu_kernel,
                      .gradient = swiglu_gradient,
                      .keeps = {.inputs = {0, 1}},
                      .sample = two_same};
const Op swiglu_backward_op = {.name = "swiglu_backward",
                               .rule = same_shapes,
                               .linear = {{0}},
                               .passes = {{.inputs = {2}, .outputs = {0}}},
                               .cpu = swiglu_backward_kernel,
                               .sample = {{{{5, 3}, {5, 3}, {5, 3}}}}};
const Op cast_op = {.name = "cast",
                    .rule = "...->...",
                    .types = cast_type,
                    .strided = true,
                    .cpu = cast_kernel,
                    .gradient = cast_gradient,
                    .sample = {{{{5, 3}}, {{"dtype", DType::f64}}},
                               {{{5, 3}}, {{"dtype", DType::f32}}},
                               {{{5, 3}}, {{"dtype", DType::i64}}},
                               {{{5, 3}}, {{"dtype", DType::boolean}}},
                               {{{SampleInput::Kind::index, {5}, 3}}, {{"dtype", DType::f64}}}}};

DistributedTensor add(const DistributedTensor& a, const DistributedTensor& b) { return call(add_op, {&a, &b}); }
DistributedTensor sub(const DistributedTensor& a, const DistributedTensor& b) { return call(sub_op, {&a, &b}); }
DistributedTensor mul(const DistributedTensor& a, const DistributedTensor& b) { return call(mul_op, {&a, &b}); }
DistributedTensor div(const DistributedTensor& a, const DistributedTensor& b) { return call(div_op, {&a, &b}); }
DistributedTensor maximum(const DistributedTensor& a, const DistributedTensor& b) { return call(maximum_op, {&a, &b}); }
DistributedTensor minimum(const DistributedTensor& a, const DistributedTensor& b) { return call(minimum_op, {&a, &b}); }
DistributedTensor add(const DistributedTensor& a, double value) {
  return call(add_scalar_op, {&a}, {{"value", value}});
}
DistributedTensor mul(const DistributedTensor& a, double value) {
  return call(mul_scalar_op, {&a}, {{"value", value}});
}
DistributedTensor neg(const DistributedTensor& x) { return call(neg_op, {&x}); }
DistributedTensor abs(const DistributedTensor& x) { return call(abs_op, {&x}); }
DistributedTensor exp(const DistributedTensor& x) { return call(exp_op, {&x}); }
DistributedTensor log(const DistributedTensor& x) { return call(log_op, {&x}); }
DistributedTensor sqrt(const DistributedTensor& x) { return call(sqrt_op, {&x}); }
DistributedTensor rsqrt(const DistributedTensor& x) { return call(rsqrt_op, {&x}); }
DistributedTensor square(const DistributedTensor& x) { return call(square_op, {&x}); }
DistributedTensor reciprocal(const DistributedTensor& x) { return call(reciprocal_op, {&x}); }
DistributedTensor tanh(const DistributedTensor& x) { return call(tanh_op, {&x}); }
DistributedTensor sigmoid(const DistributedTensor& x) { return call(sigmoid_op, {&x}); }
DistributedTensor relu(const DistributedTensor& x) { return call(relu_op, {&x}); }
DistributedTensor gelu(const DistributedTensor& x) { return call(gelu_op, {&x}); }
DistributedTensor silu(const DistributedTensor& x) { return call(silu_op, {&x}); }
DistributedTensor swiglu(const DistributedTensor& gate, const DistributedTensor& up) {
  return call(swiglu_op, {&gate, &up});
}
DistributedTensor cast(const DistributedTensor& x, DType dtype) {
  return x.dtype() == dtype ? x : call(cast_op, {&x}, {{"dtype", dtype}});
}

}  // namespace dtensor::ops
