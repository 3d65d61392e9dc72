// Layer normalization, and normalization over a dimension that is sharded.
#pragma once

#include "ops/call.h"

namespace dtensor::ops {

extern const Op layer_norm_op, layer_norm_backward_op, sharded_layer_norm_op, sharded_rms_norm_op;
extern const Op normalize_op, norm_statistics_op, norm_gradient_sums_op;

// (x - mean) / sqrt(var + eps) * weight + bias, mean and var over the last dimensions, which are `normalized_shape`;
// weight and bias have that shape, and either may be absent. Where those dimensions are whole on every rank nothing
// moves. Where x comes with one sharded the result is sharded alike, and so are weight and bias used: an all-reduce of
// the rows' sums, then one of centred squares; in the gradient two sums in one launch.
// Source: Ba, Kiros and Hinton, "Layer Normalization" (2016).
DistributedTensor layer_norm(const DistributedTensor& x, const Shape& normalized_shape,
                             const DistributedTensor& weight = {}, const DistributedTensor& bias = {},
                             double eps = 1e-5);

}  // namespace dtensor::ops
