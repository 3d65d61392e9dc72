// Plans of data parallelism: each trains as one rank does, and communicates as the literature counts.
#include "nn/parallel/data_parallel.h"

#include <fmt/format.h>
#include <set>

#include "nn/parallel/fully_shard.h"
#include "tests/nn/plan_run.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

// Launches of one phase over data axes: "all_gather dp_shard 3, ...".
std::string launches(const Entries& entries, Phase phase) {
  std::map<std::string, std::set<int>> groups;
  for (const auto& e : entries)
    if (e.phase == phase && e.axes != "tp" && e.reason != "gradient norm")
      groups[fmt::format("{} {}", e.collective, e.axes)].insert(e.group);
  std::string text;
  for (const auto& [kind, of] : groups) text += fmt::format("{}{} {}", text.empty() ? "" : ", ", kind, of.size());
  return text;
}

}  // namespace

TEST_CASE("plans of data parallelism train as one rank does") {
  struct Case {
    std::string plan, mesh;
  };
  const Case cases[] = {
      {"ddp.json", "dp=4"},
      {R"({"data_parallel": {"axis": "dp", "bucket_mb": 0.01}})", "dp=2"},
      {"zero1.json", "dp=4"},
      {"zero2.json", "dp=4"},
      {R"({"fully_shard": {"axis": "dp", "stage": 2, "modules": [""], "sync_each_batch": true}})", "dp=2"},
      {"fsdp.json", "dp=4"},
      {R"({"fully_shard": {"axis": "dp", "modules": ["model.layers.*", ""], "sync_each_batch": true}})", "dp=2"},
      {R"({"fully_shard": {"axis": "dp", "modules": ["model.layers.*", ""], "reshard_after_forward": "default"}})",
       "dp=2"},
      {R"({"fully_shard": {"axis": ["a", "b"], "modules": ["model.layers.*", ""], "reshard_after_forward": 2}})",
       "a=2,b=2"},
      {R"({"fully_shard": {"axis": ["b", "a"], "modules": ["model.layers.*", ""], "reshard_after_forward": 2}})",
       "a=2,b=2"},
      {R"({"fully_shard": {"axis": "dp", "modules": ["model.layers.*"], "output_dtype": "fp32"}, "data_parallel": {"axis": "ddp"}})",
       "ddp=2,dp=2"},
      {"fsdp_tp.json", "dp=2,tp=2"},
      {"hsdp_tp.json", "dp_replicate=2,dp_shard=2,tp=2"},
  };
  for (int64_t micro : {0, 4}) {
    Run one = train("dp=1", {}, 20, micro);
    for (const Case& c : cases) {
      INFO(c.plan << " on " << c.mesh << ", micro-batches of " << micro);
      Run r = train(c.mesh, plan_of(c.plan), 20, micro);
      for (size_t i = 0; i < one.losses.size(); ++i) CHECK(r.losses[i] == Approx(one.losses[i]).epsilon(1e-5));
      for (size_t i = 0; i < 8; ++i) CHECK(r.norms[i] == Approx(one.norms[i]).epsilon(1e-4));
    }
  }
}

TEST_CASE("hybrid sharding and tensor parallelism train as one rank does in each mode of activation checkpointing") {
  for (int64_t micro : {0, 4}) {
    Run one = train("dp=1", {}, 20, micro);
    for (const char* mode : {R"({"mode": "full"})", R"({"mode": "selective", "option": 2})",
                             R"({"mode": "selective", "option": "op"})", R"({"budget": "20KiB"})"}) {
      INFO(mode << ", micro-batches of " << micro);
      ParallelPlan plan = plan_of("hsdp_tp.json");
      plan.activation_checkpoint =
          plan_of(fmt::format(R"({{"activation_checkpoint": {}}})", mode)).activation_checkpoint;
      Run r = train("dp_replicate=2,dp_shard=2,tp=2", plan, 20, micro);
      for (size_t i = 0; i < 20; ++i) CHECK(r.losses[i] == Approx(one.losses[i]).epsilon(1e-5));
      for (size_t i = 0; i < 8; ++i) CHECK(r.norms[i] == Approx(one.norms[i]).epsilon(1e-4));
    }
  }
}

TEST_CASE("on the CPU, whose memory is the host's, offloading changes nothing") {
  auto run = [](const char* offload) {
    return train("dp=2",
                 plan_of(fmt::format(R"({{"fully_shard": {{"axis": "dp", "modules": ["model.layers.*", ""], )"
                                     R"("param_dtype": "bf16", "offload": {}}}}})",
                                     offload)),
                 4, 4);
  };
  Run with = run("\"cpu\""), without = run("false");
  CHECK(with.losses == without.losses);
  CHECK(with.norms == without.norms);
  REQUIRE(with.entries.size() == without.entries.size());
  for (size_t i = 0; i < with.entries.size(); ++i) CHECK(to_string(with.entries[i]) == to_string(without.entries[i]));
}

// Groups: two blocks and the root. The step is the second: whole copies of stages 1 and 2 are made after each update.
TEST_CASE("collectives of data parallelism are those of the literature") {
  struct Case {
    std::string plan, mesh, forward, backward, optimizer;
    int64_t micro = 0;
  };
  const std::string gathers = "all_gather dp 3, all_reduce dp 1";  // and the loss
  const Case cases[] = {
      {"ddp.json", "dp=2", "all_reduce dp 1", "all_reduce dp 1", ""},
      {R"({"data_parallel": {"axis": "dp", "bucket_mb": 0.02}})", "dp=2", "all_reduce dp 1", "all_reduce dp 4", ""},
      {"zero1.json", "dp=2", gathers, "", "reduce_scatter dp 1"},
      {"zero2.json", "dp=2", gathers, "reduce_scatter dp 3", ""},
      {"fsdp.json", "dp=2", gathers, "all_gather dp 3, reduce_scatter dp 3", ""},
      {R"({"fully_shard": {"axis": "dp", "modules": ["model.layers.*", ""], "reshard_after_forward": false}})", "dp=2",
       gathers, "reduce_scatter dp 3", ""},
      {R"({"fully_shard": {"axis": "dp", "modules": ["model.layers.*", ""], "reshard_after_forward": "default"}})",
       "dp=2", gathers, "all_gather dp 2, reduce_scatter dp 3", ""},
      // Between machines (b) forward alone; inside them (a) again.
      {R"({"fully_shard": {"axis": ["a", "b"], "modules": ["model.layers.*", ""], "reshard_after_forward": 2}})",
       "b=2,a=2", "all_gather a 3, all_gather b 3, all_reduce b,a 1", "all_gather a 3, reduce_scatter b,a 3", ""},
      {"hsdp_tp.json", "dp_replicate=2,dp_shard=2,tp=2", "all_gather dp_shard 3, all_reduce dp_replicate,dp_shard 1",
       "all_gather dp_shard 3, all_reduce dp_replicate 3, all_reduce dp_replicate,dp_shard,tp 3, reduce_scatter "
       "dp_shard 3",
       ""},
      // Micro-batches: gathered with each and reduced with the last, or with each.
      {"zero2.json", "dp=2", "all_gather dp 3, all_reduce dp 2", "reduce_scatter dp 3", "", 4},
      {"fsdp.json", "dp=2", "all_gather dp 6, all_reduce dp 2", "all_gather dp 6, reduce_scatter dp 3", "", 4},
      {R"({"fully_shard": {"axis": "dp", "stage": 2, "modules": ["model.layers.*", ""], "sync_each_batch": true}})",
       "dp=2", "all_gather dp 3, all_reduce dp 2", "reduce_scatter dp 6", "", 4},
  };
  for (const Case& c : cases) {
    Run r = train(c.mesh, plan_of(c.plan), 2, c.micro);
    INFO(c.plan << " on " << c.mesh << ", micro-batches of " << c.micro << "\n" << listing(r.entries));
    CHECK(launches(r.entries, Phase::forward) == c.forward);
    CHECK(launches(r.entries, Phase::backward) == c.backward);
    CHECK(launches(r.entries, Phase::optimizer) == c.optimizer);
  }
}

TEST_CASE("law 8: a dry run of data parallelism lists what a run communicates") {
  for (auto [plan, mesh] : {std::pair("ddp.json", "dp=2"),
                            {"zero1.json", "dp=2"},
                            {"zero2.json", "dp=2"},
                            {"fsdp.json", "dp=2"},
                            {"hsdp_tp.json", "dp_replicate=2,dp_shard=2,tp=2"}}) {
    INFO(plan);
    ParallelPlan p = plan_of(plan);
    auto rank = Rank::recorded(MeshShape::parse(mesh).world());
    rank->strict = true;
    DeviceMesh m(*rank, mesh);
    LlamaTraining training(m, small_llama(4, 64), p, {});
    CommLog log(*rank);
    for (int i = 0; i < 2; ++i) {
      log.clear();
      training.trainer.step(meta_batch(m, batch_layout(m.shape(), p), 8, 16));
    }
    CHECK(log.entries() == train(mesh, p, 2).entries);
  }
}

// While the gradients of one group are computed, the parameters of the next one come.
TEST_CASE("gathers run one group ahead in the backward pass") {
  Run r = train("dp=2", plan_of("fsdp.json"), 2);
  std::vector<std::string> order;
  for (const auto& e : r.entries)
    if (e.phase == Phase::backward && (order.empty() || order.back() != e.collective + " " + e.module))
      order.push_back(e.collective + " " + e.module);
  INFO(listing(r.entries));
  REQUIRE(order.size() >= 3);
  CHECK(order[0] == "all_gather ");  // the root, with lm_head
  CHECK(order[1] == "all_gather model.layers.1");
  CHECK(order[2] == "all_gather model.layers.0");
}

TEST_CASE("unshard and reshard") {
  std::vector<std::string> found = on_mesh("dp=2", [](const DeviceMesh& m) {
    std::vector<std::string> list;
    Mlp mlp(m, true);
    fully_shard(mlp.up, {.axes = {0}});
    fully_shard(mlp, {.axes = {0}});
    prefetch(mlp);
    materialize(mlp, 1);
    CommLog log(m.rank_state());
    auto note = [&](const char* what) {
      std::string layout = to_string(mlp.up.weight().layout(), m.shape());  // a gather, where it is sharded
      list.push_back(fmt::format("{}: {} {}", what, log.size(), layout));
      log.clear();
    };
    DistributedTensor x = DistributedTensor::distribute(f32({4, 6}, 2), m, Layout());
    note("sharded");  // its own gather
    unshard(mlp);
    note("unsharded");
    mlp(x), mlp(x);
    note("used twice");
    mlp.up.weight.stored().copy_(DistributedTensor::distribute(f32({8, 6}, 3), m, {Shard(0)}));
    mlp(x);
    note("after an update");  // the group of two
    reshard(mlp);
    mlp(x);
    note("resharded");  // all four, and the weight
    return list;
  })[0];
  CHECK(found == std::vector<std::string>{"sharded: 1 dp=Replicate", "unsharded: 4 dp=Replicate",
                                          "used twice: 0 dp=Replicate", "after an update: 2 dp=Replicate",
                                          "resharded: 5 dp=Replicate"});
}

TEST_CASE("options of fully_shard and replicate that cannot be are errors") {
  auto rank = Rank::recorded(4);
  DeviceMesh m(*rank, "a=2,b=2");
  auto error = [&](const FullyShardOptions& o) {
    Mlp mlp(m);
    return error_of([&] { fully_shard(mlp, o); });
  };
  CHECK(error({.axes = {0}, .stage = 4}) == "[fully_shard] stage 4 is none: 1, 2 or 3");
  CHECK_THAT(error({.axes = {0, 1}, .kept_axes = 2}),
             Contains("are not fewer than the 2 axes: without reshard_after_forward all is kept"));
  CHECK_THAT(error({.axes = {0, 1}, .kept_axes = 1, .stage = 2}),
             Contains(" keeps whole copies: leave kept_axes away"));
  CHECK_THAT(
      error({.axes = {0}, .stage = 1, .sync_each_batch = true}),
      Contains("[fully_shard] stage 1 keeps whole gradients until the step ends: for sync_each_batch use stage 2"));
  Mlp mlp(m);
  CHECK(error_of([&] { replicate(mlp, 0); }) == "[replicate] buckets of 0 bytes hold no gradient");
}
