#include "nn/models/llama.h"

#include <fmt/format.h>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "nn/json.h"
#include "placement/nearest.h"

namespace dtensor::nn {

namespace {

// Any JSON object would be a model of default sizes: these tell a Llama's config.json from others.
void check_required(const nlohmann::ordered_json& json) {
  std::vector<std::string> present, missing;
  for (const auto& [key, value] : json.items()) present.push_back(key);
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"})
    if (!json.contains(key)) missing.push_back(fmt::format("{}{}", key, nearest_hint(key, present)));
  check(missing.empty(), "[llama config] this is no config.json of a Llama: it lacks {}", fmt::join(missing, ", and "));
  if (!json.contains("architectures") || json["architectures"].is_null()) return;
  const auto& names = json["architectures"];
  check(names.is_array() && std::find(names.begin(), names.end(), "LlamaForCausalLM") != names.end(),
        "[llama config] architectures is {}; only \"LlamaForCausalLM\" is supported", names.dump());
}

}  // namespace

LlamaConfig LlamaConfig::load(const std::string& path) {
  std::string file =
      std::filesystem::is_directory(path) ? (std::filesystem::path(path) / "config.json").string() : path;
  nlohmann::ordered_json json = load_json(file, "llama config");
  try {
    return from_json(json);
  } catch (const Error& e) {
    fail("{} (in {})", e.what(), file);
  }
}

LlamaConfig LlamaConfig::from_json(const nlohmann::ordered_json& json) {
  LlamaConfig c;
  check(json.is_object(), "[llama config] the file is not a JSON object");
  auto integer = [&](const char* key, int64_t& value) {
    if (!json.contains(key) || json[key].is_null()) return false;
    check(json[key].is_number_integer() && json[key].get<int64_t>() > 0 && json[key].get<int64_t>() <= INT32_MAX,
          "[llama config] {} is {}; it needs an integer from 1 to {}", key, json[key].dump(), INT32_MAX);
    value = json[key].get<int64_t>();
    return true;
  };
  auto number_in = [](const nlohmann::ordered_json& object, const char* key, double& value) {
    if (!object.contains(key) || object[key].is_null()) return;
    check(object[key].is_number(), "[llama config] {} is {}; it needs a number", key, object[key].dump());
    value = object[key].get<double>();
  };
  auto number = [&](const char* key, double& value) { number_in(json, key, value); };
  // Fields that change the result: only these values are supported.
  const std::pair<const char*, nlohmann::ordered_json> fixed[] = {
      {"model_type", "llama"},   {"hidden_act", "silu"},   {"attention_bias", false},
      {"mlp_bias", false},       {"attention_dropout", 0}, {"tie_word_embeddings", false},
      {"rope_scaling", nullptr}, {"pretraining_tp", 1},    {"quantization_config", nullptr}};
  for (const auto& [key, value] : fixed)
    if (json.contains(key))
      check(json[key] == value, "[llama config] {} is {}; only {} is supported", key, json[key].dump(), value.dump());

  check_required(json);
  integer("vocab_size", c.vocab_size);
  integer("hidden_size", c.hidden_size);
  integer("intermediate_size", c.intermediate_size);
  integer("num_hidden_layers", c.num_hidden_layers);
  integer("num_attention_heads", c.num_attention_heads);
  if (!integer("num_key_value_heads", c.num_key_value_heads)) c.num_key_value_heads = c.num_attention_heads;
  if (!integer("head_dim", c.head_dim)) {
    check(c.hidden_size % c.num_attention_heads == 0, "[llama config] hidden_size {} does not divide into {} heads",
          c.hidden_size, c.num_attention_heads);
    c.head_dim = c.hidden_size / c.num_attention_heads;
  }
  integer("max_position_embeddings", c.max_position_embeddings);
  number("rms_norm_eps", c.rms_norm_eps);
  number("rope_theta", c.rope_theta);
  number("initializer_range", c.initializer_range);
  if (json.contains("rope_parameters") && json["rope_parameters"].is_object()) {  // where newer files have it
    const auto& rope = json["rope_parameters"];
    if (rope.contains("rope_type"))
      check(rope["rope_type"] == "default", "[llama config] rope_type is {}; only \"default\" is supported",
            rope["rope_type"].dump());
    if (rope.contains("partial_rotary_factor"))
      check(rope["partial_rotary_factor"] == 1, "[llama config] partial_rotary_factor is {}; only 1 is supported",
            rope["partial_rotary_factor"].dump());
    number_in(rope, "rope_theta", c.rope_theta);
  }
  check(c.rms_norm_eps > 0, "[llama config] rms_norm_eps is {}; it needs a number above 0", c.rms_norm_eps);
  check(c.rope_theta > 0, "[llama config] rope_theta is {}; it needs a number above 0", c.rope_theta);
  check(c.initializer_range >= 0, "[llama config] initializer_range is {}; a standard deviation is not negative",
        c.initializer_range);
  check(c.num_attention_heads % c.num_key_value_heads == 0,
        "[llama config] {} attention heads are no multiple of {} key/value heads", c.num_attention_heads,
        c.num_key_value_heads);
  check(c.head_dim % 2 == 0, "[llama config] head_dim {} is odd; rotary embeddings turn pairs", c.head_dim);
  return c;
}

LlamaAttention::LlamaAttention(Module& parent, std::string name, const LlamaConfig& c)
    : Callable(parent, std::move(name)),
      q_proj(*this, "q_proj", c.hidden_size, c.num_attention_heads * c.head_dim, false, c.initializer_range),
      k_proj(*this, "k_proj", c.hidden_size, c.num_key_value_heads * c.head_dim, false, c.initializer_range),
      v_proj(*this, "v_proj", c.hidden_size, c.num_key_value_heads * c.head_dim, false, c.initializer_range),
      o_proj(*this, "o_proj", c.num_attention_heads * c.head_dim, c.hidden_size, false, c.initializer_range),
      config_(c) {
  input_names = {"hidden_states"};
}

// [batch, sequence, heads * head_dim] -> [batch, sequence, heads, head_dim], sharded by heads where the ranks divide
// them
DistributedTensor LlamaAttention::split_heads(const DistributedTensor& x, int64_t heads) const {
  const MeshShape& mesh = x.mesh().shape();
  int ranks = mesh.product(x.layout().split[2].set());
  check(heads % ranks == 0,
        "[{}] {} heads do not divide over {} ranks ({}): use fewer ranks on that axis, or let the projection's plan "
        "line have "
        "\"output_layouts\": \"Replicate\"",
        path(), heads, ranks, mesh.names(x.layout().split[2].set()));
  return ops::view(x, {x.size(0), x.size(1), heads, config_.head_dim});
}

DistributedTensor LlamaAttention::forward(const DistributedTensor& x) {
  auto [q, k] = ops::rotary(split_heads(q_proj(x), config_.num_attention_heads),
                            split_heads(k_proj(x), config_.num_key_value_heads), config_.rope_theta);
  DistributedTensor v = split_heads(v_proj(x), config_.num_key_value_heads);
  auto heads_first = [](const DistributedTensor& t) { return ops::transpose(t, 1, 2); };
  DistributedTensor out =
      ops::scaled_dot_product_attention(heads_first(q), heads_first(k), heads_first(v), {.causal = true});
  return o_proj(
      ops::view(ops::transpose(out, 1, 2), {x.size(0), x.size(1), config_.num_attention_heads * config_.head_dim}));
}

LlamaMLP::LlamaMLP(Module& parent, std::string name, const LlamaConfig& c)
    : Callable(parent, std::move(name)),
      gate_proj(*this, "gate_proj", c.hidden_size, c.intermediate_size, false, c.initializer_range),
      up_proj(*this, "up_proj", c.hidden_size, c.intermediate_size, false, c.initializer_range),
      down_proj(*this, "down_proj", c.intermediate_size, c.hidden_size, false, c.initializer_range) {
  input_names = {"x"};
}

LlamaDecoderLayer::LlamaDecoderLayer(Module& parent, std::string name, const LlamaConfig& c)
    : Callable(parent, std::move(name)),
      input_layernorm(*this, "input_layernorm", c.hidden_size, c.rms_norm_eps),
      self_attn(*this, "self_attn", c),
      post_attention_layernorm(*this, "post_attention_layernorm", c.hidden_size, c.rms_norm_eps),
      mlp(*this, "mlp", c) {
  input_names = {"hidden_states"};
}

DistributedTensor LlamaDecoderLayer::forward(const DistributedTensor& x) {
  auto [normed, h] = post_attention_layernorm(self_attn(input_layernorm(x)), x);
  return h + mlp(normed);
}

LlamaModel::LlamaModel(Module& parent, std::string name, const LlamaConfig& c)
    : Callable(parent, std::move(name)),
      embed_tokens(*this, "embed_tokens", c.vocab_size, c.hidden_size, c.initializer_range),
      norm(*this, "norm", c.hidden_size, c.rms_norm_eps) {
  input_names = {"input_ids"};
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) layers.emplace_back(c);
}

DistributedTensor LlamaModel::forward(const DistributedTensor& input_ids) {
  DistributedTensor h = embed_tokens(input_ids);
  for (LlamaDecoderLayer& layer : layers) h = layer(h);
  return norm(h);
}

LlamaForCausalLM::LlamaForCausalLM(const DeviceMesh& mesh, const LlamaConfig& c)
    : Callable(mesh),
      config_(c),
      model(*this, "model", c),
      lm_head(*this, "lm_head", c.hidden_size, c.vocab_size, false, c.initializer_range) {
  input_names = {"input_ids"};
}

}  // namespace dtensor::nn
