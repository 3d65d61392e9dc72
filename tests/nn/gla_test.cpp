// Gated linear attention models: by plans as on one rank; what plans refuse.
#include "nn/models/gla.h"

#include <fmt/format.h>

#include "nn/models/auto_plan.h"
#include "tests/nn/plan_run.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

using Json = nlohmann::ordered_json;

Json small_gla() {
  return json(R"({"model_type": "gla", "vocab_size": 48, "hidden_size": 32, "intermediate_size": 64,
                  "num_hidden_layers": 2, "num_heads": 4, "fuse_norm": false})");
}
// With convolutions and a gate whose norm is fused with it.
Json convolved_gla() {
  Json config = small_gla();
  config["use_short_conv"] = config["fuse_norm"] = true;
  return config;
}

// gla_tp.json with these fields too.
ParallelPlan tp_and(const std::string& fields = "{}") {
  Json plan = ParallelPlan::load(plan_file("gla_tp.json")).to_json();
  plan.update(json(fields));
  return ParallelPlan::from_json(plan);
}

// gla_tp.json for models with convolutions and the fused norm, as docs/parallel-plans.md says.
ParallelPlan convolved_tp_and(const std::string& fields = "{}") {
  Json plan = tp_and(fields).to_json();
  Json& lines = plan["tensor_parallel"]["plan"];
  lines["model.layers.*.attn.g_norm_swish_gate"] = lines["model.layers.*.attn.g_norm"];
  lines.erase("model.layers.*.attn.g_norm");
  lines["model.layers.*.attn.*_conv1d"] = {{"style", "PrepareModuleWeight"}, {"layouts", "Shard(0)"}};
  return ParallelPlan::from_json(plan);
}

LlamaTrainingOptions options(DType dtype = DType::f32) {
  LlamaTrainingOptions o;
  o.seed = 5, o.steps = 200, o.dtype = dtype;
  return o;
}

Batch batch(const DeviceMesh& m, const ParallelPlan& plan, int64_t seed) {
  auto ids = [&](int64_t from) {
    std::vector<int64_t> v;
    for (int64_t i = 0; i < 64; ++i) v.push_back((i * 7919 + i * i * (from + 3)) % 48);
    return DistributedTensor::distribute(Tensor::of<int64_t>({4, 16}, v), m, batch_layout(m.shape(), plan));
  };
  return {ids(seed), ids(seed + 50)};
}

struct GlaRun {
  std::vector<double> losses, norms;
  Entries entries;  // of the second step
};

GlaRun train(const Json& config, const std::string& mesh, const ParallelPlan& plan, int64_t steps,
             DType dtype = DType::f32) {
  return on_mesh(mesh, [&](const DeviceMesh& m) {
    Rank& rank = m.rank_state();
    rank.strict = true;
    LlamaTraining training(m, ModelConfig::from_json(config), plan, options(dtype));
    GlaRun run;
    CommLog log(rank);
    for (int64_t step = 0; step < steps; ++step) {
      log.clear();
      Trainer::Step s = training.trainer.step(batch(m, plan, step));
      if (step == 1) run.entries = log.entries();
      run.losses.push_back(s.loss), run.norms.push_back(s.grad_norm);
    }
    return run;
  })[0];
}

void check_as_one(const Json& config, int64_t steps, const std::vector<std::pair<std::string, ParallelPlan>>& cases) {
  GlaRun one = train(config, "dp=1", {}, steps);
  for (const auto& [mesh, plan] : cases) {
    INFO(mesh << " by " << plan.to_json().dump());
    GlaRun run = train(config, mesh, plan, steps);
    for (size_t i = 0; i < one.losses.size(); ++i) {
      CHECK(run.losses[i] == Approx(one.losses[i]).epsilon(1e-5));
      CHECK(run.norms[i] == Approx(one.norms[i]).epsilon(1e-4));
    }
  }
}

struct FirstGradient {
  std::vector<double> values;
  bool partial;  // as it arrived, before it was reduced
};

// Of the sum of a batch's losses, by the parameter's path.
std::map<std::string, FirstGradient> gradients(const Json& config, const std::string& mesh, const ParallelPlan& plan) {
  return on_mesh(mesh, [&](const DeviceMesh& m) {
    auto model = ModelConfig::from_json(config).make(m);
    plan.apply(*model);
    materialize(*model, 5);
    m.rank_state().strict = true;
    std::vector<Parameter*> parameters = model->parameters();
    Autograd autograd(m.rank_state());
    watch_parameters(autograd, parameters);
    Batch b = batch(m, plan, 0);
    autograd.backward((*model)(b[0], b[1], SequenceInputs(), -100), {.reduce = false});
    std::map<std::string, FirstGradient> result;
    for (Parameter* p : parameters) result[p->path()].partial = autograd.gradient(p->stored()).layout().partial != 0;
    std::vector<DistributedTensor> reduced = reduce_gradients(autograd, parameters);
    NoGrad none(m.rank_state());
    m.rank_state().strict = false;
    for (size_t i = 0; i < reduced.size(); ++i) result[parameters[i]->path()].values = values(reduced[i].full_tensor());
    return result;
  })[0];
}

const char* const by_sequence = R"({"context_parallel": {"axis": "cp"}})";

}  // namespace

TEST_CASE("law 7: gated linear attention trains by its plan as on one rank, 20 steps in strict mode") {
  check_as_one(small_gla(), 20,
               {{"tp=2", tp_and()},
                {"tp=4", tp_and()},
                {"dp=2,tp=2", tp_and()},
                {"cp=2", {}},
                {"cp=4", plan_of(by_sequence)},
                {"cp=2,tp=2", tp_and()},
                {"dp=2,tp=2", tp_and(R"({"fully_shard": {"axis": "dp", "modules": ["model.layers.*", ""]}})")}});
}

TEST_CASE("gated linear attention trains as on one rank, fully sharded, checkpointed, over replicas and all of it") {
  const std::string sharded = R"("fully_shard": {"axis": "dp", "modules": ["model.layers.*", ""]})",
                    replicas = R"("fully_shard": {"axis": "dp_shard", "replicate_axis": "dp_replicate",
                                  "modules": ["model.layers.*", ""]})",
                    full = R"("activation_checkpoint": {"mode": "full"})",
                    ops = R"("activation_checkpoint": {"mode": "selective", "option": "op"})";
  auto fields = [](const auto&... f) {
    std::string all;
    ((all += (all.empty() ? "" : ", ") + f), ...);
    return "{" + all + "}";
  };
  check_as_one(small_gla(), 6,
               {{"dp=4", plan_of(fields(sharded))},
                {"tp=2", tp_and(fields(full))},
                {"tp=2", tp_and(fields(ops))},
                {"dp=2,tp=2", tp_and(fields(sharded, full))},
                {"dp=2,cp=2", plan_of(fields(sharded, ops))},
                {"dp_replicate=2,dp_shard=2", plan_of(fields(replicas))},
                {"dp_replicate=2,dp_shard=2,tp=2", tp_and(fields(replicas, full))}});
  check_as_one(convolved_gla(), 6, {{"cp=2", {}}, {"cp=4", {}}, {"dp=4", plan_of(fields(sharded, full))}});
}

TEST_CASE("gradients of what all heads share are sums over tensor parallelism before an optimizer sees them") {
  for (const auto& [config, plan] : {std::pair(small_gla(), tp_and()), {convolved_gla(), convolved_tp_and()}}) {
    auto one = gradients(config, "dp=1", {});
    for (const char* mesh : {"tp=2", "tp=4"}) {
      auto parallel = gradients(config, mesh, plan);
      REQUIRE(parallel.size() == one.size());
      for (const auto& [path, g] : parallel) {
        INFO(path << " on " << mesh);
        CHECK(difference(g.values, one.at(path).values) < 1e-5);
        // Each rank has its heads' part. That of gk_proj.0 is summed at its output, and the leaf's is whole.
        if (path.ends_with("g_norm.weight") || path.ends_with("g_norm_swish_gate.weight")) CHECK(g.partial);
        if (path.ends_with("gk_proj.0.weight") || path.ends_with("conv1d.weight")) CHECK(!g.partial);
      }
    }
  }
}

TEST_CASE("with convolutions and the fused norm a plan names those, and trains as on one rank") {
  const std::string sharded = R"({"fully_shard": {"axis": "dp", "modules": ["model.layers.*", ""]}})";
  check_as_one(convolved_gla(), 20,
               {{"tp=2", convolved_tp_and()},
                {"tp=4", convolved_tp_and()},
                {"dp=2,tp=2", convolved_tp_and(sharded)},
                {"cp=2,tp=2", convolved_tp_and()}});
}

TEST_CASE("gated linear attention trains in bf16 beside float32, on one rank and by its plans") {
  for (const Json& config : {small_gla(), convolved_gla()}) {
    GlaRun wide = train(config, "dp=1", {}, 8);
    ParallelPlan plan = config["fuse_norm"] ? convolved_tp_and() : tp_and();
    for (const auto& [mesh, by] : {std::pair("dp=1", ParallelPlan()), {"tp=2", plan}, {"cp=2", ParallelPlan()}}) {
      INFO(mesh << " " << config.dump());
      GlaRun narrow = train(config, mesh, by, 8, DType::bf16);
      for (size_t i = 0; i < wide.losses.size(); ++i) {
        CHECK(narrow.losses[i] == Approx(wide.losses[i]).epsilon(1e-2));
        CHECK(narrow.norms[i] == Approx(wide.norms[i]).epsilon(5e-2));
      }
    }
  }
}

TEST_CASE("law 8: a dry run of gated linear attention lists what a run communicates") {
  auto [mesh, plan] =
      GENERATE(table<std::string, std::string>({{"tp=2", "tp"}, {"cp=2", "cp"}, {"cp=4", "cp"}, {"dp=2,tp=2", "tp"}}));
  INFO(mesh);
  ParallelPlan by =
      plan == "tp"
          ? tp_and(mesh == "tp=2" ? "{}" : R"({"fully_shard": {"axis": "dp", "modules": ["model.layers.*", ""]}})")
          : plan_of(by_sequence);
  for (const Json& config : {small_gla(), convolved_gla()}) {
    if (plan == "tp" && config.contains("use_short_conv")) continue;
    auto rank = Rank::recorded(MeshShape::parse(mesh).world());
    rank->strict = true;
    DeviceMesh m(*rank, mesh);
    LlamaTraining training(m, ModelConfig::from_json(config), by, options());
    CommLog log(*rank);
    for (int i = 0; i < 2; ++i) {
      log.clear();
      training.trainer.step(meta_batch(m, batch_layout(m.shape(), by), 4, 16));
    }
    CHECK(!log.entries().empty());
    CHECK(log.entries() == train(config, mesh, by, 2).entries);
  }
}

TEST_CASE("the public plan's key g_norm is an error where the norm is fused with its gate, and names it") {
  Json config = small_gla();
  config["fuse_norm"] = true;
  on_mesh("tp=2", [&](const DeviceMesh& m) {
    auto model = ModelConfig::from_json(config).make(m);
    std::string error = error_of([&] { ParallelPlan::load(plan_file("gla_tp.json")).apply(*model); });
    dtensor::check(error.find("g_norm_swish_gate") != std::string::npos, "{}", error);
  });
}

TEST_CASE("context parallelism's methods and order that a recurrence does not have are errors") {
  auto rank = Rank::recorded(2);
  DeviceMesh m(*rank, "cp=2");
  for (const auto& [fields, named] : {std::pair(R"("method": "ring")", R"(has no method "ring")"),
                                      {R"("method": "all_to_all")", R"(has no method "all_to_all")"},
                                      {R"("balanced": true)", R"("all_gather" with balanced parts)"}}) {
    auto model = ModelConfig::from_json(small_gla()).make(m);
    ParallelPlan plan = plan_of(fmt::format(R"({{"context_parallel": {{"axis": "cp", {}}}}})", fields));
    std::string error = error_of([&] { plan.apply(*model); });
    CHECK_THAT(error,
               StartsWith("[plan] context_parallel: model.layers.0.attn.core_recurrence is a CoreRecurrence, which "
                          "passes its states on from each part of the sequence to the next and has no method "));
    CHECK_THAT(error, Contains(named));
    CHECK_THAT(error, EndsWith("use \"all_gather\" with parts in their order"));
  }
}

TEST_CASE("what a gated linear attention model refuses") {
  CHECK_THAT(
      error_of([] {
        GlaConfig::from_json(json(
            R"({"model_type": "gla", "vocab_size": 8, "num_hidden_layers": 1, "hidden_size": 20, "num_heads": 8})"));
      }),
      Contains(" channels, no multiple of 8 heads"));
  auto rank = Rank::recorded(1);
  GlaForCausalLM model(DeviceMesh(*rank, "dp=1"), GlaConfig());
  DistributedTensor ids = DistributedTensor::distribute(Tensor::of<int64_t>({1, 2}, {1, 2}), model.mesh(), Layout());
  CHECK_THAT(error_of([&] { model(ids, SequenceInputs{.positions = ids}); }),
             Contains("[GlaForCausalLM] a gated linear attention model takes no positions and no documents yet: its "
                      "state follows the order of the tokens"));
}
