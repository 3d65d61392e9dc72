// Models other than the Llama, and what all share: documents and padding, tied weights, heads that ranks do not divide.
// tests/parity/models_test.cpp compares them with transformers.
#include <cmath>

#include "dtensor/creation.h"
#include "nn/models/auto_plan.h"
#include "nn/models/bert.h"
#include "nn/models/gpt.h"
#include "nn/models/gpt2.h"
#include "nn/models/llama.h"
#include "nn/train/causal_lm.h"
#include "nn/train/gradients.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;
using Catch::Contains;
using Catch::StartsWith;

namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t vocabulary = 48, ignored = -100;

Json small_config(const std::string& family) {
  if (family == "gpt2")
    return json(
        R"({"model_type": "gpt2", "vocab_size": 48, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4})");
  if (family == "gpt")
    return json(R"({"model_type": "gpt", "vocab_size": 48, "max_position_embeddings": 32, "d_model": 32, "n_layers": 2,
                    "n_heads": 4, "d_ff": 64, "dropout": 0.1, "use_tensor_parallel": false})");
  Json c = json(R"({"vocab_size": 48, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64})");
  c["model_type"] = family;
  return c;
}

DistributedTensor integers(const DeviceMesh& m, const Shape& shape, const std::vector<int64_t>& values) {
  return DistributedTensor::distribute(Tensor::of<int64_t>(shape, values), m, batch_layout(m.shape()));
}
std::vector<int64_t> some_ids(int64_t count, int64_t seed) {
  std::vector<int64_t> v;
  for (int64_t i = 0; i < count; ++i) v.push_back((i * 7919 + i * i * (seed + 3)) % vocabulary);
  return v;
}

struct FamilyRun {
  std::vector<double> losses;
  double norm = 0;  // of the first step
};

// Three steps, in strict mode, with dropout where the model has it.
FamilyRun train(const Json& config, const std::string& mesh, const ParallelPlan& plan) {
  return on_mesh(mesh, [&](const DeviceMesh& m) {
    m.rank_state().strict = true;
    auto model = ModelConfig::from_json(config).make(m);
    plan.apply(*model);
    materialize(*model, 5);
    AdamW optimizer(model->parameters(), {});
    Trainer trainer(*model, causal_lm_loss(*model, ignored), optimizer, {.lr = 1e-2, .seed = 3});
    FamilyRun run;
    for (int64_t step = 0; step < 3; ++step) {
      Trainer::Step s =
          trainer.step({integers(m, {4, 16}, some_ids(64, step)), integers(m, {4, 16}, some_ids(64, step + 50))});
      run.losses.push_back(s.loss);
      if (step == 0) run.norm = s.grad_norm;
    }
    return run;
  })[0];
}

void check_same(const FamilyRun& run, const FamilyRun& one) {
  for (size_t i = 0; i < one.losses.size(); ++i) CHECK(run.losses[i] == Approx(one.losses[i]).epsilon(1e-5));
  CHECK(run.norm == Approx(one.norm).epsilon(1e-5));
}

}  // namespace

TEST_CASE("law 7: every family trains by its shipped plan as on one rank, in strict mode, dropout included") {
  for (const char* family : {"gpt2", "gpt", "phi3"}) {
    INFO(family);
    Json config = small_config(family);
    ParallelPlan plan = ParallelPlan::load(plan_file(std::string(family) + "_tp.json"));
    FamilyRun one = train(config, "dp=1", {});
    CHECK(one.losses[2] < one.losses[0] + 0.5);
    check_same(train(config, "tp=2", plan), one);
    check_same(train(config, "dp=2,tp=2", plan), one);
    check_same(train(config, "dp=4", {}), one);
  }
}

TEST_CASE("auto plans are the shipped ones, and gather keys and values where the ranks do not divide their heads") {
  auto shipped = [](const char* name) { return ParallelPlan::load(plan_file(name)); };
  auto automatic = [](const char* family, const char* mesh) {
    return auto_plan(ModelConfig::from_json(small_config(family)), MeshShape::parse(mesh));
  };
  for (const char* family : {"llama", "mistral", "qwen2", "qwen3"}) {
    CHECK(automatic(family, "tp=2") == shipped("tp.json"));
    CHECK(automatic(family, "dp=2,tp=4") == shipped("tp_few_kv_heads.json"));
  }
  CHECK(automatic("phi3", "tp=2") == shipped("phi3_tp.json"));
  CHECK(automatic("gpt2", "tp=2") == shipped("gpt2_tp.json"));
  CHECK(automatic("gpt", "tp=4") == shipped("gpt_tp.json"));
  CHECK(automatic("gpt2", "dp=2,tp=1") == ParallelPlan());
  CHECK(automatic("gpt2", "dp=2") == ParallelPlan());
}

TEST_CASE("a GPT that shards itself has the same logits on all ranks, dropout on, and those of one rank") {
  // Text of the reference: vocabulary 10000, 2 layers, 4 heads, d_model 128; here with a smaller vocabulary.
  auto logits = [](const std::string& mesh, bool sharded) {
    return on_mesh(mesh, [&](const DeviceMesh& m) {
      GptConfig c;
      c.vocab_size = 100, c.max_position_embeddings = 128, c.n_layers = 2, c.n_heads = 4, c.d_model = 128, c.d_ff = 512;
      c.use_tensor_parallel = sharded;
      GptModel model(m, c);
      materialize(model, 123);
      StepNumber step(m);
      RandomScope scope(step, {.seed = 123});
      DistributedTensor y = model(integers(m, {2, 16}, some_ids(32, 1)));
      check(y.layout() == Layout(), "the logits are {}", y);
      Tensor local = y.local().contiguous();
      return std::vector<float>(local.data<float>(), local.data<float>() + local.numel());
    });
  };
  auto one = logits("tp=1", true), plain = logits("tp=1", false);
  CHECK(one == plain);
  for (const char* mesh : {"tp=2", "tp=4"}) {
    auto all = logits(mesh, true);
    for (const auto& rank : all) CHECK(rank == all[0]);  // a difference of 0.0 on every rank
    double worst = 0;
    for (size_t i = 0; i < all[0].size(); ++i) worst = std::max(worst, double(std::abs(all[0][i] - one[0][i])));
    CHECK(worst < 1e-5);
  }
}

namespace {

struct LossAndGradients {
  double loss = 0;
  std::vector<std::vector<double>> gradients;
};

// The mean loss of counted targets, and the gradients, of a Llama on rows of tokens.
LossAndGradients padded_loss(const std::string& mesh, const std::string& plan, const Json& config, const Shape& shape,
                             const std::vector<int64_t>& ids, const std::vector<int64_t>& targets,
                             const std::vector<int64_t>& positions, const std::vector<int64_t>& documents) {
  return on_mesh(mesh, [&](const DeviceMesh& m) {
    auto model = ModelConfig::from_json(config).make(m);
    if (!plan.empty()) ParallelPlan::load(plan_file(plan)).apply(*model);
    materialize(*model, 5);
    std::vector<Parameter*> parameters = model->parameters();
    Autograd autograd(m.rank_state());
    watch_parameters(autograd, parameters);
    SequenceInputs inputs;
    if (!positions.empty()) inputs.positions = integers(m, shape, positions);
    if (!documents.empty()) inputs.documents = integers(m, shape, documents);
    DistributedTensor logits = model->operator()(integers(m, shape, ids), inputs);
    DistributedTensor loss = ops::cross_entropy(logits, integers(m, shape, targets), {.ignore_index = ignored});
    autograd.backward(loss);
    std::vector<DistributedTensor> gradients = reduce_gradients(autograd, parameters);
    NoGrad scope(m.rank_state());
    LossAndGradients r{loss.item(), {}};
    for (const DistributedTensor& g : gradients) r.gradients.push_back(values(g.full_tensor()));
    return r;
  })[0];
}

void check_close(const LossAndGradients& a, const LossAndGradients& b) {
  CHECK(a.loss == Approx(b.loss).epsilon(1e-6));
  for (size_t p = 0; p < b.gradients.size(); ++p)
    for (size_t i = 0; i < b.gradients[p].size(); ++i)
      REQUIRE(a.gradients[p][i] == Approx(b.gradients[p][i]).epsilon(1e-4).margin(1e-6));
}

}  // namespace

TEST_CASE("documents that are padded, or packed into one row, have the loss and gradients of each by itself") {
  for (const char* family : {"llama", "mistral", "gpt2"}) {
    INFO(family);
    Json config = small_config(family);
    if (config.contains("hidden_size")) config["sliding_window"] = 3;
    if (family == std::string("gpt2"))
      for (const char* p : {"resid_pdrop", "embd_pdrop", "attn_pdrop"}) config[p] = 0;
    const std::vector<int64_t> lengths = {5, 12, 7, 1};
    std::vector<std::vector<int64_t>> ids, targets;
    for (size_t d = 0; d < lengths.size(); ++d) {
      ids.push_back(some_ids(lengths[d], int64_t(d))), targets.push_back(some_ids(lengths[d], int64_t(d) + 9));
      targets.back().back() = ignored;  // the last one has no next token
    }
    // Each by itself, weighted by its targets.
    LossAndGradients alone;
    double count = 5 + 12 + 7 + 1 - 4;
    for (size_t d = 0; d + 1 < lengths.size(); ++d) {  // the last has no targets
      LossAndGradients one = padded_loss("dp=1", "", config, {1, lengths[d]}, ids[d], targets[d], {}, {});
      double weight = double(lengths[d] - 1) / count;
      alone.loss += weight * one.loss;
      alone.gradients.resize(one.gradients.size());
      for (size_t p = 0; p < one.gradients.size(); ++p) {
        alone.gradients[p].resize(one.gradients[p].size());
        for (size_t i = 0; i < one.gradients[p].size(); ++i) alone.gradients[p][i] += weight * one.gradients[p][i];
      }
    }
    constexpr int64_t width = 13, rows = 4;
    std::vector<int64_t> padded(rows * width, 1), padded_targets(rows * width, ignored), padding(rows * width, -1);
    for (int64_t d = 0; d < rows; ++d)
      for (int64_t i = 0; i < lengths[size_t(d)]; ++i) {
        padded[size_t(d * width + i)] = ids[size_t(d)][size_t(i)];
        padded_targets[size_t(d * width + i)] = targets[size_t(d)][size_t(i)];
        padding[size_t(d * width + i)] = 0;
      }
    std::vector<int64_t> packed, packed_targets, positions, documents;  // two rows of 14
    for (auto row : {std::vector<size_t>{1, 3}, {0, 2}}) {
      for (size_t d : row)
        for (int64_t i = 0; i < lengths[d]; ++i) {
          packed.push_back(ids[d][size_t(i)]), packed_targets.push_back(targets[d][size_t(i)]);
          positions.push_back(i), documents.push_back(int64_t(d));
        }
      while (packed.size() % 14) {
        packed.push_back(0), packed_targets.push_back(ignored), positions.push_back(0), documents.push_back(-1);
      }
    }
    bool llama = family != std::string("gpt2");
    for (const auto& [mesh, plan] :
         {std::pair("dp=1", ""), {"dp=2", ""}, {"tp=2", llama ? "tp_sp_loss.json" : "gpt2_tp.json"}}) {
      INFO(mesh << " " << plan);
      check_close(padded_loss(mesh, plan, config, {rows, width}, padded, padded_targets, {}, padding), alone);
      check_close(padded_loss(mesh, plan, config, {2, 14}, packed, packed_targets, positions, documents), alone);
    }
  }
}

TEST_CASE("more ranks than key/value heads: the loss of one rank, whatever the batch and the heads") {
  for (int64_t kv_heads : {1, 2})
    for (int64_t rows : {1, 4}) {
      Json config = small_config("llama");
      config["num_key_value_heads"] = kv_heads, config["num_attention_heads"] = 8;
      std::vector<int64_t> ids = some_ids(rows * 8, 1), targets = some_ids(rows * 8, 2);
      LossAndGradients one = padded_loss("dp=1", "", config, {rows, 8}, ids, targets, {}, {});
      check_close(padded_loss("tp=4", "tp_few_kv_heads.json", config, {rows, 8}, ids, targets, {}, {}), one);
    }
}

TEST_CASE("a tied head is one tensor: placed once, trained by both of its uses, and gathered once") {
  Json config = small_config("llama");
  config["tie_word_embeddings"] = true;
  auto rank = Rank::recorded(2);
  DeviceMesh m(*rank, "tp=2");
  LlamaForCausalLM model(m, LlamaConfig::from_json(config));
  for (Parameter* p : model.parameters()) CHECK_FALSE(p->path() == "lm_head.weight");
  ParallelPlan::load(plan_file("tp.json")).apply(model);
  CHECK(model.lm_head.weight.used_layout() == Layout({Shard(0)}));
  CHECK(&model.lm_head.weight == &model.model.embed_tokens.weight);
  LlamaForCausalLM other(m, LlamaConfig::from_json(config));
  auto two = json(R"({"tensor_parallel": {"axis": "tp", "plan": {"model.embed_tokens": "ColwiseParallel",
                                                                  "lm_head": "ColwiseParallel"}}})");
  CHECK_THAT(error_of([&] { ParallelPlan::from_json(two).apply(other); }),
             StartsWith("[lm_head] lm_head: ColwiseParallel places model.embed_tokens.weight as Shard(0), but another "
                        "line has placed it as Shard(1): the two modules share it, so it has one placement"));
  FamilyRun one = train(config, "dp=1", {});
  check_same(train(config, "tp=2", ParallelPlan::load(plan_file("tp_sp_loss.json"))), one);
  check_same(train(config, "dp=2,tp=2", ParallelPlan::load(plan_file("fsdp_tp.json"))), one);
}

TEST_CASE("an embedding's padding row begins at 0 and stays there") {
  Json config = small_config("llama");
  config["pad_token_id"] = 7;
  auto row = on_mesh("dp=2,tp=2", [&](const DeviceMesh& m) {
    LlamaForCausalLM model(m, LlamaConfig::from_json(config));
    ParallelPlan::load(plan_file("fsdp_tp.json")).apply(model);
    materialize(model, 5);
    AdamW optimizer(model.parameters(), {});
    Trainer trainer(model, causal_lm_loss(model, ignored), optimizer, {.lr = 1e-2});
    trainer.step({integers(m, {4, 16}, std::vector<int64_t>(64, 7)), integers(m, {4, 16}, some_ids(64, 1))});
    return values(ops::select(model.model.embed_tokens.weight.stored(), 0, 7).full_tensor());
  })[0];
  CHECK(row == std::vector<double>(32, 0));
  CHECK_THAT(error_of([&] {
               auto one = Rank::recorded(1);
               DeviceMesh m(*one, "dp=1");
               struct Root : Module {
                 using Module::Module;
                 std::string_view kind() const override { return "Root"; }
               } root(m);
               Embedding(root, "e", 4, 2, 1, 4);
             }),
             StartsWith("[Embedding] padding_idx of e is 4, outside its 4 rows"));
}

TEST_CASE("tokens are masked by their place in the batch, and special ones never") {
  MaskingOptions o{.mask_token = 3, .vocab_size = 1000, .special_tokens = {0, 1}, .seed = 9};
  auto masked = [&](const char* mesh, int64_t step) {
    return on_mesh(mesh, [&](const DeviceMesh& m) {
      std::vector<int64_t> ids;
      for (int64_t i = 0; i < 8 * 500; ++i) ids.push_back(i % 10 == 0 ? 0 : 100 + i % 800);
      MaskedTokens t = mask_tokens(integers(m, {8, 500}, ids), step, o);
      return std::pair(values(t.inputs.full_tensor()), values(t.labels.full_tensor()));
    })[0];
  };
  auto [inputs, labels] = masked("dp=1", 0);
  CHECK(masked("dp=4", 0) == std::pair(inputs, labels));
  CHECK(masked("dp=1", 1) != std::pair(inputs, labels));
  int chosen = 0, hidden = 0, kept = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    double id = i % 10 == 0 ? 0 : double(100 + i % 800);
    if (labels[i] == -100) {
      REQUIRE(inputs[i] == id);
      continue;
    }
    REQUIRE(labels[i] == id);
    REQUIRE(id != 0);
    ++chosen, hidden += inputs[i] == 3, kept += inputs[i] == id;
  }
  CHECK(std::abs(chosen - 540) < 80);  // 15 % of 3600
  CHECK(std::abs(hidden - 0.8 * chosen) < 0.08 * chosen);
  CHECK(std::abs(kept - 0.1 * chosen) < 0.06 * chosen);
  auto rank = Rank::recorded(1);
  DeviceMesh m(*rank, "dp=1");
  CHECK_THAT(error_of([&] { mask_tokens(zeros(m, "f32[2,3]"), 0, o); }),
             StartsWith("[mask_tokens] ids are f32[2,3]") && Contains("not i64[batch,sequence]"));
  o.mask_token = 1000;
  CHECK_THAT(error_of([&] { mask_tokens(zeros(m, "i64[2,3]"), 0, o); }),
             StartsWith("[mask_tokens] mask_token 1000 is outside the vocabulary [0,1000)"));
}

TEST_CASE("configurations of GPT-2, GPT and BERT that make no sense are errors") {
  struct Case {
    const char *family, *field, *value, *error;
  };
  const Case cases[] = {
      {"gpt2", "n_head", "3", "[gpt2 config] n_embd 32 does not divide into 3 heads"},
      {"gpt2", "scale_attn_weights", "false", "[gpt2 config] scale_attn_weights is false; only true or null"},
      {"gpt", "n_heads", "5", "[gpt config] d_model 32 does not divide into 5 heads"},
      {"gpt", "dropout", "-0.1", "[gpt config] dropout is -0.1; a probability is from 0 to below 1"},
  };
  for (const Case& c : cases) {
    Json config = small_config(c.family);
    config[c.field] = json(c.value);
    CHECK_THAT(error_of([&] { ModelConfig::from_json(config); }), StartsWith(c.error));
  }
  Json bert = json(R"({"vocab_size": 48, "hidden_size": 30, "intermediate_size": 64, "num_hidden_layers": 2,
                       "num_attention_heads": 4})");
  CHECK_THAT(error_of([&] { BertConfig::from_json(bert); }),
             StartsWith("[bert config] hidden_size 30 does not divide into 4 heads"));
  CHECK_THAT(error_of([&] { ModelConfig::from_json(json(R"({"model_type": "bert"})")); }),
             StartsWith("[model config] model_type is \"bert\"; supported are llama, mistral"));
  auto rank = Rank::recorded(1);
  DeviceMesh m(*rank, "dp=1");
  Json gpt2 = small_config("gpt2");
  gpt2["activation_function"] = "gellu";
  CHECK_THAT(error_of([&] { ModelConfig::from_json(gpt2).make(m); }),
             StartsWith("[Activation] there is no activation \"gellu\"; the nearest is \"gelu\""));
  Json longrope = small_config("llama");
  longrope["rope_scaling"] = json(R"({"type": "longrope", "factor": 2, "short_factor": [1], "long_factor": [1]})");
  CHECK_THAT(error_of([&] { (*ModelConfig::from_json(longrope).make(m))(zeros(m, "i64[1,3]")); }),
             StartsWith("[rope] longrope has 1 factors for the 4 pairs of a head of 8 elements"));
  struct Root : Module {
    using Module::Module;
    std::string_view kind() const override { return "Root"; }
  } root(m);
  Linear head(root, "head", 4, 8, true, 0.1);
  LinearCrossEntropyLoss criterion(root, "criterion");
  CHECK_THAT(error_of([&] { criterion(zeros(m, "f32[2,4]"), zeros(m, "i64[2]"), head, ignored); }),
             StartsWith("[criterion] the head has a bias, which a loss fused with it does not take"));
  auto model = ModelConfig::from_json(small_config("gpt2")).make(m);
  CHECK_THAT(error_of([&] { (*model)(zeros(m, "i64[1,33]")); }),
             StartsWith("[transformer.wpe] a sequence of 33 tokens is longer than the 32 positions of the model"));
}
