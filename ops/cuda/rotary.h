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
constexpr int most_rotary_pairs = 256;

// Turns the pairs (i, i + pairs) of every head by p * frequencies[i], where p of element s of batch entry b is
// position[b * position_stride + s] in device memory, or begin + s where that is null; `inverse` by the negative angle.
// What turns is multiplied by `scale`; elements from 2 * pairs on stay. Angles are float64; their cosines and sines are
// found once, rounded, and put into `table`, which all heads read. `count` tensors, at most 2.
struct Rotary {
  int64_t batch, positions, begin, d;
  const int64_t* position;
  int64_t position_stride;  // 0 where all batch entries have the same
  void* table;              // room for so many numbers, of the type of statistics
  int64_t table_size() const { return (position_stride ? batch : 1) * positions * 2 * pairs; }
  double frequencies[most_rotary_pairs];
  int pairs;  // 0 < pairs <= d/2
  double scale;
  bool inverse;
  int count;
  RotaryTensor tensor[2];
};
void rotary(StreamHandle stream, DType type, const Rotary& r);

}  // namespace dtensor::cuda
