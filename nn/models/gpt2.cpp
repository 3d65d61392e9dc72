#include "nn/models/gpt2.h"

#include <cmath>

#include "nn/models/attention.h"
#include "nn/models/config.h"

namespace dtensor::nn {
namespace {

double residual_std(const Gpt2Config& c) { return c.initializer_range / std::sqrt(2.0 * double(c.n_layer)); }

Linear make_head(Module& root, Gpt2Model& model, const Gpt2Config& c) {
  if (c.tie_word_embeddings) return Linear(root, "lm_head", model.wte.weight);
  return Linear(root, "lm_head", c.n_embd, c.vocab_size, false, c.initializer_range);
}

}  // namespace

Gpt2Config Gpt2Config::load(const std::string& path) { return load_config(path, "gpt2 config", from_json); }

Gpt2Config Gpt2Config::from_json(const nlohmann::ordered_json& json) {
  ConfigReader config(json, "gpt2 config");
  Gpt2Config c;
  config.model_type({{"GPT2LMHeadModel", "gpt2"}}, "gpt2");
  config.require({"vocab_size", "n_positions", "n_embd", "n_layer", "n_head"}, "a GPT-2");
  config.only("scale_attn_weights", {true, nullptr});
  config.only("reorder_and_upcast_attn", {false, nullptr});
  config.only("add_cross_attention", {false, nullptr});
  config.only("quantization_config", {nullptr});
  config.integer("vocab_size", c.vocab_size);
  config.integer("n_positions", c.n_positions);
  config.integer("n_embd", c.n_embd);
  config.integer("n_layer", c.n_layer);
  config.integer("n_head", c.n_head);
  if (!config.integer("n_inner", c.n_inner)) c.n_inner = 4 * c.n_embd;
  check(c.n_embd % c.n_head == 0, "[gpt2 config] n_embd {} does not divide into {} heads", c.n_embd, c.n_head);
  config.text("activation_function", c.activation_function);
  config.probability("resid_pdrop", c.resid_pdrop);
  config.probability("embd_pdrop", c.embd_pdrop);
  config.probability("attn_pdrop", c.attn_pdrop);
  config.positive("layer_norm_epsilon", c.layer_norm_epsilon);
  config.standard_deviation("initializer_range", c.initializer_range);
  config.flag("tie_word_embeddings", c.tie_word_embeddings);
  config.flag("scale_attn_by_inverse_layer_idx", c.scale_attn_by_inverse_layer_idx);
  return c;
}

Gpt2Attention::Gpt2Attention(Module& parent, std::string name, const Gpt2Config& c, int64_t layer)
    : Callable(parent, std::move(name)),
      c_attn(*this, "c_attn", c.n_embd, 3 * c.n_embd, c.initializer_range),
      c_proj(*this, "c_proj", c.n_embd, c.n_embd, residual_std(c)),
      resid_dropout(*this, "resid_dropout", c.resid_pdrop),
      heads_(c.n_head),
      scale_(1 / std::sqrt(double(c.n_embd / c.n_head)) / (c.scale_attn_by_inverse_layer_idx ? double(layer + 1) : 1)),
      dropout_p_(c.attn_pdrop) {
  input_names = {"hidden_states"};
}

DistributedTensor Gpt2Attention::forward(const DistributedTensor& x, const SequenceInputs& inputs) {
  DistributedTensor qkv = c_attn(x);
  int64_t n = qkv.size(-1) / 3;
  auto heads = [&](int64_t i) { return split_heads(*this, ops::slice(qkv, -1, i * n, (i + 1) * n), heads_); };
  DistributedTensor q = heads(0), k = heads(1), v = heads(2);
  DistributedTensor out =
      attend(core_attention, q, k, v, inputs, {.causal = true, .scale = scale_, .dropout_p = dropout_p_});
  return resid_dropout(c_proj(out));
}

Gpt2MLP::Gpt2MLP(Module& parent, std::string name, const Gpt2Config& c)
    : Callable(parent, std::move(name)),
      c_fc(*this, "c_fc", c.n_embd, c.n_inner, c.initializer_range),
      c_proj(*this, "c_proj", c.n_inner, c.n_embd, residual_std(c)),
      act(*this, "act", c.activation_function),
      dropout(*this, "dropout", c.resid_pdrop) {
  input_names = {"hidden_states"};
}

Gpt2Block::Gpt2Block(Module& parent, std::string name, const Gpt2Config& c, int64_t layer)
    : Callable(parent, std::move(name)),
      ln_1(*this, "ln_1", c.n_embd, c.layer_norm_epsilon),
      attn(*this, "attn", c, layer),
      ln_2(*this, "ln_2", c.n_embd, c.layer_norm_epsilon),
      mlp(*this, "mlp", c) {
  input_names = {"hidden_states"};
}

Gpt2Model::Gpt2Model(Module& parent, std::string name, const Gpt2Config& c)
    : Callable(parent, std::move(name)),
      wte(*this, "wte", c.vocab_size, c.n_embd, c.initializer_range),
      wpe(*this, "wpe", c.n_positions, c.n_embd, c.initializer_range),
      drop(*this, "drop", c.embd_pdrop),
      ln_f(*this, "ln_f", c.n_embd, c.layer_norm_epsilon) {
  input_names = {"input_ids"};
  for (int64_t i = 0; i < c.n_layer; ++i) h.emplace_back(c, i);
}

DistributedTensor Gpt2Model::forward(const DistributedTensor& input_ids, const SequenceInputs& inputs) {
  DistributedTensor x = drop(add_positions(wte(input_ids), wpe, inputs.positions));
  for (Gpt2Block& block : h) x = block(x, inputs);
  return ln_f(x);
}

Gpt2LMHeadModel::Gpt2LMHeadModel(const DeviceMesh& mesh, const Gpt2Config& c)
    : CausalLM(mesh), config_(c), transformer(*this, "transformer", c), lm_head(make_head(*this, transformer, c)) {}

}  // namespace dtensor::nn
