// The causal convolution of each channel by itself, over [rows, channels] of one batch entry:
//   y[t, c] = sum over i < width of weight[c, i] * x[t - (width - 1) + i, c],
// where rows before the first are those of `before` [tail, channels], and 0 before these.
//
// Bits: an element's terms are added in the order of i; those of a weight's gradient by rows in order.
#pragma once
#include <cstdint>

namespace dtensor::cpu {

/// Channels [begin, end) of `channels`, which is also the distance from row to row; `tail` rows are known before.
struct Convolution {
  int64_t rows, channels, begin, end, width, tail;
};

/// T: float or double.
template <class T>
void convolution(const Convolution& a, const T* x, const T* before, const T* weight, T* y);

/// Writes dx and dbefore, whose rows that no output reads are 0. weight_sums [channels, width]: ADDED to are the terms
/// of rows [first, last) of the weight's gradient.
template <class T>
void convolution_backward(const Convolution& a, const T* dy, const T* weight, T* dx, T* dbefore);
template <class T>
void convolution_weight(const Convolution& a, int64_t first, int64_t last, const T* dy, const T* x, const T* before,
                        T* weight_sums);

}  // namespace dtensor::cpu
