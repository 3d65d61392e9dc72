// Layer normalization, and normalization over a dimension that is sharded.
#pragma once

#include "ops/core/call.h"

namespace dtensor::ops {

// How many of the last dimensions are normalized.
struct LastDims {
  int64_t normalized_dims;
  static constexpr auto fields() { return std::tuple(field("normalized_dims", &LastDims::normalized_dims)); }
};
struct LayerNorm : LastDims {
  using Base = LastDims;
  double eps;
  static constexpr auto fields() {
    return std::tuple_cat(LastDims::fields(), std::tuple(field("eps", &LayerNorm::eps)));
  }
};
// `affine`: the gradients of weight and bias too.
struct LayerNormBackward : LastDims {
  using Base = LastDims;
  bool affine;
  static constexpr auto fields() {
    return std::tuple_cat(LastDims::fields(), std::tuple(field("affine", &LayerNormBackward::affine)));
  }
};
// Of n elements.
struct NormStatistics {
  int64_t n;
  double eps;
  static constexpr auto fields() {
    return std::tuple(run_time("n", &NormStatistics::n), field("eps", &NormStatistics::eps));
  }
};

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
