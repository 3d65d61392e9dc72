// BERT for masked-token prediction, with the names and configuration of Hugging Face's BertForMaskedLM; the masking of
// its data, and its loss.
#pragma once

#include "nn/layers.h"
#include "nn/models/attention.h"

namespace dtensor::nn {

// The fields of a config.json that this model has, with Hugging Face's defaults.
struct BertConfig {
  int64_t vocab_size = 30522;
  int64_t hidden_size = 768;
  int64_t num_hidden_layers = 12;
  int64_t num_attention_heads = 12;
  int64_t intermediate_size = 3072;
  std::string hidden_act = "gelu";
  double hidden_dropout_prob = 0.1, attention_probs_dropout_prob = 0.1;
  int64_t max_position_embeddings = 512;
  int64_t type_vocab_size = 2;
  double initializer_range = 0.02;
  double layer_norm_eps = 1e-12;
  int64_t pad_token_id = 0;
  bool tie_word_embeddings = true;
  // The attention by ColumnParallelLinear and RowParallelLinear along "tp", as in the Neuron developer guide.
  bool use_tensor_parallel = false;

  // Errors as LlamaConfig's.
  static BertConfig load(const std::string& file);
  static BertConfig from_json(const nlohmann::ordered_json& json);
};

// i64 [batch, sequence] each, sharded as the ids are; any may be undefined.
struct BertInputs {
  DistributedTensor token_type_ids;  // absent: 0, the first segment
  DistributedTensor attention_mask;  // 1: a token; 0: padding, which nothing attends to
  DistributedTensor position_ids;    // absent: the index in the sequence
};

class BertEmbeddings : public Callable<DistributedTensor(const DistributedTensor&, const BertInputs&)> {
 public:
  BertEmbeddings(Module& parent, std::string name, const BertConfig& c);
  std::string_view kind() const override { return "BertEmbeddings"; }
  DistributedTensor forward(const DistributedTensor& input_ids, const BertInputs& inputs) override;

  Embedding word_embeddings, position_embeddings, token_type_embeddings;
  LayerNorm layer_norm;
  Dropout dropout;
};

class BertSelfAttention : public Callable<DistributedTensor(const DistributedTensor&, const BertInputs&)> {
 public:
  BertSelfAttention(Module& parent, std::string name, const BertConfig& c);
  std::string_view kind() const override { return "BertSelfAttention"; }
  DistributedTensor forward(const DistributedTensor& hidden_states, const BertInputs& inputs) override;

  std::unique_ptr<Linear> query, key, value;
  CoreAttention core_attention{*this};

 private:
  int64_t heads_;
  double dropout_p_;
};

// dense, dropout, and the norm of the sum with the residual: of the attention, and of the feed-forward.
class BertOutput : public Callable<DistributedTensor(const DistributedTensor&, const DistributedTensor&)> {
 public:
  BertOutput(Module& parent, std::string name, std::unique_ptr<Linear> (*make_dense)(Module&, const BertConfig&),
             const BertConfig& c);
  std::string_view kind() const override { return "BertOutput"; }
  DistributedTensor forward(const DistributedTensor& x, const DistributedTensor& residual) override {
    return layer_norm(dropout((*dense)(x)) + residual);
  }

  std::unique_ptr<Linear> dense;
  LayerNorm layer_norm;
  Dropout dropout;
};

class BertAttention : public Callable<DistributedTensor(const DistributedTensor&, const BertInputs&)> {
 public:
  BertAttention(Module& parent, std::string name, const BertConfig& c);
  std::string_view kind() const override { return "BertAttention"; }
  DistributedTensor forward(const DistributedTensor& x, const BertInputs& inputs) override {
    return output(self(x, inputs), x);
  }

  BertSelfAttention self;
  BertOutput output;
};

class BertIntermediate : public Callable<DistributedTensor(const DistributedTensor&)> {
 public:
  BertIntermediate(Module& parent, std::string name, const BertConfig& c)
      : Callable(parent, std::move(name)),
        dense(*this, "dense", c.hidden_size, c.intermediate_size, true, c.initializer_range),
        act(*this, "intermediate_act_fn", c.hidden_act) {
    input_names = {"hidden_states"};
  }
  std::string_view kind() const override { return "BertIntermediate"; }
  DistributedTensor forward(const DistributedTensor& x) override { return act(dense(x)); }

  Linear dense;
  Activation act;
};

class BertLayer : public Callable<DistributedTensor(const DistributedTensor&, const BertInputs&)> {
 public:
  BertLayer(Module& parent, std::string name, const BertConfig& c);
  std::string_view kind() const override { return "BertLayer"; }
  DistributedTensor forward(const DistributedTensor& x, const BertInputs& inputs) override {
    DistributedTensor h = attention(x, inputs);
    return output(intermediate(h), h);
  }

  BertAttention attention;
  BertIntermediate intermediate;
  BertOutput output;
};

class BertEncoder : public Callable<DistributedTensor(const DistributedTensor&, const BertInputs&)> {
 public:
  BertEncoder(Module& parent, std::string name, const BertConfig& c);
  std::string_view kind() const override { return "BertEncoder"; }
  DistributedTensor forward(const DistributedTensor& x, const BertInputs& inputs) override;

  ModuleList<BertLayer> layer{*this, "layer"};
};

class BertModel : public Callable<DistributedTensor(const DistributedTensor&, const BertInputs&)> {
 public:
  BertModel(Module& parent, std::string name, const BertConfig& c);
  std::string_view kind() const override { return "BertModel"; }
  DistributedTensor forward(const DistributedTensor& input_ids, const BertInputs& inputs) override {
    return encoder(embeddings(input_ids, inputs), inputs);
  }

  BertEmbeddings embeddings;
  BertEncoder encoder;
};

class BertPredictionHeadTransform : public Callable<DistributedTensor(const DistributedTensor&)> {
 public:
  BertPredictionHeadTransform(Module& parent, std::string name, const BertConfig& c);
  std::string_view kind() const override { return "BertPredictionHeadTransform"; }
  DistributedTensor forward(const DistributedTensor& x) override { return layer_norm(act(dense(x))); }

  Linear dense;
  Activation act;
  LayerNorm layer_norm;
};

class BertLMPredictionHead : public Callable<DistributedTensor(const DistributedTensor&)> {
 public:
  BertLMPredictionHead(Module& parent, std::string name, const BertConfig& c, Embedding& words);
  std::string_view kind() const override { return "BertLMPredictionHead"; }
  DistributedTensor forward(const DistributedTensor& x) override { return decoder(transform(x)) + bias(); }

  BertPredictionHeadTransform transform;
  Linear decoder;
  Parameter bias;
};

class BertOnlyMLMHead : public Callable<DistributedTensor(const DistributedTensor&)> {
 public:
  BertOnlyMLMHead(Module& parent, std::string name, const BertConfig& c, Embedding& words)
      : Callable(parent, std::move(name)), predictions(*this, "predictions", c, words) {
    input_names = {"sequence_output"};
  }
  std::string_view kind() const override { return "BertOnlyMLMHead"; }
  DistributedTensor forward(const DistributedTensor& x) override { return predictions(x); }

  BertLMPredictionHead predictions;
};

// ids i64 [batch, sequence] -> logits [batch, sequence, vocab_size]
class BertForMaskedLM : public Callable<DistributedTensor(const DistributedTensor&),
                                        DistributedTensor(const DistributedTensor&, const BertInputs&)> {
  BertConfig config_;

 public:
  BertForMaskedLM(const DeviceMesh& mesh, const BertConfig& c);
  std::string_view kind() const override { return "BertForMaskedLM"; }
  DistributedTensor forward(const DistributedTensor& input_ids) override { return forward(input_ids, BertInputs()); }
  DistributedTensor forward(const DistributedTensor& input_ids, const BertInputs& inputs) override {
    return cls(bert(input_ids, inputs));
  }
  const BertConfig& config() const { return config_; }

  BertModel bert;
  BertOnlyMLMHead cls;
};

struct MaskingOptions {
  int64_t mask_token = 103, vocab_size = 30522;
  std::vector<int64_t> special_tokens = {};  // never chosen: [CLS], [SEP], [PAD]
  double probability = 0.15;                 // of a token to be predicted
  uint64_t seed = 0;
};
struct MaskedTokens {
  DistributedTensor inputs, labels;  // i64, as the ids; labels of tokens that are not to be predicted are -100
};
// Chooses tokens to predict, of which 80 % become the mask token, 10 % any token and 10 % stay, by global index: the
// same on every mesh. Source: Devlin et al., "BERT" (2018), and DataCollatorForLanguageModeling. Errors: ids that are
// no i64 [batch, sequence], a probability outside [0, 1], a token outside the vocabulary.
MaskedTokens mask_tokens(const DistributedTensor& ids, int64_t step, const MaskingOptions& options);

}  // namespace dtensor::nn
