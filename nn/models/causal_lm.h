// Language models that predict the next token.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>

#include "nn/layers.h"

namespace dtensor::nn {

class KeyValueCache;

// What a batch says of its tokens besides which they are; any may be absent. i64 [sequence] or [batch, sequence],
// sharded as the ids are.
struct SequenceInputs {
  DistributedTensor positions;  // absent: the index in the sequence
  DistributedTensor documents;  // a token attends to those of its own document alone; negative: padding, to nothing
  // As attention's option of this name, of rows in order (causal_lm_loss): 0 where it is not known.
  int64_t max_documents = 0;
  // Attention is over the tokens that it has and these, which it gets (nn/models/key_value_cache.h). Needs positions.
  KeyValueCache* cache = nullptr;
  // i64 [batch, n]: logits of the tokens at these indices of each row alone, [batch, n, vocab_size].
  DistributedTensor wanted = {};
};

// ids i64 [batch, sequence] -> logits [batch, sequence, vocab_size]
class CausalLM : public Callable<DistributedTensor(const DistributedTensor&),
                                 DistributedTensor(const DistributedTensor&, const SequenceInputs&),
                                 DistributedTensor(const DistributedTensor&, const DistributedTensor&,
                                                   const SequenceInputs&, int64_t)> {
 public:
  explicit CausalLM(const DeviceMesh& mesh) : Callable(mesh) { input_names = {"input_ids"}; }

  DistributedTensor forward(const DistributedTensor& ids) final { return forward(ids, SequenceInputs()); }
  DistributedTensor forward(const DistributedTensor& ids, const SequenceInputs& inputs) override;
  // With targets i64 [batch, sequence]: the sum of the losses of those that are not `ignored`, by the criterion.
  DistributedTensor forward(const DistributedTensor& ids, const DistributedTensor& targets,
                            const SequenceInputs& inputs, int64_t ignored) override {
    return criterion()(hidden_states(ids, inputs), targets, head(), ignored);
  }
  // A mesh axis, where a plan's context_parallel is "balanced": causal_lm_loss brings batches into balanced_order().
  std::optional<int> balanced_over = {};

  // What the head takes: [batch, sequence, hidden_size].
  virtual DistributedTensor hidden_states(const DistributedTensor& ids, const SequenceInputs& inputs) = 0;
  virtual Linear& head() = 0;
  virtual LinearCrossEntropyLoss& criterion() = 0;
};

struct LlamaConfig;
struct Gpt2Config;
struct GptConfig;
struct GlaConfig;

// The model of a config.json, or of its folder, by its model_type: "llama", "mistral", "qwen2", "qwen3", "phi3",
// "gpt2", "gla", or "gpt" of nn/models/gpt.h. A file without one is what its fields are of. Errors: a type that is not
// supported; those of the model's configuration.
class ModelConfig {
 public:
  ModelConfig(const LlamaConfig& c);
  ModelConfig(const Gpt2Config& c);
  ModelConfig(const GptConfig& c);
  ModelConfig(const GlaConfig& c);
  static ModelConfig load(const std::string& path);
  static ModelConfig from_json(const nlohmann::ordered_json& json);

  const std::string& model_type() const { return model_type_; }
  std::string architecture() const;  // as `architectures` of a config.json has it: "LlamaForCausalLM"
  int64_t vocab_size() const { return vocab_size_; }
  int64_t max_position_embeddings() const { return max_position_embeddings_; }
  int64_t kv_heads() const { return kv_heads_; }
  std::unique_ptr<CausalLM> make(const DeviceMesh& mesh) const { return make_(mesh); }

 private:
  std::string model_type_;
  int64_t vocab_size_, max_position_embeddings_, kv_heads_;
  std::function<std::unique_ptr<CausalLM>(const DeviceMesh&)> make_;
};

}  // namespace dtensor::nn
