// GPT-2, with the names and configuration of Hugging Face's GPT2LMHeadModel.
#pragma once

#include "nn/models/attention.h"

namespace dtensor::nn {

// The fields of a config.json that this model has, with Hugging Face's defaults.
struct Gpt2Config {
  int64_t vocab_size = 50257;
  int64_t n_positions = 1024;
  int64_t n_embd = 768;
  int64_t n_layer = 12;
  int64_t n_head = 12;
  int64_t n_inner = 4 * 768;
  std::string activation_function = "gelu_new";
  double resid_pdrop = 0.1, embd_pdrop = 0.1, attn_pdrop = 0.1;
  double layer_norm_epsilon = 1e-5;
  double initializer_range = 0.02;  // of what is added to the residual stream less: over sqrt(2 * n_layer)
  bool tie_word_embeddings = true;
  bool scale_attn_by_inverse_layer_idx = false;

  // Errors as LlamaConfig's.
  static Gpt2Config load(const std::string& file);
  static Gpt2Config from_json(const nlohmann::ordered_json& json);
};

class Gpt2Attention : public Callable<DistributedTensor(const DistributedTensor&, const SequenceInputs&)> {
 public:
  Gpt2Attention(Module& parent, std::string name, const Gpt2Config& c, int64_t layer);
  std::string_view kind() const override { return "GPT2Attention"; }
  DistributedTensor forward(const DistributedTensor& hidden_states, const SequenceInputs& inputs) override;

  Conv1D c_attn, c_proj;
  CoreAttention core_attention{*this};
  Dropout resid_dropout;

 private:
  int64_t heads_;
  double scale_, dropout_p_;
};

class Gpt2MLP : public Callable<DistributedTensor(const DistributedTensor&)> {
 public:
  Gpt2MLP(Module& parent, std::string name, const Gpt2Config& c);
  std::string_view kind() const override { return "GPT2MLP"; }
  DistributedTensor forward(const DistributedTensor& x) override { return dropout(c_proj(act(c_fc(x)))); }

  Conv1D c_fc, c_proj;
  Activation act;
  Dropout dropout;
};

class Gpt2Block : public Callable<DistributedTensor(const DistributedTensor&, const SequenceInputs&)> {
 public:
  Gpt2Block(Module& parent, std::string name, const Gpt2Config& c, int64_t layer);
  std::string_view kind() const override { return "GPT2Block"; }
  DistributedTensor forward(const DistributedTensor& x, const SequenceInputs& inputs) override {
    DistributedTensor h = x + attn(ln_1(x), inputs);
    return h + mlp(ln_2(h));
  }

  LayerNorm ln_1;
  Gpt2Attention attn;
  LayerNorm ln_2;
  Gpt2MLP mlp;
};

class Gpt2Model : public Callable<DistributedTensor(const DistributedTensor&, const SequenceInputs&)> {
 public:
  Gpt2Model(Module& parent, std::string name, const Gpt2Config& c);
  std::string_view kind() const override { return "GPT2Model"; }
  DistributedTensor forward(const DistributedTensor& input_ids, const SequenceInputs& inputs) override;

  Embedding wte, wpe;
  Dropout drop;
  ModuleList<Gpt2Block> h{*this, "h"};
  LayerNorm ln_f;
};

class Gpt2LMHeadModel : public CausalLM {
  Gpt2Config config_;

 public:
  Gpt2LMHeadModel(const DeviceMesh& mesh, const Gpt2Config& c);
  std::string_view kind() const override { return "GPT2LMHeadModel"; }
  DistributedTensor hidden_states(const DistributedTensor& ids, const SequenceInputs& inputs) override {
    return transformer(ids, inputs);
  }
  Linear& head() override { return lm_head; }
  LinearCrossEntropyLoss& criterion() override { return criterion_; }
  const Gpt2Config& config() const { return config_; }

  Gpt2Model transformer;
  Linear lm_head;

 private:
  LinearCrossEntropyLoss criterion_{*this, "criterion"};
};

}  // namespace dtensor::nn
