#include "nn/models/gla.h"

#include <cmath>

#include "dtensor/creation.h"
#include "dtensor/redistribute.h"
#include "nn/models/config.h"

namespace dtensor::nn {
namespace {

// Fields that change the result, of which only the usual values are supported.
void check_supported(const ConfigReader& config) {
  config.only("hidden_act", {"swish", nullptr});
  config.only("feature_map", {nullptr});
  config.only("attn", {nullptr});
  config.only("elementwise_affine", {true, nullptr});
  config.only("use_gk", {true, nullptr});
  config.only("use_gv", {false, nullptr});
  config.only("use_l2warp", {false, nullptr});
  config.only("quantization_config", {nullptr});
}

void read_sizes(const ConfigReader& config, GlaConfig& c) {
  config.require({"vocab_size", "hidden_size", "num_hidden_layers", "num_heads"}, "a gated linear attention model");
  config.integer("vocab_size", c.vocab_size);
  config.integer("hidden_size", c.hidden_size);
  config.integer("num_hidden_layers", c.num_hidden_layers);
  config.integer("num_heads", c.num_heads);
  if (!config.integer("num_kv_heads", c.num_kv_heads)) c.num_kv_heads = c.num_heads;
  check(c.num_heads % c.num_kv_heads == 0, "[{}] {} heads are no multiple of {} key/value heads (num_kv_heads)",
        config.who(), c.num_heads, c.num_kv_heads);
  config.positive("expand_k", c.expand_k);
  config.positive("expand_v", c.expand_v);
  for (auto [name, size] : {std::pair("expand_k", c.key_dim()), std::pair("expand_v", c.value_dim())})
    check(size > 0 && size % c.num_heads == 0, "[{}] {} of hidden_size {} makes {} channels, no multiple of {} heads",
          config.who(), name, c.hidden_size, size, c.num_heads);
  int64_t ratio = 4;
  config.integer("hidden_ratio", ratio);
  if (!config.integer("intermediate_size", c.intermediate_size))
    c.intermediate_size = (c.hidden_size * ratio * 2 / 3 + 255) / 256 * 256;
  config.integer("max_position_embeddings", c.max_position_embeddings);
}

LlamaConfig mlp_config(const GlaConfig& c) {
  LlamaConfig mlp;
  mlp.hidden_size = c.hidden_size, mlp.intermediate_size = c.intermediate_size;
  mlp.initializer_range = c.initializer_range;
  return mlp;
}

DistributedTensor split(const Module& module, const DistributedTensor& x, int64_t heads) {
  return split_heads(module, x, heads);
}

Linear make_head(Module& root, GlaModel& model, const GlaConfig& c) {
  if (c.tie_word_embeddings) return Linear(root, "lm_head", model.embeddings.weight);
  return Linear(root, "lm_head", c.hidden_size, c.vocab_size, false, c.initializer_range);
}

}  // namespace

GlaConfig GlaConfig::load(const std::string& path) { return load_config(path, "gla config", from_json); }

GlaConfig GlaConfig::from_json(const nlohmann::ordered_json& json) {
  ConfigReader config(json, "gla config");
  GlaConfig c;
  config.model_type({{"GLAForCausalLM", "gla"}}, "gla");
  check_supported(config);
  read_sizes(config, c);
  config.flag("use_short_conv", c.use_short_conv);
  config.integer("conv_size", c.conv_size);
  config.flag("use_output_gate", c.use_output_gate);
  if (config.has("clamp_min")) config.number("clamp_min", c.clamp_min.emplace());
  config.positive("gate_logit_normalizer", c.gate_logit_normalizer);
  config.integer("gate_low_rank_dim", c.gate_low_rank_dim);
  config.positive("norm_eps", c.norm_eps);
  config.standard_deviation("initializer_range", c.initializer_range);
  config.flag("fuse_norm", c.fuse_norm);
  config.flag("tie_word_embeddings", c.tie_word_embeddings);
  config.token("pad_token_id", c.padding_idx, c.vocab_size);
  return c;
}

// --- Attention

ShortConvolution::ShortConvolution(Module& parent, std::string name, int64_t channels, int64_t width, double std)
    : Callable(parent, std::move(name)), weight(*this, "weight", {channels, 1, width}, Init::normal(std)) {
  input_names = {"x"};
}
DistributedTensor ShortConvolution::forward(const DistributedTensor& x, const SequenceInputs& inputs) {
  DistributedTensor all = weight(), w = ops::view(all, {all.size(0), all.size(2)});
  if (!inputs.cache) return ops::silu(ops::causal_convolution(x, w));
  int64_t tail = w.size(1) - 1;
  std::vector<DistributedTensor>& kept = inputs.cache->kept(*this);
  if (kept.empty()) kept = {zeros(x.mesh(), TensorSpec{x.dtype(), {x.size(0), tail, x.size(2)}, x.layout()})};
  DistributedTensor before = kept[0];
  // The last ones of each row, which end where its new tokens do.
  DistributedTensor ends = ops::view(inputs.cache->fresh(*this).counts, {x.size(0), 1, 1}),
                    index = ops::view(arange(x.mesh(), TensorSpec{DType::i64, {tail}, Layout()}), {1, tail, 1}) + ends;
  kept[0] = ops::gather(ops::cat({before, x}, 1), 1, ops::expand(index, before.shape())).redistribute(before.layout());
  return ops::silu(ops::causal_convolution(x, w, before));
}

HeadNorm::HeadNorm(Module& parent, std::string name, int64_t dim, double eps)
    : Callable(parent, std::move(name)), weight(*this, "weight", {dim}, Init::ones()), eps_(eps) {
  input_names = {"x", "g"};
}
DistributedTensor HeadNorm::forward(const DistributedTensor& x) {
  return ops::view(ops::rms_norm(split(*this, x, x.size(2) / weight.shape()[0]), weight(), eps_), x.shape());
}
DistributedTensor HeadNorm::forward(const DistributedTensor& x, const DistributedTensor& gate) {
  return ops::swiglu(gate, forward(x));
}

DistributedTensor CoreRecurrence::forward(const DistributedTensor& q, const DistributedTensor& k,
                                          const DistributedTensor& v, const DistributedTensor& g,
                                          const SequenceInputs& inputs) {
  if (!inputs.cache) return std::get<0>(ops::gated_linear_attention(q, k, v, g));
  std::vector<DistributedTensor>& kept = inputs.cache->kept(*this);
  kept.resize(1);
  // A token whose key and gate are 0 leaves the state as it is, to the bit.
  DistributedTensor others = ops::view(inputs.cache->fresh(*this).others, {q.size(0), q.size(1), 1, 1});
  auto [out, state] = ops::gated_linear_attention(q, ops::masked_fill(k, others, 0), v, ops::masked_fill(g, others, 0),
                                                  {.initial_state = kept[0]});
  kept[0] = state;
  return out;
}

GatedLinearAttention::GatedLinearAttention(Module& parent, std::string name, const GlaConfig& c)
    : Callable(parent, std::move(name)),
      q_proj(*this, "q_proj", c.hidden_size, c.key_dim(), false, c.initializer_range),
      k_proj(*this, "k_proj", c.hidden_size, c.key_dim() / c.kv_groups(), false, c.initializer_range),
      v_proj(*this, "v_proj", c.hidden_size, c.value_dim() / c.kv_groups(), false, c.initializer_range),
      o_proj(*this, "o_proj", c.value_dim(), c.hidden_size, false, c.initializer_range),
      norm(*this, c.fuse_norm && c.use_output_gate ? "g_norm_swish_gate" : "g_norm", c.value_dim() / c.num_heads,
           c.norm_eps),
      config_(c) {
  input_names = {"hidden_states"};
  if (c.use_output_gate)
    g_proj = std::make_unique<Linear>(*this, "g_proj", c.hidden_size, c.value_dim(), false, c.initializer_range);
  gk_proj.emplace_back(c.hidden_size, c.gate_low_rank_dim, false, c.initializer_range);
  gk_proj.emplace_back(c.gate_low_rank_dim, c.key_dim() / c.kv_groups(), true, c.initializer_range);
  if (!c.use_short_conv) return;
  auto convolution = [&](const char* of, Linear& projection) {
    return std::make_unique<ShortConvolution>(*this, of, projection.weight.shape()[0], c.conv_size,
                                              c.initializer_range);
  };
  q_conv1d = convolution("q_conv1d", q_proj);
  k_conv1d = convolution("k_conv1d", k_proj);
  v_conv1d = convolution("v_conv1d", v_proj);
}

DistributedTensor GatedLinearAttention::key_heads(const DistributedTensor& x) {
  DistributedTensor heads = split(*this, x, config_.num_kv_heads);
  int64_t groups = config_.kv_groups();
  if (groups == 1) return heads;
  Shape one{x.size(0), x.size(1), config_.num_kv_heads, 1, heads.size(3)}, all = one;
  all[3] = groups;
  return ops::reshape(ops::expand(ops::view(heads, one), all),
                      {x.size(0), x.size(1), config_.num_heads, heads.size(3)});
}

DistributedTensor GatedLinearAttention::forward(const DistributedTensor& x, const SequenceInputs& inputs) {
  DistributedTensor q = q_proj(x), k = k_proj(x), v = v_proj(x), g = gk_proj[1](gk_proj[0](x));
  if (q_conv1d) q = (*q_conv1d)(q, inputs), k = (*k_conv1d)(k, inputs), v = (*v_conv1d)(v, inputs);
  if (g.dtype() == DType::bf16) g = ops::cast(g, DType::f32);
  g = ops::mul(ops::softplus(ops::neg(g)), -1 / config_.gate_logit_normalizer);  // the sigmoid's logarithm
  if (config_.clamp_min) g = ops::clamp(g, config_.clamp_min);
  q = split(*this, q, config_.num_heads), k = key_heads(k), v = key_heads(v), g = key_heads(g);
  DistributedTensor heads = core_recurrence(q, k, v, g, inputs);
  DistributedTensor out = ops::view(heads, {x.size(0), x.size(1), config_.value_dim()});
  if (!g_proj) return o_proj(norm(out));
  DistributedTensor gate = (*g_proj)(x);
  return o_proj(config_.fuse_norm ? norm(out, gate) : ops::swiglu(gate, norm(out)));
}

// --- The model

GlaBlock::GlaBlock(Module& parent, std::string name, const GlaConfig& c)
    : Callable(parent, std::move(name)),
      attn_norm(*this, "attn_norm", c.hidden_size, c.norm_eps),
      attn(*this, "attn", c),
      mlp_norm(*this, "mlp_norm", c.hidden_size, c.norm_eps),
      mlp(*this, "mlp", mlp_config(c)) {
  input_names = {"hidden_states"};
}
DistributedTensor GlaBlock::forward(const DistributedTensor& x, const SequenceInputs& inputs) {
  auto [normed, h] = mlp_norm(attn(attn_norm(x), inputs), x);
  return h + mlp(normed);
}

GlaModel::GlaModel(Module& parent, std::string name, const GlaConfig& c)
    : Callable(parent, std::move(name)),
      embeddings(*this, "embeddings", c.vocab_size, c.hidden_size, c.initializer_range, c.padding_idx),
      norm(*this, "norm", c.hidden_size, c.norm_eps) {
  input_names = {"input_ids"};
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) layers.emplace_back(c);
}
DistributedTensor GlaModel::forward(const DistributedTensor& input_ids, const SequenceInputs& inputs) {
  DistributedTensor h = embeddings(input_ids);
  for (GlaBlock& layer : layers) h = layer(h, inputs);
  return norm(h);
}

GlaForCausalLM::GlaForCausalLM(const DeviceMesh& mesh, const GlaConfig& c)
    : CausalLM(mesh), model(*this, "model", c), lm_head(make_head(*this, model, c)) {}

DistributedTensor GlaForCausalLM::hidden_states(const DistributedTensor& ids, const SequenceInputs& inputs) {
  check(
      (!inputs.positions.defined() || inputs.cache) && !inputs.documents.defined(),
      "[GlaForCausalLM] a gated linear attention model takes no positions and no documents yet: its state follows the "
      "order of the tokens");
  return model(ids, inputs);
}

}  // namespace dtensor::nn
