// Heads: what the attentions of all models share.
#pragma once

#include "nn/models/causal_lm.h"

namespace dtensor::nn {

// [batch, sequence, heads * head_dim] -> [batch, sequence, heads, head_dim]. Errors: ranks that x is sharded over and
// that do not divide the heads, with the module's path and what to do.
DistributedTensor split_heads(const Module& module, const DistributedTensor& x, int64_t heads);

// q [batch, s, heads, head_dim], k and v [batch, t, kv_heads, head_dim] -> [batch, s, heads * head_dim], among the
// tokens of `inputs`.
DistributedTensor attend(const DistributedTensor& q, const DistributedTensor& k, const DistributedTensor& v,
                         const SequenceInputs& inputs, ops::AttentionOptions options);

// x [batch, sequence, hidden] + the embedding of each token's position. Errors: a sequence longer than the table.
DistributedTensor add_positions(const DistributedTensor& x, Embedding& table, const DistributedTensor& positions);

}  // namespace dtensor::nn
