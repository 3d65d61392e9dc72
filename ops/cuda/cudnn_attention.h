// Attention by cuDNN, in bf16. Where cuDNN was not found, no_cudnn.cpp stands for it, and refuses everything.
#pragma once

#include <memory>
#include <string>

#include "dtensor/local/allocator.h"
#include "ops/cuda/attention.h"

namespace dtensor::cuda {

// What a plan is made for.
struct CudnnAttention {
  AttentionShape shape;
  AttentionPass pass = AttentionPass::forward;
  // Each batch entry has lengths of its own, of queries and of keys. What lies beyond takes no part.
  bool padded = false;
  // Law 6. On Hopper the deterministic backward pass has the gradients of all scores in memory, at 2 bytes each; the
  // other adds to dq in any order.
  bool deterministic = true;
  friend auto operator<=>(const CudnnAttention&, const CudnnAttention&) = default;
};

// Why cuDNN is not asked, or "": its documented limits, those of cuDNN 9.19 on Hopper, and our graphs'.
std::string cudnn_refusal(const CudnnAttention& call);

// As many batch entries, or of one entry as many key heads with their query heads, as are run at a time so that the
// gradients of the scores stay below `most_bytes`. Zeros: not even one head of keys does.
struct AttentionPart {
  int64_t batch, kv_heads;
  friend bool operator==(const AttentionPart&, const AttentionPart&) = default;
};
constexpr int64_t most_score_gradient_bytes = int64_t(2) << 30;
AttentionPart attention_part(const CudnnAttention& call, int64_t most_bytes = most_score_gradient_bytes);

// Builds the graph and has cuDNN's heuristics and engines check it for a device that is described by cuDNN's JSON of
// its properties; no GPU is needed, but the driver's library, or its stub. The number of the engine that takes it.
// Errors: none does; cuDNN is not built, or too old.
int64_t cudnn_engine(const CudnnAttention& call, const std::string& device_properties);

// The version that was linked is too old. Errors: it is.
void check_cudnn_version(size_t version);

// A rank's handle and plans; used by one thread, on one stream.
class Cudnn {
 public:
  explicit Cudnn(StreamHandle stream);
  ~Cudnn();

  // Lengths by batch entry, on the device, for a padded call. The first call of a kind makes its plan, which takes a
  // second and is forbidden while a graph is captured. Working memory is the allocator's.
  void run(const CudnnAttention& call, const AttentionPointers& pointers, double scale,
           const std::shared_ptr<Allocator>& allocator, const int32_t* query_lengths = nullptr,
           const int32_t* key_lengths = nullptr);

 private:
  void run_part(const CudnnAttention& call, const AttentionPointers& pointers, double scale,
                const std::shared_ptr<Allocator>& allocator, const int32_t* query_lengths, const int32_t* key_lengths);

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dtensor::cuda
