#pragma once

#include "ops/pointwise/binary.h"
#include "ops/pointwise/compare.h"
#include "ops/pointwise/unary.h"

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
