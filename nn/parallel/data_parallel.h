// The section "data_parallel" of a plan: replicated parameters, whose gradients are reduced while the backward pass
// goes on.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "nn/module.h"

namespace dtensor::nn {

struct JsonPlace;

struct DataParallelPlan {
  std::string axis;

  static DataParallelPlan from_json(const JsonPlace& place);
  nlohmann::ordered_json to_json() const;
  void apply(Module& model) const;
  friend bool operator==(const DataParallelPlan&, const DataParallelPlan&) = default;
};

}  // namespace dtensor::nn
