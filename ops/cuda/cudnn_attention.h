// Attention by cuDNN, in bf16.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

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
// its properties; no GPU is needed, but the driver's library, or its stub. The numbers of the heuristics' proposals and
// of their engines that take it, in the heuristics' order; of one proposal, where it is given. Errors: none does.
struct CudnnEngine {
  int64_t proposal, engine;
};
std::vector<CudnnEngine> cudnn_engines(const cudnn::Api& api, const CudnnAttention& call,
                                       const std::string& device_properties, std::optional<int64_t> proposal = {});

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

  // Times the engines that take each kind of call that ran and was neither timed nor loaded, on random numbers, and
  // keeps the fastest, by which the call has its bits from then on: a line of each for people. Takes a second for each
  // engine, and memory for the call once more. What a graph has captured stays as it is.
  std::vector<std::string> tune();
  // What was timed or loaded, behind what the file has. It is for this version of cuDNN and this kind of device.
  void save(const std::string& path) const;
  // From now on these calls are computed by the file's engines. Errors: those of another version; a line that is none.
  void load(const std::string& path);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dtensor::cuda
