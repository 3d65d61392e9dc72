// The Llama family of language models, with the names and configurations of Hugging Face: Llama (SmolLM2 too), Mistral,
// Qwen2, Qwen3 and Phi-3.
#pragma once

#include "nn/models/attention.h"
#include "nn/models/rope.h"

namespace dtensor::nn {

// The fields of a config.json that these models have, with Hugging Face's defaults, which depend on model_type. Files
// must have the five sizes that make a model.
struct LlamaConfig {
  std::string model_type = "llama";  // or mistral, qwen2, qwen3, phi3
  int64_t vocab_size = 32000;
  int64_t hidden_size = 4096;
  int64_t intermediate_size = 11008;
  int64_t num_hidden_layers = 32;
  int64_t num_attention_heads = 32;
  int64_t num_key_value_heads = 32;
  int64_t head_dim = 128;
  int64_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-6;
  double initializer_range = 0.02;
  RopeConfig rope;
  bool tie_word_embeddings = false;
  bool attention_bias = false;  // of the projections of queries, keys and values
  bool output_bias = false;     // of the attention's output
  bool mlp_bias = false;
  bool qk_norm = false;  // queries and keys are normalized by head
  double attention_dropout = 0;
  std::vector<int64_t> windows;  // of each layer: how many keys a query sees, 0 for all. Empty: all see all
  int64_t padding_idx = -1;      // pad_token_id: a row of the embedding without a gradient

  // From a file, or a folder's config.json. Errors: a file that is not there or not JSON, or no such model's; sizes
  // that are missing or do not fit; numbers that no model can have; a field that changes the result and is not
  // supported.
  static LlamaConfig load(const std::string& file);
  static LlamaConfig from_json(const nlohmann::ordered_json& json);

  int64_t window(int64_t layer) const { return windows.empty() ? 0 : windows.at(size_t(layer)); }
};

// Attention of grouped heads after rotary embeddings; how queries, keys and values come to be is the derived class's.
class DecoderAttention : public Callable<DistributedTensor(const DistributedTensor&, const SequenceInputs&)> {
 public:
  DecoderAttention(Module& parent, std::string name, const LlamaConfig& c, int64_t layer);

  CoreAttention core_attention{*this};

 protected:
  // The projections [batch, sequence, heads * head_dim] -> the attention's output, of the queries' shape.
  DistributedTensor attend(const DistributedTensor& q, const DistributedTensor& k, const DistributedTensor& v,
                           const SequenceInputs& inputs);
  LlamaConfig config_;

 private:
  // Of queries of `length` tokens. Errors: with a cache, keys in it that were turned by other angles.
  ops::RotaryAngles angles(int64_t length, const KeyValueCache* cache);

  int64_t window_;
  std::unique_ptr<RMSNorm> q_norm_, k_norm_;
  int64_t length_ = -1;  // that angles_ are for
  ops::RotaryAngles angles_;
};

class LlamaAttention : public DecoderAttention {
 public:
  LlamaAttention(Module& parent, std::string name, const LlamaConfig& c, int64_t layer);
  std::string_view kind() const override { return "LlamaAttention"; }
  // [batch, sequence, hidden_size] -> the same
  DistributedTensor forward(const DistributedTensor& hidden_states, const SequenceInputs& inputs) override;

  Linear q_proj, k_proj, v_proj, o_proj;
};

// Queries, keys and values by one projection.
class Phi3Attention : public DecoderAttention {
 public:
  Phi3Attention(Module& parent, std::string name, const LlamaConfig& c, int64_t layer);
  std::string_view kind() const override { return "Phi3Attention"; }
  DistributedTensor forward(const DistributedTensor& hidden_states, const SequenceInputs& inputs) override;

  Linear qkv_proj, o_proj;
};

class LlamaMLP : public Callable<DistributedTensor(const DistributedTensor&)> {
 public:
  LlamaMLP(Module& parent, std::string name, const LlamaConfig& c);
  std::string_view kind() const override { return "LlamaMLP"; }
  DistributedTensor forward(const DistributedTensor& x) override {
    return swiglu_linear(gate_proj(x), up_proj(x), down_proj);
  }
  // residual + (*this)(x): by the last product, where nothing comes between.
  DistributedTensor add_to(const DistributedTensor& residual, const DistributedTensor& x);

  Linear gate_proj, up_proj, down_proj;
  SwiGLULinear swiglu_linear;
};

class Phi3MLP : public Callable<DistributedTensor(const DistributedTensor&)> {
 public:
  Phi3MLP(Module& parent, std::string name, const LlamaConfig& c);
  std::string_view kind() const override { return "Phi3MLP"; }
  DistributedTensor forward(const DistributedTensor& x) override { return down_proj(activated(x)); }
  DistributedTensor add_to(const DistributedTensor& residual, const DistributedTensor& x);  // as LlamaMLP's

  Linear gate_up_proj, down_proj;

 private:
  DistributedTensor activated(const DistributedTensor& x);
};

// A pre-norm decoder block.
template <class Attention, class Mlp>
class DecoderLayer : public Callable<DistributedTensor(const DistributedTensor&, const SequenceInputs&)> {
 public:
  DecoderLayer(Module& parent, std::string name, const LlamaConfig& c, int64_t layer)
      : Callable(parent, std::move(name)),
        input_layernorm(*this, "input_layernorm", c.hidden_size, c.rms_norm_eps),
        self_attn(*this, "self_attn", c, layer),
        post_attention_layernorm(*this, "post_attention_layernorm", c.hidden_size, c.rms_norm_eps),
        mlp(*this, "mlp", c) {
    input_names = {"hidden_states"};
  }
  std::string_view kind() const override { return "DecoderLayer"; }
  DistributedTensor forward(const DistributedTensor& x, const SequenceInputs& inputs) override {
    auto [normed, h] = post_attention_layernorm(self_attn(input_layernorm(x), inputs), x);
    return mlp.add_to(h, normed);
  }

  RMSNorm input_layernorm;
  Attention self_attn;
  RMSNorm post_attention_layernorm;
  Mlp mlp;
};

template <class Layer>
class DecoderModel : public Callable<DistributedTensor(const DistributedTensor&, const SequenceInputs&)> {
 public:
  DecoderModel(Module& parent, std::string name, const LlamaConfig& c)
      : Callable(parent, std::move(name)),
        embed_tokens(*this, "embed_tokens", c.vocab_size, c.hidden_size, c.initializer_range, c.padding_idx),
        norm(*this, "norm", c.hidden_size, c.rms_norm_eps) {
    input_names = {"input_ids"};
    for (int64_t i = 0; i < c.num_hidden_layers; ++i) layers.emplace_back(c, i);
  }
  std::string_view kind() const override { return "DecoderModel"; }
  DistributedTensor forward(const DistributedTensor& input_ids, const SequenceInputs& inputs) override {
    DistributedTensor h = embed_tokens(input_ids);
    for (Layer& layer : layers) h = layer(h, inputs);
    return norm(h);
  }

  Embedding embed_tokens;
  ModuleList<Layer> layers{*this, "layers"};
  RMSNorm norm;
};

template <class Layer>
class DecoderForCausalLM : public CausalLM {
  LlamaConfig config_;

 public:
  DecoderForCausalLM(const DeviceMesh& mesh, const LlamaConfig& c);
  std::string_view kind() const override { return "DecoderForCausalLM"; }
  DistributedTensor hidden_states(const DistributedTensor& ids, const SequenceInputs& inputs) override {
    return model(ids, inputs);
  }
  Linear& head() override { return lm_head; }
  LinearCrossEntropyLoss& criterion() override { return criterion_; }
  const LlamaConfig& config() const { return config_; }

  DecoderModel<Layer> model;
  Linear lm_head;

 private:
  LinearCrossEntropyLoss criterion_{*this, "criterion"};
};

using LlamaDecoderLayer = DecoderLayer<LlamaAttention, LlamaMLP>;
using LlamaForCausalLM = DecoderForCausalLM<LlamaDecoderLayer>;
using Phi3ForCausalLM = DecoderForCausalLM<DecoderLayer<Phi3Attention, Phi3MLP>>;
extern template class DecoderForCausalLM<LlamaDecoderLayer>;
extern template class DecoderForCausalLM<DecoderLayer<Phi3Attention, Phi3MLP>>;

}  // namespace dtensor::nn
