// Dropout on CUDA.
#pragma once

#include "dtensor/cuda/random.h"

namespace dtensor::cuda {

// A part of [rows, positions, rest...] whose elements' index in the whole is
//   row[r] * per_row + position[p] * per_position + the index in `rest`,
// or, where `row` or `position` is null, first_row + r and first_position + p in their place.
struct IndexedPart {
  const int64_t *row, *position;  // in device memory
  int64_t first_row, first_position;
  int64_t per_row, per_position;
  int64_t rows, positions;
  Part rest;
};
// What is dropped: by the words of the stream with this key at step 0, at the step in device memory.
struct Dropping {
  StreamHandle stream;
  uint64_t key;
  const int64_t* step;
  double p;
};

// out = x * 0 or 1 / (1 - p). Where each element has its own index, it is a Part. False where there is no kernel for
// the type.
bool dropout(const Dropping& d, DType type, const Part& part, const void* x, void* out);
bool dropout(const Dropping& d, DType type, const IndexedPart& part, const void* x, void* out);

}  // namespace dtensor::cuda
