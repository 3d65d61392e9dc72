// The section "fully_shard" of a plan.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "nn/module.h"

namespace dtensor::nn {

struct JsonPlace;

struct FullyShardPlan {
  std::vector<std::string> axes;              // to shard over
  std::optional<std::string> replicate_axis;  // hybrid: stored alike on it
  std::vector<std::string> modules;           // patterns; "" is the root
  bool reshard_after_forward = true;
  std::optional<DType> param_dtype;  // to compute in, and to gather; bf16 is for CUDA

  static FullyShardPlan from_json(const JsonPlace& place);
  nlohmann::ordered_json to_json() const;
  // Inner modules first, so that a parameter belongs to the innermost group.
  void apply(Module& model) const;
  friend bool operator==(const FullyShardPlan&, const FullyShardPlan&) = default;
};

}  // namespace dtensor::nn
