// Reductions. Sums and products follow the canonical order (docs/architecture.md, the same bits).
//
// All are over the dimensions given, all where there are none; keepdim leaves dimensions of size 1. A dimension that
// is sharded is reduced on each rank and leaves a Partial: nothing moves.
#pragma once

#include "ops/core/call.h"
#include "ops/family/dims.h"

namespace dtensor::ops {

extern const Op sum_op, count_nonzero_op, prod_op, prod_parts_op, prod_backward_op, amax_op, amin_op, ties_op,
    amax_backward_op, sum_squares_op;

// Of integers and bool: i64. Leaves Partial(sum).
DistributedTensor sum(const DistributedTensor& x, const Dims& dims = {}, bool keepdim = false);
// Of floating types; of none NaN. Leaves Partial(sum).
DistributedTensor mean(const DistributedTensor& x, const Dims& dims = {}, bool keepdim = false);
// Of integers and bool: i64. Leaves Partial(product). The gradient adds one all-reduce of the products and one of the
// numbers of zeros where the dimension is sharded.
DistributedTensor prod(const DistributedTensor& x, const Dims& dims = {}, bool keepdim = false);
// The largest and the smallest element, NaN where there is one. Leave Partial(max), Partial(min). The gradient is
// shared by elements that are equal; where the dimension is sharded it all-reduces the results and the numbers of equal
// elements. Errors: a dimension of size 0.
DistributedTensor amax(const DistributedTensor& x, const Dims& dims = {}, bool keepdim = false);
DistributedTensor amin(const DistributedTensor& x, const Dims& dims = {}, bool keepdim = false);
// Whether any element, or all, differ from zero, as NaN does: bool. Leave Partial(max), Partial(min) of bool.
DistributedTensor any(const DistributedTensor& x, const Dims& dims = {}, bool keepdim = false);
DistributedTensor all(const DistributedTensor& x, const Dims& dims = {}, bool keepdim = false);
// How many elements differ from zero: i64. Leaves Partial(sum).
DistributedTensor count_nonzero(const DistributedTensor& x, const Dims& dims = {});
// The sum of all squares, taken and returned in f64: for norms.
DistributedTensor sum_squares(const DistributedTensor& x);

// The gradient of broadcasting: x summed to `shape`, which broadcasts to x's.
DistributedTensor sum_to(const DistributedTensor& x, const Shape& shape);

}  // namespace dtensor::ops
