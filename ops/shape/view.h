// Ops that show the same elements under another shape. Views never move data.
#pragma once

#include "ops/core/call.h"
#include "ops/family/dims.h"

namespace dtensor::ops {

struct To {
  Shape shape;
  static constexpr auto fields() { return std::tuple(field("shape", &To::shape)); }
};

extern const Op view_op, unflatten_op, squeeze_op, unsqueeze_op, reshape_op, permute_op, expand_op;

// The same elements in row-major order under another shape; one size may be -1. A sharded dimension stays sharded where
// it leads its group and the ranks divide it; else an error says which redistribution would make the view possible.
// Errors also: sizes that do not fit, a local part whose strides do not allow it (reshape copies it).
DistributedTensor view(const DistributedTensor& x, const Shape& shape);
// As view, but copies the local part, and redistributes, where view would be an error.
DistributedTensor reshape(const DistributedTensor& x, const Shape& shape);
// Dimensions start_dim to end_dim, both included, become one. A reshape.
DistributedTensor flatten(const DistributedTensor& x, int64_t start_dim = 0, int64_t end_dim = -1);

// Views, with view's errors.
// Dimension `dim` becomes several of these sizes, one of which may be -1.
DistributedTensor unflatten(const DistributedTensor& x, int64_t dim, const Shape& sizes);
// Those of the dimensions `dims` (none: all) that have size 1 go.
DistributedTensor squeeze(const DistributedTensor& x, const Dims& dims = {});
// A new dimension of size 1 at `dim`, which may be x.dims().
DistributedTensor unsqueeze(const DistributedTensor& x, int64_t dim);

DistributedTensor permute(const DistributedTensor& x, const Dims& dims);
DistributedTensor transpose(const DistributedTensor& x, int64_t dim0, int64_t dim1);
// Dimensions of size 1, and new ones in front, repeat to `shape`; -1 keeps a size.
DistributedTensor expand(const DistributedTensor& x, const Shape& shape);

}  // namespace dtensor::ops
