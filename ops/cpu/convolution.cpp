#include "ops/cpu/convolution.h"

#include <algorithm>

namespace dtensor::cpu {
namespace {

/// Row t of x, where t < 0 is before the first; null where that is 0.
template <class T>
const T* row(const Convolution& a, const T* x, const T* before, int64_t t) {
  if (t >= 0) return x + t * a.channels;
  return t + a.tail >= 0 ? before + (t + a.tail) * a.channels : nullptr;
}

}  // namespace

template <class T>
void convolution(const Convolution& a, const T* x, const T* before, const T* weight, T* y) {
  for (int64_t t = 0; t < a.rows; t++) {
    T* to = y + t * a.channels;
    std::fill(to + a.begin, to + a.end, T(0));
    for (int64_t i = 0; i < a.width; i++)
      if (const T* from = row(a, x, before, t - (a.width - 1) + i))
        for (int64_t c = a.begin; c < a.end; c++) to[c] += weight[c * a.width + i] * from[c];
  }
}

template <class T>
void convolution_backward(const Convolution& a, const T* dy, const T* weight, T* dx, T* dbefore) {
  for (int64_t t = -a.tail; t < a.rows; t++) {
    T* to = t >= 0 ? dx + t * a.channels : dbefore + (t + a.tail) * a.channels;
    std::fill(to + a.begin, to + a.end, T(0));
    for (int64_t i = a.width - 1; i >= 0; i--) {
      const int64_t out = t + (a.width - 1) - i;  // the row that reads t with weight i
      if (out < 0 || out >= a.rows) continue;
      for (int64_t c = a.begin; c < a.end; c++) to[c] += weight[c * a.width + i] * dy[out * a.channels + c];
    }
  }
}

template <class T>
void convolution_weight(const Convolution& a, int64_t first, int64_t last, const T* dy, const T* x, const T* before,
                        T* weight_sums) {
  for (int64_t t = first; t < last; t++)
    for (int64_t i = 0; i < a.width; i++)
      if (const T* from = row(a, x, before, t - (a.width - 1) + i))
        for (int64_t c = a.begin; c < a.end; c++) weight_sums[c * a.width + i] += dy[t * a.channels + c] * from[c];
}

#define INSTANTIATE(T)                                                                \
  template void convolution(const Convolution&, const T*, const T*, const T*, T*);    \
  template void convolution_backward(const Convolution&, const T*, const T*, T*, T*); \
  template void convolution_weight(const Convolution&, int64_t, int64_t, const T*, const T*, const T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace dtensor::cpu
