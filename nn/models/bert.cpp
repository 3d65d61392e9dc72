#include "nn/models/bert.h"

#include "dtensor/creation.h"
#include "nn/models/attention.h"
#include "nn/models/config.h"
#include "nn/parallel/layers.h"

namespace dtensor::nn {
namespace {

std::unique_ptr<Linear> projection(Module& parent, const char* name, const BertConfig& c) {
  if (c.use_tensor_parallel)
    return std::make_unique<ColumnParallelLinear>(
        parent, name, c.hidden_size, c.hidden_size,
        ColumnParallelLinear::Options{.gather_output = false, .std = c.initializer_range});
  return std::make_unique<Linear>(parent, name, c.hidden_size, c.hidden_size, true, c.initializer_range);
}
std::unique_ptr<Linear> attention_dense(Module& parent, const BertConfig& c) {
  if (c.use_tensor_parallel)
    return std::make_unique<RowParallelLinear>(
        parent, "dense", c.hidden_size, c.hidden_size,
        RowParallelLinear::Options{.input_is_parallel = true, .std = c.initializer_range});
  return std::make_unique<Linear>(parent, "dense", c.hidden_size, c.hidden_size, true, c.initializer_range);
}
std::unique_ptr<Linear> output_dense(Module& parent, const BertConfig& c) {
  return std::make_unique<Linear>(parent, "dense", c.intermediate_size, c.hidden_size, true, c.initializer_range);
}
Linear make_decoder(Module& parent, const BertConfig& c, Embedding& words) {
  if (c.tie_word_embeddings) return Linear(parent, "decoder", words.weight);
  return Linear(parent, "decoder", c.hidden_size, c.vocab_size, false, c.initializer_range);
}

}  // namespace

BertConfig BertConfig::load(const std::string& path) { return load_config(path, "bert config", from_json); }

BertConfig BertConfig::from_json(const nlohmann::ordered_json& json) {
  ConfigReader config(json, "bert config");
  BertConfig c;
  config.model_type({{"BertForMaskedLM", "bert"}}, "bert");
  config.require({"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"},
                 "a BERT");
  config.only("position_embedding_type", {"absolute", nullptr});
  config.only("is_decoder", {false, nullptr});
  config.only("quantization_config", {nullptr});
  config.integer("vocab_size", c.vocab_size);
  config.integer("hidden_size", c.hidden_size);
  config.integer("num_hidden_layers", c.num_hidden_layers);
  config.integer("num_attention_heads", c.num_attention_heads);
  config.integer("intermediate_size", c.intermediate_size);
  check(c.hidden_size % c.num_attention_heads == 0, "[bert config] hidden_size {} does not divide into {} heads",
        c.hidden_size, c.num_attention_heads);
  config.text("hidden_act", c.hidden_act);
  config.probability("hidden_dropout_prob", c.hidden_dropout_prob);
  config.probability("attention_probs_dropout_prob", c.attention_probs_dropout_prob);
  config.integer("max_position_embeddings", c.max_position_embeddings);
  config.integer("type_vocab_size", c.type_vocab_size);
  config.standard_deviation("initializer_range", c.initializer_range);
  config.positive("layer_norm_eps", c.layer_norm_eps);
  if (config.present("pad_token_id") && !config.has("pad_token_id")) c.pad_token_id = -1;
  config.token("pad_token_id", c.pad_token_id, c.vocab_size);
  config.flag("tie_word_embeddings", c.tie_word_embeddings);
  config.flag("use_tensor_parallel", c.use_tensor_parallel);
  return c;
}

BertEmbeddings::BertEmbeddings(Module& parent, std::string name, const BertConfig& c)
    : Callable(parent, std::move(name)),
      word_embeddings(*this, "word_embeddings", c.vocab_size, c.hidden_size, c.initializer_range, c.pad_token_id),
      position_embeddings(*this, "position_embeddings", c.max_position_embeddings, c.hidden_size, c.initializer_range),
      token_type_embeddings(*this, "token_type_embeddings", c.type_vocab_size, c.hidden_size, c.initializer_range),
      layer_norm(*this, "LayerNorm", c.hidden_size, c.layer_norm_eps),
      dropout(*this, "dropout", c.hidden_dropout_prob) {
  input_names = {"input_ids"};
}

DistributedTensor BertEmbeddings::forward(const DistributedTensor& ids, const BertInputs& inputs) {
  DistributedTensor x = add_positions(word_embeddings(ids), position_embeddings, inputs.position_ids);
  if (inputs.token_type_ids.defined())
    x = x + token_type_embeddings(inputs.token_type_ids);
  else
    x = x + ops::select(token_type_embeddings.weight(), 0, 0);
  return dropout(layer_norm(x));
}

BertSelfAttention::BertSelfAttention(Module& parent, std::string name, const BertConfig& c)
    : Callable(parent, std::move(name)),
      query(projection(*this, "query", c)),
      key(projection(*this, "key", c)),
      value(projection(*this, "value", c)),
      heads_(c.num_attention_heads),
      dropout_p_(c.attention_probs_dropout_prob) {
  input_names = {"hidden_states"};
}

DistributedTensor BertSelfAttention::forward(const DistributedTensor& x, const BertInputs& inputs) {
  SequenceInputs seen;
  ops::AttentionOptions options{.dropout_p = dropout_p_};
  auto heads = [&](Linear& of) { return split_heads(*this, of(x), heads_); };
  // Padding is hidden from all; what it itself attends to does not matter.
  if (inputs.attention_mask.defined()) {
    options.q_documents = ops::mul(inputs.attention_mask, 0.0);
    options.k_documents = ops::sub(inputs.attention_mask, 1.0);
  }
  DistributedTensor q = heads(*query), k = heads(*key), v = heads(*value);
  return attend(core_attention, q, k, v, seen, options);
}

BertOutput::BertOutput(Module& parent, std::string name,
                       std::unique_ptr<Linear> (*make_dense)(Module&, const BertConfig&), const BertConfig& c)
    : Callable(parent, std::move(name)),
      dense(make_dense(*this, c)),
      layer_norm(*this, "LayerNorm", c.hidden_size, c.layer_norm_eps),
      dropout(*this, "dropout", c.hidden_dropout_prob) {
  input_names = {"hidden_states", "input_tensor"};
}

BertAttention::BertAttention(Module& parent, std::string name, const BertConfig& c)
    : Callable(parent, std::move(name)), self(*this, "self", c), output(*this, "output", attention_dense, c) {
  input_names = {"hidden_states"};
}

BertLayer::BertLayer(Module& parent, std::string name, const BertConfig& c)
    : Callable(parent, std::move(name)),
      attention(*this, "attention", c),
      intermediate(*this, "intermediate", c),
      output(*this, "output", output_dense, c) {
  input_names = {"hidden_states"};
}

BertEncoder::BertEncoder(Module& parent, std::string name, const BertConfig& c) : Callable(parent, std::move(name)) {
  input_names = {"hidden_states"};
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) layer.emplace_back(c);
}

DistributedTensor BertEncoder::forward(const DistributedTensor& x, const BertInputs& inputs) {
  DistributedTensor h = x;
  for (BertLayer& l : layer) h = l(h, inputs);
  return h;
}

BertModel::BertModel(Module& parent, std::string name, const BertConfig& c)
    : Callable(parent, std::move(name)), embeddings(*this, "embeddings", c), encoder(*this, "encoder", c) {
  input_names = {"input_ids"};
}

BertPredictionHeadTransform::BertPredictionHeadTransform(Module& parent, std::string name, const BertConfig& c)
    : Callable(parent, std::move(name)),
      dense(*this, "dense", c.hidden_size, c.hidden_size, true, c.initializer_range),
      act(*this, "transform_act_fn", c.hidden_act),
      layer_norm(*this, "LayerNorm", c.hidden_size, c.layer_norm_eps) {
  input_names = {"hidden_states"};
}

BertLMPredictionHead::BertLMPredictionHead(Module& parent, std::string name, const BertConfig& c, Embedding& words)
    : Callable(parent, std::move(name)),
      transform(*this, "transform", c),
      decoder(make_decoder(*this, c, words)),
      bias(*this, "bias", {c.vocab_size}, Init::zeros()) {
  input_names = {"hidden_states"};
}

BertForMaskedLM::BertForMaskedLM(const DeviceMesh& mesh, const BertConfig& c)
    : Callable(mesh), config_(c), bert(*this, "bert", c), cls(*this, "cls", c, bert.embeddings.word_embeddings) {
  input_names = {"input_ids"};
}

MaskedTokens mask_tokens(const DistributedTensor& ids, int64_t step, const MaskingOptions& o) {
  check(ids.defined() && ids.dtype() == DType::i64 && ids.dims() == 2,
        "[mask_tokens] ids are {}, not i64[batch,sequence]", ids);
  ops::check_probability("mask_tokens", o.probability);
  check(o.mask_token >= 0 && o.mask_token < o.vocab_size,
        "[mask_tokens] mask_token {} is outside the vocabulary [0,{})", o.mask_token, o.vocab_size);
  NoGrad no_grad(ids.mesh().rank_state());
  auto uniform = [&](const char* what) {
    TensorSpec spec{DType::f32, ids.shape(), ids.layout()};
    return rand(ids.mesh(), spec, {.seed = o.seed, .purpose = "mask_tokens", .path = what, .step = step});
  };
  auto chosen = ops::lt(uniform("chosen"), o.probability);
  for (int64_t special : o.special_tokens) chosen = ops::logical_and(chosen, ops::ne(ids, double(special)));
  DistributedTensor fate = uniform("fate"), scaled = ops::mul(uniform("any"), double(o.vocab_size)),
                    any = ops::cast(ops::clamp(ops::floor(scaled), 0, double(o.vocab_size - 1)), DType::i64);
  auto when = [&](double from, double to) {
    return ops::logical_and(chosen, ops::logical_and(ops::ge(fate, from), ops::lt(fate, to)));
  };
  DistributedTensor inputs = ops::masked_fill(ids, when(0, 0.8), double(o.mask_token));
  inputs = ops::where(when(0.8, 0.9), any, inputs);
  return {inputs, ops::masked_fill(ids, ops::logical_not(chosen), -100)};
}

}  // namespace dtensor::nn
