// Losses.
#pragma once

#include "ops/call.h"

namespace dtensor::ops {

extern const Op cross_entropy_op, sum_exp_op, sum_below_op, pick_op, cross_entropy_backward_op;

enum class Reduction : uint8_t { none, sum, mean };

struct CrossEntropyOptions {
  int64_t ignore_index = -100;  // targets that count nothing
  Reduction reduction = Reduction::mean;
  double label_smoothing = 0;  // in [0,1]: this much of each target is shared by all classes alike
  int64_t class_dim = -1;      // PyTorch's is 1 where there is more than one dimension: [n, v, d1, ...]
};

// logits [..., v], target i64 [...] -> the negative log-likelihood: [...] for none, else one number, Replicate. The
// classes are the last dimension unless class_dim says another. The mean is over targets that are not ignored, on all
// ranks; NaN where there are none, as in PyTorch. The classes may be sharded (loss parallel): then an all-reduce of the
// rows' maxima, and one of two sums in one launch; rows sharded on other axes add one of [sum, count]. The gradient
// communicates nothing. A target outside [0, v) that is not ignored is an error on CPU. Partial logits are reduced
// once, before. Class weights and targets that are probabilities are not supported.
DistributedTensor cross_entropy(const DistributedTensor& logits, const DistributedTensor& target,
                                const CrossEntropyOptions& options = {});

// (input - target)^2, two floating tensors of one shape: all of them, or their sum or mean, Replicate. A mean of
// nothing is NaN.
DistributedTensor mse_loss(const DistributedTensor& input, const DistributedTensor& target,
                           Reduction reduction = Reduction::mean);

}  // namespace dtensor::ops
