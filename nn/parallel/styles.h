// Parallel styles: what a plan line does to a module. Names and parameters are PyTorch's.
#pragma once

#include <optional>

#include "nn/module.h"

namespace dtensor::nn {

// How one module is parallelized along one mesh axis. Layouts hold for that axis only; on others a tensor stays as it
// is. An input layout is a claim: a value that arrives otherwise is an error that names module, claim and fact.
struct Style {
  enum class Kind : uint8_t { colwise, rowwise, sequence, prepare_input, prepare_output };
  Kind kind = Kind::colwise;
  // One per tensor input or output, the first k of them. Empty: the style's default.
  std::vector<std::optional<Placement>> input_layouts, desired_input_layouts, output_layouts, desired_output_layouts;
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
//   PrepareModuleInput(input_layouts, desired_input_layouts), PrepareModuleOutput(output_layouts,
//   desired_output_layouts)
// What is derived from Linear or Embedding is one. `line` is the plan's line, for logs and errors; none: the style's
// name. Errors: a kind of module that the style does not fit. Sizes that the axis does not divide are sharded unevenly.
void apply(Module& module, int axis, const Style& style, std::string line = "");

}  // namespace dtensor::nn
