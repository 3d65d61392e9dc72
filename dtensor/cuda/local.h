// Copies, fills and reductions of device memory: what dtensor/local and the communicators need of a device.
#pragma once

#include "dtensor/cuda/runtime.h"
#include "placement/dtype.h"
#include "placement/reduce.h"

namespace dtensor::cuda {

// Elements of `itemsize` bytes from one place to another of `dims` sizes, the outermost first; strides in elements.
void copy_strided(StreamHandle stream, int64_t itemsize, int dims, const int64_t* sizes, const int64_t* from_strides,
                  const int64_t* to_strides, const void* from, void* to);
// n elements of `itemsize` bytes (1, 2, 4 or 8), each a copy of `value` in host memory.
void fill(StreamHandle stream, int64_t itemsize, int64_t n, const void* value, void* to);
// x *= factor, a floating type.
void scale(StreamHandle stream, DType type, int64_t n, double factor, void* x);
// n elements of one floating type as another, rounded to the nearest.
void convert(StreamHandle stream, DType from_type, DType to_type, int64_t n, const void* from, void* to);

constexpr int max_reduced = 8;  // tensors that one launch reduces
// out[i] = the reduction of in[0][i] .. in[count - 1][i] in a balanced binary tree, the first half of them first; NaN
// wins a maximum or minimum, a sum of bools is "or". `out` may be one of `in`. bf16 is added in float and rounded once.
// An average divides by `contributions`, which is more than `count` where `in` are sums already.
void reduce_tree(StreamHandle stream, DType type, Reduce reduce, int count, const void* const* in, int64_t n, void* out,
                 int64_t contributions);

}  // namespace dtensor::cuda
