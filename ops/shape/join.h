// Tensors side by side, and apart again.
#pragma once

#include "ops/core/call.h"
#include "ops/family/dims.h"

namespace dtensor::ops {

struct Pieces {
  int64_t dim;
  std::vector<int64_t> sizes;
  static constexpr auto fields() { return std::tuple(field("dim", &Pieces::dim), field("sizes", &Pieces::sizes)); }
};

extern const Op cat_op, split_op;

// The tensors, equal in all other sizes, one behind another along `dim`. That dimension is whole on every rank, the
// others may be sharded; Partial operands stay so where all are. Any number of them, at least one: above 64 (or 18
// different sizes) they are joined in a tree. Errors: shapes or element types that do not fit.
DistributedTensor cat(const std::vector<DistributedTensor>& tensors, int64_t dim = 0);
// The tensors, all of one shape, along a new dimension.
DistributedTensor stack(const std::vector<DistributedTensor>& tensors, int64_t dim = 0);

// Views of pieces of these sizes along `dim`, which together are the dimension. Where it is sharded it is gathered,
// once for all pieces. Errors: sizes that do not sum to the dimension's.
std::vector<DistributedTensor> split(const DistributedTensor& x, const std::vector<int64_t>& sizes, int64_t dim = 0);
// Pieces of this size; the last may be smaller.
std::vector<DistributedTensor> split(const DistributedTensor& x, int64_t size, int64_t dim = 0);
// Pieces of ceil(n / chunks): at most `chunks`, as few as fill the dimension.
std::vector<DistributedTensor> chunk(const DistributedTensor& x, int64_t chunks, int64_t dim = 0);

}  // namespace dtensor::ops
