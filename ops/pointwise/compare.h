// Comparisons, logic and selection. Operands broadcast as in NumPy; comparisons take any one element type and give
// bool; logic takes and gives bool. None of these has a gradient but where and
// masked_fill.
#pragma once

#include "ops/core/call.h"

namespace dtensor::ops {

extern const Op eq_op, ne_op, lt_op, le_op, gt_op, ge_op;
extern const Op logical_and_op, logical_or_op, logical_xor_op, where_op, masked_fill_op;

// False where either is NaN, but ne is true. The number beside integers must be whole, beside bools 0 or 1.
DistributedTensor eq(const DistributedTensor& a, const DistributedTensor& b);
DistributedTensor ne(const DistributedTensor& a, const DistributedTensor& b);
DistributedTensor lt(const DistributedTensor& a, const DistributedTensor& b);
DistributedTensor le(const DistributedTensor& a, const DistributedTensor& b);
DistributedTensor gt(const DistributedTensor& a, const DistributedTensor& b);
DistributedTensor ge(const DistributedTensor& a, const DistributedTensor& b);
DistributedTensor eq(const DistributedTensor& a, double value);
DistributedTensor ne(const DistributedTensor& a, double value);
DistributedTensor lt(const DistributedTensor& a, double value);
DistributedTensor le(const DistributedTensor& a, double value);
DistributedTensor gt(const DistributedTensor& a, double value);
DistributedTensor ge(const DistributedTensor& a, double value);

DistributedTensor logical_and(const DistributedTensor& a, const DistributedTensor& b);
DistributedTensor logical_or(const DistributedTensor& a, const DistributedTensor& b);
DistributedTensor logical_xor(const DistributedTensor& a, const DistributedTensor& b);

// a where the condition is true, b elsewhere: a bool condition, a and b of one type.
DistributedTensor where(const DistributedTensor& condition, const DistributedTensor& a, const DistributedTensor& b);
DistributedTensor where(const DistributedTensor& condition, const DistributedTensor& a, double b);
DistributedTensor where(const DistributedTensor& condition, double a, const DistributedTensor& b);
// The value where the mask is true, x elsewhere.
DistributedTensor masked_fill(const DistributedTensor& x, const DistributedTensor& mask, double value);

}  // namespace dtensor::ops
