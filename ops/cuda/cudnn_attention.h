// Attention by cuDNN, in bf16.
#pragma once

#include <memory>
#include <string>

#include "dtensor/local/allocator.h"
#include "ops/cuda/attention.h"
#include "ops/cuda/cudnn_api.h"

namespace dtensor::cuda {

// What a plan is made for.
struct CudnnAttention {
  AttentionShape shape;
  AttentionPass pass = AttentionPass::forward;
  // Each batch entry has lengths of its own, of queries and of keys. What lies beyond takes no part.
  bool padded = false;
  // Not 0, with `padded`: the batch entries are runs of tokens, each of as many queries as keys, of tensors of so many
  // tokens. Where they begin is given; strides from entry to entry mean nothing, and lse is [tokens, heads].
  int64_t tokens = 0;
  // Law 6. On Hopper the deterministic backward pass has the gradients of all scores in memory, at 2 bytes each; the
  // other adds to dq in any order.
  bool deterministic = true;
  friend auto operator<=>(const CudnnAttention&, const CudnnAttention&) = default;
};

// Builds the graph and has cuDNN's heuristics and engines check it for a device that is described by cuDNN's JSON of
// its properties; no GPU is needed, but the driver's library, or its stub. The number of the engine that takes it.
// Errors: none does.
int64_t cudnn_engine(const cudnn::Api& api, const CudnnAttention& call, const std::string& device_properties);

// A rank's handle and plans; used by one thread, on the allocator's stream.
class Cudnn {
 public:
  Cudnn(std::shared_ptr<Allocator> allocator, cudnn::Api api);
  ~Cudnn();

  // A call that attention_backend gives to cuDNN, with lengths where it is padded; what it writes beyond them is to be
  // cleared (clear_beyond). A large deterministic backward pass is run in parts, so that its working memory stays small
  // (attention_part). The first call of a kind makes its plan, which takes a second and is forbidden while a graph is
  // captured.
  void run(const CudnnAttention& call, const AttentionPointers& pointers, double scale,
           const AttentionLengths& lengths = {});

 private:
  void run_part(const CudnnAttention& call, const AttentionPointers& pointers, double scale,
                const AttentionLengths& lengths);

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dtensor::cuda
