// Element-wise functions and sums over one contiguous row, with fixed bits: an element's result depends on its value
// only, never on its place, the length of the row or the instruction set.
//
// A sum follows the law of gemm.h: its l leaves [i*n/l, (i+1)*n/l) are added as a balanced binary tree, so equal parts
// of a row, each summed with l/t leaves, add up to the bits of the whole. l is a power of two, 0 for leaves(n). Inside
// a leaf there are 16 partial sums (element k of the leaf belongs to k % 16), added as t[i] += t[i + 8], then 4, 2, 1.
//
// T: float or double. n >= 0. Inputs and outputs are the same array or do not overlap.
#pragma once
#include <cstdint>
#include <type_traits>

namespace dtensor::cpu {

// Maps y[i] = f(x[i]). In float32, worst error over a scan of the range where results are normal numbers:
template <class T>
void exp(int64_t n, const T* x, T* y);  ///< 1.1 ulp; 0 where the result would be denormal
template <class T>
void log(int64_t n, const T* x, T* y);  ///< 1 ulp; -inf at 0, NaN below
template <class T>
void tanh(int64_t n, const T* x, T* y);  ///< 2 ulp
template <class T>
void sigmoid(int64_t n, const T* x, T* y);  ///< 2.5 ulp; 1 / (1 + exp(-x))
template <class T>
void silu(int64_t n, const T* x, T* y);  ///< 2.5 ulp; x * sigmoid(x)
template <class T>
void gelu(int64_t n, const T* x, T* y);  ///< 6 ulp; x * (1 + erf(x / sqrt(2))) / 2
/// x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) / 2, as x * sigmoid; 6 ulp above -2; below, the error grows with the
/// exponent.
template <class T>
void gelu_tanh(int64_t n, const T* x, T* y);

// Their gradients dx[i] = dy[i] * f'(x[i]), where f' is not simply a function of y.
template <class T>
void silu_gradient(int64_t n, const T* dy, const T* x, T* dx);
template <class T>
void gelu_gradient(int64_t n, const T* dy, const T* x, T* dx);
template <class T>
void gelu_tanh_gradient(int64_t n, const T* dy, const T* x, T* dx);

/// y = a * x.
template <class T>
void scale(int64_t n, std::type_identity_t<T> a, const T* x, T* y);

/// The largest and the smallest element, NaN if there is one; -inf and +inf if n == 0. +0 for either zero.
template <class T>
T max(int64_t n, const T* x);
template <class T>
T min(int64_t n, const T* x);

template <class T>
T sum(int64_t n, const T* x, int64_t l = 0);
template <class T>
T sum_squares(int64_t n, const T* x, int64_t l = 0);
/// In float64, whatever T is, and of the leaves [from, to) of l alone, a subtree: threads can share a sum.
template <class T>
double sum_squares_f64(int64_t n, const T* x, int64_t l, int64_t from, int64_t to);
template <class T>
T dot(int64_t n, const T* x, const T* y, int64_t l = 0);

/// The sum of exp(x - m). If y is not null, also y = exp(x - m).
template <class T>
T sum_exp(int64_t n, const T* x, std::type_identity_t<T> m, std::type_identity_t<T>* y, int64_t l = 0);

/// y[j] = or += the sum over r of x[r*stride + j], j < n: the law of gemm.h over the rows (l of them leaves), with one
/// accumulator per column. Callers may split the columns.
template <class T>
void sum_rows(int64_t rows, int64_t n, const T* x, int64_t stride, T* y, bool accumulate, int64_t l = 0);

/// A row of a sum over rows, and the leaf of the sum that it falls into.
struct PickedRow {
  int64_t row, leaf;
};
/// y[j] = what sum_rows gives where all rows but the picked ones are zeros. They come in ascending order.
template <class T>
void sum_picked_rows(int64_t count, const PickedRow* picked, int64_t n, const T* x, int64_t stride, T* y);

}  // namespace dtensor::cpu
