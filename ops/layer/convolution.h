// Convolutions over a sequence.
#pragma once

#include "ops/core/call.h"

namespace dtensor::ops {

extern const Op causal_convolution_op, causal_convolution_backward_op;

// The causal convolution of each channel by itself, as a depthwise Conv1d that sees no later token: x
// [batch, sequence, channels], weight [channels, width] -> y as x, y_t = sum over i of weight[:, i] x_{t-width+1+i}.
// `before` [batch, width - 1, channels]: the tokens before the first; absent: 0. Batch and channels shard; so does the
// sequence, into equal parts of at least width - 1 tokens, whose last ones go to the next rank.
// Errors: shapes that do not fit; a sequence that is divided otherwise.
DistributedTensor causal_convolution(const DistributedTensor& x, const DistributedTensor& weight,
                                     const DistributedTensor& before = {});

}  // namespace dtensor::ops
