// Context parallelism, and the section "context_parallel" of a plan: the sequence is divided over an axis, and queries
// meet the keys of other ranks in attention alone.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "nn/module.h"

namespace dtensor::nn {

struct JsonPlace;

struct ContextParallelPlan {
  enum class Method : uint8_t {
    all_gather,  // each rank's queries and all keys and values: any sequence, any heads
    all_to_all,  // from a part of the sequence to a part of the heads, and back; the ranks divide key/value heads.
                 // Source: Jacobs et al., "DeepSpeed Ulysses" (2023)
  };
  std::string axis = {};
  Method method = Method::all_gather;

  static ContextParallelPlan from_json(const JsonPlace& place);
  nlohmann::ordered_json to_json() const;
  // Adds the hooks to every CoreAttention of the model. Errors: a model without one; when it is called, queries that
  // are not divided over the axis along the sequence, or heads that the ranks do not divide.
  void apply(Module& model) const;
  friend bool operator==(const ContextParallelPlan&, const ContextParallelPlan&) = default;
};

}  // namespace dtensor::nn
