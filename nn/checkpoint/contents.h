// The tensors and values that items stand for.
#pragma once

#include "nn/checkpoint/checkpoint.h"

namespace dtensor::nn {

struct CheckpointContents {
  std::vector<std::pair<std::string, DistributedTensor>> tensors;  // by name
  nlohmann::ordered_json values = nlohmann::ordered_json::object();
};

// Errors: an empty key; two tensors or values of one name.
CheckpointContents contents_of(const CheckpointItems& items);

constexpr std::string_view checkpoint_format = "dtensor checkpoint 1";
inline std::string rank_file(int rank) { return fmt::format("rank-{:05}.safetensors", rank); }

}  // namespace dtensor::nn
