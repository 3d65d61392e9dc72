#include "ops/cpu/elementwise.h"

#include "ops/cpu/targets.h"
#define HWY_TARGET_INCLUDE "ops/cpu/elementwise.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ops/cpu/vector-inl.h"

#ifndef DTENSOR_CPU_ELEMENTWISE_ONCE
#define DTENSOR_CPU_ELEMENTWISE_ONCE
namespace dtensor::cpu {
enum class Elementwise { log1p, expm1, sin, cos, erf, floor, ceil, round };

/// What one instruction set offers.
template <class T>
struct ElementwiseKernels {
  void (*map)(Elementwise, int64_t, const T*, T*);
  decltype(&cpu::softplus<T>) softplus;
  decltype(&cpu::softplus_gradient<T>) softplus_gradient;
};
}  // namespace dtensor::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace dtensor::cpu::HWY_NAMESPACE {

template <class T>
void map(Elementwise f, int64_t n, const T* x, T* y) {
  const Tag<T> d;
#define CASE(name, value)                                  \
  case Elementwise::name:                                  \
    return each(d, n, [=](int64_t i, int64_t m) HWY_ATTR { \
      const auto v = load(d, x + i, m);                    \
      store(d, value, y + i, m);                           \
    })
  switch (f) {
    CASE(log1p, log1p(d, v));
    CASE(expm1, expm1(d, v));
    CASE(sin, sin_cos(d, v, 0));
    CASE(cos, sin_cos(d, v, 1));
    CASE(erf, erf(d, v));
    CASE(floor, hn::Floor(v));
    CASE(ceil, hn::Ceil(v));
    CASE(round, hn::Round(v));
  }
#undef CASE
}

template <class T>
void softplus(int64_t n, double beta, double threshold, const T* x, T* y) {
  const Tag<T> d;
  each(d, n, [=](int64_t i, int64_t m) HWY_ATTR {
    const auto v = load(d, x + i, m), t = hn::Mul(v, splat(d, beta));
    const auto soft = hn::Div(log1p(d, exp(d, t)), splat(d, beta));
    store(d, hn::IfThenElse(hn::Gt(t, splat(d, threshold)), v, soft), y + i, m);
  });
}

template <class T>
void softplus_gradient(int64_t n, double beta, double threshold, const T* dy, const T* x, T* dx) {
  const Tag<T> d;
  each(d, n, [=](int64_t i, int64_t m) HWY_ATTR {
    const auto g = load(d, dy + i, m), t = hn::Mul(load(d, x + i, m), splat(d, beta));
    store(d, hn::IfThenElse(hn::Gt(t, splat(d, threshold)), g, hn::Mul(g, sigmoid(d, t))), dx + i, m);
  });
}

template <class T>
constexpr ElementwiseKernels<T> elementwise_kernels{map<T>, softplus<T>, softplus_gradient<T>};
const ElementwiseKernels<float>& float_elementwise_kernels() { return elementwise_kernels<float>; }
const ElementwiseKernels<double>& double_elementwise_kernels() { return elementwise_kernels<double>; }

}  // namespace dtensor::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dtensor::cpu {
HWY_EXPORT(float_elementwise_kernels);
HWY_EXPORT(double_elementwise_kernels);

template <class T>
static const ElementwiseKernels<T>& kernels() {
  if constexpr (std::is_same_v<T, float>)
    return HWY_DYNAMIC_DISPATCH(float_elementwise_kernels)();
  else
    return HWY_DYNAMIC_DISPATCH(double_elementwise_kernels)();
}

template <class T>
void softplus(int64_t n, double beta, double threshold, const T* x, T* y) {
  kernels<T>().softplus(n, beta, threshold, x, y);
}
template <class T>
void softplus_gradient(int64_t n, double beta, double threshold, const T* dy, const T* x, T* dx) {
  kernels<T>().softplus_gradient(n, beta, threshold, dy, x, dx);
}

#define MAP(f)                                    \
  template <class T>                              \
  void f(int64_t n, const T* x, T* y) {           \
    kernels<T>().map(Elementwise::f, n, x, y);    \
  }                                               \
  template void f(int64_t, const float*, float*); \
  template void f(int64_t, const double*, double*);
MAP(log1p)
MAP(expm1)
MAP(sin)
MAP(cos)
MAP(erf)
MAP(floor)
MAP(ceil)
MAP(round)

#define INSTANTIATE(T)                                           \
  template void softplus(int64_t, double, double, const T*, T*); \
  template void softplus_gradient(int64_t, double, double, const T*, const T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace dtensor::cpu
#endif
