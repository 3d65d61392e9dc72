// What --check refuses beyond a run's errors, and that a wrong plan is refused or right.
#include "nn/foresight/findings.h"

#include "nn/foresight/forecast.h"
#include "nn/json.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::nn;
using namespace dtensor::testing;
using Json = nlohmann::ordered_json;

namespace {

const std::string examples = DTENSOR_SOURCE_DIR "/examples/";

// small_llama() as a config, whose heads 2 and 4 ranks divide.
ModelConfig small() {
  return ModelConfig::from_json(json(R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 64})"));
}

constexpr int64_t rows = 4, length = 16;

Forecast look(const char* mesh, const Json& plan, bool strict = false) {
  ForecastOptions options{rows, length};
  options.strict = strict, options.warm_up = 0;
  return forecast(MeshShape::parse(mesh), small(), ParallelPlan::from_json(plan), options);
}

// The loss and gradient norm of a second step.
std::pair<double, double> run(const std::string& mesh, const Json& plan) {
  return on_mesh(mesh, [&](const DeviceMesh& m) {
    ParallelPlan p = ParallelPlan::from_json(plan);
    LlamaTraining training(m, small(), p, {.steps = 2});
    std::vector<int64_t> ids;
    for (int64_t i = 0; i < rows * length; ++i) ids.push_back((i * 7 + i * i) % 64);
    auto tensor = [&] {
      return DistributedTensor::distribute(Tensor::of<int64_t>({rows, length}, ids), m, batch_layout(m.shape(), p));
    };
    Batch batch{tensor(), tensor()};
    training.trainer.step(batch);
    Trainer::Step s = training.trainer.step(batch);
    return std::pair(s.loss, s.grad_norm);
  })[0];
}

const char* half_a_plan = R"({"tensor_parallel": {"axis": "tp", "plan": {
  "model.layers.1.mlp.gate_proj": "ColwiseParallel", "model.layers.1.mlp.up_proj": "ColwiseParallel"}}})";

}  // namespace

TEST_CASE("parameters in no group and keys that leave out others are what --check refuses, with path and remedy") {
  struct Case {
    const char *plan, *doubt;
  };
  for (const Case& c :
       {Case{R"({"fully_shard": {"axis": "dp", "modules": ["model.layers.*"]}})",
             "[plan] fully_shard.modules: model.embed_tokens.weight and 2 more are in no group, so that every rank "
             "stores the whole: add their modules, or \"\", the root, for all that is left"},
        Case{R"({"fully_shard": {"axis": "dp", "modules": ["model.layers.*", "model.embed_tokens", "lm_head"]}})",
             "[plan] fully_shard.modules: model.norm.weight is in no group"},
        Case{R"({"fully_shard": {"axis": "dp", "modules": ["model.layers.1", ""]}})",
             "[plan] fully_shard.modules.\"model.layers.1\": leaves out model.layers.0, which is like what it matches: "
             "name \"model.layers.*\" for all of them"}}) {
    Forecast f = look("dp=2", json(c.plan));
    REQUIRE(f.doubts.size() == 1);
    CHECK_THAT(f.doubts[0], StartsWith(c.doubt));
    CHECK_THAT(what_is_wrong(f), StartsWith(c.doubt));
  }
  CHECK(look("dp=1", json(R"({"fully_shard": {"axis": "dp", "modules": ["model.layers.*"]}})")).doubts.empty());
}

TEST_CASE("a sum that reaches an op which cannot take it is named with where it was left, and an error where strict") {
  Forecast f = look("tp=2", json(half_a_plan));
  REQUIRE(!f.implicit.empty());
  CHECK_THAT(f.implicit[0],
             StartsWith("[plan] tensor_parallel.plan has no line for model.layers.*.mlp.down_proj: in ") &&
                 Contains(" cannot take the sum f32[4,16,32] tp=Partial(sum) as it is, so reduce_scatter over "
                          "tp is done that nobody asked for (tp=Partial(sum) -> tp=Shard(0), 4096 bytes") &&
                 Contains("say where it goes, by \"output_layouts\" of the line that leaves it so"));
  std::string error = error_of([&] { look("tp=2", json(half_a_plan), true); });
  CHECK_THAT(error, StartsWith(f.implicit[0]) && EndsWith("\nthat is an error under --strict"));
}

TEST_CASE("a loss that does not see every token is found") {
  auto seen = [](int64_t tokens_left_out) {
    auto rank = Rank::recorded(2);
    DeviceMesh mesh(*rank, "dp=2");
    ParallelPlan plan;
    LlamaTraining training(mesh, small(), plan, {});
    CausalLM& model = training.model;
    int64_t kept = length - tokens_left_out;
    Trainer trainer(model, Loss([&](const Batch& b) {
                      return ops::cross_entropy(ops::narrow(model(b[0]), 1, 0, kept), ops::narrow(b[1], 1, 0, kept),
                                                {.reduction = ops::Reduction::none});
                    }),
                    training.optimizer, {});
    StepFindings findings(*rank, plan);
    trainer.step(meta_batch(mesh, batch_layout(mesh.shape(), plan), rows, length));
    return findings.loss(rows * length);
  };
  CHECK(seen(0).empty());
  CHECK(seen(1) ==
        "[loss] it sees 60 of the 64 tokens of a step, so that the others are not learned from: give it the logits and "
        "targets of the whole batch");
}

TEST_CASE("no shipped plan is in doubt, or has communication that nobody asked for") {
  struct Case {
    const char* mesh;
    std::vector<const char*> plans;
  };
  for (const Case& c : {Case{"dp=2", {"ddp", "fsdp", "zero1", "zero2"}}, Case{"tp=2", {"tp", "tp_sp_loss", "fla_tp"}},
                        Case{"tp=2",
                             {"tutorial_tp", "tutorial_1_feed_forward", "tutorial_2_attention", "tutorial_3_sequence",
                              "tutorial_4_loss", "fla_tp_loss_parallel"}},
                        Case{"dp=2,tp=2", {"fsdp_tp"}}, Case{"dp=1,cp=2,tp=2", {"fsdp_cp_tp"}}})
    for (const char* plan : c.plans) {
      INFO(plan);
      Forecast f = look(c.mesh, load_json(examples + "plans/" + plan + ".json", "plan"), true);
      CHECK(what_is_wrong(f).empty());
      CHECK(f.implicit.empty());
    }
}

// Each line of a plan left out, and each with another style, layout or dimension.
std::vector<std::pair<std::string, Json>> mutations(const Json& plan) {
  std::vector<std::pair<std::string, Json>> list;
  const Json& lines = plan["tensor_parallel"]["plan"];
  for (const auto& [path, style] : lines.items()) {
    auto add = [&, key = path](const std::string& what, auto change) {
      Json mutant = plan;
      change(mutant["tensor_parallel"]["plan"][key]);
      if (mutant != plan) list.emplace_back(key + " " + what, mutant);
    };
    Json without = plan;
    without["tensor_parallel"]["plan"].erase(path);
    list.emplace_back(path + " left out", without);
    for (const char* other : {"ColwiseParallel", "RowwiseParallel", "SequenceParallel"})
      add(other, [&](Json& s) { s.is_object() ? s["style"] = other : s = other; });
    if (!style.is_object()) continue;
    for (const auto& [field, value] : style.items()) {
      if (field == "style") continue;
      add("without " + field, [&, f = field](Json& s) { s.erase(f); });
      for (const char* layout : {"Replicate", "Shard(0)", "Shard(1)", "Shard(2)"})
        add(field + " " + layout, [&, f = field](Json& s) { s[f] = layout; });
    }
  }
  return list;
}

TEST_CASE(
    "each line of a shipped plan, left out or changed, is refused with place and remedy, or runs with the right "
    "numbers") {
  auto [loss, norm] = run("dp=1", Json::object());
  int refused = 0, right = 0;
  for (const char* name : {"tp", "tp_sp_loss", "tutorial_tp"})
    for (const auto& [what, plan] : mutations(load_json(examples + "plans/" + name + ".json", "plan"))) {
      INFO(name << ": " << what);
      std::string error = error_of([&, &mutant = plan] {
        std::string wrong = what_is_wrong(look("tp=2", mutant));
        check(wrong.empty(), "{}", wrong);
      });
      INFO(error);
      if (error == "") {
        auto [l, n] = run("tp=2", plan);
        CHECK(l == Approx(loss).epsilon(1e-5));
        CHECK(n == Approx(norm).epsilon(1e-4));
        ++right;
        continue;
      }
      CHECK_THAT(error, StartsWith("[plan] ") || StartsWith("[model.") || StartsWith("[lm_head") ||
                            StartsWith("[the root module]"));
      CHECK_THAT(error, Contains(": "));
      ++refused;
    }
  CHECK(refused >= 60);
  CHECK(right >= 10);
}
