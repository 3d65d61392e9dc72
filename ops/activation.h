// Activations: element-wise functions of floating types. NaN gives NaN.
#pragma once

#include "ops/call.h"

namespace dtensor::ops {

extern const Op relu_op, relu_backward_op, gelu_op, gelu_backward_op, silu_op, silu_backward_op;
extern const Op tanh_op, sigmoid_op, softplus_op, softplus_backward_op, swiglu_op, swiglu_backward_op;

DistributedTensor relu(const DistributedTensor& x);
// x times the normal distribution function of x; approximate "none", or "tanh" for that of Hendrycks and Gimpel (2016).
DistributedTensor gelu(const DistributedTensor& x, std::string_view approximate = "none");
DistributedTensor silu(const DistributedTensor& x);
DistributedTensor tanh(const DistributedTensor& x);
DistributedTensor sigmoid(const DistributedTensor& x);
// log(1 + exp(beta * x)) / beta; x itself where beta * x > threshold.
DistributedTensor softplus(const DistributedTensor& x, double beta = 1, double threshold = 20);
// silu(gate) * up, in one pass; of one shape. Source: Shazeer, "GLU Variants Improve Transformer" (2020).
DistributedTensor swiglu(const DistributedTensor& gate, const DistributedTensor& up);

}  // namespace dtensor::ops
