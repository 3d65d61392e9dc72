// Losses.
#pragma once

#include "ops/call.h"

namespace dtensor::ops {

extern const Op cross_entropy_op, sum_exp_op, pick_op, cross_entropy_backward_op;

enum class Reduction : uint8_t { none, sum, mean };

struct CrossEntropyOptions {
  int64_t ignore_index = -100;  // targets that count nothing
  Reduction reduction = Reduction::mean;
};

// logits [..., v], target i64 [...] -> the negative log-likelihood: [...] for none, else one number, Replicate. The
// mean is over targets that are not ignored, on all ranks; NaN where there are none, as in PyTorch. The classes may be
// sharded (loss parallel): then an all-reduce of the rows' maxima, and one of two sums in one launch; rows sharded on
// other axes add one of [sum, count]. The gradient communicates nothing. A target outside [0, v) that is not ignored is
// an error on CPU.
DistributedTensor cross_entropy(const DistributedTensor& logits, const DistributedTensor& target,
                                const CrossEntropyOptions& options = {});

}  // namespace dtensor::ops
