#include "nn/models/llama.h"

#include "nn/models/key_value_cache.h"

namespace dtensor::nn {
namespace {

// Each layer's window. Source: the configurations of transformers, where sliding_window has a default that null takes
// away, and in the Qwens is used from max_window_layers on where use_sliding_window says so.
std::vector<int64_t> read_windows(const ConfigReader& config, const LlamaConfig& c) {
  bool qwen = c.model_type == "qwen2" || c.model_type == "qwen3",
       used = c.model_type == "mistral" || c.model_type == "phi3";
  int64_t window = c.model_type == "phi3" ? 0 : 4096, first = 0;
  if (qwen) first = 28, config.flag("use_sliding_window", used), config.integer("max_window_layers", first);
  if (!config.integer("sliding_window", window) && config.present("sliding_window")) window = 0;
  if (!used || window == 0) return {};
  std::vector<int64_t> windows;
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) windows.push_back(i < first ? 0 : window);
  if (!config.has("layer_types")) return windows;
  const auto& types = config["layer_types"];
  check(types.is_array() && int64_t(types.size()) == c.num_hidden_layers,
        "[{}] layer_types has {} entries for {} layers", config.who(), types.size(), c.num_hidden_layers);
  for (size_t i = 0; i < windows.size(); ++i) {
    check(types[i] == "full_attention" || types[i] == "sliding_attention",
          "[{}] layer_types has {}; supported are full_attention and sliding_attention", config.who(), types[i].dump());
    windows[i] = types[i] == "sliding_attention" ? window : 0;
  }
  return windows;
}

// What a model_type alone decides.
LlamaConfig defaults_of(const std::string& model_type) {
  LlamaConfig c;
  c.model_type = model_type;
  if (model_type == "mistral") c.max_position_embeddings = 4096 * 32, c.num_key_value_heads = 8;
  if (model_type == "qwen2" || model_type == "qwen3") c.max_position_embeddings = 32768;
  if (model_type == "qwen2") c.attention_bias = true;
  if (model_type == "qwen3") c.qk_norm = true;
  if (model_type == "phi3") c.max_position_embeddings = 4096, c.rms_norm_eps = 1e-5;
  return c;
}

void read_sizes(const ConfigReader& config, LlamaConfig& c) {
  config.require({"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"},
                 "a Llama");
  config.integer("vocab_size", c.vocab_size);
  config.integer("hidden_size", c.hidden_size);
  config.integer("intermediate_size", c.intermediate_size);
  config.integer("num_hidden_layers", c.num_hidden_layers);
  config.integer("num_attention_heads", c.num_attention_heads);
  bool eight = c.model_type == "mistral" && !config.present("num_key_value_heads");
  if (!config.integer("num_key_value_heads", c.num_key_value_heads) && !eight)
    c.num_key_value_heads = c.num_attention_heads;
  bool by_default = c.model_type == "qwen3" && !config.present("head_dim");  // 128
  if (!config.integer("head_dim", c.head_dim) && !by_default) {
    check(c.hidden_size % c.num_attention_heads == 0, "[{}] hidden_size {} does not divide into {} heads", config.who(),
          c.hidden_size, c.num_attention_heads);
    c.head_dim = c.hidden_size / c.num_attention_heads;
  }
  check(c.num_attention_heads % c.num_key_value_heads == 0,
        "[{}] {} attention heads are no multiple of {} key/value heads", config.who(), c.num_attention_heads,
        c.num_key_value_heads);
  check(c.head_dim % 2 == 0, "[{}] head_dim {} is odd; rotary embeddings turn pairs", config.who(), c.head_dim);
  config.integer("max_position_embeddings", c.max_position_embeddings);
}

}  // namespace

LlamaConfig LlamaConfig::load(const std::string& path) { return load_config(path, "llama config", from_json); }

LlamaConfig LlamaConfig::from_json(const nlohmann::ordered_json& json) {
  ConfigReader config(json, "llama config");
  LlamaConfig c = defaults_of(config.model_type({{"LlamaForCausalLM", "llama"},
                                                 {"MistralForCausalLM", "mistral"},
                                                 {"Qwen2ForCausalLM", "qwen2"},
                                                 {"Qwen3ForCausalLM", "qwen3"},
                                                 {"Phi3ForCausalLM", "phi3"}},
                                                "llama"));
  config.only("hidden_act", {"silu", "swish", nullptr});
  config.only("pretraining_tp", {1, nullptr});
  config.only("quantization_config", {nullptr});
  for (const char* key : {"resid_pdrop", "embd_pdrop"}) config.only(key, {0, nullptr});
  read_sizes(config, c);
  config.positive("rms_norm_eps", c.rms_norm_eps);
  config.standard_deviation("initializer_range", c.initializer_range);
  config.probability("attention_dropout", c.attention_dropout);
  config.flag("tie_word_embeddings", c.tie_word_embeddings);
  if (c.model_type == "llama" || c.model_type == "qwen3") {  // where the others have no such field
    config.flag("attention_bias", c.attention_bias);
    c.output_bias = c.attention_bias;
  }
  if (c.model_type == "llama") config.flag("mlp_bias", c.mlp_bias);
  c.rope = RopeConfig::from(config, c.max_position_embeddings);
  c.windows = read_windows(config, c);
  config.token("pad_token_id", c.padding_idx, c.vocab_size);
  return c;
}

// --- Attention

DecoderAttention::DecoderAttention(Module& parent, std::string name, const LlamaConfig& c, int64_t layer)
    : Callable(parent, std::move(name)), config_(c), window_(c.window(layer)) {
  input_names = {"hidden_states"};
  if (!c.qk_norm) return;
  q_norm_ = std::make_unique<RMSNorm>(*this, "q_norm", c.head_dim, c.rms_norm_eps);
  k_norm_ = std::make_unique<RMSNorm>(*this, "k_norm", c.head_dim, c.rms_norm_eps);
}

ops::RotaryAngles DecoderAttention::angles(int64_t length, const KeyValueCache* cache) {
  if (cache) length = cache->longest();
  if (int64_t before = cache ? cache->longest_before() : 0; before > 0 && config_.rope.depends_on_length()) {
    ops::RotaryAngles was = config_.rope.angles(config_.head_dim, before),
                      is = config_.rope.angles(config_.head_dim, length);
    check(was.frequencies == is.frequencies && was.scale == is.scale,
          "[{}] the rotary angles change between {} and {} tokens, and the cache has keys of the former: generate "
          "without a cache, or fewer tokens",
          path(), before, length);
  }
  if (length_ != length && (length_ < 0 || config_.rope.depends_on_length()))
    angles_ = config_.rope.angles(config_.head_dim, length), length_ = length;
  return angles_;
}

DistributedTensor DecoderAttention::attend(const DistributedTensor& q_proj, const DistributedTensor& k_proj,
                                           const DistributedTensor& v_proj, const SequenceInputs& inputs) {
  DistributedTensor q = split_heads(*this, q_proj, config_.num_attention_heads),
                    k = split_heads(*this, k_proj, config_.num_key_value_heads),
                    v = split_heads(*this, v_proj, config_.num_key_value_heads);
  if (q_norm_) q = (*q_norm_)(q), k = (*k_norm_)(k);
  std::tie(q, k) = ops::rotary(q, k, angles(q.size(1), inputs.cache), inputs.positions);
  return nn::attend(core_attention, q, k, v, inputs,
                    {.causal = true, .window = window_, .dropout_p = config_.attention_dropout});
}

LlamaAttention::LlamaAttention(Module& parent, std::string name, const LlamaConfig& c, int64_t layer)
    : DecoderAttention(parent, std::move(name), c, layer),
      q_proj(*this, "q_proj", c.hidden_size, c.num_attention_heads * c.head_dim, c.attention_bias, c.initializer_range),
      k_proj(*this, "k_proj", c.hidden_size, c.num_key_value_heads * c.head_dim, c.attention_bias, c.initializer_range),
      v_proj(*this, "v_proj", c.hidden_size, c.num_key_value_heads * c.head_dim, c.attention_bias, c.initializer_range),
      o_proj(*this, "o_proj", c.num_attention_heads * c.head_dim, c.hidden_size, c.output_bias, c.initializer_range) {}

DistributedTensor LlamaAttention::forward(const DistributedTensor& x, const SequenceInputs& inputs) {
  DistributedTensor q = q_proj(x), k = k_proj(x), v = v_proj(x);
  return o_proj(attend(q, k, v, inputs));
}

Phi3Attention::Phi3Attention(Module& parent, std::string name, const LlamaConfig& c, int64_t layer)
    : DecoderAttention(parent, std::move(name), c, layer),
      qkv_proj(*this, "qkv_proj", c.hidden_size, (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim,
               false, c.initializer_range),
      o_proj(*this, "o_proj", c.num_attention_heads * c.head_dim, c.hidden_size, false, c.initializer_range) {}

DistributedTensor Phi3Attention::forward(const DistributedTensor& x, const SequenceInputs& inputs) {
  DistributedTensor qkv = qkv_proj(x);
  int64_t of_q = config_.num_attention_heads * config_.head_dim, of_kv = config_.num_key_value_heads * config_.head_dim;
  DistributedTensor q = ops::slice(qkv, -1, 0, of_q), k = ops::slice(qkv, -1, of_q, of_q + of_kv),
                    v = ops::slice(qkv, -1, of_q + of_kv, of_q + 2 * of_kv);
  return o_proj(attend(q, k, v, inputs));
}

// --- MLP

LlamaMLP::LlamaMLP(Module& parent, std::string name, const LlamaConfig& c)
    : Callable(parent, std::move(name)),
      gate_proj(*this, "gate_proj", c.hidden_size, c.intermediate_size, c.mlp_bias, c.initializer_range),
      up_proj(*this, "up_proj", c.hidden_size, c.intermediate_size, c.mlp_bias, c.initializer_range),
      down_proj(*this, "down_proj", c.intermediate_size, c.hidden_size, c.mlp_bias, c.initializer_range),
      swiglu_linear(*this, "swiglu_linear") {
  input_names = {"x"};
}

Phi3MLP::Phi3MLP(Module& parent, std::string name, const LlamaConfig& c)
    : Callable(parent, std::move(name)),
      gate_up_proj(*this, "gate_up_proj", c.hidden_size, 2 * c.intermediate_size, false, c.initializer_range),
      down_proj(*this, "down_proj", c.intermediate_size, c.hidden_size, false, c.initializer_range) {
  input_names = {"hidden_states"};
}

DistributedTensor Phi3MLP::forward(const DistributedTensor& x) {
  DistributedTensor gate_up = gate_up_proj(x);
  int64_t half = gate_up.size(-1) / 2;
  return down_proj(ops::swiglu(ops::slice(gate_up, -1, 0, half), ops::slice(gate_up, -1, half, 2 * half)));
}

// --- The model

namespace {

// A head of its own, or the embedding's table.
template <class Model>
Linear make_head(Module& root, Model& model, const LlamaConfig& c) {
  if (c.tie_word_embeddings) return Linear(root, "lm_head", model.embed_tokens.weight);
  return Linear(root, "lm_head", c.hidden_size, c.vocab_size, false, c.initializer_range);
}

}  // namespace

template <class Layer>
DecoderForCausalLM<Layer>::DecoderForCausalLM(const DeviceMesh& mesh, const LlamaConfig& c)
    : CausalLM(mesh), config_(c), model(*this, "model", c), lm_head(make_head(*this, model, c)) {}

template class DecoderForCausalLM<LlamaDecoderLayer>;
template class DecoderForCausalLM<DecoderLayer<Phi3Attention, Phi3MLP>>;

}  // namespace dtensor::nn
