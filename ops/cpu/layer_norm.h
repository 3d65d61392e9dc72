// Row kernels of normalizations. Bits as in rows.h: nothing depends on which rows or elements share a call, nor on the
// instruction set. T: float or double.
//
// One row of d elements, of which more may lie on other ranks: sums have l leaves (gemm.h), and what needs them whole
// is told apart. w and b: [d], or null for ones and zeros. y may be x. Source: Ba, Kiros and Hinton, "Layer
// Normalization" (2016).
#pragma once
#include <cstdint>
#include <type_traits>

namespace dtensor::cpu {

/// The sum of (x - mean)^2.
template <class T>
T centred_squares(int64_t d, const T* x, std::type_identity_t<T> mean, int64_t l);

/// y = (x - mean) * rstd * w + b.
template <class T>
void normalize(int64_t d, const T* x, T mean, T rstd, const T* w, const T* b, T* y);

/// sum = the sum of dy*w, and along = that of dy*w*(x - mean)*rstd.
template <class T>
void normalize_gradient_sums(int64_t d, const T* dy, const T* x, T mean, T rstd, const T* w, int64_t l, T* sum,
                             T* along);

/// dx = rstd * (dy*w - sum - along * (x - mean)*rstd), where sum and along are means over the whole row of those above.
template <class T>
void normalize_gradient(int64_t d, const T* dy, const T* x, T mean, T rstd, const T* w, T sum, T along, T* dx);

/// dw[j] = the sum over the rows of dy * (x - mean)*rstd and db[j] that of dy, for columns begin <= j < end of
/// [rows, d]; l leaves over the rows. mean, rstd: [rows]; a null mean is zeros. Callers may split the columns.
template <class T>
void normalize_gradient_affine(int64_t rows, int64_t d, int64_t begin, int64_t end, const T* dy, const T* x,
                               const T* mean, const T* rstd, int64_t l, T* dw, T* db);

}  // namespace dtensor::cpu
