// Element-wise ops. Operands broadcast as in NumPy and have one element type: nothing is promoted silently. A number
// beside a tensor takes the tensor's type; a fraction beside integers is an error.
#pragma once

#include "ops/core/call.h"
#include "ops/pointwise/attributes.h"

namespace dtensor::ops {

extern const Op add_op, sub_op, mul_op, div_op, pow_op, maximum_op, minimum_op, extreme_backward_op;
extern const Op remainder_op, fmod_op, lerp_op, addcmul_op;
extern const Op add_scalar_op, mul_scalar_op;

// f32, f64, i64; div and pow floating only. Sums of integers wrap around.
DistributedTensor add(const DistributedTensor& a, const DistributedTensor& b);
DistributedTensor sub(const DistributedTensor& a, const DistributedTensor& b);
DistributedTensor mul(const DistributedTensor& a, const DistributedTensor& b);
DistributedTensor div(const DistributedTensor& a, const DistributedTensor& b);
DistributedTensor pow(const DistributedTensor& a, const DistributedTensor& b);
// NaN where either is NaN. Of equal elements each gets half of the gradient.
DistributedTensor maximum(const DistributedTensor& a, const DistributedTensor& b);
DistributedTensor minimum(const DistributedTensor& a, const DistributedTensor& b);
// What division leaves: with the sign of b (remainder), or of a (fmod). Errors: an integer divided by zero.
DistributedTensor remainder(const DistributedTensor& a, const DistributedTensor& b);
DistributedTensor fmod(const DistributedTensor& a, const DistributedTensor& b);

DistributedTensor add(const DistributedTensor& a, double value);
DistributedTensor sub(const DistributedTensor& a, double value);
DistributedTensor mul(const DistributedTensor& a, double value);
DistributedTensor div(const DistributedTensor& a, double value);
DistributedTensor pow(const DistributedTensor& a, double exponent);
DistributedTensor maximum(const DistributedTensor& a, double value);
DistributedTensor minimum(const DistributedTensor& a, double value);
DistributedTensor remainder(const DistributedTensor& a, double value);
DistributedTensor fmod(const DistributedTensor& a, double value);
inline DistributedTensor add(double value, const DistributedTensor& b) { return add(b, value); }
DistributedTensor sub(double value, const DistributedTensor& b);
inline DistributedTensor mul(double value, const DistributedTensor& b) { return mul(b, value); }
DistributedTensor div(double value, const DistributedTensor& b);
DistributedTensor pow(double base, const DistributedTensor& b);

// start + weight * (end - start), exact at both ends. Floating types.
DistributedTensor lerp(const DistributedTensor& start, const DistributedTensor& end, const DistributedTensor& weight);
DistributedTensor lerp(const DistributedTensor& start, const DistributedTensor& end, double weight);
// input + value * a * b.
DistributedTensor addcmul(const DistributedTensor& input, const DistributedTensor& a, const DistributedTensor& b,
                          double value = 1);

}  // namespace dtensor::ops
