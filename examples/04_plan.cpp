// The same network as modules that know nothing of meshes, and a plan in JSON that splits it: the batch over dp, the
// hidden layer over tp.
//
//              x  ------>  up  ---- gelu ---->  down  ------>  y
//
//     dp       Shard(0)    Replicate            Replicate      Shard(0)
//     tp       Replicate   Shard(0)             Shard(1)       Replicate
//                          ColwiseParallel      RowwiseParallel
//
// A Linear's weight is [out, in], as in PyTorch: its columns are dimension 0.
//
// Run build/bin/04_plan; it prints the layouts that the plan gave, then every collective of a training step, and why:
//
//     up.weight    f32[32,16] dp=Replicate tp=Shard(0)
//     down.weight  f32[16,32] dp=Replicate tp=Shard(1)
//     all_reduce over tp,  256 bytes: down: RowwiseParallel
//     all_reduce over dp,    8 bytes: loss
//     all_reduce over dp, 1024 bytes: gradient of down.weight
//     all_reduce over dp, 1024 bytes: gradient of up.weight
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "dtensor/comm_log.h"
#include "dtensor/creation.h"
#include "dtensor/launch.h"
#include "nn/layers.h"
#include "nn/parallel/plan.h"
#include "nn/record.h"
#include "nn/train/adamw.h"
#include "nn/train/gradients.h"

using namespace dtensor;

const char* const plan = R"({
  "tensor_parallel": {"axis": "tp", "plan": {"up": "ColwiseParallel", "down": "RowwiseParallel"}},
  "data_parallel": {"axis": "dp"}
})";

struct Network : nn::Callable<DistributedTensor(const DistributedTensor&)> {
  explicit Network(const DeviceMesh& mesh) : Callable(mesh) { input_names = {"x"}; }
  std::string_view kind() const override { return "Network"; }
  DistributedTensor forward(const DistributedTensor& x) override { return down(ops::gelu(up(x))); }

  nn::Linear up{*this, "up", 16, 32, /*with_bias=*/false, /*std=*/0.5};
  nn::Linear down{*this, "down", 32, 16, /*with_bias=*/false, /*std=*/0.5};
};

void step(Rank& rank) {
  DeviceMesh mesh(rank, "dp=2,tp=2");
  Network network(mesh);  // has no bytes yet
  nn::ParallelPlan::from_json(nlohmann::ordered_json::parse(plan)).apply(network);
  nn::materialize(network, /*seed=*/1);

  DistributedTensor x = randn(mesh, "f32[8,16] dp=Shard(0)", {.seed = 1, .path = "x"});

  CommLog log(rank);
  nn::AdamW optimizer(network.parameters(), {});
  nn::GradientStore gradients(rank);
  nn::watch_parameters(gradients, network.parameters());
  nn::Record record(gradients);
  DistributedTensor loss;
  {
    nn::Record::Scope recording(record);
    loss = ops::mean(ops::square(network(x)));  // each rank's part of it: dp=Partial(sum)
    LabelScope why(rank, Label::Kind::reason, "loss");
    loss = loss.redistribute({Replicate(), Replicate()});
  }
  record.backward(loss);
  optimizer.step(nn::reduce_gradients(gradients, network.parameters()), /*lr=*/1e-3);

  if (rank.rank() > 0) return;
  for (nn::Parameter* p : network.parameters()) fmt::print("{:<12} {}\n", p->path(), to_string(p->stored()));
  for (const CommLog::Entry& e : log.entries())
    fmt::print("{} over {}, {:>4} bytes: {}\n", e.collective, e.axes, e.bytes,
               e.reason.empty() ? e.plan_line : e.reason);
}

int main() { launch(4, step); }
