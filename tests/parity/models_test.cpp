// Against transformers and flash-linear-attention: logits, loss and gradients of tiny models of each family, on one
// rank and in parallel. transformers_models.py and fla_models.py wrote the reference values.
#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <span>

#include "dtensor/launch.h"
#include "dtensor/random_scope.h"
#include "nn/checkpoint/checkpoint.h"
#include "nn/checkpoint/hugging_face.h"
#include "nn/generate/generate.h"
#include "nn/models/auto_plan.h"
#include "nn/models/bert.h"
#include "nn/models/causal_lm.h"
#include "nn/parallel/plan.h"
#include "nn/train/causal_lm.h"
#include "nn/train/gradients.h"
#include "tests/autograd.h"
#include "tests/folder.h"

using namespace dtensor;
using dtensor::testing::Folder;

namespace {

using Json = nlohmann::ordered_json;

const Json& reference() {
  static const Json models = [] {
    Json all = Json::array();
    for (const char* file : {"models.json", "fla_models.json"}) {
      std::ifstream in(std::string(DTENSOR_SOURCE_DIR) + "/tests/parity/" + file);
      Json list = Json::parse(in)["models"];
      all.insert(all.end(), list.begin(), list.end());
    }
    return all;
  }();
  return models;
}
const Json& model_of(const std::string& name) {
  for (const Json& m : reference())
    if (m["name"] == name) return m;
  fail("there is no model \"{}\" in models.json and fla_models.json", name);
}

// The same as value() of the script.
std::vector<double> value(const std::string& name, int64_t count) {
  uint64_t seed = 0;
  for (size_t i = 0; i < name.size(); ++i) seed += (i + 1) * uint8_t(name[i]);
  seed %= 65521;
  std::vector<double> list;
  for (uint64_t i = 0; i < uint64_t(count); ++i) {
    uint64_t h = (i * 2654435761u + seed * 40503u) & 0xffffffffu;
    for (int k = 0; k < 2; ++k) h = ((h ^ (h >> 16)) * 0x45d9f3bu) & 0xffffffffu;
    list.push_back(double(h ^ (h >> 16)) / 4294967296.0 - 0.5);
  }
  return list;
}

void fill_by_formula(const std::vector<nn::Parameter*>& parameters) {
  for (nn::Parameter* p : parameters) {
    std::vector<float> v;
    bool norm = p->shape().dims() == 1 && p->path().ends_with("weight");
    for (double x : value(p->path(), numel(p->shape()))) v.push_back(float(norm ? 1 + 0.2 * x : 0.3 * x));
    Tensor whole = Tensor::of<float>(p->shape(), v);
    p->stored().copy_(DistributedTensor::distribute(whole, p->stored().mesh(), p->stored().layout()));
  }
}

DistributedTensor integers(const DeviceMesh& mesh, const Json& rows) {
  std::vector<int64_t> v;
  for (const Json& row : rows) v.insert(v.end(), row.begin(), row.end());
  return DistributedTensor::distribute(Tensor::of<int64_t>({int64_t(rows.size()), int64_t(rows[0].size())}, v), mesh,
                                       nn::batch_layout(mesh.shape()));
}

double norm(std::span<const double> v) {
  double sum = 0;
  for (double x : v) sum += x * x;
  return std::sqrt(sum);
}

std::vector<double> numbers(const DistributedTensor& x) {
  Tensor t = x.full_tensor().contiguous();
  std::vector<double> v;
  for (int64_t i = 0; i < t.numel(); ++i) v.push_back(element(t, i));
  return v;
}

struct Pass {
  std::vector<double> logits;
  double loss = 0;
  std::map<std::string, std::pair<double, double>> gradients;  // the norm, and the product with the formula's numbers
};

// A shipped file's name, or a plan itself.
nn::ParallelPlan plan_of(const std::string& plan) {
  if (plan.empty()) return {};
  if (plan[0] == '{') return nn::ParallelPlan::from_json(Json::parse(plan));
  return nn::ParallelPlan::load(std::string(DTENSOR_SOURCE_DIR) + "/examples/plans/" + plan);
}

// One forward and backward pass; the last rank's view.
template <class Make, class Forward>
Pass forward_backward(const Json& m, const std::string& mesh, const std::string& plan, Make make, Forward forward) {
  Pass pass;
  MeshShape shape = MeshShape::parse(mesh);
  launch(shape.world(), [&](Rank& rank) {
    rank.strict = true;  // law 7
    auto model = make(DeviceMesh(rank, shape));
    plan_of(plan).apply(*model);
    nn::materialize(*model, 1);
    std::vector<nn::Parameter*> parameters = model->parameters();
    fill_by_formula(parameters);
    testing::Autograd autograd(rank);
    nn::watch_parameters(autograd, parameters);
    StepNumber step(model->mesh());
    RandomScope evaluation(step, {.training = false});
    DistributedTensor logits = forward(*model);
    DistributedTensor loss = ops::cross_entropy(logits, integers(model->mesh(), m["labels"]), {.ignore_index = -100});
    autograd.backward(loss);
    std::vector<DistributedTensor> gradients = nn::reduce_gradients(autograd, parameters);
    NoGrad no_grad(rank);
    Pass mine{numbers(logits), loss.item(), {}};
    for (size_t i = 0; i < parameters.size(); ++i) {
      std::vector<double> g = numbers(gradients[i]), v = value(parameters[i]->path(), int64_t(g.size()));
      mine.gradients[parameters[i]->path()] = {norm(g), std::inner_product(g.begin(), g.end(), v.begin(), 0.0)};
    }
    if (rank.rank() == shape.world() - 1) pass = std::move(mine);
  });
  return pass;
}

void check_logits(const Json& m, const std::vector<double>& logits) {
  std::vector<double> expected = m["logits"];
  REQUIRE(logits.size() == expected.size());
  double worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) worst = std::max(worst, std::abs(logits[i] - expected[i]));
  double allowed = 1e-5 * std::max(1.0, norm(expected) / std::sqrt(double(expected.size())));
  CHECK(worst <= std::max(allowed, m.value("float32_error", 0.0)));  // PyTorch's own, where it was measured
}

void check_pass(const Json& m, const Pass& pass) {
  check_logits(m, pass.logits);
  CHECK(pass.loss == Approx(m["loss"].get<double>()).epsilon(1e-5));
  CHECK(pass.gradients.size() == m["gradients"].size());
  for (const auto& [path, g] : pass.gradients) {
    INFO(path);
    REQUIRE(m["gradients"].contains(path));
    double n = m["gradients"][path][0], dot = m["gradients"][path][1];
    CHECK(std::abs(g.first - n) <= 1e-4 * n + 1e-7);
    CHECK(std::abs(g.second - dot) <= 1e-4 * n + 1e-7);
  }
}

struct Case {
  std::string model, mesh, plan;
};

void check_language_models(std::span<const Case> cases) {
  for (const Case& c : cases) {
    INFO(c.model << " on " << c.mesh << " by " << c.plan);
    const Json& m = model_of(c.model);
    check_pass(m, forward_backward(
                      m, c.mesh, c.plan,
                      [&](const DeviceMesh& mesh) { return nn::ModelConfig::from_json(m["config"]).make(mesh); },
                      [&](nn::CausalLM& model) { return model(integers(model.mesh(), m["ids"])); }));
  }
}

}  // namespace

TEST_CASE("transformers: logits and gradients of each family of language models, in parallel too") {
  const Case cases[] = {{"llama3", "dp=1", ""},
                        {"llama3", "tp=2", "tp.json"},
                        {"llama3", "tp=4", "tp_few_kv_heads.json"},
                        {"llama3", "dp=2,tp=2", "fsdp_tp.json"},
                        {"smollm2", "dp=1", ""},
                        {"smollm2", "tp=3", "tp_sp_loss.json"},
                        {"llama with biases", "dp=1", ""},
                        {"llama with biases", "tp=2", "tp_sp_loss.json"},
                        {"linear", "dp=1", ""},
                        {"dynamic", "dp=1", ""},
                        {"yarn", "tp=2", "tp.json"},
                        {"qwen2", "dp=1", ""},
                        {"qwen2", "dp=2,tp=2", "fsdp_tp.json"},
                        {"qwen2 with windows", "tp=2", "tp.json"},
                        {"qwen3", "dp=1", ""},
                        {"qwen3", "dp=2,tp=2", "fsdp_tp.json"},
                        {"mistral", "dp=1", ""},
                        {"mistral", "tp=2", "tp_sp_loss.json"},
                        {"phi3", "dp=1", ""},
                        {"phi3", "tp=2", "phi3_tp.json"},
                        {"phi3 with longrope", "dp=1", ""},
                        {"gpt2", "dp=1", ""},
                        {"gpt2", "dp=2", ""},
                        {"gpt2", "tp=2", "gpt2_tp.json"}};
  check_language_models(cases);
}

constexpr const char* gather_keys = R"({"context_parallel": {"axis": "cp", "method": "all_gather"}})";
constexpr const char* exchange_heads = R"({"context_parallel": {"axis": "cp", "method": "all_to_all"}})";
constexpr const char* ring = R"({"context_parallel": {"axis": "cp", "method": "ring"}})";

TEST_CASE("transformers: logits and gradients where the sequence is divided") {
  const Case cases[] = {{"llama3", "cp=2", ring},
                        {"dynamic", "cp=3", ring},
                        {"qwen2 with windows", "cp=3", ring},
                        {"qwen2 with windows", "cp=2", exchange_heads},
                        {"mistral", "cp=2", gather_keys},
                        {"phi3", "cp=4", ring},
                        {"phi3", "dp=2,cp=2", exchange_heads},
                        {"gpt2", "cp=2", gather_keys},
                        {"gpt2", "cp=2", exchange_heads},
                        {"gpt2", "cp=3", ring}};
  check_language_models(cases);
}

TEST_CASE("flash-linear-attention: logits and gradients of gated linear attention models, in parallel too") {
  const Case cases[] = {{"gla", "dp=1", ""},
                        {"gla", "dp=2", ""},
                        {"gla", "tp=2", "gla_tp.json"},
                        {"gla", "tp=4", "gla_tp.json"},
                        {"gla", "dp=2,tp=2", "gla_tp.json"},
                        {"gla, a fused norm", "dp=1", ""},
                        {"gla, shared key heads", "dp=1", ""},
                        {"gla, shared key heads", "tp=2", "gla_tp.json"},
                        {"gla, short convolutions", "dp=1", ""},
                        {"gla, short convolutions", "dp=2", ""},
                        {"gla, clamped gates", "dp=1", ""},
                        {"gla, no output gate", "dp=1", ""}};
  check_language_models(cases);
}

TEST_CASE("transformers: greedy tokens of each family, with a cache and without, alone, in a batch and in parallel") {
  for (const Json& m : reference()) {
    if (!m.contains("greedy")) continue;
    std::vector<std::vector<int32_t>> rows = m["ids"], prompts, expected = m["greedy"];
    for (size_t i = 0; i < rows.size(); ++i) prompts.emplace_back(rows[i].begin(), rows[i].end() - int64_t(3 * i));
    nn::GenerateOptions options{.max_new_tokens = 12};
    if (m["config"].contains("eos_token_id") && m["config"]["eos_token_id"].is_number())
      options.stop = {m["config"]["eos_token_id"].get<int32_t>()};
    using Texts = std::vector<std::vector<int32_t>>;
    auto texts = [&](const std::string& mesh, const Texts& of, bool cache) {
      std::vector<std::vector<int32_t>> found;
      MeshShape shape = MeshShape::parse(mesh);
      nn::GenerateOptions o = options;
      o.cache = cache;
      launch(shape.world(), [&](Rank& rank) {
        nn::ModelConfig config = nn::ModelConfig::from_json(m["config"]);
        auto model = config.make(DeviceMesh(rank, shape));
        nn::auto_plan(config, shape).apply(*model);
        nn::materialize(*model, 1);
        fill_by_formula(model->parameters());
        auto all = nn::generate(*model, of, o);
        if (rank.rank() == shape.world() - 1) found = all;
      });
      return found;
    };
    INFO(m["name"]);
    CHECK(texts("dp=1", prompts, false) == expected);
    if (m["name"] == "dynamic") {  // angles change with every token
      CHECK_THROWS_WITH(
          texts("dp=1", prompts, true),
          Catch::Contains(" tokens, and the cache has keys of the former: generate without a cache, or fewer tokens"));
      continue;
    }
    CHECK(texts("dp=1", prompts, true) == expected);
    CHECK(texts(m["name"] == "smollm2" ? "tp=3" : "tp=2", prompts, true) == expected);
    CHECK(texts("dp=2", prompts, true) == expected);
    for (size_t i = 0; i < prompts.size(); ++i) CHECK(texts("dp=1", Texts{prompts[i]}, true)[0] == expected[i]);
  }
}

TEST_CASE("transformers: logits and gradients of BERT with padding and segments, in parallel too") {
  const Json& m = model_of("bert");
  for (const auto& [mesh, plan, own] : {std::tuple("dp=1", "", false),
                                        {"dp=2", "", false},
                                        {"tp=2", "bert_tp.json", false},
                                        {"tp=2", "", true},
                                        {"cp=2", gather_keys, false},
                                        {"cp=4", exchange_heads, false},
                                        {"dp=2,cp=3", ring, false}}) {
    INFO(mesh << " by " << plan << ", layers that shard themselves: " << own);
    nn::BertConfig config = nn::BertConfig::from_json(m["config"]);
    config.use_tensor_parallel = own;
    check_pass(
        m, forward_backward(
               m, mesh, plan, [&](const DeviceMesh& on) { return std::make_unique<nn::BertForMaskedLM>(on, config); },
               [&](nn::BertForMaskedLM& model) {
                 const DeviceMesh& on = model.mesh();
                 return model(integers(on, m["ids"]), {.token_type_ids = integers(on, m["token_type_ids"]),
                                                       .attention_mask = integers(on, m["attention_mask"]),
                                                       .position_ids = {}});
               }));
  }
}

TEST_CASE("transformers: an exported folder of each family has its logits, is trained on and exported again") {
  namespace fs = std::filesystem;
  for (const Json& m : reference()) {
    if (m["name"] == "bert") continue;  // trained by its own example
    INFO(m["name"]);
    Folder folder;
    std::vector<double> loaded, trained, again;
    launch(1, [&](Rank& rank) {
      DeviceMesh mesh(rank, "dp=1");
      auto logits = [&](nn::CausalLM& model) {
        NoGrad no_grad(rank);
        StepNumber step(mesh);
        RandomScope evaluation(step, {.training = false});
        return numbers(model(integers(mesh, m["ids"])));
      };
      // A model of what `model` is as a folder.
      auto exported = [&](nn::CausalLM& model, const fs::path& to) {
        nn::save_checkpoint(mesh, folder.path / "checkpoint", {{"model", model}});
        nn::export_weights(nn::Checkpoint(folder.path / "checkpoint"), "model", m["config"], to, DType::f32);
        auto copy = nn::ModelConfig::load((to / "config.json").string()).make(mesh);
        nn::materialize(*copy, 2);
        nn::load_weights(to, *copy);
        return copy;
      };
      auto first = nn::ModelConfig::from_json(m["config"]).make(mesh);
      nn::materialize(*first, 1);
      fill_by_formula(first->parameters());
      auto model = exported(*first, folder.path / "first");
      loaded = logits(*model);
      nn::AdamW adamw(model->parameters(), {});
      nn::Trainer trainer(*model, nn::causal_lm_loss(*model), adamw, {.lr = 1e-3});
      for (int i = 0; i < 10; ++i) trainer.step({integers(mesh, m["ids"]), integers(mesh, m["labels"])});
      trained = logits(*model);
      again = logits(*exported(*model, folder.path / "again"));
    });
    check_logits(m, loaded);
    CHECK(trained != loaded);
    CHECK(again == trained);
  }
}
