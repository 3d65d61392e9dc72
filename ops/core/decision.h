// What the dispatcher decided for a call, kept for the next that is alike.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "ops/core/call.h"

namespace dtensor {

constexpr size_t max_operands = 64, max_outputs = 64;

// Found by card, interned specifications of the inputs, key of the attributes and wanted layout.
struct Decision {
  std::shared_ptr<const Op> card;  // keeps its identity from being another card's
  const void* identity;
  Kernel kernel;              // null where there is none, and on meta
  std::vector<uint64_t> ids;  // of the inputs' specs, 0 where absent
  Attributes key;
  uint64_t wanted;
  DType reduce_dtype;  // Rank::reduce_dtype

  std::vector<Layout> inputs;
  uint64_t moves = 0;  // bit i: input i is brought to another layout
  std::vector<SpecHandle> outputs;
  std::vector<Context::FactorRange> factors;
  char batch_factor = 0;
  bool in_f32 = false;  // the kernel sees f32 in place of bf16

  uint64_t last_use = 0;  // the number of the call
  int running = 0;        // calls that need it now: an observer may make calls
};

class Decisions {
 public:
  // The decision for this call, made where there is none. Errors: what the card's rule or types refuse.
  Decision& find(const Op& op, const DeviceMesh& mesh, std::span<const DistributedTensor* const> inputs,
                 const Attributes& attributes, const CallOptions& options);
  size_t size() const { return decisions_.size(); }

 private:
  void forget_half();

  std::unordered_multimap<uint64_t, std::unique_ptr<Decision>> decisions_;
  uint64_t calls_ = 0;
};

}  // namespace dtensor
