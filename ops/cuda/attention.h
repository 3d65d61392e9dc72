// Attention on CUDA: what a call is, whose kernel takes it, and the library's own kernel.
#pragma once

#include <array>
#include <compare>
#include <cstdint>

#include "dtensor/cuda/runtime.h"
#include "placement/dtype.h"

namespace dtensor::cuda {

// From element to element of a tensor [batch, sequence, heads, head_dim], whose last dimension is contiguous.
struct AttentionStrides {
  int64_t batch, sequence, head;
  friend auto operator<=>(const AttentionStrides&, const AttentionStrides&) = default;
};

// q, out and their gradients [batch, queries, heads, head_dim]; k, v and theirs [batch, keys, kv_heads, head_dim].
// Query head h reads key head (first_head + h) / repeats. With `causal` query i sees the keys up to i + diagonal, which
// is the global position of query 0, and of these the `window` last where that is not 0. Sizes may be 0.
struct AttentionShape {
  DType dtype = DType::f32;
  int64_t batch = 0, heads = 0, kv_heads = 0, queries = 0, keys = 0, head_dim = 0;
  bool causal = false;
  int64_t diagonal = 0;
  AttentionStrides q, k, v, out;
  AttentionStrides dout, dq, dk, dv;  // of the backward pass
  int64_t window = 0;
  int64_t first_head = 0, repeats = kv_heads ? heads / kv_heads : 1;
  // Each key head has as many query heads.
  bool has_whole_groups() const { return first_head == 0 && heads == repeats * kv_heads; }
  friend auto operator<=>(const AttentionShape&, const AttentionShape&) = default;
};

// What happens to the scores besides. Strides are elements by batch entry, head, query and key; 0 where all have the
// same. All of it is in device memory.
struct AttentionScores {
  const void* bias = nullptr;     // of the queries' type, added to scale * q k^T
  const bool* visible = nullptr;  // or: false hides the key from the query
  int64_t strides[4] = {0, 0, 0, 0};
  // Where queries and keys are, in place of i + diagonal and j, for the causal mask and dropout; by batch entry.
  const int64_t *query_positions = nullptr, *key_positions = nullptr;
  int64_t query_position_stride = 0, key_position_stride = 0;
  // The documents of queries and keys: both, or neither. A query sees those of its own, which is none where negative.
  const int64_t *query_documents = nullptr, *key_documents = nullptr;
  int64_t query_document_stride = 0, key_document_stride = 0;
  // So many keys of a batch entry take part; what lies beyond is not read. Those outside [0, keys] are brought there.
  const int64_t* key_lengths = nullptr;
  int64_t key_length_stride = 0;
  // Dropout of the weights after the softmax, by the stream with this key at step 0, at `*drop_step` (ops/cpu/drop.h).
  // Weight (b, h, i, j) has the index ((row * all_heads + first_head + h) * all_queries + position of i) * all_keys
  // + position of j, where row is rows[b] or first_row + b.
  const int64_t *drop_step = nullptr, *rows = nullptr;
  uint64_t drop_key = 0;
  double drop_p = 0;
  int64_t first_row = 0, first_head = 0, all_heads = 0, all_queries = 0, all_keys = 0;

  bool by_position() const { return query_positions || key_positions; }
};

enum class AttentionPass : uint8_t { forward, backward };

// lse [batch, heads, queries], contiguous: the logarithm of the sum of exp(scores) of each query, f64 for f64 and f32
// for the others. The second line is of the backward pass.
struct AttentionPointers {
  const void *q, *k, *v;
  void *out, *lse;
  const void* dout = nullptr;
  void *dq = nullptr, *dk = nullptr, *dv = nullptr;
  void* dscores = nullptr;  // [batch, heads, queries, keys], contiguous: the gradient of the bias, where it is wanted
};

constexpr int64_t own_attention_head_dim = 256;  // the most that fits into shared memory

// The library's own kernels: f32, f64 and bf16, any size but head_dim <= 256. A query that sees no key gives 0, lse
// -inf and no gradient. The same bits every time; the bits of a query do not depend on the other queries of the call.
// They are simple rather than fast: the reference for cuDNN, and for what it does not take.
// Source: Dao et al., "FlashAttention-2" (2023).
void attention_forward(const AttentionShape&, const AttentionScores&, const AttentionPointers&, double scale,
                       StreamHandle);
// Writes dq, dk, dv and dscores. `delta`: memory of lse's size.
void attention_backward(const AttentionShape&, const AttentionScores&, const AttentionPointers&, void* delta,
                        double scale, StreamHandle);

// By batch entry, on the device: so many queries and keys take part.
struct AttentionLengths {
  int32_t *of_queries = nullptr, *of_keys = nullptr;
  // Of runs (CudnnAttention::tokens): where each begins in q, k, v, out, lse, dout, dq, dk and dv, in elements, and
  // where the last ends; `offset_stride` from tensor to tensor.
  int64_t* offsets = nullptr;
  int64_t offset_stride = 0;
};
constexpr int attention_tensors = 9;
// scores.key_lengths as cuDNN takes them: all queries, or none where there is no key for them.
void lengths_for_cudnn(const AttentionShape&, const AttentionScores& scores, const AttentionLengths& to, StreamHandle);
// What a call of cuDNN's says of queries and keys beyond the lengths is its own: out becomes 0 and lse -inf, or dq, dk
// and dv 0. Of bf16, in packs of 16 bytes.
void clear_beyond(const AttentionShape&, AttentionPass, const AttentionPointers&, const AttentionLengths&,
                  StreamHandle);

// Documents as cuDNN takes them: batch * most runs of tokens, `most` of each row, empty ones behind the others.
struct AttentionRuns {
  int64_t most;
  AttentionLengths lengths;
  // By row: not 0 where it has more runs; numbers that do not ascend from run to run; or a query that is not of the
  // document, or not at the position, of its key, or whose position is not one beyond that of the query before in its
  // document. Such a row is left without runs.
  int32_t* wrong;
  float* lse;  // [batch, queries, heads]
};
// From scores.query_documents, as many queries as keys.
void find_runs(const AttentionShape&, const AttentionScores&, const AttentionRuns& to, StreamHandle);
void lse_to_runs(const AttentionShape&, const float* lse, const AttentionRuns& to, StreamHandle);
// After cuDNN: what lies outside of documents becomes 0 and lse -inf, and all of a wrong row NaN; lse comes from the
// runs'.
void settle_runs(const AttentionShape&, AttentionPass, const AttentionPointers&, const AttentionScores&,
                 const AttentionRuns&, StreamHandle);

// Two results of the same queries, each of other keys, as one: out [batch, queries, heads, head_dim] and
// lse [batch, heads, queries], contiguous, of `x` and of the result in the type of lse; `y`'s out is of `type`.
struct AttentionResult {
  const void *out, *lse;
};
struct MergedAttention {
  void *out, *lse;
};
void merge_attention(const std::array<int64_t, 4>& shape, DType type, const AttentionResult& x,
                     const AttentionResult& y, const MergedAttention& to, StreamHandle);

}  // namespace dtensor::cuda
