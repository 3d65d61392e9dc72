// Element-wise ops. Operands broadcast as in NumPy and have one element type: nothing is promoted silently. A number
// beside a tensor takes the tensor's type; a fraction beside integers is an error. Here are those of two and more
// operands; the other families come with it.
#pragma once

#include "ops/activation.h"
#include "ops/cast.h"
#include "ops/compare.h"
#include "ops/unary.h"

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

// As in PyTorch: by element. a == b is a tensor of bools; !, &, | and ^ are for bools.
namespace dtensor {

inline DistributedTensor operator+(const DistributedTensor& a, const DistributedTensor& b) { return ops::add(a, b); }
inline DistributedTensor operator+(const DistributedTensor& a, double v) { return ops::add(a, v); }
inline DistributedTensor operator+(double v, const DistributedTensor& a) { return ops::add(v, a); }
inline DistributedTensor operator-(const DistributedTensor& a, const DistributedTensor& b) { return ops::sub(a, b); }
inline DistributedTensor operator-(const DistributedTensor& a, double v) { return ops::sub(a, v); }
inline DistributedTensor operator-(double v, const DistributedTensor& a) { return ops::sub(v, a); }
inline DistributedTensor operator*(const DistributedTensor& a, const DistributedTensor& b) { return ops::mul(a, b); }
inline DistributedTensor operator*(const DistributedTensor& a, double v) { return ops::mul(a, v); }
inline DistributedTensor operator*(double v, const DistributedTensor& a) { return ops::mul(v, a); }
inline DistributedTensor operator/(const DistributedTensor& a, const DistributedTensor& b) { return ops::div(a, b); }
inline DistributedTensor operator/(const DistributedTensor& a, double v) { return ops::div(a, v); }
inline DistributedTensor operator/(double v, const DistributedTensor& a) { return ops::div(v, a); }
inline DistributedTensor operator-(const DistributedTensor& a) { return ops::neg(a); }

inline DistributedTensor operator==(const DistributedTensor& a, const DistributedTensor& b) { return ops::eq(a, b); }
inline DistributedTensor operator==(const DistributedTensor& a, double v) { return ops::eq(a, v); }
inline DistributedTensor operator==(double v, const DistributedTensor& a) { return ops::eq(a, v); }
inline DistributedTensor operator!=(const DistributedTensor& a, const DistributedTensor& b) { return ops::ne(a, b); }
inline DistributedTensor operator!=(const DistributedTensor& a, double v) { return ops::ne(a, v); }
inline DistributedTensor operator!=(double v, const DistributedTensor& a) { return ops::ne(a, v); }
inline DistributedTensor operator<(const DistributedTensor& a, const DistributedTensor& b) { return ops::lt(a, b); }
inline DistributedTensor operator<(const DistributedTensor& a, double v) { return ops::lt(a, v); }
inline DistributedTensor operator<(double v, const DistributedTensor& a) { return ops::gt(a, v); }
inline DistributedTensor operator<=(const DistributedTensor& a, const DistributedTensor& b) { return ops::le(a, b); }
inline DistributedTensor operator<=(const DistributedTensor& a, double v) { return ops::le(a, v); }
inline DistributedTensor operator<=(double v, const DistributedTensor& a) { return ops::ge(a, v); }
inline DistributedTensor operator>(const DistributedTensor& a, const DistributedTensor& b) { return ops::gt(a, b); }
inline DistributedTensor operator>(const DistributedTensor& a, double v) { return ops::gt(a, v); }
inline DistributedTensor operator>(double v, const DistributedTensor& a) { return ops::lt(a, v); }
inline DistributedTensor operator>=(const DistributedTensor& a, const DistributedTensor& b) { return ops::ge(a, b); }
inline DistributedTensor operator>=(const DistributedTensor& a, double v) { return ops::ge(a, v); }
inline DistributedTensor operator>=(double v, const DistributedTensor& a) { return ops::le(a, v); }

inline DistributedTensor operator&(const DistributedTensor& a, const DistributedTensor& b) {
  return ops::logical_and(a, b);
}
inline DistributedTensor operator|(const DistributedTensor& a, const DistributedTensor& b) {
  return ops::logical_or(a, b);
}
inline DistributedTensor operator^(const DistributedTensor& a, const DistributedTensor& b) {
  return ops::logical_xor(a, b);
}
inline DistributedTensor operator!(const DistributedTensor& a) { return ops::logical_not(a); }

}  // namespace dtensor
