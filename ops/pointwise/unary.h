// Element-wise functions of one operand: declared, with their cards, by unary.inc.
#pragma once

#include <optional>

#include "ops/core/call.h"

namespace dtensor::ops {

#define UNARY(name, ...)     \
  extern const Op name##_op; \
  DistributedTensor name(const DistributedTensor& x);
#define BACKWARD(name, ...) extern const Op name##_op;
#include "ops/pointwise/trigonometry.inc"
#include "ops/pointwise/unary.inc"
#undef BACKWARD
#undef UNARY

}  // namespace dtensor::ops
