// Activations and bounds: element-wise functions with attributes or of two operands. NaN gives NaN.
#pragma once

#include <optional>

#include "ops/core/call.h"
#include "ops/pointwise/attributes.h"

namespace dtensor::ops {

extern const Op gelu_op, gelu_backward_op, softplus_op, softplus_backward_op, swiglu_op, swiglu_backward_op;
extern const Op clamp_op, clamp_backward_op;

// x times the normal distribution function of x; approximate "none", or "tanh" for that of Hendrycks and Gimpel (2016).
DistributedTensor gelu(const DistributedTensor& x, const std::string& approximate = "none");
// log(1 + exp(beta * x)) / beta; x itself where beta * x > threshold.
DistributedTensor softplus(const DistributedTensor& x, double beta = 1, double threshold = 20);
// silu(gate) * up, in one pass; of one shape. Source: Shazeer, "GLU Variants Improve Transformer" (2020).
DistributedTensor swiglu(const DistributedTensor& gate, const DistributedTensor& up);
// At least min and at most max, max where min > max; of i64 too. Its gradient passes strictly between them. Errors:
// neither is given.
DistributedTensor clamp(const DistributedTensor& x, std::optional<double> min, std::optional<double> max = {});

}  // namespace dtensor::ops
