// Your own model, trained on any mesh: a module that knows nothing of meshes, a plan in JSON, a loss, and the Trainer,
// which clips, accumulates micro-batches, finds what is not finite and, on CUDA, launches a step as one graph.
//
// The classifier tells on which side of a random plane a point is. Its hidden layer is split over tp, the batch over
// dp, where the mesh has these axes; the last line trains in two micro-batches a step.
//
// Run build/bin/05_own_model; the losses are the same on every mesh:
//
//     dp=1         loss 0.7528 0.2403 0.1692 0.0964
//     dp=2         loss 0.7528 0.2403 0.1692 0.0964
//     tp=2         loss 0.7528 0.2403 0.1692 0.0964
//     dp=2,tp=2    loss 0.7528 0.2403 0.1692 0.0964
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "dtensor/creation.h"
#include "dtensor/launch.h"
#include "nn/layers.h"
#include "nn/parallel/plan.h"
#include "nn/train/adamw.h"
#include "nn/train/trainer.h"

using namespace dtensor;

struct Classifier : nn::Callable<DistributedTensor(const DistributedTensor&)> {
  explicit Classifier(const DeviceMesh& mesh) : Callable(mesh) { input_names = {"x"}; }
  std::string_view kind() const override { return "Classifier"; }
  DistributedTensor forward(const DistributedTensor& x) override { return down(ops::gelu(up(norm(x)))); }

  nn::RMSNorm norm{*this, "norm", 16, /*eps=*/1e-6};
  nn::Linear up{*this, "up", 16, 64, /*with_bias=*/true, /*std=*/0.2};
  nn::Linear down{*this, "down", 64, 2, /*with_bias=*/true, /*std=*/0.2};
};

nn::ParallelPlan plan_for(const MeshShape& mesh) {
  if (mesh.find("tp") < 0) return {};
  return nn::ParallelPlan::from_json(nlohmann::ordered_json::parse(R"({
    "tensor_parallel": {"axis": "tp", "plan": {"up": "ColwiseParallel", "down": "RowwiseParallel"}}})"));
}

// {points, their classes}: each rank makes its own rows only, and all meshes have the same numbers (law 5).
nn::Batch batch_of(const DeviceMesh& mesh, const Layout& layout, int64_t step) {
  DistributedTensor points = randn(mesh, {DType::f32, {64, 16}, layout}, {.seed = 1, .path = "points", .step = step});
  DistributedTensor plane = randn(mesh, "f32[16]", {.seed = 1, .path = "plane"});
  return {points, ops::cast(ops::gt(ops::sum(ops::mul(points, plane), {1}), 0), DType::i64)};
}

void train(Rank& rank, const std::string& axes, int64_t micro_batch_size) {
  DeviceMesh mesh(rank, axes);
  nn::ParallelPlan plan = plan_for(mesh.shape());
  Classifier model(mesh);  // has no bytes yet
  plan.apply(model);
  nn::materialize(model, /*seed=*/1);

  nn::AdamW optimizer(model.parameters(), {.weight_decay = 0.01});
  auto loss = [&](const nn::Batch& batch) {  // of each row: the trainer takes the mean over the global batch
    return ops::cross_entropy(model(batch[0]), batch[1], {.reduction = ops::Reduction::none});
  };
  nn::Trainer trainer(model, loss, optimizer, {.lr = 0.01, .micro_batch_size = micro_batch_size});

  std::string losses;
  for (int64_t step = 0; step < 40; ++step) {
    nn::Trainer::Step s = trainer.step(batch_of(mesh, nn::batch_layout(mesh.shape(), plan), step));
    if (step % 10 == 0) losses += fmt::format(" {:.4f}", s.loss);
  }
  if (rank.rank() == 0) fmt::print("{:<12} loss{}\n", axes, losses);
}

int main() {
  launch(1, [](Rank& rank) { train(rank, "dp=1", 64); });
  launch(2, [](Rank& rank) { train(rank, "dp=2", 64); });
  launch(2, [](Rank& rank) { train(rank, "tp=2", 64); });
  launch(4, [](Rank& rank) { train(rank, "dp=2,tp=2", 32); });
}
