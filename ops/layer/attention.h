// Attention and the rotary position embedding.
#pragma once

#include <optional>
#include <tuple>

#include "dtensor/random.h"
#include "ops/core/call.h"

namespace dtensor::ops {

struct Rotary {
  double theta;
  bool inverse;
  static constexpr auto fields() {
    return std::tuple(field("theta", &Rotary::theta), field("inverse", &Rotary::inverse));
  }
};
struct Attention {
  bool causal = false;
  double scale = 1;
  double dropout_p = 0;
  int64_t key = 0;  // of the stream that drops, at step 0
  bool deterministic = true;
  static constexpr auto fields() {
    return std::tuple(field("causal", &Attention::causal), field("scale", &Attention::scale),
                      field("dropout_p", &Attention::dropout_p), run_time("key", &Attention::key),
                      field("deterministic", &Attention::deterministic));
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

extern const Op rotary_op, rotary_pair_op, attention_op, attention_backward_op;

// x [batch, sequence, heads, d]: rotates the pairs (i, i + d/2) by position * theta^(-2i/d), Hugging Face's rotate_half
// order. `positions`: i64 [sequence] or [batch, sequence], sharded as those dimensions of x are; absent,
// the position is the global index. Either way the sequence may be sharded.
DistributedTensor rotary(const DistributedTensor& x, double theta, const DistributedTensor& positions = {});
// Queries and keys at once, with one table of angles. The heads of q are a multiple of k's.
std::tuple<DistributedTensor, DistributedTensor> rotary(const DistributedTensor& q, const DistributedTensor& k,
                                                        double theta, const DistributedTensor& positions = {});

struct AttentionOptions {
  bool causal = false;
  double scale = 0;  // of the scores, of either sign; 0: 1 / sqrt(head_dim)
  // Broadcasts to [batch, heads, s, t]: bool, true takes part; or added to the scores, of the queries' type. A row that
  // is left no key gives 0, as in PyTorch. Not with causal. May be sharded as batch, heads and queries are. Its
  // gradient has all scores in memory, once.
  DistributedTensor attn_mask = {};
  // Where queries and keys are: i64 [s] and [t], or [batch, s] and [batch, t], sharded as those dimensions are; absent,
  // their global index. With causal a key takes part where its position is not beyond the query's.
  DistributedTensor q_positions = {}, k_positions = {};
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
// a multiple of kv_heads. Heads shard where the ranks divide kv_heads; queries shard too. Source: Dao et al.,
// "FlashAttention" (2022).
DistributedTensor scaled_dot_product_attention(const DistributedTensor& q, const DistributedTensor& k,
                                               const DistributedTensor& v, const AttentionOptions& options = {});

// For kernels: [batch, sequence, heads, d] with contiguous heads, any other strides; and an error where d is odd.
Tensor with_whole_heads(const Tensor& t);
void check_pairs(int64_t d);

}  // namespace dtensor::ops
