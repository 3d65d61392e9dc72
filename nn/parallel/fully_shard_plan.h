// The section "fully_shard" of a plan.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "nn/module.h"

namespace dtensor::nn {

struct JsonPlace;

// When whole parameters are dropped after forward, to be gathered again in the backward pass: always; never; by
// default, of all modules but the last one used, which the backward pass would gather at once; or down to shards over
// so many ranks, which the first axes have.
struct ReshardAfterForward {
  enum class Kind : uint8_t { always, never, by_default, to_ranks };
  Kind kind = Kind::always;
  int ranks = 0;  // of to_ranks

  friend bool operator==(const ReshardAfterForward&, const ReshardAfterForward&) = default;
};

struct FullyShardPlan {
  std::vector<std::string> axes = {};              // to shard over
  std::optional<std::string> replicate_axis = {};  // hybrid: stored alike on it
  std::vector<std::string> modules = {};           // patterns; "" is the root
  int stage = 3;                                   // ZeRO's: FullyShardOptions
  ReshardAfterForward reshard_after_forward = {};
  bool sync_each_batch = false;
  bool offload = false;                    // to the host: FullyShardOptions
  std::optional<DType> param_dtype = {};   // to compute in, and to gather
  std::optional<DType> reduce_dtype = {};  // of gradients on their way
  std::optional<DType> output_dtype = {};  // of the outputs of the outermost modules

  static FullyShardPlan from_json(const JsonPlace& place);
  nlohmann::ordered_json to_json() const;
  // Inner modules first, so that a parameter belongs to the innermost group.
  void apply(Module& model) const;
  // ParallelPlan::notes.
  std::vector<std::string> notes(Module& model) const;
  friend bool operator==(const FullyShardPlan&, const FullyShardPlan&) = default;
};

}  // namespace dtensor::nn
