// Parallel styles: what a plan line does to a module. Names and parameters are PyTorch's, and flash-linear-attention's.
#pragma once

#include <optional>

#include "nn/module.h"

namespace dtensor::nn {

// How one module is parallelized along one mesh axis. Layouts hold for that axis only; on others a tensor stays as it
// is. An input layout is a claim: a value that arrives otherwise is an error that names module, claim and fact.
struct Style {
  enum class Kind : uint8_t {
    colwise,
    rowwise,
    sequence,
    prepare_input,
    prepare_output,
    prepare_input_output,
    prepare_weight,
    linear_loss,
    swiglu_linear,
    local_colwise,
    local_rowwise,
    gather,
    replicated
  };
  using Layouts = std::vector<std::optional<Placement>>;
  using NamedLayouts = std::vector<std::pair<std::string, std::optional<Placement>>>;

  Kind kind = Kind::colwise;
  // One per tensor input or output, the first k of them. Empty: the style's default.
  Layouts input_layouts = {}, desired_input_layouts = {}, output_layouts = {}, desired_output_layouts = {};
  // The same by the names of the module's inputs (Module::input_names).
  NamedLayouts input_kwarg_layouts = {}, desired_input_kwarg_layouts = {};
  Placement layouts = Replicate();  // of the parameters: PrepareModuleWeight
  int sequence_dim = 1;

  friend bool operator==(const Style&, const Style&) = default;
};

std::string_view name(Style::Kind kind);

// Linear: weight Shard(0), bias Shard(0); Embedding: weight Shard(1). Input Replicate, output Shard(-1) by default.
//   ColwiseParallel(input_layouts, output_layouts)
// Linear: weight Shard(1), bias Replicate, input Shard(-1); Embedding: weight Shard(0), input Replicate. Output
// Replicate by default.
//   RowwiseParallel(input_layouts, output_layouts)
// Parameters Replicate; the first input is brought to Shard(sequence_dim), where it is not.
//   SequenceParallel(sequence_dim)
// Inputs or outputs from one layout to another.
//   PrepareModuleInput(input_layouts, desired_input_layouts, input_kwarg_layouts, desired_input_kwarg_layouts)
//   PrepareModuleOutput(output_layouts, desired_output_layouts)
//   PrepareModuleInputOutput: both
// All parameters of the module.
//   PrepareModuleWeight(layouts)
// LinearCrossEntropyLoss: the loss is computed by it, in place of logits; inputs are brought to Shard(sequence_dim),
// the output is Replicate by default.
//   LinearLossParallel(sequence_dim, output_layouts)
// SwiGLULinear: inputs Shard(-1), output Replicate by default.
//   SwiGLULinearParallel(input_layouts, output_layouts)
// The parameters of ColwiseParallel and RowwiseParallel alone, and the output as it comes, which gather brings to
// Replicate, of Hugging Face's plans: local_colwise, local_rowwise, gather. replicated_with_grad_allreduce says what is
// so anyway.
//
// What is derived from Linear or Embedding is one; Conv1D is a Linear whose weight is transposed. A parameter that two
// modules share is placed once: lines that place it otherwise are an error. `line` is the plan's line, for logs and
// errors; none: the style's name. Errors: a kind of module that the style does not fit; the name of an input that the
// module has not. Sizes that the axis does not divide are sharded unevenly.
void apply(Module& module, int axis, const Style& style, std::string line = "");

}  // namespace dtensor::nn
