// Running sums.
#pragma once

#include "ops/core/call.h"
#include "ops/family/dims.h"

namespace dtensor::ops {

struct Scan : Over {
  using Base = Over;
  bool reverse;
  static constexpr auto fields() {
    return std::tuple_cat(Over::fields(), std::tuple(field("reverse", &Scan::reverse)));
  }
};

extern const Op cumsum_op;

// y[i] = x[0] + ... + x[i] along `dim`, which must be whole on every rank. Integers and bool give i64; floating sums
// run in f64.
DistributedTensor cumsum(const DistributedTensor& x, int64_t dim);

}  // namespace dtensor::ops
