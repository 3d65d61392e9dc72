#include "nn/parallel/layers.h"

#include "nn/parallel/styles.h"

namespace dtensor::nn {
namespace {

void shard(Module& m, const char* layer, const std::string& axis, Style style) {
  apply(m, m.mesh().shape().axis(axis, layer), style, layer);
}

}  // namespace

ColumnParallelLinear::ColumnParallelLinear(Module& parent, std::string name, int64_t in_features, int64_t out_features,
                                           Options o)
    : Linear(parent, std::move(name), in_features, out_features, o.bias, o.std) {
  shard(*this, "ColumnParallelLinear", o.axis,
        {.kind = Style::Kind::colwise,
         .input_layouts = {std::nullopt},
         .output_layouts = {o.gather_output ? Placement(Replicate()) : Placement(Shard(-1))}});
}

RowParallelLinear::RowParallelLinear(Module& parent, std::string name, int64_t in_features, int64_t out_features,
                                     Options o)
    : Linear(parent, std::move(name), in_features, out_features, o.bias, o.std) {
  std::optional<Placement> claim;
  if (o.input_is_parallel) claim = Shard(-1);
  shard(*this, "RowParallelLinear", o.axis, {.kind = Style::Kind::rowwise, .input_layouts = {claim}});
}

VocabParallelEmbedding::VocabParallelEmbedding(Module& parent, std::string name, int64_t num_embeddings,
                                               int64_t embedding_dim, Options o)
    : Embedding(parent, std::move(name), num_embeddings, embedding_dim, o.std, o.padding_idx) {
  shard(*this, "VocabParallelEmbedding", o.axis, {.kind = Style::Kind::rowwise, .input_layouts = {std::nullopt}});
}

}  // namespace dtensor::nn
