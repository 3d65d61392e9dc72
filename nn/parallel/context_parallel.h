// The section "context_parallel" of a plan: the sequence is divided.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "nn/module.h"

namespace dtensor::nn {

struct JsonPlace;

struct ContextParallelPlan {
  std::string axis;

  static ContextParallelPlan from_json(const JsonPlace& place);
  nlohmann::ordered_json to_json() const;
  void apply(Module& model) const;
  friend bool operator==(const ContextParallelPlan&, const ContextParallelPlan&) = default;
};

}  // namespace dtensor::nn
