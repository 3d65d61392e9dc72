// Changing the element type.
#pragma once

#include "ops/core/call.h"
#include "ops/pointwise/attributes.h"

namespace dtensor::ops {

extern const Op cast_op;

// The same values as another element type: f32, f64, i64, bool. A float becomes an integer by truncation, and anything
// but zero is true. A tensor of that type already is returned as it is.
DistributedTensor cast(const DistributedTensor& x, DType dtype);

}  // namespace dtensor::ops
