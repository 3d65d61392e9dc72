// Running sums.
#pragma once

#include "ops/call.h"

namespace dtensor::ops {

extern const Op cumsum_op;

// y[i] = x[0] + ... + x[i] along `dim`, which must be whole on every rank. Integers and bool give i64; floating sums
// run in f64.
DistributedTensor cumsum(const DistributedTensor& x, int64_t dim);

}  // namespace dtensor::ops
