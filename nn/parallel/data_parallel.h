// Data parallelism with replicated parameters, and the section "data_parallel" of a plan.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "nn/module.h"

namespace dtensor::nn {

struct JsonPlace;

// Gradients of the parameters of `module` and below that are in no group yet are reduced in buckets of at least
// `bucket_bytes`, the last parameters first, as a backward pass comes by them: the last pass of a step starts each
// bucket when it is complete, and goes on. What is reduced over is where the batch is divided. Errors: bytes below 1.
// Source: Li et al., "PyTorch Distributed" (2020).
void replicate(Module& module, int64_t bucket_bytes);

struct DataParallelPlan {
  std::string axis;
  double bucket_mb = 25;  // MiB

  static DataParallelPlan from_json(const JsonPlace& place);
  nlohmann::ordered_json to_json() const;
  void apply(Module& model) const;
  friend bool operator==(const DataParallelPlan&, const DataParallelPlan&) = default;
};

}  // namespace dtensor::nn
