// The tensor-parallel plan of a model by its model_type, as Hugging Face's base_model_tp_plan.
#pragma once

#include "nn/models/causal_lm.h"
#include "nn/parallel/plan.h"

namespace dtensor::nn {

// The same as the shipped plans tp, phi3_tp, gpt2_tp and gpt_tp in examples/plans, and tp_few_kv_heads where axis "tp"
// does not divide the key/value heads. Without an axis "tp" of several ranks: no lines.
ParallelPlan auto_plan(const ModelConfig& model, const MeshShape& mesh);

}  // namespace dtensor::nn
