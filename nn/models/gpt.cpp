#include "nn/models/gpt.h"

#include "nn/models/attention.h"
#include "nn/models/config.h"
#include "nn/parallel/layers.h"

namespace dtensor::nn {
namespace {

std::unique_ptr<Linear> column(Module& parent, const char* name, int64_t in, int64_t out, const GptConfig& c) {
  if (c.use_tensor_parallel)
    return std::make_unique<ColumnParallelLinear>(parent, name, in, out,
                                                  ColumnParallelLinear::Options{.std = c.initializer_range});
  return std::make_unique<Linear>(parent, name, in, out, true, c.initializer_range);
}

}  // namespace

GptConfig GptConfig::load(const std::string& path) { return load_config(path, "gpt config", from_json); }

GptConfig GptConfig::from_json(const nlohmann::ordered_json& json) {
  ConfigReader config(json, "gpt config");
  GptConfig c;
  config.model_type({{"GPTModel", "gpt"}}, "gpt");
  config.require({"vocab_size", "n_layers", "n_heads", "d_model"}, "a GPT");
  config.integer("vocab_size", c.vocab_size);
  config.integer("max_position_embeddings", c.max_position_embeddings);
  config.integer("n_layers", c.n_layers);
  config.integer("n_heads", c.n_heads);
  config.integer("d_model", c.d_model);
  if (!config.integer("d_ff", c.d_ff)) c.d_ff = 4 * c.d_model;
  check(c.d_model % c.n_heads == 0, "[gpt config] d_model {} does not divide into {} heads", c.d_model, c.n_heads);
  config.probability("dropout", c.dropout);
  config.flag("use_tensor_parallel", c.use_tensor_parallel);
  config.standard_deviation("initializer_range", c.initializer_range);
  return c;
}

MultiHeadSelfAttention::MultiHeadSelfAttention(Module& parent, std::string name, const GptConfig& c)
    : Callable(parent, std::move(name)),
      qkv_proj(column(*this, "qkv_proj", c.d_model, 3 * c.d_model, c)),
      out_proj(*this, "out_proj", c.d_model, c.d_model, true, c.initializer_range),
      dropout(*this, "dropout", c.dropout),
      heads_(c.n_heads),
      dropout_p_(c.dropout) {
  input_names = {"x"};
}

DistributedTensor MultiHeadSelfAttention::forward(const DistributedTensor& x, const SequenceInputs& inputs) {
  DistributedTensor qkv = (*qkv_proj)(x);
  int64_t n = qkv.size(-1) / 3;
  auto heads = [&](int64_t i) { return split_heads(*this, ops::slice(qkv, -1, i * n, (i + 1) * n), heads_); };
  DistributedTensor q = heads(0), k = heads(1), v = heads(2);
  return dropout(out_proj(attend(core_attention, q, k, v, inputs, {.causal = true, .dropout_p = dropout_p_})));
}

FeedForward::FeedForward(Module& parent, std::string name, const GptConfig& c)
    : Callable(parent, std::move(name)),
      fc1(column(*this, "fc1", c.d_model, c.d_ff, c)),
      fc2(*this, "fc2", c.d_ff, c.d_model, true, c.initializer_range),
      dropout(*this, "dropout", c.dropout) {
  input_names = {"x"};
}

GptBlock::GptBlock(Module& parent, std::string name, const GptConfig& c)
    : Callable(parent, std::move(name)),
      ln1(*this, "ln1", c.d_model),
      attn(*this, "attn", c),
      ln2(*this, "ln2", c.d_model),
      ffn(*this, "ffn", c) {
  input_names = {"x"};
}

GptModel::GptModel(const DeviceMesh& mesh, const GptConfig& c)
    : CausalLM(mesh),
      config_(c),
      token_embedding(*this, "token_embedding", c.vocab_size, c.d_model, c.initializer_range),
      position_embedding(*this, "position_embedding", c.max_position_embeddings, c.d_model, c.initializer_range),
      dropout(*this, "dropout", c.dropout),
      ln_f(*this, "ln_f", c.d_model),
      lm_head(*this, "lm_head", c.d_model, c.vocab_size, false, c.initializer_range) {
  for (int64_t i = 0; i < c.n_layers; ++i) blocks.emplace_back(c);
}

DistributedTensor GptModel::hidden_states(const DistributedTensor& ids, const SequenceInputs& inputs) {
  DistributedTensor x = dropout(add_positions(token_embedding(ids), position_embedding, inputs.positions));
  for (GptBlock& block : blocks) x = block(x, inputs);
  return ln_f(x);
}

}  // namespace dtensor::nn
