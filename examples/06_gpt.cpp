// A GPT that shards itself: with use_tensor_parallel its wide projections are ColumnParallelLinear along axis tp, their
// outputs gathered. All ranks have the same logits, dropout on, because an element is dropped by its global index.
//
// Run build/bin/06_gpt; it prints
//
//     tp=1  loss 4.5267
//     tp=2  loss 4.5267  largest difference from rank 0: 0 0
//     tp=4  loss 4.5267  largest difference from rank 0: 0 0 0 0
#include <fmt/format.h>

#include <cmath>

#include "dtensor/creation.h"
#include "dtensor/launch.h"
#include "dtensor/random_scope.h"
#include "nn/models/gpt.h"

using namespace dtensor;

void forward(Rank& rank, const std::string& axes) {
  DeviceMesh mesh(rank, axes);
  nn::GptConfig config;
  config.vocab_size = 100, config.max_position_embeddings = 128;
  config.n_layers = 2, config.n_heads = 4, config.d_model = 128, config.d_ff = 512;
  config.dropout = 0.1, config.use_tensor_parallel = true;
  nn::GptModel model(mesh, config);
  nn::materialize(model, /*seed=*/123);

  DistributedTensor uniform = rand(mesh, "f32[2,16]", {.seed = 123, .path = "tokens"});
  DistributedTensor ids = ops::cast(uniform * double(config.vocab_size), DType::i64);
  StepNumber step(mesh);
  RandomScope training(step, {.seed = 123});
  DistributedTensor logits = model(ids), loss = ops::cross_entropy(logits, ids);

  // What each rank has, beside what rank 0 has: nothing but its own copy says so.
  int ranks = mesh.size();
  Shape stacked{2 * ranks, 16, config.vocab_size};
  auto all = DistributedTensor::from_local(logits.local().contiguous(), mesh, Layout({Shard(0)}), stacked);
  Tensor copies = all.full_tensor();
  std::string text = fmt::format("{}  loss {:.4f}", axes, loss.item());
  if (ranks > 1) text += "  largest difference from rank 0:";
  for (int64_t r = 0, n = copies.numel() / ranks; ranks > 1 && r < ranks; ++r) {
    float difference = 0;
    for (int64_t i = 0; i < n; ++i)
      difference = std::max(difference, std::abs(copies.data<float>()[r * n + i] - copies.data<float>()[i]));
    text += fmt::format(" {}", difference);
  }
  if (rank.rank() == 0) fmt::print("{}\n", text);
}

int main() {
  launch(1, [](Rank& rank) { forward(rank, "tp=1"); });
  launch(2, [](Rank& rank) { forward(rank, "tp=2"); });
  launch(4, [](Rank& rank) { forward(rank, "tp=4"); });
}
