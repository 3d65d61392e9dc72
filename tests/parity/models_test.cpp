// Against transformers: logits, loss and gradients of tiny models of each family, on one rank and in parallel.
// transformers_models.py wrote the reference values.
#include <catch2/catch.hpp>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <span>

#include "dtensor/launch.h"
#include "dtensor/random_scope.h"
#include "nn/models/bert.h"
#include "nn/models/causal_lm.h"
#include "nn/parallel/plan.h"
#include "nn/train/gradients.h"
#include "tests/autograd.h"

using namespace dtensor;

namespace {

using Json = nlohmann::ordered_json;

const Json& reference() {
  static const Json json = [] {
    std::ifstream in(std::string(DTENSOR_SOURCE_DIR) + "/tests/parity/models.json");
    return Json::parse(in);
  }();
  return json["models"];
}
const Json& model_of(const std::string& name) {
  for (const Json& m : reference())
    if (m["name"] == name) return m;
  fail("there is no model \"{}\" in models.json", name);
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

// One forward and backward pass; the last rank's view.
template <class Make, class Forward>
Pass forward_backward(const Json& m, const std::string& mesh, const std::string& plan, Make make, Forward forward) {
  Pass pass;
  MeshShape shape = MeshShape::parse(mesh);
  launch(shape.world(), [&](Rank& rank) {
    rank.strict = true;  // law 7
    auto model = make(DeviceMesh(rank, shape));
    if (!plan.empty())
      nn::ParallelPlan::load(std::string(DTENSOR_SOURCE_DIR) + "/examples/plans/" + plan).apply(*model);
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

void check_pass(const Json& m, const Pass& pass) {
  std::vector<double> expected = m["logits"];
  REQUIRE(pass.logits.size() == expected.size());
  double worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) worst = std::max(worst, std::abs(pass.logits[i] - expected[i]));
  CHECK(worst <= 1e-5 * std::max(1.0, norm(expected) / std::sqrt(double(expected.size()))));
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
  for (const Case& c : cases) {
    INFO(c.model << " on " << c.mesh << " by " << c.plan);
    const Json& m = model_of(c.model);
    check_pass(m, forward_backward(
                      m, c.mesh, c.plan,
                      [&](const DeviceMesh& mesh) { return nn::ModelConfig::from_json(m["config"]).make(mesh); },
                      [&](nn::CausalLM& model) { return model(integers(model.mesh(), m["ids"])); }));
  }
}

TEST_CASE("transformers: logits and gradients of BERT with padding and segments, in parallel too") {
  const Json& m = model_of("bert");
  for (const auto& [mesh, plan, own] :
       {std::tuple("dp=1", "", false), {"dp=2", "", false}, {"tp=2", "bert_tp.json", false}, {"tp=2", "", true}}) {
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
