// Language models that predict the next token.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>

#include "nn/layers.h"

namespace dtensor::nn {

// What a batch says of its tokens besides which they are; either may be undefined. i64 [sequence] or [batch, sequence],
// sharded as the ids are.
struct SequenceInputs {
  DistributedTensor positions;  // absent: the index in the sequence
  DistributedTensor documents;  // a token attends to those of its own document alone; negative: padding, to nothing
};

// The head and its cross entropy in one, some rows at a time, so that the logits of all tokens never exist: as
// flash-linear-attention's criterion. A plan's LinearLossParallel is for it, and has the loss computed by it.
class LinearCrossEntropyLoss
    : public Callable<DistributedTensor(const DistributedTensor&, const DistributedTensor&, Linear&, int64_t)> {
 public:
  LinearCrossEntropyLoss(Module& parent, std::string name) : Callable(parent, std::move(name)) {
    input_names = {"x", "target"};
  }
  std::string_view kind() const override { return "LinearCrossEntropyLoss"; }
  // x [..., hidden], target i64 [...] -> the sum of the losses of targets that are not `ignored`: one number.
  DistributedTensor forward(const DistributedTensor& x, const DistributedTensor& target, Linear& head,
                            int64_t ignored) override;

  bool in_use = false;  // in place of logits
};

// ids i64 [batch, sequence] -> logits [batch, sequence, vocab_size]
class CausalLM : public Callable<DistributedTensor(const DistributedTensor&),
                                 DistributedTensor(const DistributedTensor&, const SequenceInputs&)> {
 public:
  explicit CausalLM(const DeviceMesh& mesh) : Callable(mesh) { input_names = {"input_ids"}; }

  DistributedTensor forward(const DistributedTensor& ids) final { return forward(ids, SequenceInputs()); }
  DistributedTensor forward(const DistributedTensor& ids, const SequenceInputs& inputs) override {
    return head()(hidden_states(ids, inputs));
  }
  // What the head takes: [batch, sequence, hidden_size].
  virtual DistributedTensor hidden_states(const DistributedTensor& ids, const SequenceInputs& inputs) = 0;
  virtual Linear& head() = 0;
  virtual LinearCrossEntropyLoss& criterion() = 0;
  virtual int64_t vocab_size() const = 0;
  // The longest sequence that the model was made for.
  virtual int64_t max_position_embeddings() const = 0;
};

// The model of a config.json, or of its folder, by its model_type: "llama", "mistral", "qwen2", "qwen3", "phi3",
// "gpt2", or "gpt" of nn/models/gpt.h. A file without one is what its fields are of. Errors: a type that is not
// supported; those of the model's configuration.
class ModelConfig {
 public:
  static ModelConfig load(const std::string& path);
  static ModelConfig from_json(const nlohmann::ordered_json& json);

  const std::string& model_type() const { return model_type_; }
  int64_t vocab_size() const { return vocab_size_; }
  std::unique_ptr<CausalLM> make(const DeviceMesh& mesh) const { return make_(mesh); }

 private:
  std::string model_type_;
  int64_t vocab_size_ = 0;
  std::function<std::unique_ptr<CausalLM>(const DeviceMesh&)> make_;
};

}  // namespace dtensor::nn
