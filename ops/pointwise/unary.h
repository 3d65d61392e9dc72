// Element-wise functions of one operand: declared, with their cards, by unary.inc.
#pragma once

#include <optional>

#include "ops/core/call.h"

namespace dtensor::ops {

#define DTENSOR_UNARY(name, ...) \
  extern const Op name##_op;     \
  DistributedTensor name(const DistributedTensor& x);
#define DTENSOR_BACKWARD(name, ...) extern const Op name##_op;
#include "ops/pointwise/trigonometry.inc"
#include "ops/pointwise/unary.inc"
#undef DTENSOR_BACKWARD
#undef DTENSOR_UNARY

}  // namespace dtensor::ops
