// Activation checkpointing: what blocks compute is not kept but computed again for their gradients; and the section
// "activation_checkpoint" of a plan.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "nn/module.h"

namespace dtensor::nn {

struct JsonPlace;

// Decides what a block keeps. Bits do not depend on it: what is not kept is made by the same calls and redistributions
// again, random ones included. Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016).
class CheckpointPolicy : public KeepPolicy {
 public:
  // A recorded forward pass enters the block.
  virtual void begin_block() {}
};

// From now on the policy says what is kept between the module's inputs and its outputs, which are kept. Where nothing
// is recorded it is not asked. What is fully sharded is gathered as its own plan says, so call this before.
void checkpoint(Module& block, std::shared_ptr<CheckpointPolicy> policy);

// The blocks of a model: the elements of its outermost ModuleLists.
std::vector<Module*> blocks_of(Module& model);

// A result that can be kept, or made again by so much work.
struct Keepable {
  int64_t bytes, work;
};
// Which to keep so that their bytes fit the budget and the work that they save is the most: that with the most work per
// byte first, then by branch and bound. Equal ones are taken from the last on, whose gradients come first.
std::vector<bool> choose_kept(const std::vector<Keepable>& list, int64_t budget);

struct ActivationCheckpointPlan {
  enum class Kind : uint8_t {
    none,
    full,    // of every block or every so many-th: nothing is kept
    ops,     // of every block: every second product, attention, and what was reduced and scattered are kept
    budget,  // of all blocks together: what fits
  };
  Kind kind = Kind::none;
  int every = 1;       // of full: the blocks every-1, 2 every-1, ...
  int64_t budget = 0;  // bytes on a rank that blocks keep in one forward pass, besides their inputs and outputs

  static ActivationCheckpointPlan from_json(const JsonPlace& place);
  nlohmann::ordered_json to_json() const;
  void apply(Module& model) const;
  friend bool operator==(const ActivationCheckpointPlan&, const ActivationCheckpointPlan&) = default;
};

}  // namespace dtensor::nn
