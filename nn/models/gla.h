// Gated linear attention language models, with the names and configurations of flash-linear-attention.
#pragma once

#include <optional>

#include "nn/models/key_value_cache.h"
#include "nn/models/llama.h"

namespace dtensor::nn {

// The fields of a config.json of these models, with flash-linear-attention's defaults.
struct GlaConfig {
  int64_t vocab_size = 32000;
  int64_t hidden_size = 2048;
  int64_t intermediate_size = 0;  // absent: hidden_ratio * 2/3 of hidden_size, up to a multiple of 256
  int64_t num_hidden_layers = 24;
  int64_t num_heads = 4;
  int64_t num_kv_heads = 4;  // absent: num_heads
  double expand_k = 0.5, expand_v = 1;
  bool use_short_conv = false;
  int64_t conv_size = 4;
  bool use_output_gate = true;
  std::optional<double> clamp_min;  // of the gates' logarithms
  double gate_logit_normalizer = 16;
  int64_t gate_low_rank_dim = 16;
  int64_t max_position_embeddings = 2048;
  double norm_eps = 1e-6;
  double initializer_range = 0.02;
  bool fuse_norm = true;  // with an output gate: the norm's name is g_norm_swish_gate, without g_norm
  bool tie_word_embeddings = false;
  int64_t padding_idx = -1;

  // As LlamaConfig's.
  static GlaConfig load(const std::string& file);
  static GlaConfig from_json(const nlohmann::ordered_json& json);

  int64_t key_dim() const { return int64_t(double(hidden_size) * expand_k); }  // of all heads
  int64_t value_dim() const { return int64_t(double(hidden_size) * expand_v); }
  int64_t kv_groups() const { return num_heads / num_kv_heads; }  // query heads that share a key head
};

// silu of each channel's causal convolution. A cache keeps the last inputs, as many as the next tokens see.
class ShortConvolution : public Callable<DistributedTensor(const DistributedTensor&, const SequenceInputs&)> {
 public:
  ShortConvolution(Module& parent, std::string name, int64_t channels, int64_t width, double std);
  std::string_view kind() const override { return "ShortConvolution"; }
  // [batch, sequence, channels] -> the same
  DistributedTensor forward(const DistributedTensor& x, const SequenceInputs& inputs) override;

  Parameter weight;  // [channels, 1, width]
};

// The norm of each head's output [batch, sequence, heads * dim], all heads with one weight; then times silu of the
// gate. Sharded along its last dimension it stays so where the ranks divide the heads.
class HeadNorm : public Callable<DistributedTensor(const DistributedTensor&),
                                 DistributedTensor(const DistributedTensor&, const DistributedTensor&)> {
 public:
  HeadNorm(Module& parent, std::string name, int64_t dim, double eps);
  std::string_view kind() const override { return "HeadNorm"; }
  DistributedTensor forward(const DistributedTensor& x) override;
  DistributedTensor forward(const DistributedTensor& x, const DistributedTensor& gate) override;

  Parameter weight;

 private:
  double eps_;
};

// The recurrence itself: a module of its own, so that plans and logs know it. A cache keeps the last state.
class CoreRecurrence
    : public Callable<DistributedTensor(const DistributedTensor&, const DistributedTensor&, const DistributedTensor&,
                                        const DistributedTensor&, const SequenceInputs&)> {
 public:
  explicit CoreRecurrence(Module& parent) : Callable(parent, "core_recurrence") { input_names = {"q", "k", "v", "g"}; }
  std::string_view kind() const override { return "CoreRecurrence"; }
  // q, k, g [batch, sequence, heads, d], v [batch, sequence, heads, e] -> as v
  DistributedTensor forward(const DistributedTensor& q, const DistributedTensor& k, const DistributedTensor& v,
                            const DistributedTensor& g, const SequenceInputs& inputs) override;
};

class GatedLinearAttention : public Callable<DistributedTensor(const DistributedTensor&, const SequenceInputs&)> {
 public:
  GatedLinearAttention(Module& parent, std::string name, const GlaConfig& c);
  std::string_view kind() const override { return "GatedLinearAttention"; }
  // [batch, sequence, hidden_size] -> the same
  DistributedTensor forward(const DistributedTensor& hidden_states, const SequenceInputs& inputs) override;

  Linear q_proj, k_proj, v_proj;
  std::unique_ptr<Linear> g_proj;
  std::unique_ptr<ShortConvolution> q_conv1d, k_conv1d, v_conv1d;
  ModuleList<Linear> gk_proj{*this, "gk_proj"};  // of low rank: 0, then 1 with a bias
  Linear o_proj;
  HeadNorm norm;
  CoreRecurrence core_recurrence{*this};

 private:
  DistributedTensor key_heads(const DistributedTensor& x);  // one for each query head
  GlaConfig config_;
};

class GlaBlock : public Callable<DistributedTensor(const DistributedTensor&, const SequenceInputs&)> {
 public:
  GlaBlock(Module& parent, std::string name, const GlaConfig& c);
  std::string_view kind() const override { return "GlaBlock"; }
  DistributedTensor forward(const DistributedTensor& hidden_states, const SequenceInputs& inputs) override;

  RMSNorm attn_norm;
  GatedLinearAttention attn;
  RMSNorm mlp_norm;
  LlamaMLP mlp;
};

class GlaModel : public Callable<DistributedTensor(const DistributedTensor&, const SequenceInputs&)> {
 public:
  GlaModel(Module& parent, std::string name, const GlaConfig& c);
  std::string_view kind() const override { return "GlaModel"; }
  DistributedTensor forward(const DistributedTensor& input_ids, const SequenceInputs& inputs) override;

  Embedding embeddings;
  ModuleList<GlaBlock> layers{*this, "layers"};
  RMSNorm norm;
};

class GlaForCausalLM : public CausalLM {
 public:
  GlaForCausalLM(const DeviceMesh& mesh, const GlaConfig& c);
  std::string_view kind() const override { return "GlaForCausalLM"; }
  // Errors: documents, or positions without a cache, which the recurrence does not know of.
  DistributedTensor hidden_states(const DistributedTensor& ids, const SequenceInputs& inputs) override;
  Linear& head() override { return lm_head; }
  LinearCrossEntropyLoss& criterion() override { return criterion_; }

  GlaModel model;
  Linear lm_head;

 private:
  LinearCrossEntropyLoss criterion_{*this, "criterion"};
};

}  // namespace dtensor::nn
