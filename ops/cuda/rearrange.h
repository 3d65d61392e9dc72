// Elements in other places, on CUDA. They are bytes: `itemsize` of them each.
#pragma once

#include "dtensor/cuda/runtime.h"

namespace dtensor::cuda {

// Index i of a dimension of the output reads the input at (first + i) % size, counted from the end if `backwards`.
struct ReadDimension {
  int64_t length;  // of the output
  int64_t stride;  // of the input
  int64_t first, size;
  bool backwards;
};
constexpr int max_read_dims = 8;
void read_anew(StreamHandle stream, int64_t itemsize, int dims, const ReadDimension* dim, const void* x, void* out);

// Of matrices [n, rows, columns], the elements up to `diagonal` (lower), or from it on; zeros elsewhere.
void triangle(StreamHandle stream, int64_t itemsize, int64_t n, int64_t rows, int64_t columns, int64_t diagonal,
              bool lower, const void* x, void* out);

}  // namespace dtensor::cuda
