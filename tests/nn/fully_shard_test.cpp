#include "nn/parallel/fully_shard.h"

#include <fmt/format.h>
#include <set>

#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

std::string plan_error(const std::string& plan, const std::string& mesh = "dp=2") {
  return error_of([&] {
    auto rank = Rank::recorded(MeshShape::parse(mesh).world());
    DeviceMesh m(*rank, mesh);
    LlamaForCausalLM model(m, small_llama());
    ParallelPlan::from_json(json(plan)).apply(model);
  });
}

// Tensors and launches: "9 in 1".
std::string launches(const Entries& entries, Phase phase, std::string_view collective, const std::string& module) {
  int n = 0;
  std::set<int> groups;
  for (const auto& e : entries)
    if (e.phase == phase && e.collective == collective && below(e.module, module) && e.axes == "dp" &&
        e.plan_line == "fully_shard")
      ++n, groups.insert(e.group);
  return fmt::format("{} in {}", n, groups.size());
}

}  // namespace

TEST_CASE("fully sharded parameters are stored in shards after tensor parallelism") {
  auto rank = Rank::recorded(4);
  DeviceMesh m(*rank, "dp=2,tp=2");
  LlamaForCausalLM model(m, small_llama());
  ParallelPlan::load(plan_file("fsdp_tp.json")).apply(model);
  std::map<std::string, std::string> stored, used;
  for (Parameter* p : model.parameters()) {
    stored[p->path()] = to_string(p->stored().layout(), m.shape());
    used[p->path()] = to_string(p->used_layout(), m.shape());
  }
  CHECK(stored["lm_head.weight"] == "tp=Shard(0) dp=Shard(0)");  // law 4: tp outermost
  CHECK(stored["model.layers.0.mlp.up_proj.weight"] == "tp=Shard(0) dp=Shard(0)");
  CHECK(stored["model.layers.0.mlp.down_proj.weight"] == "dp=Shard(0) tp=Shard(1)");
  CHECK(stored["model.norm.weight"] == "dp=Shard(0) tp=Replicate");
  CHECK(used["lm_head.weight"] == "dp=Replicate tp=Shard(0)");
  CHECK(used["model.layers.0.mlp.down_proj.weight"] == "dp=Replicate tp=Shard(1)");
  CHECK(used["model.norm.weight"] == "dp=Replicate tp=Replicate");
  // Groups: each block; the rest is the root's.
  std::map<const ParameterGroup*, size_t> groups;
  for (Parameter* p : model.parameters()) ++groups[p->group().get()];
  CHECK(groups.size() == 3);
  CHECK(groups[model.model.layers[0].mlp.up_proj.weight.group().get()] == 9);
  CHECK(model.lm_head.weight.group() == model.model.embed_tokens.weight.group());
  CHECK(model.lm_head.weight.group() != model.model.layers[0].mlp.up_proj.weight.group());
}

TEST_CASE("a group is gathered in one launch and its gradients are reduced in one") {
  struct Case {
    bool reshard;
    const char *again, *root_again;
  };
  for (Case c : {Case{true, "9 in 1", "3 in 1"}, {false, "0 in 0", "0 in 0"}})
    for (const char* mesh : {"dp=2", "dp=4"}) {
      auto rank = Rank::recorded(MeshShape::parse(mesh).world());
      rank->strict = true;
      DeviceMesh m(*rank, mesh);
      std::string plan = fmt::format(
          R"({{"fully_shard": {{"axis": "dp", "modules": ["model.layers.*", ""], "reshard_after_forward": {}}}}})",
          c.reshard);
      LlamaTraining training(m, small_llama(), ParallelPlan::from_json(json(plan)), {});
      CommLog log(*rank);
      training.trainer.step(meta_batch(m, batch_layout(m.shape()), 8, 16));
      INFO(mesh << ", reshard_after_forward " << c.reshard << "\n" << listing(log.entries()));
      Entries forward_gathers;
      std::map<Phase, std::map<std::string, std::set<int>>> groups;
      std::map<Phase, std::map<std::string, int>> tensors;
      for (const auto& e : log.entries())
        groups[e.phase][e.collective].insert(e.group), ++tensors[e.phase][e.collective];
      // Two blocks of nine parameters, and the root's three.
      CHECK(launches(log.entries(), Phase::forward, "all_gather", "model.layers.0") == "9 in 1");
      CHECK(launches(log.entries(), Phase::forward, "all_gather", "model.layers.1") == "9 in 1");
      CHECK(tensors[Phase::forward]["all_gather"] == 21);
      CHECK(groups[Phase::forward]["all_gather"].size() == 3);
      CHECK(tensors[Phase::backward]["reduce_scatter"] == 21);
      CHECK(groups[Phase::backward]["reduce_scatter"].size() == 3);
      CHECK(groups[Phase::backward]["all_gather"].size() == (c.reshard ? 3 : 0));
      CHECK(tensors[Phase::backward]["all_gather"] == (c.reshard ? 21 : 0));
      CHECK(tensors[Phase::backward]["all_reduce"] == 0);
      CHECK(tensors[Phase::optimizer]["reduce_scatter"] == 0);
      CHECK(counts(log.entries(), Phase::optimizer) == "all_reduce 1");  // the norm
      std::vector<std::string> order;  // of the backward pass: from the last block to the first
      for (const auto& e : log.entries())
        if (e.phase == Phase::backward && e.collective == "reduce_scatter")
          for (const char* block : {"layers.1.mlp.up_proj", "layers.0.mlp.up_proj", "embed_tokens"})
            if (e.reason.find(block) != std::string::npos) order.push_back(block);
      CHECK(order == std::vector<std::string>{"layers.1.mlp.up_proj", "layers.0.mlp.up_proj", "embed_tokens"});
    }
}

TEST_CASE("gathered weights are dropped after forward") {
  auto bytes = [](bool reshard) {
    return on_mesh("dp=2", [&](const DeviceMesh& m) {
      LlamaForCausalLM model(m, small_llama());
      std::string plan = fmt::format(
          R"({{"fully_shard": {{"axis": "dp", "modules": ["model.layers.*", ""], "reshard_after_forward": {}}}}})",
          reshard);
      ParallelPlan::from_json(json(plan)).apply(model);
      materialize(model, 1);
      Autograd autograd(m.rank_state());
      watch_parameters(autograd, model.parameters());
      DistributedTensor y =
          model(DistributedTensor::distribute(Tensor::of<int64_t>({2, 2}, {1, 2, 3, 4}), m, {Shard(0)}));
      m.communicator(m.shape().all()).barrier();
      return m.rank_state().allocator()->bytes_in_use();
    })[0];
  };
  // All weights but the embedding's, whose gradient needs only the ids; halves are stored anyhow.
  int64_t gathered = 4 * (259 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64));
  CHECK(bytes(false) - bytes(true) >= gathered);
}

// fsdp.json: what one rank of N holds of parameters, gradients and optimizer state is a Nth, by the allocator's count.
TEST_CASE("one rank of N holds a Nth of parameters, gradients and optimizer state") {
  ParallelPlan plan = ParallelPlan::load(std::string(DTENSOR_SOURCE_DIR) + "/examples/plans/fsdp.json");
  int64_t peak_before = INT64_MAX;
  for (int n : {1, 2, 4, 8}) {
    struct Bytes {
      int64_t parameters, with_gradients, peak, after;
    };
    int64_t whole = 0;  // bytes of all parameters
    Bytes b = on_mesh(fmt::format("dp={}", n).c_str(), [&](const DeviceMesh& m) {
      Rank& rank = m.rank_state();
      auto in_use = [&] {
        m.communicator(m.shape().all()).barrier();  // nobody reads a published tensor any more
        return rank.allocator()->bytes_in_use();
      };
      Autograd autograd(rank);
      LlamaForCausalLM model(m, small_llama(2, 264));
      plan.apply(model);
      materialize(model, 1);
      auto parameters = model.parameters();
      watch_parameters(autograd, parameters);
      Bytes bytes{in_use(), 0, 0, 0};
      if (m.rank() == 0)
        for (Parameter* p : parameters) whole += 4 * numel(p->shape());
      AdamW optimizer(parameters, {});
      rank.allocator()->reset_peak();
      {
        std::vector<int64_t> ids(8 * 16, 3);
        auto x = DistributedTensor::distribute(Tensor::of<int64_t>({8, 16}, ids), m, batch_layout(m.shape()));
        autograd.backward(ops::cross_entropy(model(x), x));
      }
      bytes.with_gradients = in_use();
      bytes.peak = rank.allocator()->peak_bytes();
      auto gradients = reduce_gradients(autograd, parameters);
      autograd.store.clear();
      optimizer.step(gradients, 1e-3);
      gradients.clear();
      bytes.after = in_use();
      return bytes;
    })[0];
    INFO(n);
    CHECK(b.parameters == whole / n);
    CHECK(b.with_gradients == 2 * whole / n);
    CHECK(b.after == 3 * whole / n);  // parameters and two moments
    CHECK(b.peak < peak_before);
    peak_before = b.peak;
  }
}

TEST_CASE("micro-batches add up in fully sharded gradients") {
  auto gradients = [](const char* mesh, const char* plan, int passes) {
    return on_mesh(mesh,
                   [&](const DeviceMesh& m) {
                     Mlp mlp(m, true);
                     ParallelPlan::from_json(json(plan)).apply(mlp);
                     materialize(mlp, 1);
                     Autograd autograd(m.rank_state());
                     watch_parameters(autograd, mlp.parameters());
                     for (int i = 0; i < passes; ++i) {
                       Layout rows = m.size() > 1 ? Layout{Shard(0)} : Layout();
                       DistributedTensor y = mlp(DistributedTensor::distribute(f32({4, 6}, i), m, rows));
                       autograd.backward(ops::sum(ops::square(y)).redistribute(Layout()));
                     }
                     std::vector<double> all;
                     for (const DistributedTensor& g : reduce_gradients(autograd, mlp.parameters()))
                       for (double v : values(g.full_tensor())) all.push_back(v);
                     return all;
                   })
        .back();
  };
  for (int passes : {1, 2, 3})
    for (const char* mesh : {"dp=2", "dp=3"})
      for (const char* modules : {R"([""])", R"(["up", "down"])", R"(["down", ""])", R"(["up"])"}) {
        INFO(passes << " passes on " << mesh << ", groups " << modules);
        std::string plan = fmt::format(R"({{"fully_shard": {{"axis": "dp", "modules": {}}}}})", modules);
        CHECK(difference(gradients(mesh, plan.c_str(), passes), gradients("dp=1", "{}", passes)) < 1e-6);
      }
}

TEST_CASE("leaves that are watched together are reduced when the backward pass has passed their last use") {
  Entries e = on_mesh("dp=2", [](const DeviceMesh& m) {
    Rank& rank = m.rank_state();
    rank.strict = true;
    auto weight = [&](int seed, Placement p) { return DistributedTensor::distribute(f64({4, 4}, seed), m, {p}); };
    DistributedTensor a = weight(1, Shard(0)), b = weight(2, Replicate()), c = weight(3, Shard(1)),
                      unused = weight(4, Shard(0));
    Autograd autograd(rank);
    autograd.store.watch_together({a, b}, {"a", "b"});
    autograd.store.watch_together({c, unused}, {"c", "unused"});
    DistributedTensor x = DistributedTensor::distribute(f64({2, 4}, 5), m, {Shard(0)});
    DistributedTensor h =
        ops::linear(ops::linear(ops::linear(x, a.redistribute({Replicate()})), c.redistribute({Replicate()})), b);
    DistributedTensor loss = ops::sum(h).redistribute(Layout());
    CommLog log(rank);
    autograd.backward(loss);
    check(autograd.gradient(a).layout() == a.layout() && autograd.gradient(b).layout() == b.layout() &&
              autograd.gradient(c).layout() == c.layout(),
          "layouts");
    check(!autograd.gradient(unused).defined(), "a gradient of what is not used");
    std::string error = error_of([&] { autograd.store.watch_together({a}, {}); });
    check(error == "[watch_together] 1 leaves and 0 names", "{}", error);
    return log.entries();
  })[0];
  INFO(listing(e));
  REQUIRE(e.size() == 3);
  CHECK(e[0].reason == "gradient of c");  // b, used last, waits for a
  CHECK(e[0].collective == "reduce_scatter");
  std::set<std::string> rest{e[1].collective + " " + e[1].reason, e[2].collective + " " + e[2].reason};
  CHECK(rest == std::set<std::string>{"reduce_scatter gradient of a", "all_reduce gradient of b"});
}

TEST_CASE("errors of fully_shard") {
  struct Case {
    const char *plan, *error;
  };
  const Case cases[] = {
      {R"({"fully_shard": {"axis": "dp"}})", "[plan] fully_shard: \"modules\" is missing"},
      {R"({"fully_shard": {"modules": [""]}})", "[plan] fully_shard: \"axis\" is missing"},
      {R"({"fully_shard": {"axis": "dp", "modules": [""], "reshard": true}})",
       "[plan] fully_shard: there is no field \"reshard\"; the nearest is"},
      {R"({"fully_shard": {"axis": "dp", "modules": [3]}})", "[plan] fully_shard.modules[0]: 3 is no string"},
      {R"({"fully_shard": {"axis": "dp", "modules": [""], "reshard_after_forward": "often"}})",
       "[plan] fully_shard.reshard_after_forward: \"often\" is none of true, false, \"default\", \"always\", \"never\" "
       "or "
       "a number of ranks"},
      {R"({"fully_shard": {"axis": "dp", "modules": [""], "reshard_after_forward": 0}})",
       "[plan] fully_shard.reshard_after_forward: 0 is no integer from 1 to "},
      {R"({"fully_shard": {"axis": "dp", "modules": [""], "reshard_after_forward": 3}})",
       "[plan] fully_shard.reshard_after_forward: shards over 3 ranks are not those over the first axes of dp=2: "
       "divide "
       "the axis in two, of which the first one has 3 ranks"},
      {R"({"fully_shard": {"axis": "dp", "modules": [""], "stage": 4}})",
       "[plan] fully_shard.stage: 4 is no integer from 1 to 3"},
      {R"({"fully_shard": {"axis": "dp", "modules": [""], "stage": 2, "reshard_after_forward": "never"}})",
       "[plan] fully_shard.reshard_after_forward: stage 2 keeps whole parameters: remove one of them"},
      {R"({"fully_shard": {"axis": "dp", "modules": [""], "stage": 1, "sync_each_batch": true}})",
       "[plan] fully_shard.sync_each_batch: stage 1 keeps whole gradients until the step ends: use stage 2"},
      {R"({"fully_shard": {"axis": "dp", "modules": [""], "offload": true}})",
       "[plan] fully_shard.offload: true is not supported; use \"cpu\" or false"},
      {R"({"fully_shard": {"axis": ["dp", "dp"], "modules": [""]}})",
       "[plan] the file: axis \"dp\" is named twice by data_parallel and fully_shard: parameters are replicated or "
       "sharded "
       "over it, once"},
      {R"({"fully_shard": {"axis": "dp", "modules": [""]}, "data_parallel": {"axis": "dp"}})",
       "[plan] the file: axis \"dp\" is named twice"},
      {R"({"data_parallel": {"axis": "dp", "bucket_mb": 0}})",
       "[plan] data_parallel.bucket_mb: 0 is no size of a bucket: a number of MiB above 0, at most"},
      {R"({"fully_shard": {"axis": "dp", "modules": [""], "param_dtype": "fp16"}})",
       "[plan] fully_shard.param_dtype: \"fp16\" is not supported; use \"fp32\" or \"bf16\""},
      {R"({"fully_shard": {"axis": "dp", "modules": [""], "reduce_dtype": "int8"}})",
       "[plan] fully_shard.reduce_dtype: \"int8\" is not supported; use \"fp32\" or \"bf16\""},
      {R"({"fully_shard": {"axis": "fsdp", "modules": [""]}})",
       "[plan] the plan uses axis \"fsdp\", which mesh dp=2 lacks"},
      {R"({"fully_shard": {"axis": "dp", "modules": ["model.layer.*"]}})",
       "[plan] fully_shard.modules: \"model.layer.*\" matches no module; the nearest is \"model.layers.*\""},
      {R"({"fully_shard": {"axis": "dp", "modules": ["model.layers.*", "model.layers.1"]}})",
       "[plan] fully_shard.modules: module \"model.layers.1\" is named twice"},
  };
  for (const Case& c : cases) {
    INFO(c.plan);
    CHECK_THAT(plan_error(c.plan), StartsWith(c.error));
  }
  struct Scalar : Module {
    explicit Scalar(const DeviceMesh& m) : Module(m) {}
    std::string_view kind() const override { return "Scalar"; }
    Parameter scale{*this, "scale", {}, Init::ones()};
  };
  std::string error = error_of([] {
    on_mesh("dp=2", [](const DeviceMesh& m) {
      Scalar s(m);
      fully_shard(s, {{0}, true});
    });
  });
  CHECK_THAT(error, Contains("[fully_shard] scale has no dimension to shard"));
}

namespace {

// Data and a scale for each of its rows, as rowwise float8 has them.
struct RowScaled : Callable<DistributedTensor(const DistributedTensor&)> {
  explicit RowScaled(const DeviceMesh& mesh) : Callable(mesh) {
    weight.compute_with({.names = {"data", "scale"}, .make = [](const DistributedTensor& w) {
                           DistributedTensor scale = ops::amax(ops::abs(w), {1}, true);
                           return std::vector{w / scale, scale};
                         }});
  }
  std::string_view kind() const override { return "RowScaled"; }
  DistributedTensor forward(const DistributedTensor& x) override { return ops::linear(x, weight() * weight("scale")); }
  Parameter weight{*this, "weight", {8, 6}, Init::normal(0.5)};
};

}  // namespace

TEST_CASE("all tensors of a parameter's form are gathered with its group in one launch") {
  auto run = [](const char* mesh) {
    return on_mesh(mesh, [&](const DeviceMesh& m) {
      RowScaled model(m);
      fully_shard(model, {{0}, true});
      materialize(model, 3);
      DistributedTensor x = DistributedTensor::distribute(f32({4, 6}, 2), m, Layout());
      CommLog log(m.rank_state());
      std::vector<double> y = values(model(x).full_tensor());
      if (m.shape().world() > 1)
        check(launches(log.entries(), Phase::none, "all_gather", "") == "2 in 1", "{}", listing(log.entries()));
      return y;
    })[0];
  };
  std::vector<double> one = run("dp=1");
  CHECK(run("dp=2") == one);
  CHECK(run("dp=4") == one);
}
