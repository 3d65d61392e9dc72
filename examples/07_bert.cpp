// BERT trained to predict masked tokens, its attention sharded by ColumnParallelLinear and RowParallelLinear along tp,
// the batch over dp; gradients are clipped by their global norm; and a checkpoint with model, optimizer, epoch and loss
// under keys of your own, which another mesh takes up.
//
// Run build/bin/07_bert; the losses are the same on every mesh, and go on after the checkpoint:
//
//     dp=1         loss 3.487 2.451 1.621
//     tp=2         loss 3.487 2.451 1.621
//     dp=2,tp=2    epoch 3, loss 1.621; then 0.812
#include <fmt/format.h>

#include <filesystem>

#include "dtensor/launch.h"
#include "nn/checkpoint/checkpoint.h"
#include "nn/models/bert.h"
#include "nn/parallel/plan.h"
#include "nn/train/adamw.h"
#include "nn/train/trainer.h"

using namespace dtensor;

constexpr int64_t vocabulary = 32, rows = 16, length = 16, cls = 0, mask = 1;

// Sentences of two words, again and again; the same for all ranks of tp, and each rank of dp has its rows.
DistributedTensor sentences(const DeviceMesh& mesh, int64_t step) {
  std::vector<int64_t> ids;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < length; ++i)
      ids.push_back(i == 0 ? cls : 2 + (i % 2 * 11 + 7 * r + 5 * step) % (vocabulary - 2));
  return DistributedTensor::distribute(Tensor::of<int64_t>({rows, length}, ids), mesh, nn::batch_layout(mesh.shape()));
}

nn::BertConfig config_for(const DeviceMesh& mesh) {
  nn::BertConfig c;
  c.vocab_size = vocabulary, c.hidden_size = 32, c.intermediate_size = 64, c.num_hidden_layers = 1;
  c.num_attention_heads = 4, c.max_position_embeddings = length, c.pad_token_id = -1;
  c.use_tensor_parallel = mesh.shape().find("tp") >= 0;
  return c;
}

void train(Rank& rank, const std::string& axes, const std::string& folder, bool resume) {
  DeviceMesh mesh(rank, axes);
  nn::BertForMaskedLM model(mesh, config_for(mesh));
  nn::materialize(model, /*seed=*/1);
  nn::AdamW optimizer(model.parameters(), {.weight_decay = 0.01});
  auto terms = [&](const nn::Batch& b) {
    return ops::cross_entropy(model(b[0]), b[1], {.ignore_index = -100, .reduction = ops::Reduction::none});
  };
  auto count = [](const nn::Batch& b) { return ops::sum(ops::cast(ops::ne(b[1], -100), DType::f32)); };
  nn::Trainer trainer(model, nn::Loss(terms, count), optimizer, {.lr = 1e-2, .clip = 1.0});

  int64_t epoch = 0;
  double loss = 0;
  if (resume) {
    nn::Checkpoint saved(folder);
    saved.load({{"model", model}, {"optimizer_state_dict", optimizer}});
    epoch = saved.value("epoch"), loss = saved.value("loss");
  }
  std::string text = resume ? fmt::format(" epoch {}, loss {:.3f}; then", epoch, loss) : " loss";
  for (int64_t end = resume ? epoch + 1 : 3; epoch < end; ++epoch, text += fmt::format(" {:.3f}", loss))
    for (int64_t step = 30 * epoch; step < 30 * (epoch + 1); ++step) {
      auto [inputs, labels] = nn::mask_tokens(sentences(mesh, step), step,
                                              {.mask_token = mask, .vocab_size = vocabulary, .special_tokens = {cls}});
      loss = trainer.step({inputs, labels}).loss;
    }
  if (rank.rank() == 0) fmt::print("{:<12}{}\n", axes, text);
  nn::save_checkpoint(mesh, folder,
                      {{"model", model}, {"optimizer_state_dict", optimizer}, {"epoch", epoch}, {"loss", loss}});
}

int main() {
  std::string folder = (std::filesystem::temp_directory_path() / "dtensor_bert").string();
  launch(1, [&](Rank& rank) { train(rank, "dp=1", folder, false); });
  launch(2, [&](Rank& rank) { train(rank, "tp=2", folder, false); });
  launch(4, [&](Rank& rank) { train(rank, "dp=2,tp=2", folder, true); });
  std::filesystem::remove_all(folder);
}
