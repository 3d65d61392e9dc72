// Element-wise ops. Operands broadcast as in NumPy and have one element type: nothing is promoted silently.
#pragma once

#include "ops/call.h"

namespace dtensor::ops {

extern const Op add_op, sub_op, mul_op, div_op, maximum_op, minimum_op;
extern const Op add_scalar_op, mul_scalar_op;
extern const Op neg_op, abs_op, exp_op, log_op, sqrt_op, rsqrt_op, square_op, reciprocal_op, tanh_op, sigmoid_op,
    relu_op, relu_backward_op, gelu_op, gelu_backward_op, silu_op, silu_backward_op, abs_backward_op;
extern const Op swiglu_op, swiglu_backward_op;
extern const Op cast_op;

DistributedTensor add(const DistributedTensor& a, const DistributedTensor& b);
DistributedTensor sub(const DistributedTensor& a, const DistributedTensor& b);
DistributedTensor mul(const DistributedTensor& a, const DistributedTensor& b);
DistributedTensor div(const DistributedTensor& a, const DistributedTensor& b);
DistributedTensor maximum(const DistributedTensor& a, const DistributedTensor& b);
DistributedTensor minimum(const DistributedTensor& a, const DistributedTensor& b);
DistributedTensor add(const DistributedTensor& a, double value);
DistributedTensor mul(const DistributedTensor& a, double value);

DistributedTensor neg(const DistributedTensor& x);
DistributedTensor abs(const DistributedTensor& x);
DistributedTensor exp(const DistributedTensor& x);
DistributedTensor log(const DistributedTensor& x);
DistributedTensor sqrt(const DistributedTensor& x);
DistributedTensor rsqrt(const DistributedTensor& x);
DistributedTensor square(const DistributedTensor& x);
DistributedTensor reciprocal(const DistributedTensor& x);
DistributedTensor tanh(const DistributedTensor& x);
DistributedTensor sigmoid(const DistributedTensor& x);
DistributedTensor relu(const DistributedTensor& x);
DistributedTensor gelu(const DistributedTensor& x);  // the erf form
DistributedTensor silu(const DistributedTensor& x);
// silu(gate) * up, in one pass. Source: Shazeer, "GLU Variants Improve Transformer" (2020).
DistributedTensor swiglu(const DistributedTensor& gate, const DistributedTensor& up);

// The same values as another element type. A float becomes an integer by truncation.
DistributedTensor cast(const DistributedTensor& x, DType dtype);

}  // namespace dtensor::ops

namespace dtensor {

inline DistributedTensor operator+(const DistributedTensor& a, const DistributedTensor& b) { return ops::add(a, b); }
inline DistributedTensor operator-(const DistributedTensor& a, const DistributedTensor& b) { return ops::sub(a, b); }
inline DistributedTensor operator*(const DistributedTensor& a, const DistributedTensor& b) { return ops::mul(a, b); }
inline DistributedTensor operator/(const DistributedTensor& a, const DistributedTensor& b) { return ops::div(a, b); }
inline DistributedTensor operator+(const DistributedTensor& a, double v) { return ops::add(a, v); }
inline DistributedTensor operator*(const DistributedTensor& a, double v) { return ops::mul(a, v); }
inline DistributedTensor operator*(double v, const DistributedTensor& a) { return ops::mul(a, v); }
inline DistributedTensor operator-(const DistributedTensor& a) { return ops::neg(a); }

}  // namespace dtensor
