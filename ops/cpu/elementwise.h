// Element-wise functions over one contiguous row, besides those of rows.h; the same laws: fixed bits, which depend on
// an element's value only. T: float or double. Inputs and outputs are the same array or do not overlap.
#pragma once
#include <cstdint>

namespace dtensor::cpu {

// Maps y[i] = f(x[i]). In float32, worst error over a scan of the range where results are normal numbers:
template <class T>
void log1p(int64_t n, const T* x, T* y);  ///< 1.5 ulp; -inf at -1, NaN below
template <class T>
void expm1(int64_t n, const T* x, T* y);  ///< 3.4 ulp
template <class T>
void sin(int64_t n, const T* x, T* y);  ///< 1.6 ulp, for any argument
template <class T>
void cos(int64_t n, const T* x, T* y);  ///< 1.6 ulp, for any argument
template <class T>
void erf(int64_t n, const T* x, T* y);  ///< 2.5 ulp
template <class T>
void floor(int64_t n, const T* x, T* y);
template <class T>
void ceil(int64_t n, const T* x, T* y);
template <class T>
void round(int64_t n, const T* x, T* y);  ///< halves to even

/// log(1 + exp(beta * x)) / beta; x where beta * x > threshold.
template <class T>
void softplus(int64_t n, double beta, double threshold, const T* x, T* y);
/// dx = dy * sigmoid(beta * x); dy where beta * x > threshold.
template <class T>
void softplus_gradient(int64_t n, double beta, double threshold, const T* dy, const T* x, T* dx);

}  // namespace dtensor::cpu
