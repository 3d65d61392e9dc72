// Who computes attention on CUDA: cuDNN, or the library's own kernels. Never silently: the choice has a reason.
#pragma once

#include <string>
#include <string_view>

#include "dtensor/rank.h"
#include "ops/cuda/cudnn_attention.h"

namespace dtensor::cuda {

// Why the rank has no cuDNN though its device is one on which attention would be cuDNN's, or "". Errors: a rank that is
// not on CUDA.
std::string missing_cudnn(Rank& rank);
// A rank's one, or null where it has none. The same errors.
Cudnn* find_cudnn(Rank& rank);

struct AttentionBackend {
  std::string_view name;  // "cudnn" or "own"
  std::string reason;     // why cuDNN does not take it, or ""
};

// What the choice knows of a rank.
struct AttentionDevice {
  int capability = 9;    // the major number of the compute capability: 9 for Hopper
  std::string no_cudnn;  // why there is no cuDNN, or ""
};

// Errors: neither takes it, that is heads
// of more than 256 elements.
AttentionBackend attention_backend(const CudnnAttention& call, const AttentionScores& scores,
                                   const AttentionPointers& pointers, const AttentionDevice& device);

// The keys beyond those that the last query of a causal call sees take no part: without them, its mask ends at the last
// key, as cuDNN wants it. Their gradients are 0.
AttentionShape without_unseen_keys(AttentionShape shape);

// So many batch entries, or so many key heads of one entry with their query heads, are run at a time, so that the
// gradients of the scores, which cuDNN's deterministic backward pass has in memory at 2 bytes each, take no more than
// `wanted_bytes`, or those of a single key head `most_bytes`. Zeros where that cannot be.
struct AttentionPart {
  int64_t batch, kv_heads;
  friend bool operator==(const AttentionPart&, const AttentionPart&) = default;
};
constexpr int64_t wanted_score_gradients = int64_t(2) << 30, most_score_gradients = int64_t(16) << 30;
AttentionPart attention_part(const CudnnAttention& call, int64_t wanted_bytes = wanted_score_gradients,
                             int64_t most_bytes = most_score_gradients);

}  // namespace dtensor::cuda
