// Heads: what the attentions of all models share.
#pragma once

#include "nn/models/causal_lm.h"

namespace dtensor::nn {

// [batch, sequence, heads * head_dim] -> [batch, sequence, heads, head_dim]. Errors: ranks that x is sharded over and
// that do not divide the heads, with the module's path and what to do.
DistributedTensor split_heads(const Module& module, const DistributedTensor& x, int64_t heads);

// The attention itself, a module so that a plan's context_parallel finds it in every model.
class CoreAttention
    : public Callable<DistributedTensor(const DistributedTensor&, const DistributedTensor&, const DistributedTensor&,
                                        const SequenceInputs&, const ops::AttentionOptions&)> {
 public:
  explicit CoreAttention(Module& parent) : Callable(parent, "core_attention") { input_names = {"q", "k", "v"}; }
  std::string_view kind() const override { return "CoreAttention"; }
  // What a plan's context_parallel asks for: a mesh axis round whose ring keys and values go (ops::ring_attention); and
  // whether the sequence is in another order, so that inputs must have positions.
  std::optional<int> ring = {};
  bool reordered = false;
  // q [batch, heads, s, head_dim], k and v [batch, kv_heads, t, head_dim] -> as q, among the tokens of `inputs`, which
  // are brought to where queries and keys are.
  DistributedTensor forward(const DistributedTensor& q, const DistributedTensor& k, const DistributedTensor& v,
                            const SequenceInputs& inputs, const ops::AttentionOptions& options) override;
};

// The same of q [batch, s, heads, head_dim], k and v [batch, t, kv_heads, head_dim] -> [batch, s, heads * head_dim].
DistributedTensor attend(CoreAttention& attention, const DistributedTensor& q, const DistributedTensor& k,
                         const DistributedTensor& v, const SequenceInputs& inputs,
                         const ops::AttentionOptions& options);

// x [batch, sequence, hidden] + the embedding of each token's position. Errors: a sequence longer than the table.
DistributedTensor add_positions(const DistributedTensor& x, Embedding& table, const DistributedTensor& positions);

}  // namespace dtensor::nn
