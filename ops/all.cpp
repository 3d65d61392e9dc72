#include "ops/all.h"

#include "placement/nearest.h"

namespace dtensor::ops {

std::span<const Op* const> all() {
  static const Op* const list[] = {
      &add_op,
      &sub_op,
      &mul_op,
      &div_op,
      &maximum_op,
      &minimum_op,
      &add_scalar_op,
      &mul_scalar_op,
      &neg_op,
      &abs_op,
      &abs_backward_op,
      &exp_op,
      &log_op,
      &sqrt_op,
      &rsqrt_op,
      &square_op,
      &reciprocal_op,
      &tanh_op,
      &sigmoid_op,
      &relu_op,
      &relu_backward_op,
      &gelu_op,
      &gelu_backward_op,
      &silu_op,
      &silu_backward_op,
      &swiglu_op,
      &swiglu_backward_op,
      &cast_op,
      &sum_op,
      &amax_op,
      &sum_squares_op,
      &view_op,
      &reshape_op,
      &permute_op,
      &expand_op,
      &matmul_op,
      &linear_op,
      &linear_weight_gradient_op,
      &rms_norm_op,
      &rms_norm_backward_op,
      &add_rms_norm_op,
      &add_rms_norm_backward_op,
      &embedding_op,
      &embedding_backward_op,
      &rotary_op,
      &rotary_pair_op,
      &attention_op,
      &attention_backward_op,
      &dropout_op,
      &einsum_op,
      &sum_exp_op,
      &sum_below_op,
      &pick_op,
      &cross_entropy_backward_op,
      &cross_entropy_op,
  };
  return list;
}

const Op& find(std::string_view name, const char* who) {
  std::vector<std::string> names;
  for (const Op* op : all()) {
    if (op->name == name) return *op;
    names.emplace_back(op->name);
  }
  fail("[{}] there is no op \"{}\"; the nearest is \"{}\"", who, name, nearest(name, names));
}

}  // namespace dtensor::ops
