// Normalization over the last dimension.
#pragma once

#include <tuple>

#include "ops/core/call.h"

namespace dtensor::ops {

struct RmsNorm {
  double eps;
  static constexpr auto fields() { return std::tuple(field("eps", &RmsNorm::eps)); }
};

extern const Op rms_norm_op, rms_norm_backward_op, add_rms_norm_op, add_rms_norm_backward_op;

// x / sqrt(mean(x^2) + eps) * weight; x [..., d], weight [d]. Where x comes with the last dimension sharded the result
// is sharded alike: an all-reduce of the rows' squares, and in the gradient one of two sums.
// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).
DistributedTensor rms_norm(const DistributedTensor& x, const DistributedTensor& weight, double eps);

// h = x + residual, then rms_norm of h, in one pass: {norm, h}. All of one shape. The last dimension must be whole.
std::tuple<DistributedTensor, DistributedTensor> add_rms_norm(const DistributedTensor& x,
                                                              const DistributedTensor& residual,
                                                              const DistributedTensor& weight, double eps);

}  // namespace dtensor::ops
