#include "nn/generate/generate.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <chrono>
#include <nlohmann/json.hpp>
#include <set>

#include "dtensor/comm_log.h"
#include "dtensor/creation.h"
#include "dtensor/launch.h"
#include "nn/json.h"
#include "nn/models/auto_plan.h"
#include "nn/models/key_value_cache.h"
#include "ops/functions.h"

using namespace dtensor;
using Ids = std::vector<int32_t>;
using Texts = std::vector<Ids>;
using Catch::Matchers::Contains;

namespace {

// Tiny models of each family, whose numbers are large enough for texts that vary.
nn::ModelConfig config(const std::string& family) {
  using Json = nlohmann::ordered_json;
  if (family == "gpt2")
    return nn::ModelConfig::from_json({{"model_type", "gpt2"},
                                       {"vocab_size", 48},
                                       {"n_positions", 64},
                                       {"n_embd", 32},
                                       {"n_layer", 2},
                                       {"n_head", 4},
                                       {"initializer_range", 0.3}});
  if (family == "gpt")
    return nn::ModelConfig::from_json({{"model_type", "gpt"},
                                       {"vocab_size", 48},
                                       {"max_position_embeddings", 64},
                                       {"n_layers", 2},
                                       {"n_heads", 4},
                                       {"d_model", 32},
                                       {"initializer_range", 0.3}});
  if (family.starts_with("gla"))
    return nn::ModelConfig::from_json({{"model_type", "gla"},
                                       {"vocab_size", 48},
                                       {"hidden_size", 32},
                                       {"intermediate_size", 48},
                                       {"num_hidden_layers", 2},
                                       {"num_heads", 4},
                                       {"expand_k", 1},
                                       {"initializer_range", 0.3},
                                       {"gate_logit_normalizer", 2},
                                       {"use_short_conv", family == "gla with convolutions"},
                                       {"fuse_norm", family == "gla with convolutions"}});
  Json json{{"model_type", family},         {"vocab_size", 48},         {"hidden_size", 32},
            {"intermediate_size", 48},      {"num_hidden_layers", 2},   {"num_attention_heads", 4},
            {"num_key_value_heads", 2},     {"initializer_range", 0.3}, {"max_position_embeddings", 64},
            {"tie_word_embeddings", false}, {"pad_token_id", nullptr}};
  if (family == "mistral") json["sliding_window"] = 5;
  if (family == "qwen3") json["head_dim"] = 8;
  return nn::ModelConfig::from_json(json);
}

struct Case {
  std::string family = "llama", mesh = "dp=1";
  nlohmann::ordered_json plan = {};  // absent: that of the family
};

// The texts that every rank has, which are the same.
Texts generate(const Case& c, const Texts& prompts, const nn::GenerateOptions& options) {
  MeshShape shape = MeshShape::parse(c.mesh);
  std::vector<Texts> of_rank(size_t(shape.world()));
  launch(shape.world(), [&](Rank& rank) {
    nn::ModelConfig model_config = config(c.family);
    auto model = model_config.make(DeviceMesh(rank, shape));
    nn::ParallelPlan plan = c.plan.is_null() ? nn::auto_plan(model_config, shape) : nn::ParallelPlan::from_json(c.plan);
    plan.apply(*model);
    nn::materialize(*model, 11);
    of_rank[size_t(rank.rank())] = nn::generate(*model, prompts, options);
  });
  for (const Texts& t : of_rank) CHECK(t == of_rank[0]);
  return of_rank[0];
}

const Texts prompts = {{5, 17, 3, 40, 22, 9, 31}, {1}, {8, 8, 45}};
const std::vector<std::string> families = {
    "llama", "mistral", "qwen2", "qwen3", "phi3", "gpt2", "gpt", "gla", "gla with convolutions"};

size_t different(const Ids& ids) { return std::set<int32_t>(ids.begin(), ids.end()).size(); }

const nn::SamplingOptions hot = {.temperature = 1.5, .top_k = 20, .top_p = 0.95, .seed = 3};

}  // namespace

TEST_CASE("a cache changes no token, greedy and sampled, of any family") {
  for (const std::string& family : families)
    for (const nn::SamplingOptions& sampling : {nn::SamplingOptions{}, hot}) {
      CAPTURE(family, sampling.temperature);
      Texts with = generate({family}, prompts, {.max_new_tokens = 20, .sampling = sampling});
      CHECK(with == generate({family}, prompts, {.max_new_tokens = 20, .sampling = sampling, .cache = false}));
      REQUIRE(with.size() == 3);
      for (const Ids& text : with) CHECK(text.size() == 20);
      CHECK(different(with[0]) > 3);  // or the test tells little
    }
}

TEST_CASE("a text is the same alone and in any batch, whatever the order of the prompts") {
  for (const std::string& family : families)
    for (const nn::SamplingOptions& sampling : {nn::SamplingOptions{}, hot}) {
      CAPTURE(family, sampling.temperature);
      nn::GenerateOptions options{.max_new_tokens = 12, .sampling = sampling};
      Texts together = generate({family}, prompts, options);
      for (size_t i = 0; i < prompts.size(); ++i) CHECK(generate({family}, {prompts[i]}, options)[0] == together[i]);
      Texts turned = generate({family}, {prompts[2], prompts[0], prompts[1]}, options);
      CHECK(turned == Texts{together[2], together[0], together[1]});
    }
}

TEST_CASE("a text is the same on every mesh: heads over 2 and 4 ranks, rows that the ranks do not divide") {
  for (const std::string& family : families)
    for (const nn::SamplingOptions& sampling : {nn::SamplingOptions{}, hot}) {
      nn::GenerateOptions options{.max_new_tokens = 12, .sampling = sampling};
      Texts one = generate({family}, prompts, options);
      for (const char* mesh : {"tp=2", "tp=4", "dp=2", "dp=2,tp=2", "dp=4"}) {
        CAPTURE(family, mesh, sampling.temperature);
        CHECK(generate({family, mesh}, prompts, options) == one);
      }
    }
}

TEST_CASE("the same prompt again gets another text when it is sampled, and the same one when it is not") {
  Texts sampled = generate({}, {prompts[0], prompts[1], prompts[0]}, {.max_new_tokens = 12, .sampling = hot});
  CHECK(sampled[0] != sampled[2]);
  CHECK(sampled[0] == generate({}, {prompts[0]}, {.max_new_tokens = 12, .sampling = hot})[0]);
  Texts greedy = generate({}, {prompts[0], prompts[0]}, {.max_new_tokens = 12});
  CHECK(greedy[0] == greedy[1]);
  nn::SamplingOptions other = hot;
  other.seed = 4;
  CHECK(generate({}, {prompts[0]}, {.max_new_tokens = 12, .sampling = other})[0] != sampled[0]);
}

TEST_CASE("a text ends with the first token that stops it, while others of the batch go on") {
  for (bool cache : {true, false}) {
    Texts whole = generate({}, prompts, {.max_new_tokens = 15, .cache = cache});
    for (size_t i = 0; i < prompts.size(); ++i) {
      int32_t stop = whole[i][7];
      Texts stopped = generate({}, prompts, {.max_new_tokens = 15, .stop = {stop, 46}, .cache = cache});
      for (size_t j = 0; j < prompts.size(); ++j) {
        auto end = std::find_if(whole[j].begin(), whole[j].end(), [&](int32_t id) { return id == stop || id == 46; });
        CHECK(stopped[j] == Ids(whole[j].begin(), end == whole[j].end() ? end : end + 1));
      }
    }
  }
}

TEST_CASE("no new tokens: empty texts and no pass") {
  CHECK(generate({}, prompts, {.max_new_tokens = 0}) == Texts(3));
  CHECK(generate({.mesh = "dp=4"}, {{1}}, {.max_new_tokens = 1})[0].size() == 1);
}

TEST_CASE("tokens are told as they come, on every rank, step by step") {
  launch(2, [&](Rank& rank) {
    auto model = config("llama").make(DeviceMesh(rank, "tp=2"));
    nn::materialize(*model, 11);
    Texts told(prompts.size());
    std::vector<size_t> order;
    Texts texts = nn::generate(*model, prompts, {.max_new_tokens = 4, .on_token = [&](size_t prompt, int32_t id) {
                                                   told[prompt].push_back(id), order.push_back(prompt);
                                                 }});
    check(told == texts, "told others");
    check(order == std::vector<size_t>{0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2}, "in another order");
  });
}

TEST_CASE("any plan that does not shard the sequence generates the same: fully sharded, sequence parallel") {
  using Json = nlohmann::ordered_json;
  Texts one = generate({}, prompts, {.max_new_tokens = 10});
  struct Shipped {
    const char *mesh, *plan;
  };
  for (const Shipped& s : {Shipped{"dp=2", "fsdp.json"}, {"tp=2", "tp_sp_loss.json"}, {"dp=2,tp=2", "fsdp_tp.json"}}) {
    CAPTURE(s.mesh, s.plan);
    Json plan = nn::load_json(std::string(DTENSOR_SOURCE_DIR "/examples/plans/") + s.plan, "plan");
    CHECK(generate({"llama", s.mesh, plan}, prompts, {.max_new_tokens = 10}) == one);
  }
}

TEST_CASE("with a cache a token costs a pass over one token, and memory that does not grow") {
  std::string family = GENERATE(as<std::string>(), "llama", "gla", "gla with convolutions");
  CAPTURE(family);
  launch(2, [&](Rank& rank) {
    nn::ModelConfig model_config = config(family);
    DeviceMesh mesh(rank, "tp=2");
    auto model = model_config.make(mesh);
    nn::auto_plan(model_config, mesh.shape()).apply(*model);
    nn::materialize(*model, 11);
    CommLog log(rank, 1 << 20);
    std::vector<size_t> entries;
    std::vector<int64_t> bytes, received;
    nn::generate(*model, {{1, 2, 3}}, {.max_new_tokens = 40, .on_token = [&](size_t, int32_t) {
                                         std::vector<CommLog::Entry> all = log.entries();
                                         int64_t sum = 0;
                                         for (const CommLog::Entry& e : all) sum += e.bytes;
                                         entries.push_back(all.size()), received.push_back(sum);
                                         bytes.push_back(rank.allocator()->bytes_in_use());
                                       }});
    for (size_t i = 3; i < entries.size(); ++i) {
      // Another rank may hold a message of the last pass for a moment; keys of all tokens would be 5 KB.
      check(bytes[i] < bytes[2] + 1024, "token {}: {} bytes in use, {} before", i, bytes[i], bytes[2]);
      check(entries[i] - entries[i - 1] == entries[2] - entries[1], "token {}: other collectives", i);
      check(received[i] - received[i - 1] == received[2] - received[1], "token {}: other bytes received", i);
    }
  });
}

TEST_CASE("a cache is written in place, sharded as heads and rows are") {
  launch(4, [&](Rank& rank) {
    DeviceMesh mesh(rank, "dp=2,tp=2");
    auto model = config("llama").make(mesh);  // any module is a name for keys
    nn::KeyValueCache cache(2, 6);
    auto tokens = [&](int64_t s, double value) {
      return full(mesh, TensorSpec{DType::f32, {2, 4, s, 8}, Layout{Shard(0), Shard(1)}}, value);
    };
    auto pass = [&](std::vector<int64_t> positions, std::vector<int64_t> lengths, double value) {
      cache.begin_pass(mesh, positions, lengths);
      int64_t s = int64_t(positions.size()) / 2;
      return cache.extend(*model, tokens(s, value), tokens(s, -value));
    };
    const void* at = nullptr;
    {
      auto [k, v] = pass({0, 1, 2, 0, 1, 2}, {3, 1}, 1);
      check(k.layout() == tokens(1, 0).layout() && k.shape() == Shape{2, 4, 6, 8}, "keys are {}", k);
      at = k.local().bytes_data();
    }
    check(cache.longest() == 3 && cache.longest_before() == 0 && cache.modules() == 1, "after the first pass");
    auto [k, v] = pass({3, 1}, {4, 2}, 2);
    check(k.local().bytes_data() == at, "the cache was copied");
    check(cache.longest() == 4 && cache.longest_before() == 3, "after the second pass");
    Tensor keys = k.full_tensor(), values = v.full_tensor();
    const double expected[2][6] = {{1, 1, 1, 2, 0, 0}, {1, 2, 1, 0, 0, 0}};
    for (int64_t i = 0; i < keys.numel(); ++i) {
      double e = expected[i / (4 * 6 * 8)][i / 8 % 6];
      check(element(keys, i) == e && element(values, i) == -e, "element {} is {}, not {}", i, element(keys, i), e);
    }
  });
}

TEST_CASE("a cache's errors: sizes, positions and tokens that are not the pass's") {
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "dp=1");
  auto model = config("llama").make(mesh);
  CHECK_THROWS_WITH(nn::KeyValueCache(-1, 3), "[KeyValueCache] -1 rows of 3 tokens: sizes are not negative");
  nn::KeyValueCache cache(2, 3);
  auto begin = [&](std::vector<int64_t> positions, std::vector<int64_t> lengths) {
    cache.begin_pass(mesh, positions, lengths);
  };
  CHECK_THROWS_WITH(begin({0, 1, 2}, {1, 1}), "[KeyValueCache] 3 positions and 2 lengths are not of 2 rows");
  CHECK_THROWS_WITH(begin({0, 1}, {1}), Contains("lengths are not of 2 rows"));
  CHECK_THROWS_WITH(begin({0, 3}, {1, 1}), "[KeyValueCache] a position of 3 does not fit into a capacity of 3 tokens");
  CHECK_THROWS_WITH(begin({0, 0}, {4, 1}), Contains("a length of 4 does not fit into a capacity of 3 tokens"));
  DistributedTensor k = zeros(mesh, "f32[2,2,1,8]");
  CHECK_THROWS_WITH(cache.extend(*model, k, k), Contains(" are not the keys of the pass that the cache of "));
  begin({0, 0}, {1, 1});
  cache.extend(*model, k, k);
  DistributedTensor longer = zeros(mesh, "f32[2,2,2,8]");
  CHECK_THROWS_WITH(cache.extend(*model, longer, longer), Contains("are not the keys of the pass"));
  nn::SequenceInputs inputs{.cache = &cache};
  DistributedTensor ids = zeros(mesh, "i64[2,1]");
  nn::materialize(*model, 1);
  CHECK_THROWS_WITH((*model)(ids, inputs),
                    Contains("] a cache is for causal attention with positions and without documents"));
}

TEST_CASE("a recurrent state passes over padding and tokens that it has: as if each row went on alone, to the bit") {
  auto rank = Rank::single();
  DeviceMesh mesh(*rank, "dp=1");
  NoGrad no_grad(*rank);
  auto model = config("gla with convolutions").make(mesh);
  nn::materialize(*model, 11);
  auto pass = [&](nn::KeyValueCache& cache, int64_t rows, const std::vector<int64_t>& ids,
                  const std::vector<int64_t>& positions, const std::vector<int64_t>& lengths) {
    auto tokens = [&](const std::vector<int64_t>& list) {
      return DistributedTensor::distribute(Tensor::of<int64_t>({rows, int64_t(list.size()) / rows}, list), mesh,
                                           Layout());
    };
    cache.begin_pass(mesh, positions, lengths);
    return (*model)(tokens(ids), {.positions = tokens(positions), .cache = &cache}).full_tensor();
  };
  nn::KeyValueCache together(2, 80), alone(1, 80);
  // Row 0 has 70 tokens; row 1 three, then none, which repeats its last one, then two and padding.
  std::vector<int64_t> ids, positions;
  for (int64_t row = 0; row < 2; ++row)
    for (int64_t i = 0; i < 70; ++i) ids.push_back((i * 7 + row) % 48), positions.push_back(i);
  pass(together, 2, ids, positions, {70, 3});
  pass(together, 2, {9, ids[72]}, {70, 2}, {71, 3});
  Tensor batch = pass(together, 2, {4, 5, 6, 30, 31, 0}, {71, 72, 73, 3, 4, 5}, {74, 5});
  pass(alone, 1, {ids[70], ids[71], ids[72]}, {0, 1, 2}, {3});
  Tensor one = pass(alone, 1, {30, 31}, {3, 4}, {5});
  for (int64_t i = 0; i < one.numel(); ++i) REQUIRE(element(batch, 3 * 48 + i) == element(one, i));
  CHECK_THROWS_WITH(pass(alone, 1, {1, 2}, {6, 7}, {7}),
                    Contains("] row 0 has 5 tokens and goes on to 7, but new token 0 of the pass has position 6: a "
                             "state takes tokens in their order, so give all that are new, first in their row"));
  nn::KeyValueCache skipped(1, 80);
  CHECK_THROWS_WITH(pass(skipped, 1, {1, 2}, {0, 1}, {3}), Contains("new token 2 of the pass is missing"));
  nn::KeyValueCache unused(1, 80);
  nn::SequenceInputs inputs{.cache = &unused};
  DistributedTensor first = zeros(mesh, "i64[1,1]");
  CHECK_THROWS_WITH((*model)(first, inputs), Contains("] the cache has not begun a pass: call begin_pass"));
}

TEST_CASE("generation's errors name what is wrong") {
  auto with = [](const Texts& p, nn::GenerateOptions o, const char* mesh = "dp=1") { generate({.mesh = mesh}, p, o); };
  CHECK_THROWS_WITH(with({}, {}), Contains("[generate] there is no prompt"));
  CHECK_THROWS_WITH(with({{1}, {}}, {}), Contains("[generate] prompt 1 has no tokens: begin it with the token"));
  CHECK_THROWS_WITH(with({{48}}, {}),
                    Contains("[generate] prompt 0 has the id 48, outside of the model's vocabulary of 48"));
  CHECK_THROWS_WITH(with({{-1}}, {}), Contains("has the id -1"));
  CHECK_THROWS_WITH(with({{1}}, {.max_new_tokens = -1}),
                    Contains("[generate] max_new_tokens is -1; it is not negative"));
  CHECK_THROWS_WITH(with({{1}}, {.sampling = {.top_p = 2}}), Contains("[generate] top_p is 2"));
  CHECK_THROWS_WITH(with({{1}}, {}, "cp=2"),
                    Contains("[generate] the sequence is sharded over cp, and a token at a time"));
}

TEST_CASE("a model whose attention keeps nothing generates without a cache, and says so with one") {
  // The likeliest token after n is n + 1.
  class Counting : public nn::CausalLM {
   public:
    explicit Counting(const DeviceMesh& mesh) : CausalLM(mesh) {}
    std::string_view kind() const override { return "Counting"; }
    DistributedTensor hidden_states(const DistributedTensor& ids, const nn::SequenceInputs&) override {
      return ops::cast(ops::one_hot(ids, 5), DType::f32);
    }
    nn::Linear& head() override { return lm_head; }
    nn::LinearCrossEntropyLoss& criterion() override { return criterion_; }
    nn::Linear lm_head{*this, "lm_head", 5, 5, false, 0.02};

   private:
    nn::LinearCrossEntropyLoss criterion_{*this, "criterion"};
  };
  auto rank = Rank::single();
  Counting model(DeviceMesh(*rank, "dp=1"));
  nn::materialize(model, 1);
  std::vector<float> next(25);
  for (size_t i = 0; i < 5; ++i) next[(i + 1) % 5 * 5 + i] = 1;
  model.lm_head.weight.stored().copy_(
      DistributedTensor::distribute(Tensor::of<float>({5, 5}, next), model.mesh(), Layout()));
  CHECK(nn::generate(model, {{4, 2}, {0}}, {.max_new_tokens = 3, .cache = false}) == Texts{{3, 4, 0}, {1, 2, 3}});
  CHECK_THROWS_WITH(nn::generate(model, {{1}}),
                    Contains("[generate] no module of Counting keeps anything in the cache:"));
}

TEST_CASE("a recurrent state takes a long prompt in linear time, and forgets none of it", "[nightly]") {
  using Json = nlohmann::ordered_json;
  Json json{{"model_type", "gla"},    {"vocab_size", 256}, {"hidden_size", 64},
            {"num_hidden_layers", 2}, {"num_heads", 2},    {"use_short_conv", true}};
  auto rank = Rank::single();
  auto model = nn::ModelConfig::from_json(json).make(DeviceMesh(*rank, "dp=1"));
  nn::materialize(*model, 1);
  auto seconds = [&](size_t length) {
    double least = 1e9;
    for (int i = 0; i < 3; ++i) {
      auto begin = std::chrono::steady_clock::now();
      nn::generate(*model, {Ids(length, 7)}, {.max_new_tokens = 1});
      least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    return least;
  };
  double shorter = seconds(4096), longer = seconds(32768);
  WARN("a prompt of 4,096 tokens: " << shorter << " s, of 32,768: " << longer << " s");
  CHECK(longer < 2 * 8 * shorter);
}

TEST_CASE("time per token is flat over 2,000 tokens", "[nightly]") {
  using Json = nlohmann::ordered_json;
  Json json{{"vocab_size", 1024},
            {"hidden_size", 512},
            {"intermediate_size", 1536},
            {"num_hidden_layers", 2},
            {"num_attention_heads", 8},
            {"num_key_value_heads", 2},
            {"max_position_embeddings", 2048}};
  auto rank = Rank::single();
  auto model = nn::ModelConfig::from_json(json).make(DeviceMesh(*rank, "dp=1"));
  nn::materialize(*model, 1);
  std::vector<std::chrono::steady_clock::time_point> at;
  nn::generate(*model, {{1}}, {.max_new_tokens = 2001, .on_token = [&](size_t, int32_t) {
                                 at.push_back(std::chrono::steady_clock::now());
                               }});
  auto seconds = [&](size_t from) { return std::chrono::duration<double>(at[from + 500] - at[from]).count(); };
  WARN("500 tokens: " << seconds(0) << " s at first, " << seconds(1500) << " s at last");
  CHECK(seconds(1500) < 2 * seconds(0));  // it reads more keys
}
