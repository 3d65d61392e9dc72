// Reductions. Sums follow the canonical order (docs/architecture.md, the same bits).
#pragma once

#include "ops/call.h"

namespace dtensor::ops {

extern const Op sum_op, amax_op, sum_squares_op;

// Over the dimensions given, all where there are none; keepdim leaves dimensions of size 1. A sharded dimension leaves
// Partial(sum), or Partial(max).
DistributedTensor sum(const DistributedTensor& x, const std::vector<int64_t>& dims = {}, bool keepdim = false);
DistributedTensor mean(const DistributedTensor& x, const std::vector<int64_t>& dims = {}, bool keepdim = false);
DistributedTensor amax(const DistributedTensor& x, const std::vector<int64_t>& dims = {}, bool keepdim = false);
// The sum of all squares, taken and returned in f64: for norms.
DistributedTensor sum_squares(const DistributedTensor& x);

// The gradient of broadcasting: x summed to `shape`, which broadcasts to x's.
DistributedTensor sum_to(const DistributedTensor& x, const Shape& shape);

}  // namespace dtensor::ops
