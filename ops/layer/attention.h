// Softmax attention.
#pragma once

#include <optional>

#include "dtensor/random.h"
#include "ops/core/call.h"

namespace dtensor::ops {

struct Attention {
  bool causal = false;
  int64_t window = 0;     // with causal; 0: none
  bool whole_kv = false;  // every rank has all key heads, wherever the query heads are
  int64_t chunks = 1;     // queries of each of so many equal chunks of the sequence see the keys of that chunk alone
  double scale = 1;
  double dropout_p = 0;
  int64_t key = 0;  // of the stream that drops, at step 0
  bool deterministic = true;
  int64_t max_documents = 0;  // in a row; 0: not known
  static constexpr auto fields() {
    return std::tuple(field("causal", &Attention::causal), run_time("window", &Attention::window),
                      field("whole_kv", &Attention::whole_kv), field("chunks", &Attention::chunks),
                      field("scale", &Attention::scale), field("dropout_p", &Attention::dropout_p),
                      run_time("key", &Attention::key), field("deterministic", &Attention::deterministic),
                      field("max_documents", &Attention::max_documents));
  }
};
// `mask_gradient`: that of the mask too.
struct AttentionBackward : Attention {
  using Base = Attention;
  bool mask_gradient;
  static constexpr auto fields() {
    return std::tuple_cat(Attention::fields(), std::tuple(field("mask_gradient", &AttentionBackward::mask_gradient)));
  }
};

struct RingAttention : Attention {
  using Base = Attention;
  int64_t axis;  // of the mesh
  static constexpr auto fields() {
    return std::tuple_cat(Attention::fields(), std::tuple(field("axis", &RingAttention::axis)));
  }
};

extern const Op attention_op, attention_backward_op, merge_attention_op, ring_attention_op;

// Runs a kernel of attention_op or attention_backward_op, which knows nothing of chunks, on each of this rank's: one,
// where their axis is sharded.
void for_chunks(const Context& c, std::span<const Tensor> in, std::span<Tensor> out, Kernel kernel);

struct AttentionOptions {
  bool causal = false;
  // With causal: a query sees the `window` last keys, its own among them, as Hugging Face's sliding_window. 0: all.
  int64_t window = 0;
  double scale = 0;  // of the scores, of either sign; 0: 1 / sqrt(head_dim)
  // Broadcasts to [batch, heads, s, t]: bool, true takes part; or added to the scores, of the queries' type. A row that
  // is left no key gives 0, as in PyTorch. Not with causal. May be sharded as batch, heads and queries are. Its
  // gradient has all scores in memory, once.
  DistributedTensor attn_mask = {};
  // Where queries and keys are: i64 [s] and [t], or [batch, s] and [batch, t], sharded as those dimensions are; absent,
  // their global index. With causal a key takes part where its position is not beyond the query's.
  DistributedTensor q_positions = {}, k_positions = {};
  // The documents of queries and keys, of the shapes of positions: a query sees the keys of its own document. A
  // negative number is padding: such a key takes no part, and such a query gives 0 and has no gradient.
  DistributedTensor q_documents = {}, k_documents = {};
  // Not 0: query and key i are one token, and its documents are runs of tokens: at most so many in each row, in
  // ascending order, in which positions count up by one. cuDNN takes documents of which that is known (docs/cuda.md);
  // each value makes plans of its own there. What breaks it is an error, or NaN in all of the row where cuDNN computes.
  int64_t max_documents = 0;
  // i64 [batch], or of no dimension for all: so many keys take part, those before that index, of which any may be
  // hidden besides. What lies beyond is not read: a cache of a fixed size with a changing count.
  DistributedTensor k_lengths = {};
  // Weights are dropped after the softmax, each by its index in [batch, heads, s, t] (ops/layer/dropout.h), with
  // positions in place of the indices where they are given. By the open RandomScope, in training only; or by a stream,
  // always.
  double dropout_p = 0;
  std::optional<RandomStream> stream = {};
  // False: the gradient of the queries may be added up in any order, which is quicker where cuDNN computes it
  // (docs/cuda.md). Elsewhere the bits are the same every time anyway.
  bool deterministic = true;
};

// Exact softmax attention without the matrix of scores. q [batch, heads, s, d], k [batch, kv_heads, t, d],
// v [batch, kv_heads, t, d] -> [batch, heads, s, d], as torch's scaled_dot_product_attention with enable_gqa. heads is
// a multiple of kv_heads. Heads shard where the ranks divide kv_heads; where q comes with its heads on more ranks than
// that, k and v are whole on each, which reads the key heads of its queries. Queries shard too. Source: Dao et al.,
// "FlashAttention" (2022).
DistributedTensor scaled_dot_product_attention(const DistributedTensor& q, const DistributedTensor& k,
                                               const DistributedTensor& v, const AttentionOptions& options = {});

// The same of q, k and v that are sharded over a mesh axis along the sequence, evenly, where no rank has all keys: they
// go round the ring of the axis, with their positions and documents, while each rank computes with those that it has,
// and so do their gradients. What ranks compute is merged in f32 (f64 of f64). It knows neither attn_mask nor
// k_lengths. Source: Liu et al., "Ring Attention with Blockwise Transformers" (2023).
DistributedTensor ring_attention(const DistributedTensor& q, const DistributedTensor& k, const DistributedTensor& v,
                                 int axis, const AttentionOptions& options = {});

}  // namespace dtensor::ops
