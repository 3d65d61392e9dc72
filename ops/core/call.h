// The dispatcher: choose a strategy, redistribute the inputs, allocate the outputs, run the kernel, tell the observers.
#pragma once

#include <initializer_list>

#include "ops/core/op.h"

namespace dtensor {

struct CallOptions {
  const Layout* wanted = nullptr;  // the layout that the first output will be brought to; decides among equals
  // A value that the first output is added to in place, and whose handle is then returned: where the card can do so,
  // and the value has the output's type, shape and layout and no other handle. Otherwise it stays as it is.
  DistributedTensor* into = nullptr;
  bool* accumulated = nullptr;  // told whether the output was added to `into`
};

// Runs a card. A null pointer is an absent operand, and so is an undefined tensor where the card has an optional one;
// at least one is present. Where the operands are in host memory (DistributedTensor::is_on_host) the CPU's kernel runs.
// Errors: other undefined operands, two meshes, an operand on another device than the rank's, some operands in host
// memory and others not, or what is there and would have to move, shapes or types that the rule refuses, no kernel, a
// view that would have to communicate.
std::vector<DistributedTensor> call_all(const Op& op, std::span<const DistributedTensor* const> inputs,
                                        const Attributes& attributes = {}, const CallOptions& options = {});
// The first output.
DistributedTensor call(const Op& op, std::initializer_list<const DistributedTensor*> inputs,
                       const Attributes& attributes = {}, const CallOptions& options = {});
inline std::vector<DistributedTensor> call_all(const Op& op, std::initializer_list<const DistributedTensor*> inputs,
                                               const Attributes& attributes = {}, const CallOptions& options = {}) {
  return call_all(op, std::span(inputs.begin(), inputs.size()), attributes, options);
}

// A call that ran, as observers see it. References are good until the observer returns; who needs the card for longer
// holds `lasting`.
struct CallEvent {
  const Op& op;  // the caller's
  const std::shared_ptr<const Op>& lasting;
  const Attributes& attributes;
  std::span<const DistributedTensor* const> inputs;  // as the caller gave them; null where absent
  std::span<const DistributedTensor* const> used;    // as the kernel saw them
  std::span<const DistributedTensor> outputs;        // an input itself where the card `writes` it
  // This rank's range of every factor of the rule, and its global size: from them an observer counts work, bytes and
  // memory. None of a composite, whose ops are calls of their own.
  std::span<const Context::FactorRange> factors;
  const CallOptions& options;
  bool accumulated;  // output 0 is *options.into, to which the call added
};

// What the ops layer keeps per rank. Decisions for distinct calls seen so far: flat once a loop repeats itself, and
// never more than max_cached_calls, the half used least recently going first.
constexpr size_t max_cached_calls = 16384;
size_t cached_calls(Rank& rank);
// What its CUDA kernels keep. Errors: a rank that is not on CUDA.
cuda::Workspace& workspace_of(Rank& rank);

}  // namespace dtensor
