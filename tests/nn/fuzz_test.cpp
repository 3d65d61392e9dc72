// Mutated plans and configurations: each is read, applied and run on meta tensors, or refused with an Error. Anything
// else, another exception or a crash, is a fault. What fails names the seed.
#include <fmt/format.h>

#include "dtensor/creation.h"
#include "nn/models/auto_plan.h"
#include "nn/models/bert.h"
#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using namespace dtensor::nn;

namespace {

using Json = nlohmann::ordered_json;

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  int below(size_t n) {
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return int(state_ % n);
  }

  Json mutated(Json j) {
    for (int n = 1 + below(3); n > 0; --n) change(j);
    return j;
  }

 private:
  Json value() {
    const char* list[] = {"null",
                          "true",
                          "false",
                          "0",
                          "-1",
                          "1",
                          "2",
                          "7",
                          "1e308",
                          "-0.5",
                          "18446744073709551615",
                          "9223372036854775807",
                          "\"\"",
                          "\"tp\"",
                          "\"dp\"",
                          "\"Shard(1)\"",
                          "\"Shard(9)\"",
                          "\"Replicate\"",
                          "\"Partial\"",
                          "\"*\"",
                          "\"model.layers.*\"",
                          "\"ColwiseParallel\"",
                          "\"SequenceParallel\"",
                          "\"llama3\"",
                          "\"longrope\"",
                          "[]",
                          "{}",
                          "[null]",
                          "[\"dp\"]",
                          "{\"a\": 1}",
                          "\"\\u0000\"",
                          "\"\xc3\xa9\""};
    return json(list[below(std::size(list))]);
  }
  // A place somewhere in j.
  Json& place(Json& j) {
    if (!j.is_structured() || j.empty() || below(4) == 0) return j;
    auto at = j.begin();
    std::advance(at, below(j.size()));
    return place(*at);
  }
  void change(Json& j) {
    Json& at = place(j);
    if (at.is_object() && !at.empty() && below(2)) {
      auto it = at.begin();
      std::advance(it, below(at.size()));
      std::string key = it.key();
      Json v = it.value();
      int what = below(3);
      if (what > 0) at.erase(key);
      if (what == 1) key.empty() ? (void)(at["x"] = v) : (void)(at[key.substr(1)] = v);
      if (what == 0) at[key + "*"] = v;
    } else {
      at = value();
    }
  }
  uint64_t state_;
};

// "" or what was wrong with the way in which it failed.
template <class F>
std::string outcome(F f) {
  try {
    f();
  } catch (const Error& e) {
    std::string text = e.what();
    return text.size() > 3 && text[0] == '[' ? "" : "an error without its function: " + text;
  } catch (const std::exception& e) {
    return fmt::format("another exception: {}", e.what());
  }
  return "";
}

std::vector<Json> files_in(const char* folder) {
  std::vector<Json> list;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(DTENSOR_SOURCE_DIR) + "/examples/" + folder)) {
    std::ifstream in(entry.path());
    if (entry.path().extension() == ".json") list.push_back(Json::parse(in));
  }
  return list;
}

const char* small_models[] = {
    R"({"model_type": "llama", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "rope_scaling": {"rope_type": "llama3", "factor": 2, "low_freq_factor": 1,
        "high_freq_factor": 4, "original_max_position_embeddings": 8}, "pad_token_id": 3})",
    R"({"model_type": "qwen3", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "layer_types": ["full_attention",
        "sliding_attention"], "use_sliding_window": true, "sliding_window": 2, "max_window_layers": 1})",
    R"({"model_type": "phi3", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "rope_parameters": {"rope_type": "longrope", "rope_theta": 100.0,
        "short_factor": [1, 1], "long_factor": [1, 2], "original_max_position_embeddings": 4}})",
    R"({"model_type": "gpt2", "vocab_size": 16, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2})",
    R"({"model_type": "gpt", "vocab_size": 16, "d_model": 8, "n_layers": 1, "n_heads": 2, "d_ff": 8})",
};

void fuzz(uint64_t first, uint64_t count) {
  const std::vector<Json> plans = files_in("plans");
  for (uint64_t seed = first; seed < first + count; ++seed) {
    Mutator m(seed);
    Json plan = m.mutated(plans[size_t(m.below(plans.size()))]), config = json(small_models[m.below(5)]);
    if (m.below(2)) config = m.mutated(config);
    std::string wrong = outcome([&] {
      ModelConfig model_config = ModelConfig::from_json(config);
      check(model_config.vocab_size() < 1000, "[fuzz] too large to run");
      MeshShape shape = MeshShape::parse(m.below(2) ? "dp=2,tp=2" : "tp=2");
      auto rank = Rank::recorded(shape.world());
      DeviceMesh mesh(*rank, shape);
      auto model = model_config.make(mesh);
      check(model->parameter_count() < 1 << 20, "[fuzz] too large to run");
      ParallelPlan parallel = ParallelPlan::from_json(plan);
      check(ParallelPlan::from_json(parallel.to_json()) == parallel, "from_json(to_json()) is another plan");
      parallel.apply(*model);
      materialize(*model, 1);
      StepNumber step(mesh);
      RandomScope scope(step, {.seed = 1});
      (*model)(zeros(mesh, {DType::i64, {4, 8}, batch_layout(shape, parallel)}));
    });
    INFO("seed " << seed << ": " << config.dump() << "\n" << plan.dump());
    REQUIRE(wrong == "");
  }
}

}  // namespace

TEST_CASE("law 9: mutated plans and configurations run or are refused") { fuzz(1, 300); }
// Ten minutes.
TEST_CASE("law 9: many mutated plans and configurations run or are refused", "[nightly]") { fuzz(1000, 6'000'000); }
