// Layers that are sharded by themselves, for programs without plans. Each is what a plan line would make of the plain
// layer, along one axis of its mesh, "tp" by default; along an axis of one rank they are the plain layers.
#pragma once

#include "nn/layers.h"

namespace dtensor::nn {

// Errors of all: an axis that the mesh has not.

// weight and bias Shard(0). The input is brought to Replicate; the output is Shard(-1), or gathered.
class ColumnParallelLinear : public Linear {
 public:
  struct Options {
    bool bias = true, gather_output = true;
    double std = 0.02;
    std::string axis = "tp";
  };
  ColumnParallelLinear(Module& parent, std::string name, int64_t in_features, int64_t out_features, Options options);
  ColumnParallelLinear(Module& parent, std::string name, int64_t in_features, int64_t out_features)
      : ColumnParallelLinear(parent, std::move(name), in_features, out_features, Options()) {}
  std::string_view kind() const override { return "ColumnParallelLinear"; }
};

// weight Shard(1), bias Replicate, added once. With input_is_parallel the input must come as Shard(-1): anything else
// is an error; without it is split. The output is summed over the ranks: Replicate.
class RowParallelLinear : public Linear {
 public:
  struct Options {
    bool bias = true, input_is_parallel = false;
    double std = 0.02;
    std::string axis = "tp";
  };
  RowParallelLinear(Module& parent, std::string name, int64_t in_features, int64_t out_features, Options options);
  RowParallelLinear(Module& parent, std::string name, int64_t in_features, int64_t out_features)
      : RowParallelLinear(parent, std::move(name), in_features, out_features, Options()) {}
  std::string_view kind() const override { return "RowParallelLinear"; }
};

// weight Shard(0): the rows of the table. The output is summed over the ranks: Replicate.
class VocabParallelEmbedding : public Embedding {
 public:
  struct Options {
    double std = 0.02;
    int64_t padding_idx = -1;
    std::string axis = "tp";
  };
  VocabParallelEmbedding(Module& parent, std::string name, int64_t num_embeddings, int64_t embedding_dim,
                         Options options);
  VocabParallelEmbedding(Module& parent, std::string name, int64_t num_embeddings, int64_t embedding_dim)
      : VocabParallelEmbedding(parent, std::move(name), num_embeddings, embedding_dim, Options()) {}
  std::string_view kind() const override { return "VocabParallelEmbedding"; }
};

}  // namespace dtensor::nn
