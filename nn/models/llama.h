// The Llama language model, with the names of Hugging Face's LlamaForCausalLM.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "nn/layers.h"

namespace dtensor::nn {

// The fields of a Hugging Face config.json that this model has, with Hugging Face's defaults. Files must have the five
// sizes that make a model.
struct LlamaConfig {
  int64_t vocab_size = 32000;
  int64_t hidden_size = 4096;
  int64_t intermediate_size = 11008;
  int64_t num_hidden_layers = 32;
  int64_t num_attention_heads = 32;
  int64_t num_key_value_heads = 32;
  int64_t head_dim = 128;
  int64_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  double initializer_range = 0.02;

  // From a file, or a folder's config.json. Errors: a file that is not there or not JSON, or no Llama's; sizes that are
  // missing or do not fit; numbers that no model can have; a field that changes the result and is not supported (scaled
  // rotary embeddings, tied embeddings, biases, dropout, another activation).
  static LlamaConfig load(const std::string& file);
  static LlamaConfig from_json(const nlohmann::ordered_json& json);
};

class LlamaAttention : public Callable<DistributedTensor(const DistributedTensor&)> {
 public:
  LlamaAttention(Module& parent, std::string name, const LlamaConfig& c);
  std::string_view kind() const override { return "LlamaAttention"; }
  // [batch, sequence, hidden_size] -> the same
  DistributedTensor forward(const DistributedTensor& hidden_states) override;

  Linear q_proj, k_proj, v_proj, o_proj;

 private:
  DistributedTensor split_heads(const DistributedTensor& x, int64_t heads) const;
  LlamaConfig config_;
};

class LlamaMLP : public Callable<DistributedTensor(const DistributedTensor&)> {
 public:
  LlamaMLP(Module& parent, std::string name, const LlamaConfig& c);
  std::string_view kind() const override { return "LlamaMLP"; }
  DistributedTensor forward(const DistributedTensor& x) override {
    return down_proj(ops::swiglu(gate_proj(x), up_proj(x)));
  }

  Linear gate_proj, up_proj, down_proj;
};

class LlamaDecoderLayer : public Callable<DistributedTensor(const DistributedTensor&)> {
 public:
  LlamaDecoderLayer(Module& parent, std::string name, const LlamaConfig& c);
  std::string_view kind() const override { return "LlamaDecoderLayer"; }
  DistributedTensor forward(const DistributedTensor& hidden_states) override;

  RMSNorm input_layernorm;
  LlamaAttention self_attn;
  RMSNorm post_attention_layernorm;
  LlamaMLP mlp;
};

class LlamaModel : public Callable<DistributedTensor(const DistributedTensor&)> {
 public:
  LlamaModel(Module& parent, std::string name, const LlamaConfig& c);
  std::string_view kind() const override { return "LlamaModel"; }
  DistributedTensor forward(const DistributedTensor& input_ids) override;

  Embedding embed_tokens;
  ModuleList<LlamaDecoderLayer> layers{*this, "layers"};
  RMSNorm norm;
};

// input_ids i64 [batch, sequence] -> logits [batch, sequence, vocab_size]
class LlamaForCausalLM : public Callable<DistributedTensor(const DistributedTensor&)> {
 public:
  LlamaForCausalLM(const DeviceMesh& mesh, const LlamaConfig& c);
  std::string_view kind() const override { return "LlamaForCausalLM"; }
  DistributedTensor forward(const DistributedTensor& input_ids) override { return lm_head(model(input_ids)); }
  const LlamaConfig& config() const { return config_; }

 private:
  LlamaConfig config_;

 public:
  LlamaModel model;
  Linear lm_head;
};

}  // namespace dtensor::nn
