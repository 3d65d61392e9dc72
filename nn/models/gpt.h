// A GPT with learned positions, LayerNorm, biases, GELU and dropout, which shards itself: with use_tensor_parallel the
// projection of queries, keys and values and the first of each feed-forward are ColumnParallelLinear along "tp", their
// outputs gathered. Names are those of "LLM training from scratch".
#pragma once

#include "nn/models/attention.h"

namespace dtensor::nn {

struct GptConfig {
  int64_t vocab_size = 32000;
  int64_t max_position_embeddings = 1024;
  int64_t n_layers = 12;
  int64_t n_heads = 12;
  int64_t d_model = 768;
  int64_t d_ff = 3072;
  double dropout = 0.1;
  bool use_tensor_parallel = false;
  double initializer_range = 0.02;

  // Errors as LlamaConfig's.
  static GptConfig load(const std::string& file);
  static GptConfig from_json(const nlohmann::ordered_json& json);
};

class MultiHeadSelfAttention : public Callable<DistributedTensor(const DistributedTensor&, const SequenceInputs&)> {
 public:
  MultiHeadSelfAttention(Module& parent, std::string name, const GptConfig& c);
  std::string_view kind() const override { return "MultiHeadSelfAttention"; }
  DistributedTensor forward(const DistributedTensor& x, const SequenceInputs& inputs) override;

  std::unique_ptr<Linear> qkv_proj;
  CoreAttention core_attention{*this};
  Linear out_proj;
  Dropout dropout;

 private:
  int64_t heads_;
  double dropout_p_;
};

class FeedForward : public Callable<DistributedTensor(const DistributedTensor&)> {
 public:
  FeedForward(Module& parent, std::string name, const GptConfig& c);
  std::string_view kind() const override { return "FeedForward"; }
  DistributedTensor forward(const DistributedTensor& x) override { return dropout(fc2(ops::gelu((*fc1)(x)))); }

  std::unique_ptr<Linear> fc1;
  Linear fc2;
  Dropout dropout;
};

class GptBlock : public Callable<DistributedTensor(const DistributedTensor&, const SequenceInputs&)> {
 public:
  GptBlock(Module& parent, std::string name, const GptConfig& c);
  std::string_view kind() const override { return "GPTBlock"; }
  DistributedTensor forward(const DistributedTensor& x, const SequenceInputs& inputs) override {
    DistributedTensor h = x + attn(ln1(x), inputs);
    return h + ffn(ln2(h));
  }

  LayerNorm ln1;
  MultiHeadSelfAttention attn;
  LayerNorm ln2;
  FeedForward ffn;
};

class GptModel : public CausalLM {
  GptConfig config_;

 public:
  // Errors: use_tensor_parallel on a mesh without "tp".
  GptModel(const DeviceMesh& mesh, const GptConfig& c);
  std::string_view kind() const override { return "GPTModel"; }
  DistributedTensor hidden_states(const DistributedTensor& ids, const SequenceInputs& inputs) override;
  Linear& head() override { return lm_head; }
  LinearCrossEntropyLoss& criterion() override { return criterion_; }
  const GptConfig& config() const { return config_; }

  Embedding token_embedding, position_embedding;
  Dropout dropout;
  ModuleList<GptBlock> blocks{*this, "blocks"};
  LayerNorm ln_f;
  Linear lm_head;

 private:
  LinearCrossEntropyLoss criterion_{*this, "criterion"};
};

}  // namespace dtensor::nn
