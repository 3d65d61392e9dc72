// The section "tensor_parallel" of a plan.
#pragma once

#include <map>

#include "nn/parallel/json_place.h"
#include "nn/parallel/styles.h"

namespace dtensor::nn {

// Module paths, with * for one segment or any part of one, and their styles, in the plan's order.
struct TensorParallelPlan {
  std::string axis;
  std::vector<std::pair<std::string, Style>> lines;

  static TensorParallelPlan from_json(const JsonPlace& section);
  nlohmann::ordered_json to_json() const;
  // `matched`: the modules that lines of this axis have matched so far, and by which key.
  void apply(Module& model, std::map<Module*, std::string>& matched) const;
  friend bool operator==(const TensorParallelPlan&, const TensorParallelPlan&) = default;
};

}  // namespace dtensor::nn
