// Fully sharded training whose parameters, gradients and states are in host memory between uses.
#include <catch2/catch.hpp>

#include "dtensor/creation.h"
#include "dtensor/launch.h"
#include "nn/checkpoint/checkpoint.h"
#include "nn/train/causal_lm.h"
#include "nn/train/ema.h"
#include "nn/train/value_hash.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;

namespace {

struct Run {
  std::string mesh = "dp=1", options = "", modules = R"("model.layers.*", "")";
  bool offload = false;
  Device device = Device::cuda;
  int64_t micro_batch_size = 0;
  double clip = 1;
  int steps = 4;
  std::string load = "", save = "";  // checkpoints, of steps / 2 taken
};

struct Memory {
  int64_t in_use, peak;
};

struct Outcome {
  std::vector<double> losses, norms;
  std::string first_gradients, graph;
  int64_t shards = 0;  // bytes of this rank's parameters as stored
  Memory device{}, host{};
};

nn::LlamaConfig model_of_layers(int64_t layers) {
  nn::LlamaConfig c;
  c.vocab_size = 64, c.hidden_size = 32, c.intermediate_size = 48, c.num_hidden_layers = layers;
  c.num_attention_heads = 4, c.num_key_value_heads = 2, c.head_dim = 8, c.max_position_embeddings = 64;
  return c;
}

nn::ParallelPlan plan_of(const Run& run) {
  return nn::ParallelPlan::from_json(
      json(fmt::format(R"({{"fully_shard": {{"axis": "dp", "modules": [{}]{}, "offload": {}}}}})", run.modules,
                       run.options, run.offload ? "\"cpu\"" : "false")));
}

// The same on every mesh.
nn::Batch batch_of(const DeviceMesh& mesh, const Layout& layout, int step) {
  std::vector<int64_t> ids, targets;
  for (int64_t i = 0; i < 4 * 8; ++i) ids.push_back((i * 7 + i * i * (step + 3)) % 64);
  for (int64_t i = 0; i < 4 * 8; ++i) targets.push_back(ids[size_t((i + 1) % (4 * 8))]);
  return {DistributedTensor::distribute(Tensor::of<int64_t>({4, 8}, ids), mesh, layout),
          DistributedTensor::distribute(Tensor::of<int64_t>({4, 8}, targets), mesh, layout)};
}

Outcome train_on(Rank& rank, const Run& run) {
  DeviceMesh mesh(rank, MeshShape::parse(run.mesh));
  nn::ParallelPlan plan = plan_of(run);
  nn::LlamaTraining training(mesh, model_of_layers(4), plan,
                             {.steps = 100,
                              .lr = 3e-3,
                              .clip = run.clip,
                              .micro_batch_size = run.micro_batch_size,
                              .keep_gradients = true,
                              .graph = run.offload});  // a captured step has memory of its own
  Outcome o;
  for (const nn::Parameter* p : training.model.parameters()) o.shards += p->stored().local().bytes();
  if (!run.load.empty()) nn::Checkpoint(run.load).load({{"model", training.model}, {"optimizer", training.optimizer}});
  for (auto i = int(training.optimizer.steps()); i < run.steps; ++i) {
    if (i == run.steps / 2 && !run.save.empty())
      nn::save_checkpoint(mesh, run.save, {{"model", training.model}, {"optimizer", training.optimizer}});
    if (i == 1) rank.allocator()->reset_peak(), rank.host_allocator()->reset_peak();
    nn::Trainer::Step s = training.trainer.step(batch_of(mesh, nn::batch_layout(mesh.shape(), plan), i));
    o.losses.push_back(s.loss), o.norms.push_back(s.grad_norm);
    if (i > 0) continue;
    std::vector<nn::NamedValue> gradients;
    for (size_t k = 0; k < training.trainer.gradients().size(); ++k)
      gradients.push_back({training.optimizer.parameters()[k]->path(), training.trainer.gradients()[k]});
    o.first_gradients = nn::value_hash(mesh, gradients);
  }
  auto memory = [](const Allocator& a) { return Memory{a.bytes_in_use(), a.peak_bytes()}; };
  o.device = memory(*rank.allocator()), o.host = memory(*rank.host_allocator());
  o.graph = training.trainer.graph_status();
  return o;
}

Outcome train(const Run& run) {
  int world = MeshShape::parse(run.mesh).world();
  std::vector<Outcome> outcomes(static_cast<size_t>(world));
  launch(world, [&](Rank& rank) { outcomes[size_t(rank.rank())] = train_on(rank, run); },
         {.deadline = std::chrono::minutes(2), .threads = 1, .device = run.device});
  for (const Outcome& o : outcomes) CHECK((o.losses == outcomes[0].losses && o.norms == outcomes[0].norms));
  return outcomes[0];
}

double furthest(const std::vector<double>& a, const std::vector<double>& b) {
  double most = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    most = std::max(most, std::abs(a[i] - b[i]) / std::abs(b[i]));
  return most;
}

}  // namespace

TEST_CASE("cuda: offloaded parameters train as those on the device do") {
  std::vector<Run> runs;
  for (const char* options :
       {"", R"(, "reshard_after_forward": false)", R"(, "reshard_after_forward": "default")",
        R"(, "param_dtype": "bf16")", R"(, "reduce_dtype": "bf16")", R"(, "stage": 2)", R"(, "stage": 1)"})
    runs.push_back({.mesh = "dp=2", .options = options, .steps = 3});
  runs.push_back({.steps = 3});
  runs.push_back({.mesh = "dp=2", .clip = 0.1, .steps = 3});
  runs.push_back({.mesh = "dp=2", .options = R"(, "sync_each_batch": true)", .micro_batch_size = 2, .steps = 3});
  runs.push_back({.mesh = "dp=2", .micro_batch_size = 2, .steps = 3});
  runs.push_back({.mesh = "dp=2", .modules = R"("model.layers.*")", .steps = 3});
  for (const Run& here : runs) {
    Run there = here;
    there.offload = true;
    Outcome without = train(here), with = train(there);
    CAPTURE(here.mesh, here.options, here.modules, here.clip, here.micro_batch_size, without.losses, with.losses,
            without.norms, with.norms);
    CHECK(with.losses[0] == without.losses[0]);  // the updates of the two devices round differently
    CHECK(with.first_gradients == without.first_gradients);
    bool bf16 = here.options.find("param") != here.options.npos;
    CHECK(furthest(with.losses, without.losses) < (bf16 ? 1e-3 : 1e-5));
    CHECK(furthest(with.norms, without.norms) < (bf16 ? 1e-2 : 1e-4));
    CHECK_THAT(with.graph, Contains("is offloaded, and a graph takes no step on the host"));
  }
}

TEST_CASE("cuda: offloaded training gives the same bits every time") {
  Run run{.mesh = "dp=2", .offload = true};
  CHECK(train(run).losses == train(run).losses);  // law 6
}

TEST_CASE("cuda: what is offloaded is in host memory, and the device holds the groups in flight") {
  for (const char* mesh : {"dp=1", "dp=2"}) {
    Outcome without = train({.mesh = mesh}), with = train({.mesh = mesh, .offload = true});
    INFO(mesh << ", shards " << with.shards);
    // Between steps: parameters, two moments and the gradients that the trainer keeps.
    CHECK(without.device.in_use - with.device.in_use == 4 * with.shards);
    CHECK(with.host.in_use >= 4 * with.shards);
    CHECK(with.host.in_use < 4.01 * double(with.shards));  // and the norm's sum
    CHECK(with.host.peak < 5.01 * double(with.shards));    // and the gradients of the next step; updates are in place
    CHECK(with.device.peak < without.device.peak);
    CHECK(without.host.peak == 0);
  }
}

TEST_CASE("cuda: a checkpoint goes on with parameters offloaded or not, on any mesh") {
  Outcome straight = train({});
  for (bool offload : {true, false}) {
    Folder folder;
    train({.mesh = "dp=2", .offload = offload, .save = folder / "half"});
    for (const char* mesh : {"dp=1", "dp=2"}) {
      Outcome rest = train({.mesh = mesh, .offload = !offload, .load = folder / "half"});
      INFO(mesh << ", written with offload " << offload);
      CHECK(furthest(rest.losses, {straight.losses.begin() + 2, straight.losses.end()}) < 1e-5);
    }
  }
}

TEST_CASE("cuda: averages of offloaded parameters are in host memory") {
  auto average = [](bool offload) {
    auto rank = Rank::single(Device::cuda);
    DeviceMesh mesh(*rank, "dp=1");
    nn::LlamaTraining training(mesh, model_of_layers(1), plan_of({.offload = offload}), {.steps = 100});
    nn::Ema ema(training.optimizer.parameters(), 0.5);
    for (int i = 0; i < 3; ++i) {
      training.trainer.step(batch_of(mesh, {}, i));
      ema.update();
    }
    check(ema.averages()[0].tensor.is_on_host() == offload, "an average is elsewhere");
    nn::Batch batch = batch_of(mesh, {}, 5);
    double now = training.trainer.evaluate(batch);
    ema.exchange();
    double averaged = training.trainer.evaluate(batch);
    ema.exchange();
    check(training.trainer.evaluate(batch) == now, "not exchanged back");
    return std::vector{now, averaged};
  };
  std::vector<double> with = average(true), without = average(false);
  CHECK(with[0] != with[1]);
  CHECK(furthest(with, without) < 1e-5);
}

TEST_CASE("cuda: ops of values in host memory run there, and leave them there") {
  auto rank = Rank::single(Device::cuda);
  DeviceMesh mesh(*rank, "dp=1");
  auto on_host = [&](std::initializer_list<float> values) {
    auto x = DistributedTensor::empty(mesh, mesh.intern({DType::f32, {2}, {}}), Tensor::placeholder(DType::f32, {2}));
    x.materialize(rank->host_allocator());
    std::copy(values.begin(), values.end(), x.local_for_writing().data<float>());
    return x;
  };
  DistributedTensor a = on_host({1, 2}), b = on_host({30, 40});
  int64_t device = rank->allocator()->bytes_in_use();
  DistributedTensor sum = ops::add(a, b);
  CHECK((sum.is_on_host() && zeros_like(a).is_on_host()));
  CHECK(values(sum.local()) == std::vector<double>{31, 42});
  CHECK(ops::cast(a, DType::bf16).is_on_host());
  CHECK(rank->allocator()->bytes_in_use() == device);

  DistributedTensor there = a.redistribute(a.layout());
  CHECK(!there.is_on_host());
  CHECK(there.redistribute(a.layout()).id() == there.id());
  CHECK(values(ops::add(there, there).local().cpu()) == std::vector<double>{2, 4});
  for (auto mixed : {std::pair(a, there), std::pair(there, a)})
    CHECK(error_of([&] { ops::add(mixed.first, mixed.second); }) ==
          "[add] f32[2] dp=Replicate is in host memory, where ops only run if all operands are there, in layouts that "
          "need no communication; bring it to the device first: x.redistribute(x.layout())");
}
