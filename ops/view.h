// Ops that show the same elements under another shape. Views never move data.
#pragma once

#include "ops/call.h"

namespace dtensor::ops {

extern const Op view_op, reshape_op, permute_op, expand_op;

// The same elements in row-major order under another shape; one size may be -1. A sharded dimension stays sharded where
// it leads its group and the ranks divide it; else an error says which redistribution would make the view possible.
// Errors also: sizes that do not fit, a local part whose strides do not allow it (reshape copies it).
DistributedTensor view(const DistributedTensor& x, const Shape& shape);
// As view, but copies the local part, and redistributes, where view would be an error.
DistributedTensor reshape(const DistributedTensor& x, const Shape& shape);
DistributedTensor permute(const DistributedTensor& x, const std::vector<int64_t>& dims);
DistributedTensor transpose(const DistributedTensor& x, int64_t dim0, int64_t dim1);
// Dimensions of size 1, and new ones in front, repeat to `shape`.
DistributedTensor expand(const DistributedTensor& x, const Shape& shape);

}  // namespace dtensor::ops
