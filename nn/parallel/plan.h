// Plans: JSON that says how a model is parallelized. docs/parallel-plans.md has the format.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>

#include "nn/parallel/activation_checkpoint.h"
#include "nn/parallel/context_parallel.h"
#include "nn/parallel/data_parallel.h"
#include "nn/parallel/fully_shard_plan.h"
#include "nn/parallel/tensor_parallel.h"

namespace dtensor::nn {

// A section that is not there changes nothing. They are applied in this order, so that what is fully sharded is what
// tensor parallelism left, and gathers its parameters around what is computed again.
struct ParallelPlan {
  std::vector<TensorParallelPlan> tensor_parallel;
  std::optional<ContextParallelPlan> context_parallel;
  std::optional<ActivationCheckpointPlan> activation_checkpoint;
  std::optional<FullyShardPlan> fully_shard;
  std::optional<DataParallelPlan> data_parallel;
  std::optional<DType> reduce_dtype;  // bf16: contributions of bf16 to a sum are rounded (Rank::reduce_dtype)
  std::optional<bool> loss_parallel;  // true: logits must arrive sharded over classes; false: they are gathered

  // Errors name the JSON path: an unknown field or style, a layout that is none.
  static ParallelPlan load(const std::string& file);
  static ParallelPlan from_json(const nlohmann::ordered_json& json);
  // The inverse: from_json(p.to_json()) == p. Styles have PyTorch's names, Hugging Face's are spelled out; defaults are
  // left out. Errors: two lines of one path, which JSON cannot have.
  nlohmann::ordered_json to_json() const;
  friend bool operator==(const ParallelPlan&, const ParallelPlan&) = default;

  // Mesh axes that the plan names for data parallelism: they divide the batch.
  std::vector<std::string> data_axes() const;
  // The mesh axis that divides the sequence: that of context_parallel, or "cp".
  std::string sequence_axis() const;
  // Mesh axes that the plan uses.
  std::vector<std::string> axes() const;
  // Errors: an axis of several ranks that neither the plan uses nor the batch (batch_layout).
  void check_uses(const MeshShape& mesh) const;
  // What may not be meant, a sentence each: a key that matches some modules and leaves out others like them; of a model
  // to which the plan was applied, parameters that no group of fully_shard has.
  std::vector<std::string> notes(Module& model) const;
  // Places the parameters, adds the hooks and sets Rank::reduce_dtype; before materialize(). Errors: an axis that the
  // mesh lacks, a key that matches no module (with the nearest name), a module matched twice on one axis, a style that
  // does not fit a module.
  void apply(Module& model) const;
};

// The layout of a batch, whose dimension 0 is rows: axes dp, dp_replicate and dp_shard shard the rows, and so do those
// that the plan names for data parallelism or fully sharding. The axis cp, or the one that the plan names for context
// parallelism, shards dimension 1, the sequence.
Layout batch_layout(const MeshShape& mesh, const ParallelPlan& plan = {});

}  // namespace dtensor::nn
