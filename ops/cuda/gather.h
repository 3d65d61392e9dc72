// Taking and adding slices by index on CUDA. An index that is out of range makes what depends on it NaN, the smallest
// integer, or true.
#pragma once

#include "dtensor/cuda/runtime.h"
#include "placement/dtype.h"

namespace dtensor::cuda {

// x [outer, n, inner] has the slices [begin, begin + n) of `size`; `k` of them are taken or added, [outer, k, inner].
// Slice j is number index[a * strides[0] + j * strides[1] + q * strides[2]] at (a, q).
struct Indexed {
  StreamHandle stream;
  DType type;
  int64_t outer, n, inner, begin, size, k;
  const int64_t* index;
  int64_t strides[3];
};

// out[a, j, q] = x[a, index, q], or 0 where x does not have it.
void take(const Indexed& i, const void* x, void* out);
// sum[a, index, q] += source[a, j, q] for each j in order. Of bf16 the sums are f32.
void add_slices(const Indexed& i, const void* source, void* sum);
// x[a, index, q] = source[a, j, q] for each j in order, whatever the elements are.
void put_slices(const Indexed& i, const void* source, void* x);
// out [n, classes]: whether ids[i] is `begin` + the class, of `size` ones.
void one_hot(StreamHandle stream, int64_t n, int64_t classes, int64_t begin, int64_t size, const int64_t* ids,
             int64_t* out);

}  // namespace dtensor::cuda
