#include "ops/cpu/fused.h"

#include <algorithm>
#include <cmath>

#include "ops/cpu/gemm.h"
#include "ops/cpu/targets.h"
#define HWY_TARGET_INCLUDE "ops/cpu/fused.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ops/cpu/vector-inl.h"

#ifndef DTENSOR_CPU_FUSED_ONCE
#define DTENSOR_CPU_FUSED_ONCE
namespace dtensor::cpu {
/// What one instruction set offers; l is never 0.
template <class T>
struct FusedKernels {
  decltype(&cpu::rms_norm<T>) rms_norm;
  decltype(&cpu::rms_norm_backward<T>) rms_norm_backward;
  decltype(&cpu::rms_norm_backward_weight<T>) rms_norm_backward_weight;
  decltype(&cpu::swiglu<T>) swiglu;
  decltype(&cpu::swiglu_backward<T>) swiglu_backward;
  decltype(&cpu::rotary<T>) rotary;
  decltype(&cpu::cross_entropy_backward<T>) cross_entropy_backward;
  decltype(&cpu::adamw<T>) adamw;
};
}  // namespace dtensor::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace dtensor::cpu::HWY_NAMESPACE {

template <class T>
void rms_norm(int64_t rows, int64_t columns, const T* x, const T* w, double eps, T* y, T* rstd) {
  const Tag<T> d;
  for (int64_t r = 0; r < rows; r++, x += columns, y += columns) {
    const T squares = sum_of(d, columns, leaves(columns), [=](int64_t i, int64_t m, auto s) HWY_ATTR {
      const auto v = load(d, x + i, m);
      return hn::MulAdd(v, v, s);
    });
    const T scale = rstd[r] = T(1) / std::sqrt(squares / static_cast<T>(columns) + static_cast<T>(eps));
    each(d, columns, [=](int64_t i, int64_t m) HWY_ATTR {
      store(d, hn::Mul(hn::Mul(load(d, x + i, m), hn::Set(d, scale)), load(d, w + i, m)), y + i, m);
    });
  }
}

template <class T>
void rms_norm_backward(int64_t rows, int64_t columns, const T* dy, const T* x, const T* w, const T* rstd, T* dx) {
  const Tag<T> d;
  for (int64_t r = 0; r < rows; r++, dy += columns, x += columns, dx += columns) {
    const T sum = sum_of(d, columns, leaves(columns), [=](int64_t i, int64_t m, auto s) HWY_ATTR {
      return hn::MulAdd(hn::Mul(load(d, dy + i, m), load(d, w + i, m)), load(d, x + i, m), s);
    });
    const T scale = rstd[r], along = sum * (scale * scale / static_cast<T>(columns));
    each(d, columns, [=](int64_t i, int64_t m) HWY_ATTR {
      const auto g = hn::Mul(load(d, dy + i, m), load(d, w + i, m));
      store(d, hn::Mul(hn::Set(d, scale), hn::NegMulAdd(load(d, x + i, m), hn::Set(d, along), g)), dx + i, m);
    });
  }
}

template <class T>
void rms_norm_backward_weight(int64_t rows, int64_t columns, int64_t begin, int64_t end, const T* dy, const T* x,
                              const T* rstd, T* dw, int64_t l) {
  const Tag<T> d;
  sum_rows_of(d, rows, end - begin, l, dw + begin, false, [=](int64_t r, int64_t j, int64_t m, auto s) HWY_ATTR {
    const int64_t at = r * columns + begin + j;
    return hn::MulAdd(load(d, dy + at, m), hn::Mul(load(d, x + at, m), hn::Set(d, rstd[r])), s);
  });
}

template <class T>
void swiglu(int64_t n, const T* gate, const T* up, T* y) {
  const Tag<T> d;
  each(d, n, [=](int64_t i, int64_t m) HWY_ATTR {
    store(d, hn::Mul(silu(d, load(d, gate + i, m)), load(d, up + i, m)), y + i, m);
  });
}

template <class T>
void swiglu_backward(int64_t n, const T* dy, const T* gate, const T* up, T* dgate, T* dup) {
  const Tag<T> d;
  each(d, n, [=](int64_t i, int64_t m) HWY_ATTR {
    const auto g = load(d, gate + i, m), u = load(d, up + i, m), dv = load(d, dy + i, m), s = sigmoid(d, g);
    const auto slope = hn::MulAdd(hn::Mul(s, g), hn::Sub(splat(d, 1), s), s);  // silu'(g)
    store(d, hn::Mul(hn::Mul(dv, u), slope), dgate + i, m);
    store(d, hn::Mul(dv, hn::Mul(g, s)), dup + i, m);
  });
}

template <class T>
void rotary(int64_t batch, int64_t positions, int64_t heads, int64_t dim, int64_t pairs, const T* x, Strides xs,
            const T* cos, const T* sin, bool inverse, T* y, Strides ys) {
  const Tag<T> d;
  const auto sign = splat(d, inverse ? -1 : 1);
  for (int64_t b = 0; b < batch; b++)
    for (int64_t p = 0; p < positions; p++)
      for (int64_t h = 0; h < heads; h++) {
        const T *from = x + b * xs.batch + p * xs.position + h * xs.head, *c = cos + p * pairs, *s = sin + p * pairs;
        T* to = y + b * ys.batch + p * ys.position + h * ys.head;
        each(d, pairs, [=](int64_t i, int64_t m) HWY_ATTR {
          const auto low = load(d, from + i, m), high = load(d, from + pairs + i, m);
          const auto ci = load(d, c + i, m), si = hn::Mul(sign, load(d, s + i, m));
          store(d, hn::NegMulAdd(high, si, hn::Mul(low, ci)), to + i, m);
          store(d, hn::MulAdd(low, si, hn::Mul(high, ci)), to + pairs + i, m);
        });
        if (to != from) std::copy(from + 2 * pairs, from + dim, to + 2 * pairs);
      }
}

template <class T>
void cross_entropy_backward(int64_t v, const T* x, double max, double log_sum, int64_t target, double scale, T* dx) {
  const Tag<T> d;
  const auto probability = [=](const T* at, int64_t m) HWY_ATTR {
    return exp(d, hn::Sub(hn::Sub(load(d, at, m), splat(d, max)), splat(d, log_sum)));
  };
  const auto own = target < 0 ? hn::Zero(d) : probability(x + target, 1);  // read now, dx may be x
  each(d, v,
       [=](int64_t i, int64_t m) HWY_ATTR { store(d, hn::Mul(probability(x + i, m), splat(d, scale)), dx + i, m); });
  if (target >= 0) store(d, hn::Mul(hn::Sub(own, splat(d, 1)), splat(d, scale)), dx + target, 1);
}

template <class T>
void adamw(int64_t n, const AdamW& a, T* param, const T* grad, T* exp_avg, T* exp_avg_sq) {
  const Tag<T> d;
  const auto grad_scale = splat(d, a.grad_scale), keep = splat(d, 1 - a.lr * a.weight_decay),
             step = splat(d, a.lr / a.correction1);
  const auto mix1 = splat(d, 1 - a.beta1), beta2 = splat(d, a.beta2), mix2 = splat(d, 1 - a.beta2);
  const auto root = splat(d, std::sqrt(a.correction2)), eps = splat(d, a.eps);
  each(d, n, [=](int64_t i, int64_t count) HWY_ATTR {
    const auto g = hn::Mul(load(d, grad + i, count), grad_scale);
    auto m = load(d, exp_avg + i, count), v = load(d, exp_avg_sq + i, count);
    m = hn::MulAdd(mix1, hn::Sub(g, m), m);
    v = hn::MulAdd(hn::Mul(mix2, g), g, hn::Mul(beta2, v));
    const auto denominator = hn::Add(hn::Div(hn::Sqrt(v), root), eps);
    const auto p = hn::Mul(load(d, param + i, count), keep);
    store(d, m, exp_avg + i, count);
    store(d, v, exp_avg_sq + i, count);
    store(d, hn::NegMulAdd(step, hn::Div(m, denominator), p), param + i, count);
  });
}

template <class T>
constexpr FusedKernels<T> fused_kernels{rms_norm<T>,
                                        rms_norm_backward<T>,
                                        rms_norm_backward_weight<T>,
                                        swiglu<T>,
                                        swiglu_backward<T>,
                                        rotary<T>,
                                        cross_entropy_backward<T>,
                                        adamw<T>};
const FusedKernels<float>& float_fused_kernels() { return fused_kernels<float>; }
const FusedKernels<double>& double_fused_kernels() { return fused_kernels<double>; }

}  // namespace dtensor::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dtensor::cpu {
HWY_EXPORT(float_fused_kernels);
HWY_EXPORT(double_fused_kernels);

template <class T>
static const FusedKernels<T>& kernels() {
  if constexpr (std::is_same_v<T, float>)
    return HWY_DYNAMIC_DISPATCH(float_fused_kernels)();
  else
    return HWY_DYNAMIC_DISPATCH(double_fused_kernels)();
}

template <class T>
void rms_norm(int64_t rows, int64_t d, const T* x, const T* w, double eps, T* y, T* rstd) {
  kernels<T>().rms_norm(rows, d, x, w, eps, y, rstd);
}

template <class T>
void rms_norm_backward(int64_t rows, int64_t d, const T* dy, const T* x, const T* w, const T* rstd, T* dx) {
  kernels<T>().rms_norm_backward(rows, d, dy, x, w, rstd, dx);
}

template <class T>
void rms_norm_backward_weight(int64_t rows, int64_t d, int64_t begin, int64_t end, const T* dy, const T* x,
                              const T* rstd, T* dw, int64_t l) {
  kernels<T>().rms_norm_backward_weight(rows, d, begin, end, dy, x, rstd, dw, l ? l : leaves(rows));
}

template <class T>
void swiglu(int64_t n, const T* gate, const T* up, T* y) {
  kernels<T>().swiglu(n, gate, up, y);
}

template <class T>
void swiglu_backward(int64_t n, const T* dy, const T* gate, const T* up, T* dgate, T* dup) {
  kernels<T>().swiglu_backward(n, dy, gate, up, dgate, dup);
}

template <class T>
void rotary_table(int64_t n, const int64_t* positions, int64_t pairs, const double* frequencies, double scale, T* cos,
                  T* sin) {
  for (int64_t p = 0; p < n; p++)
    for (int64_t i = 0; i < pairs; i++) {
      const double angle = static_cast<double>(positions[p]) * frequencies[i];
      *cos++ = static_cast<T>(scale * std::cos(angle));
      *sin++ = static_cast<T>(scale * std::sin(angle));
    }
}

template <class T>
void rotary(int64_t batch, int64_t positions, int64_t heads, int64_t d, int64_t pairs, const T* x, Strides x_strides,
            const T* cos, const T* sin, bool inverse, T* y, Strides y_strides) {
  kernels<T>().rotary(batch, positions, heads, d, pairs, x, x_strides, cos, sin, inverse, y, y_strides);
}

template <class T>
void cross_entropy_backward(int64_t v, const T* x, double max, double log_sum, int64_t target, double scale, T* dx) {
  kernels<T>().cross_entropy_backward(v, x, max, log_sum, target, scale, dx);
}

template <class T>
void adamw(int64_t n, const AdamW& step, T* param, const T* grad, T* exp_avg, T* exp_avg_sq) {
  kernels<T>().adamw(n, step, param, grad, exp_avg, exp_avg_sq);
}

#define INSTANTIATE(T)                                                                                               \
  template void rms_norm(int64_t, int64_t, const T*, const T*, double, T*, T*);                                      \
  template void rms_norm_backward(int64_t, int64_t, const T*, const T*, const T*, const T*, T*);                     \
  template void rms_norm_backward_weight(int64_t, int64_t, int64_t, int64_t, const T*, const T*, const T*, T*,       \
                                         int64_t);                                                                   \
  template void swiglu(int64_t, const T*, const T*, T*);                                                             \
  template void swiglu_backward(int64_t, const T*, const T*, const T*, T*, T*);                                      \
  template void rotary_table(int64_t, const int64_t*, int64_t, const double*, double, T*, T*);                       \
  template void rotary(int64_t, int64_t, int64_t, int64_t, int64_t, const T*, Strides, const T*, const T*, bool, T*, \
                       Strides);                                                                                     \
  template void cross_entropy_backward(int64_t, const T*, double, double, int64_t, double, T*);                      \
  template void adamw(int64_t, const AdamW&, T*, const T*, T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace dtensor::cpu
#endif
