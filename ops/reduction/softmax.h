// Softmax along one dimension.
#pragma once

#include "ops/core/call.h"

namespace dtensor::ops {

extern const Op softmax_op, sharded_softmax_op, softmax_backward_op, log_softmax_op, sharded_log_softmax_op,
    log_softmax_backward_op, exp_shifted_op, log_softmax_shifted_op, sharded_softmax_backward_op,
    sharded_log_softmax_backward_op;

// exp(x) / sum(exp(x)) along `dim`, without overflow; x of a floating type, of any shape. Where `dim` is whole on every
// rank nothing moves. Where it is sharded the result is sharded alike: an all-reduce of maxima, then one of sums; and
// in the gradient one of sums.
DistributedTensor softmax(const DistributedTensor& x, int64_t dim);
// x - log(sum(exp(x))), as above.
DistributedTensor log_softmax(const DistributedTensor& x, int64_t dim);

}  // namespace dtensor::ops
