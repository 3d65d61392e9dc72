// Rotary position embedding.
#pragma once

#include "dtensor/cuda/runtime.h"
#include "placement/dtype.h"

namespace dtensor::cuda {

struct RotaryTensor {
  const void* x;
  int64_t batch_stride, position_stride, head_stride;  // of x, in elements; the d elements of a head are contiguous
  void* y;                                             // [batch, positions, heads, d], contiguous
  int64_t heads;
};
// Turns the pairs (i, i + d/2) of every head by p * theta^(-2i/d), p = begin + its place in the sequence; `inverse` by
// the negative angle. Angles are float64 and rounded once. `count` tensors, at most 2.
struct Rotary {
  int64_t batch, positions, begin, d;
  double theta;
  bool inverse;
  int count;
  RotaryTensor tensor[2];
};
void rotary(StreamHandle stream, DType type, const Rotary& r);

}  // namespace dtensor::cuda
