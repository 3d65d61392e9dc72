#include "nn/models/causal_lm.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "dtensor/redistribute.h"
#include "nn/models/config.h"
#include "nn/models/gla.h"
#include "nn/models/gpt.h"
#include "nn/models/gpt2.h"
#include "nn/models/llama.h"

namespace dtensor::nn {

DistributedTensor CausalLM::forward(const DistributedTensor& ids, const SequenceInputs& inputs) {
  DistributedTensor h = hidden_states(ids, inputs);
  if (const DistributedTensor& at = inputs.wanted; at.defined()) {
    Layout layout = h.layout();  // which a plan for the head counts on
    h = ops::gather(h, 1, ops::expand(ops::unsqueeze(at, 2), {at.size(0), at.size(1), h.size(2)}));
    h = h.redistribute(layout, {.reason = "wanted tokens"});
  }
  return head()(h);
}

namespace {

template <class Model, class Config>
std::function<std::unique_ptr<CausalLM>(const DeviceMesh&)> maker(Config config) {
  return [config](const DeviceMesh& mesh) { return std::make_unique<Model>(mesh, config); };
}

// The names of architectures, and their model_type.
std::vector<std::pair<std::string, std::string>> architectures() {
  return {{"LlamaForCausalLM", "llama"}, {"MistralForCausalLM", "mistral"}, {"Qwen2ForCausalLM", "qwen2"},
          {"Qwen3ForCausalLM", "qwen3"}, {"Phi3ForCausalLM", "phi3"},       {"GPT2LMHeadModel", "gpt2"},
          {"GPTModel", "gpt"},           {"GLAForCausalLM", "gla"}};
}

// A file that does not say what it is, by fields that others have not.
const char* type_by_fields(const ConfigReader& config) {
  return config.has("n_embd") ? "gpt2" : config.has("d_model") ? "gpt" : config.has("expand_k") ? "gla" : "llama";
}

}  // namespace

ModelConfig::ModelConfig(const LlamaConfig& c)
    : model_type_(c.model_type),
      vocab_size_(c.vocab_size),
      max_position_embeddings_(c.max_position_embeddings),
      kv_heads_(c.num_key_value_heads),
      make_(c.model_type == "phi3" ? maker<Phi3ForCausalLM>(c) : maker<LlamaForCausalLM>(c)) {}
ModelConfig::ModelConfig(const Gpt2Config& c)
    : model_type_("gpt2"),
      vocab_size_(c.vocab_size),
      max_position_embeddings_(c.n_positions),
      kv_heads_(c.n_head),
      make_(maker<Gpt2LMHeadModel>(c)) {}
ModelConfig::ModelConfig(const GptConfig& c)
    : model_type_("gpt"),
      vocab_size_(c.vocab_size),
      max_position_embeddings_(c.max_position_embeddings),
      kv_heads_(c.n_heads),
      make_(maker<GptModel>(c)) {}
ModelConfig::ModelConfig(const GlaConfig& c)
    : model_type_("gla"),
      vocab_size_(c.vocab_size),
      max_position_embeddings_(c.max_position_embeddings),
      kv_heads_(c.num_kv_heads),
      make_(maker<GlaForCausalLM>(c)) {}

std::string ModelConfig::architecture() const {
  auto list = architectures();
  return std::find_if(list.begin(), list.end(), [&](const auto& a) { return a.second == model_type_; })->first;
}

ModelConfig ModelConfig::load(const std::string& path) { return load_config(path, "model config", from_json); }

ModelConfig ModelConfig::from_json(const nlohmann::ordered_json& json) {
  ConfigReader config(json, "model config");
  std::string type = config.model_type(architectures(), type_by_fields(config));
  if (type == "gpt2") return Gpt2Config::from_json(json);
  if (type == "gla") return GlaConfig::from_json(json);
  if (type == "gpt") return GptConfig::from_json(json);
  return LlamaConfig::from_json(json);
}

}  // namespace dtensor::nn
