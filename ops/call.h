// The dispatcher: choose a strategy, redistribute the inputs, allocate the outputs, run the kernel, tell the observers.
#pragma once

#include <initializer_list>

#include "ops/op.h"
#include "placement/propagate.h"

namespace dtensor {

struct CallOptions {
  const Layout* wanted = nullptr;  // the layout that the first output will be brought to; decides among equals
  // A value that the first output is added to in place, and whose handle is then returned: where the card can do so,
  // and the value has the output's type, shape and layout and no other handle. Otherwise it stays as it is.
  DistributedTensor* into = nullptr;
};

// Runs a card. A null pointer or an undefined tensor is an absent operand; at least one is present.
// Errors: two meshes, shapes or types that the rule refuses, no kernel, a view that would have to communicate.
std::vector<DistributedTensor> call_all(const Op& op, std::span<const DistributedTensor* const> inputs,
                                        const Attributes& attributes = {}, const CallOptions& options = {});
// The first output.
DistributedTensor call(const Op& op, std::initializer_list<const DistributedTensor*> inputs,
                       const Attributes& attributes = {}, const CallOptions& options = {});
inline std::vector<DistributedTensor> call_all(const Op& op, std::initializer_list<const DistributedTensor*> inputs,
                                               const Attributes& attributes = {}, const CallOptions& options = {}) {
  return call_all(op, std::span(inputs.begin(), inputs.size()), attributes, options);
}

// A call that ran, as observers see it.
struct CallEvent {
  const Op& op;
  const Attributes& attributes;
  std::span<const DistributedTensor* const> inputs;  // as the caller gave them; null where absent
  std::span<const DistributedTensor* const> used;    // as the kernel saw them
  std::span<const DistributedTensor> outputs;
};

// What the ops layer keeps per rank. Distinct calls seen so far: flat once a loop repeats itself.
size_t cached_calls(Rank& rank);
// What its CUDA kernels keep. Errors: a rank that is not on CUDA.
cuda::Workspace& workspace_of(Rank& rank);

}  // namespace dtensor
