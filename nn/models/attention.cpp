#include "nn/models/attention.h"

#include "nn/models/key_value_cache.h"

namespace dtensor::nn {

DistributedTensor split_heads(const Module& module, const DistributedTensor& x, int64_t heads) {
  const MeshShape& mesh = x.mesh().shape();
  AxisSet axes = x.layout().split[2].set();
  check(heads % mesh.product(axes) == 0,
        "[{}] {} heads do not divide over {} ranks ({}): use fewer ranks on that axis, or let the projection's plan "
        "line have \"output_layouts\": \"Replicate\"",
        module.path(), heads, mesh.product(axes), mesh.names(axes));
  return ops::view(x, {x.size(0), x.size(1), heads, x.size(2) / heads});
}

namespace {

// i64 [sequence] or [batch, sequence], to where the batch and the sequence of x [batch, heads, sequence, head_dim] are,
// which a plan may have moved.
DistributedTensor beside(const DistributedTensor& x, const DistributedTensor& of_tokens) {
  if (!of_tokens.defined()) return of_tokens;
  Layout layout;
  layout.split[size_t(of_tokens.dims() - 1)] = x.layout().split[2];
  if (of_tokens.dims() == 2) layout.split[0] = x.layout().split[0];
  return of_tokens.redistribute(layout);
}

// Among all that the cache has, where a key's index is its position.
DistributedTensor attend_cached(const CoreAttention& module, const DistributedTensor& q, const DistributedTensor& k,
                                const DistributedTensor& v, const SequenceInputs& inputs,
                                ops::AttentionOptions options) {
  check(options.causal && inputs.positions.defined() && !inputs.documents.defined(),
        "[{}] a cache is for causal attention with positions and without documents", module.path());
  auto [keys, values] = inputs.cache->extend(module, k, v);
  Layout rows;
  rows.split[0] = q.layout().split[0];
  options.q_positions = beside(q, inputs.positions), options.k_lengths = inputs.cache->lengths().redistribute(rows);
  return ops::scaled_dot_product_attention(q, keys, values, options);
}

}  // namespace

DistributedTensor CoreAttention::forward(const DistributedTensor& q, const DistributedTensor& k,
                                         const DistributedTensor& v, const SequenceInputs& inputs,
                                         const ops::AttentionOptions& given) {
  check(!reordered || inputs.positions.defined(),
        "[{}] context_parallel: balanced parts of the sequence are in another order, and nothing says which tokens "
        "they are: give SequenceInputs::positions, and bring all of the batch into balanced_order()",
        path());
  if (inputs.cache) return attend_cached(*this, q, k, v, inputs, given);
  ops::AttentionOptions options = given;
  if (options.causal)
    options.q_positions = beside(q, inputs.positions), options.k_positions = beside(k, inputs.positions);
  if (inputs.documents.defined()) options.q_documents = options.k_documents = inputs.documents;
  if (!ring && !reordered && options.q_documents.defined()) options.max_documents = inputs.max_documents;
  options.q_documents = beside(q, options.q_documents), options.k_documents = beside(k, options.k_documents);
  return ring ? ops::ring_attention(q, k, v, *ring, options) : ops::scaled_dot_product_attention(q, k, v, options);
}

DistributedTensor attend(CoreAttention& attention, const DistributedTensor& q, const DistributedTensor& k,
                         const DistributedTensor& v, const SequenceInputs& inputs,
                         const ops::AttentionOptions& options) {
  auto heads_first = [](const DistributedTensor& t) { return ops::transpose(t, 1, 2); };
  DistributedTensor queries = heads_first(q), keys = heads_first(k), values = heads_first(v);
  DistributedTensor out = attention(queries, keys, values, inputs, options);
  return ops::reshape(ops::transpose(out, 1, 2), {q.size(0), q.size(1), q.size(2) * q.size(3)});
}

DistributedTensor add_positions(const DistributedTensor& x, Embedding& table, const DistributedTensor& positions) {
  int64_t rows = table.weight.shape()[0];
  check(x.size(1) <= rows, "[{}] a sequence of {} tokens is longer than the {} positions of the model", table.path(),
        x.size(1), rows);
  if (positions.defined()) return x + table(positions);
  return x + ops::slice(table.weight(), 0, 0, x.size(1));
}

}  // namespace dtensor::nn
