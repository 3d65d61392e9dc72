// The runs of dtensor/local/runs.h for kernels.
#pragma once

#include "dtensor/cuda/random.h"
#include "placement/layout.h"

namespace dtensor::cuda {

static_assert(Part::max_dims >= dtensor::max_dims);

// Runs are as long as the box allows.
inline Part part_of(const Shape& shape, const Box& box) {
  Shape strides = contiguous_strides(shape);
  Part part{.n = box.numel()};
  for (int d = 0; d < box.dims; ++d) part.first += box[d].begin * strides[d];
  int inner = box.dims;  // dimensions from here on are in every run
  while (inner > 0) {
    --inner;
    part.run *= box[inner].size();
    if (box[inner].size() != shape[inner]) break;
  }
  part.dims = inner;
  for (int d = 0; d < inner; ++d) part.size[d] = box[d].size(), part.stride[d] = strides[d];
  return part;
}

}  // namespace dtensor::cuda
