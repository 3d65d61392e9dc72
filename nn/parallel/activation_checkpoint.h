// The section "activation_checkpoint" of a plan: what blocks compute is computed again for their gradients.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "nn/module.h"

namespace dtensor::nn {

struct JsonPlace;

struct ActivationCheckpointPlan {
  static ActivationCheckpointPlan from_json(const JsonPlace& place);
  nlohmann::ordered_json to_json() const;
  void apply(Module& model) const;
  friend bool operator==(const ActivationCheckpointPlan&, const ActivationCheckpointPlan&) = default;
};

}  // namespace dtensor::nn
