#include "nn/models/causal_lm.h"

#include <nlohmann/json.hpp>

#include "nn/models/config.h"
#include "nn/models/gpt.h"
#include "nn/models/gpt2.h"
#include "nn/models/llama.h"

namespace dtensor::nn {

namespace {

template <class Model, class Config>
std::function<std::unique_ptr<CausalLM>(const DeviceMesh&)> maker(Config config) {
  return [config](const DeviceMesh& mesh) { return std::make_unique<Model>(mesh, config); };
}

// A file that does not say what it is, by fields that others have not.
const char* type_by_fields(const ConfigReader& config) {
  return config.has("n_embd") ? "gpt2" : config.has("d_model") ? "gpt" : "llama";
}

}  // namespace

ModelConfig ModelConfig::load(const std::string& path) { return load_config(path, "model config", from_json); }

ModelConfig ModelConfig::from_json(const nlohmann::ordered_json& json) {
  ConfigReader config(json, "model config");
  ModelConfig m;
  m.model_type_ = config.model_type({{"LlamaForCausalLM", "llama"},
                                     {"MistralForCausalLM", "mistral"},
                                     {"Qwen2ForCausalLM", "qwen2"},
                                     {"Qwen3ForCausalLM", "qwen3"},
                                     {"Phi3ForCausalLM", "phi3"},
                                     {"GPT2LMHeadModel", "gpt2"},
                                     {"GPTModel", "gpt"}},
                                    type_by_fields(config));
  if (m.model_type_ == "gpt2") {
    Gpt2Config c = Gpt2Config::from_json(json);
    m.vocab_size_ = c.vocab_size, m.kv_heads_ = c.n_head, m.make_ = maker<Gpt2LMHeadModel>(c);
  } else if (m.model_type_ == "gpt") {
    GptConfig c = GptConfig::from_json(json);
    m.vocab_size_ = c.vocab_size, m.kv_heads_ = c.n_heads, m.make_ = maker<GptModel>(c);
  } else {
    LlamaConfig c = LlamaConfig::from_json(json);
    m.vocab_size_ = c.vocab_size, m.kv_heads_ = c.num_key_value_heads;
    m.make_ = c.model_type == "phi3" ? maker<Phi3ForCausalLM>(c) : maker<LlamaForCausalLM>(c);
  }
  return m;
}

}  // namespace dtensor::nn
