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
    ring,        // keys and values go round (ops::ring_attention): the ranks divide the sequence, and none has all keys
  };
  std::string axis = {};
  Method method = Method::all_gather;
  // Each rank has as much to do under a causal mask: the sequence is in balanced_order(). With all_to_all each rank has
  // all of the sequence anyway.
  bool balanced = false;

  static ContextParallelPlan from_json(const JsonPlace& place);
  nlohmann::ordered_json to_json() const;
  // Adds the hooks to every CoreAttention of the model. Errors: a model without one; when it is called, queries that
  // are not divided over the axis along the sequence, heads or a sequence that the ranks do not divide; `balanced`
  // parts of a model that is no CausalLM.
  void apply(Module& model) const;
  friend bool operator==(const ContextParallelPlan&, const ContextParallelPlan&) = default;
};

// Tensors [sequence] or [batch, sequence] with the sequence in the order in which rank r of the P ranks of a mesh axis
// has chunks r and 2P - 1 - r of 2P: under a causal mask, as many keys to see as any other. They come and go sharded
// over the axis along the sequence. All that is said of tokens is to be in this order, positions among it. Errors: a
// sequence that 2P does not divide.
std::vector<DistributedTensor> balanced_order(std::vector<DistributedTensor> list, int axis);

}  // namespace dtensor::nn
