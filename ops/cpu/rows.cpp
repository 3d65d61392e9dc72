#include "ops/cpu/rows.h"

#include "ops/cpu/gemm.h"
#include "ops/cpu/targets.h"
#define HWY_TARGET_INCLUDE "ops/cpu/rows.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ops/cpu/vector-inl.h"

#ifndef DTENSOR_CPU_ROWS_ONCE
#define DTENSOR_CPU_ROWS_ONCE
namespace dtensor::cpu {
enum class Map { exp, log, tanh, sigmoid, silu, gelu, gelu_tanh };

/// What one instruction set offers. In the sums l is never 0.
template <class T>
struct RowKernels {
  void (*map)(Map, int64_t, const T*, T*);
  void (*gradient)(Map, int64_t, const T*, const T*, T*);
  decltype(&cpu::scale<T>) scale;
  decltype(&cpu::max<T>) max, min;
  decltype(&cpu::sum<T>) sum;
  decltype(&cpu::dot<T>) dot;
  decltype(&cpu::sum_exp<T>) sum_exp;
  decltype(&cpu::sum_rows<T>) sum_rows;
  decltype(&cpu::sum_picked_rows<T>) sum_picked_rows;
  decltype(&cpu::sum_squares_f64<T>) sum_squares_f64;
};
}  // namespace dtensor::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace dtensor::cpu::HWY_NAMESPACE {

template <class T>
void map(Map f, int64_t n, const T* x, T* y) {
  const Tag<T> d;
#define CASE(f) \
  case Map::f:  \
    return each(d, n, [=](int64_t i, int64_t m) HWY_ATTR { store(d, f(d, load(d, x + i, m)), y + i, m); })
  switch (f) {
    CASE(exp);
    CASE(log);
    CASE(tanh);
    CASE(sigmoid);
    CASE(silu);
    CASE(gelu);
    CASE(gelu_tanh);
  }
#undef CASE
}

/// s * (1 + z * (1 - s)): the derivative of x * s where s = sigmoid(t(x)) and z = x * t'(x).
template <class D>
HWY_INLINE Vec<D> gate_derivative(D d, Vec<D> s, Vec<D> z) {
  return hn::MulAdd(hn::Mul(s, z), hn::Sub(splat(d, 1), s), s);
}
template <class D>
HWY_INLINE Vec<D> silu_derivative(D d, Vec<D> x) {
  return gate_derivative(d, sigmoid(d, x), x);
}
template <class D>
HWY_INLINE Vec<D> gelu_derivative(D d, Vec<D> x) {
  return hn::MulAdd(hn::Mul(x, splat(d, 0.39894228040143267794)), bell(d, x), normal_cdf(d, x));
}
template <class D>
HWY_INLINE Vec<D> gelu_tanh_derivative(D d, Vec<D> x) {
  const double c = 1.5957691216057307118;  // 2 * sqrt(2/pi), as in gelu_tanh_argument
  const Vec<D> slope = hn::MulAdd(hn::Mul(x, x), splat(d, 3 * 0.044715 * c), splat(d, c));
  return gate_derivative(d, sigmoid(d, gelu_tanh_argument(d, x)), hn::Mul(x, slope));
}

template <class T>
void gradient(Map f, int64_t n, const T* dy, const T* x, T* dx) {
  const Tag<T> d;
#define CASE(f)                                                                               \
  case Map::f:                                                                                \
    return each(d, n, [=](int64_t i, int64_t m) HWY_ATTR {                                    \
      store(d, hn::Mul(load(d, dy + i, m), f##_derivative(d, load(d, x + i, m))), dx + i, m); \
    })
  switch (f) {
    CASE(silu);
    CASE(gelu);
    CASE(gelu_tanh);
    default:
      return;
  }
#undef CASE
}

template <class T>
void scale(int64_t n, std::type_identity_t<T> a, const T* x, T* y) {
  const Tag<T> d;
  each(d, n, [=](int64_t i, int64_t m) HWY_ATTR { store(d, hn::Mul(hn::Set(d, a), load(d, x + i, m)), y + i, m); });
}

/// The extreme of sign * x, times sign; once a lane is NaN it stays so.
template <class T, int sign>
T extreme(int64_t n, const T* x) {
  const Tag<T> d;
  const auto none = splat(d, -sign * std::numeric_limits<double>::infinity());
  auto best = none;
  each(d, n, [&](int64_t i, int64_t m) HWY_ATTR {
    auto v = load(d, x + i, m);
    if (m < lanes<Tag<T>>) v = hn::IfThenElse(hn::FirstN(d, m), v, none);
    const auto beyond = sign > 0 ? hn::Gt(v, best) : hn::Lt(v, best);
    best = hn::IfThenElse(hn::Or(beyond, hn::IsNaN(v)), v, best);
  });
  T t[lanes<Tag<T>>];
  hn::StoreU(best, d, t);
  for (const T& v : t)
    if ((sign > 0 ? v > t[0] : v < t[0]) || v != v) t[0] = v;
  return t[0] + T(0);
}

template <class T>
T sum(int64_t n, const T* x, int64_t l) {
  const Tag<T> d;
  return sum_of(d, n, l, [=](int64_t i, int64_t m, auto s) HWY_ATTR { return hn::Add(s, load(d, x + i, m)); });
}

template <class T>
T dot(int64_t n, const T* x, const T* y, int64_t l) {
  const Tag<T> d;
  return sum_of(d, n, l, [=](int64_t i, int64_t m, auto s) HWY_ATTR {
    return hn::MulAdd(load(d, x + i, m), load(d, y + i, m), s);
  });
}

template <class T>
T sum_exp(int64_t n, const T* x, std::type_identity_t<T> max, std::type_identity_t<T>* y, int64_t l) {
  const Tag<T> d;
  return sum_of(d, n, l, [=](int64_t i, int64_t m, auto s) HWY_ATTR {
    auto v = exp(d, hn::Sub(load(d, x + i, m), hn::Set(d, max)));
    if (m < lanes<Tag<T>>) v = hn::IfThenElseZero(hn::FirstN(d, std::max<int64_t>(m, 0)), v);
    if (y) store(d, v, y + i, m);
    return hn::Add(s, v);
  });
}

template <class T>
void sum_rows(int64_t rows, int64_t n, const T* x, int64_t stride, T* y, bool accumulate, int64_t l) {
  const Tag<T> d;
  sum_rows_of(d, rows, n, l, y, accumulate, [=](int64_t row, int64_t j, int64_t m, auto s) HWY_ATTR {
    return hn::Add(s, load(d, x + row * stride + j, m));
  });
}

template <class T>
void sum_picked_rows(int64_t count, const PickedRow* picked, int64_t n, const T* x, int64_t stride, T* y) {
  const Tag<T> d;
  sum_picked_rows_of(d, count, picked, n, y, [=](int64_t row, int64_t j, int64_t m, auto s) HWY_ATTR {
    return hn::Add(s, load(d, x + row * stride + j, m));
  });
}

template <class T>
double sum_squares_f64(int64_t n, const T* x, int64_t l, int64_t from, int64_t to) {
  const Tag<double> d;
  const hn::Rebind<T, Tag<double>> narrow;
  return subtree_of(d, n, l, from, to, [=](int64_t i, int64_t m, auto s) HWY_ATTR {
    if constexpr (std::is_same_v<T, double>) {
      const auto v = load(d, x + i, m);
      return hn::MulAdd(v, v, s);
    } else {
      const auto v = hn::PromoteTo(d, load(narrow, x + i, m));
      return hn::MulAdd(v, v, s);
    }
  });
}

template <class T>
constexpr RowKernels<T> row_kernels{map<T>, gradient<T>, scale<T>,    extreme<T, 1>,      extreme<T, -1>,    sum<T>,
                                    dot<T>, sum_exp<T>,  sum_rows<T>, sum_picked_rows<T>, sum_squares_f64<T>};
const RowKernels<float>& float_row_kernels() { return row_kernels<float>; }
const RowKernels<double>& double_row_kernels() { return row_kernels<double>; }

}  // namespace dtensor::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dtensor::cpu {
HWY_EXPORT(float_row_kernels);
HWY_EXPORT(double_row_kernels);

template <class T>
static const RowKernels<T>& kernels() {
  if constexpr (std::is_same_v<T, float>)
    return HWY_DYNAMIC_DISPATCH(float_row_kernels)();
  else
    return HWY_DYNAMIC_DISPATCH(double_row_kernels)();
}

template <class T>
void exp(int64_t n, const T* x, T* y) {
  kernels<T>().map(Map::exp, n, x, y);
}
template <class T>
void log(int64_t n, const T* x, T* y) {
  kernels<T>().map(Map::log, n, x, y);
}
template <class T>
void tanh(int64_t n, const T* x, T* y) {
  kernels<T>().map(Map::tanh, n, x, y);
}
template <class T>
void sigmoid(int64_t n, const T* x, T* y) {
  kernels<T>().map(Map::sigmoid, n, x, y);
}
template <class T>
void silu(int64_t n, const T* x, T* y) {
  kernels<T>().map(Map::silu, n, x, y);
}
template <class T>
void gelu(int64_t n, const T* x, T* y) {
  kernels<T>().map(Map::gelu, n, x, y);
}
template <class T>
void gelu_tanh(int64_t n, const T* x, T* y) {
  kernels<T>().map(Map::gelu_tanh, n, x, y);
}

template <class T>
void silu_gradient(int64_t n, const T* dy, const T* x, T* dx) {
  kernels<T>().gradient(Map::silu, n, dy, x, dx);
}
template <class T>
void gelu_gradient(int64_t n, const T* dy, const T* x, T* dx) {
  kernels<T>().gradient(Map::gelu, n, dy, x, dx);
}
template <class T>
void gelu_tanh_gradient(int64_t n, const T* dy, const T* x, T* dx) {
  kernels<T>().gradient(Map::gelu_tanh, n, dy, x, dx);
}

template <class T>
void scale(int64_t n, std::type_identity_t<T> a, const T* x, T* y) {
  kernels<T>().scale(n, a, x, y);
}
template <class T>
T max(int64_t n, const T* x) {
  return kernels<T>().max(n, x);
}
template <class T>
T min(int64_t n, const T* x) {
  return kernels<T>().min(n, x);
}
template <class T>
T sum(int64_t n, const T* x, int64_t l) {
  return kernels<T>().sum(n, x, l ? l : leaves(n));
}
template <class T>
T sum_squares(int64_t n, const T* x, int64_t l) {
  return kernels<T>().dot(n, x, x, l ? l : leaves(n));
}
template <class T>
T dot(int64_t n, const T* x, const T* y, int64_t l) {
  return kernels<T>().dot(n, x, y, l ? l : leaves(n));
}
template <class T>
T sum_exp(int64_t n, const T* x, std::type_identity_t<T> m, std::type_identity_t<T>* y, int64_t l) {
  return kernels<T>().sum_exp(n, x, m, y, l ? l : leaves(n));
}
template <class T>
void sum_rows(int64_t rows, int64_t n, const T* x, int64_t stride, T* y, bool accumulate, int64_t l) {
  kernels<T>().sum_rows(rows, n, x, stride, y, accumulate, l ? l : leaves(rows));
}

template <class T>
void sum_picked_rows(int64_t count, const PickedRow* picked, int64_t n, const T* x, int64_t stride, T* y) {
  kernels<T>().sum_picked_rows(count, picked, n, x, stride, y);
}
template <class T>
double sum_squares_f64(int64_t n, const T* x, int64_t l, int64_t from, int64_t to) {
  return kernels<T>().sum_squares_f64(n, x, l, from, to);
}

#define INSTANTIATE(T)                                                                      \
  template void exp(int64_t, const T*, T*);                                                 \
  template void log(int64_t, const T*, T*);                                                 \
  template void tanh(int64_t, const T*, T*);                                                \
  template void sigmoid(int64_t, const T*, T*);                                             \
  template void silu(int64_t, const T*, T*);                                                \
  template void gelu(int64_t, const T*, T*);                                                \
  template void gelu_tanh(int64_t, const T*, T*);                                           \
  template void silu_gradient(int64_t, const T*, const T*, T*);                             \
  template void gelu_gradient(int64_t, const T*, const T*, T*);                             \
  template void gelu_tanh_gradient(int64_t, const T*, const T*, T*);                        \
  template void scale<T>(int64_t, T, const T*, T*);                                         \
  template T max(int64_t, const T*);                                                        \
  template T min(int64_t, const T*);                                                        \
  template T sum(int64_t, const T*, int64_t);                                               \
  template T sum_squares(int64_t, const T*, int64_t);                                       \
  template T dot(int64_t, const T*, const T*, int64_t);                                     \
  template T sum_exp<T>(int64_t, const T*, T, T*, int64_t);                                 \
  template void sum_rows(int64_t, int64_t, const T*, int64_t, T*, bool, int64_t);           \
  template void sum_picked_rows(int64_t, const PickedRow*, int64_t, const T*, int64_t, T*); \
  template double sum_squares_f64(int64_t, const T*, int64_t, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace dtensor::cpu
#endif
