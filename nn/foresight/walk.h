// A model's forward pass tensor by tensor: what the layout of each is, and which plan line or rule made it so.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "nn/foresight/forecast.h"

namespace dtensor::nn {

struct WalkStep {
  std::string module;             // that was running; "" is the root
  std::string tensor;             // its name here: t5; of a parameter the path
  std::string spec;               // "f32[8,32,128] dp=Shard(0) tp=Replicate"
  std::string by;                 // "parameter", "input", "redistribute" or an op
  std::vector<std::string> from;  // names of the operands
  std::string because;            // the plan line, the op that asked, or the rule and what of it is sharded
  friend bool operator==(const WalkStep&, const WalkStep&) = default;
};

// What runs in `module` and below it, in a forward pass of `options`' batch. Errors: those of a run; no such module,
// with the nearest name.
std::vector<WalkStep> walk(const MeshShape& mesh, const ModelConfig& model, const ParallelPlan& plan,
                           const ForecastOptions& options, const std::string& module = "");

nlohmann::ordered_json to_json(const std::vector<WalkStep>& steps);
std::string to_string(const std::vector<WalkStep>& steps);

}  // namespace dtensor::nn
