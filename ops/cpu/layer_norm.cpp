#include "ops/cpu/layer_norm.h"

#include "ops/cpu/targets.h"
#define HWY_TARGET_INCLUDE "ops/cpu/layer_norm.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ops/cpu/vector-inl.h"

#ifndef DTENSOR_CPU_LAYER_NORM_ONCE
#define DTENSOR_CPU_LAYER_NORM_ONCE
namespace dtensor::cpu {
/// What one instruction set offers.
template <class T>
struct NormKernels {
  decltype(&cpu::centred_squares<T>) centred_squares;
  decltype(&cpu::normalize<T>) normalize;
  decltype(&cpu::normalize_gradient_sums<T>) sums;
  decltype(&cpu::normalize_gradient<T>) gradient;
  decltype(&cpu::normalize_gradient_affine<T>) affine;
};
}  // namespace dtensor::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace dtensor::cpu::HWY_NAMESPACE {

template <class T>
T centred_squares(int64_t n, const T* x, std::type_identity_t<T> mean, int64_t l) {
  const Tag<T> d;
  return sum_of(d, n, l, [=](int64_t i, int64_t m, auto s) HWY_ATTR {
    auto v = hn::Sub(load(d, x + i, m), hn::Set(d, mean));
    if (m < lanes<Tag<T>>) v = hn::IfThenElseZero(hn::FirstN(d, std::max<int64_t>(m, 0)), v);
    return hn::MulAdd(v, v, s);
  });
}

template <class D, class T>
HWY_INLINE Vec<D> standard(D d, const T* x, int64_t m, T mean, T rstd) {
  return hn::Mul(hn::Sub(load(d, x, m), hn::Set(d, mean)), hn::Set(d, rstd));
}
/// a * w, or a where there are no weights.
template <class D, class T>
HWY_INLINE Vec<D> weighted(D d, Vec<D> a, const T* w, int64_t i, int64_t m) {
  return w ? hn::Mul(a, load(d, w + i, m)) : a;
}

template <class T>
void normalize(int64_t n, const T* x, T mean, T rstd, const T* w, const T* b, T* y) {
  const Tag<T> d;
  each(d, n, [=](int64_t i, int64_t m) HWY_ATTR {
    const auto v = weighted(d, standard(d, x + i, m, mean, rstd), w, i, m);
    store(d, b ? hn::Add(v, load(d, b + i, m)) : v, y + i, m);
  });
}

template <class T>
void sums(int64_t n, const T* dy, const T* x, T mean, T rstd, const T* w, int64_t l, T* sum, T* along) {
  const Tag<T> d;
  *sum = sum_of(d, n, l, [=](int64_t i, int64_t m, auto s) HWY_ATTR {
    return hn::Add(s, weighted(d, load(d, dy + i, m), w, i, m));
  });
  *along = sum_of(d, n, l, [=](int64_t i, int64_t m, auto s) HWY_ATTR {
    const auto v = hn::MulAdd(weighted(d, load(d, dy + i, m), w, i, m), standard(d, x + i, m, mean, rstd), s);
    return m < lanes<Tag<T>> ? hn::IfThenElse(hn::FirstN(d, std::max<int64_t>(m, 0)), v, s) : v;
  });
}

template <class T>
void gradient(int64_t n, const T* dy, const T* x, T mean, T rstd, const T* w, T sum, T along, T* dx) {
  const Tag<T> d;
  each(d, n, [=](int64_t i, int64_t m) HWY_ATTR {
    const auto g = hn::Sub(weighted(d, load(d, dy + i, m), w, i, m), hn::Set(d, sum));
    const auto v = hn::NegMulAdd(standard(d, x + i, m, mean, rstd), hn::Set(d, along), g);
    store(d, hn::Mul(hn::Set(d, rstd), v), dx + i, m);
  });
}

template <class T>
void affine(int64_t rows, int64_t n, int64_t begin, int64_t end, const T* dy, const T* x, const T* mean, const T* rstd,
            int64_t l, T* dw, T* db) {
  const Tag<T> d;
  sum_rows_of(d, rows, end - begin, l, dw + begin, false, [=](int64_t r, int64_t j, int64_t m, auto s) HWY_ATTR {
    const int64_t at = r * n + begin + j;
    return hn::MulAdd(load(d, dy + at, m), standard(d, x + at, m, mean ? mean[r] : T(0), rstd[r]), s);
  });
  sum_rows_of(d, rows, end - begin, l, db + begin, false, [=](int64_t r, int64_t j, int64_t m, auto s) HWY_ATTR {
    return hn::Add(s, load(d, dy + r * n + begin + j, m));
  });
}

template <class T>
constexpr NormKernels<T> norm_kernels{centred_squares<T>, normalize<T>, sums<T>, gradient<T>, affine<T>};
const NormKernels<float>& float_norm_kernels() { return norm_kernels<float>; }
const NormKernels<double>& double_norm_kernels() { return norm_kernels<double>; }

}  // namespace dtensor::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dtensor::cpu {
HWY_EXPORT(float_norm_kernels);
HWY_EXPORT(double_norm_kernels);

template <class T>
static const NormKernels<T>& kernels() {
  if constexpr (std::is_same_v<T, float>)
    return HWY_DYNAMIC_DISPATCH(float_norm_kernels)();
  else
    return HWY_DYNAMIC_DISPATCH(double_norm_kernels)();
}

template <class T>
T centred_squares(int64_t d, const T* x, std::type_identity_t<T> mean, int64_t l) {
  return kernels<T>().centred_squares(d, x, mean, l);
}
template <class T>
void normalize(int64_t d, const T* x, T mean, T rstd, const T* w, const T* b, T* y) {
  kernels<T>().normalize(d, x, mean, rstd, w, b, y);
}
template <class T>
void normalize_gradient_sums(int64_t d, const T* dy, const T* x, T mean, T rstd, const T* w, int64_t l, T* sum,
                             T* along) {
  kernels<T>().sums(d, dy, x, mean, rstd, w, l, sum, along);
}
template <class T>
void normalize_gradient(int64_t d, const T* dy, const T* x, T mean, T rstd, const T* w, T sum, T along, T* dx) {
  kernels<T>().gradient(d, dy, x, mean, rstd, w, sum, along, dx);
}
template <class T>
void normalize_gradient_affine(int64_t rows, int64_t d, int64_t begin, int64_t end, const T* dy, const T* x,
                               const T* mean, const T* rstd, int64_t l, T* dw, T* db) {
  kernels<T>().affine(rows, d, begin, end, dy, x, mean, rstd, l, dw, db);
}

#define INSTANTIATE(T)                                                                                                \
  template T centred_squares<T>(int64_t, const T*, T, int64_t);                                                       \
  template void normalize(int64_t, const T*, T, T, const T*, const T*, T*);                                           \
  template void normalize_gradient_sums(int64_t, const T*, const T*, T, T, const T*, int64_t, T*, T*);                \
  template void normalize_gradient(int64_t, const T*, const T*, T, T, const T*, T, T, T*);                            \
  template void normalize_gradient_affine(int64_t, int64_t, int64_t, int64_t, const T*, const T*, const T*, const T*, \
                                          int64_t, T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace dtensor::cpu
#endif
