// Plans as people write them elsewhere: Hugging Face's base_model_tp_plan, and flags as torchtitan has them.
// Contributions of bf16 travel as bf16 to a sum there ("reduce_dtype").
#pragma once

#include "nn/models/causal_lm.h"
#include "nn/parallel/plan.h"

namespace dtensor::nn {

// A plan file: this library's (docs/parallel-plans.md), or Hugging Face's base_model_tp_plan, as it stands or in an
// object with that key (a config.json may have it): over axis "tp", its paths beginning below "model.". Errors: those
// of ParallelPlan::from_json.
ParallelPlan read_plan(const std::string& file);
ParallelPlan read_plan(const nlohmann::ordered_json& json);

struct Parallelism {
  MeshShape mesh;
  ParallelPlan plan;
};

// "tp=8,dp_shard=64,cp=2", in any order, with dp_replicate: the mesh has the axes dp_replicate, dp_shard, cp, tp, those
// that are named. tp is auto_plan's; dp_shard and cp shard parameters, a group per block; cp gathers keys and values.
// `plan`: in place of what would be made, for this mesh. Errors: another name, a size below 1, one that is named twice.
Parallelism read_parallelism(const std::string& text, const ModelConfig& model,
                             const std::optional<ParallelPlan>& plan = {});

}  // namespace dtensor::nn
