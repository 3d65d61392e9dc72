#include "nn/models/llama.h"

#include <fmt/format.h>

#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using nn::LlamaConfig;

namespace {

// A config.json with these fields, and the ones that every file must have.
nlohmann::ordered_json config_of(const std::string& text) {
  nlohmann::ordered_json
      given = json(text),
      all = json(R"({"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32})");
  if (!given.is_object()) return given;
  all.update(given);
  return all;
}
LlamaConfig config(const std::string& text) { return LlamaConfig::from_json(config_of(text)); }
std::string config_error(const std::string& text) {
  return error_of([&] { config(text); });
}

// Llama in double and by the book, one sequence. weights by path.
struct Reference {
  const LlamaConfig& c;
  std::map<std::string, std::vector<double>> w;
  using Rows = std::vector<std::vector<double>>;

  Rows linear(const Rows& x, const std::string& name) const {
    const auto& m = w.at(name + ".weight");
    Rows y;
    for (const auto& row : x) {
      std::vector<double> out(m.size() / row.size());
      for (size_t o = 0; o < out.size(); ++o)
        for (size_t i = 0; i < row.size(); ++i) out[o] += row[i] * m[o * row.size() + i];
      y.push_back(out);
    }
    return y;
  }
  Rows norm(const Rows& x, const std::string& name) const {
    Rows y = x;
    for (auto& row : y) {
      double s = 0;
      for (double v : row) s += v * v;
      s = 1 / std::sqrt(s / double(row.size()) + c.rms_norm_eps);
      for (size_t i = 0; i < row.size(); ++i) row[i] *= s * w.at(name + ".weight")[i];
    }
    return y;
  }
  // Hugging Face: q * cos + rotate_half(q) * sin
  void rotate(Rows& x) const {
    size_t d = size_t(c.head_dim), half = d / 2;
    for (size_t p = 0; p < x.size(); ++p)
      for (size_t h = 0; h < x[p].size() / d; ++h)
        for (size_t i = 0; i < half; ++i) {
          double angle = double(p) * std::pow(c.rope.theta, -2.0 * double(i) / double(d));
          double &a = x[p][h * d + i], &b = x[p][h * d + i + half], a0 = a, b0 = b;
          a = a0 * std::cos(angle) - b0 * std::sin(angle);
          b = b0 * std::cos(angle) + a0 * std::sin(angle);
        }
  }
  Rows attention(const Rows& x, const std::string& name) const {
    Rows q = linear(x, name + ".q_proj"), k = linear(x, name + ".k_proj"), v = linear(x, name + ".v_proj"), out;
    rotate(q), rotate(k);
    size_t d = size_t(c.head_dim), repeats = size_t(c.num_attention_heads / c.num_key_value_heads);
    for (size_t i = 0; i < x.size(); ++i) {
      std::vector<double> row(q[i].size());
      for (size_t h = 0; h < size_t(c.num_attention_heads); ++h) {
        size_t g = h / repeats;
        std::vector<double> score(i + 1);
        double sum = 0;
        for (size_t j = 0; j <= i; ++j) {
          for (size_t e = 0; e < d; ++e) score[j] += q[i][h * d + e] * k[j][g * d + e] / std::sqrt(double(d));
          sum += score[j] = std::exp(score[j]);
        }
        for (size_t j = 0; j <= i; ++j)
          for (size_t e = 0; e < d; ++e) row[h * d + e] += score[j] / sum * v[j][g * d + e];
      }
      out.push_back(row);
    }
    return linear(out, name + ".o_proj");
  }
  Rows mlp(const Rows& x, const std::string& name) const {
    Rows gate = linear(x, name + ".gate_proj"), up = linear(x, name + ".up_proj");
    for (size_t i = 0; i < gate.size(); ++i)
      for (size_t j = 0; j < gate[i].size(); ++j) gate[i][j] *= up[i][j] / (1 + std::exp(-gate[i][j]));
    return linear(gate, name + ".down_proj");
  }
  static void add(Rows& x, const Rows& y) {
    for (size_t i = 0; i < x.size(); ++i)
      for (size_t j = 0; j < x[i].size(); ++j) x[i][j] += y[i][j];
  }
  std::vector<double> logits(const std::vector<int64_t>& ids) const {
    Rows h;
    const auto& table = w.at("model.embed_tokens.weight");
    for (int64_t id : ids) h.emplace_back(table.begin() + id * c.hidden_size, table.begin() + (id + 1) * c.hidden_size);
    for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
      std::string name = fmt::format("model.layers.{}", l);
      add(h, attention(norm(h, name + ".input_layernorm"), name + ".self_attn"));
      add(h, mlp(norm(h, name + ".post_attention_layernorm"), name + ".mlp"));
    }
    std::vector<double> all;
    for (const auto& row : linear(norm(h, "model.norm"), "lm_head")) all.insert(all.end(), row.begin(), row.end());
    return all;
  }
};

}  // namespace

TEST_CASE("a config of Hugging Face is read") {
  LlamaConfig c = LlamaConfig::load(std::string(DTENSOR_SOURCE_DIR) + "/examples/configs/llama_tiny.json");
  CHECK(c.vocab_size == 259);
  CHECK(c.hidden_size == 128);
  CHECK(c.intermediate_size == 512);
  CHECK(c.num_hidden_layers == 4);
  CHECK(c.num_attention_heads == 8);
  CHECK(c.num_key_value_heads == 4);
  CHECK(c.head_dim == 16);
  CHECK(c.rms_norm_eps == 1e-5);
  CHECK(c.rope.theta == 10000);
  CHECK(c.initializer_range == 0.02);
}

TEST_CASE("what a config leaves out has the defaults of Hugging Face") {
  LlamaConfig c = config("{}");
  CHECK(c.rope.theta == 10000);
  CHECK(c.num_key_value_heads == 32);
  CHECK(c.head_dim == 128);
  CHECK(c.max_position_embeddings == 2048);
  CHECK(c.rms_norm_eps == 1e-6);
  CHECK(c.initializer_range == 0.02);
  // Key and value heads: as many as heads. A head: the hidden size over the heads.
  c = config(R"({"hidden_size": 48, "num_attention_heads": 6})");
  CHECK(c.num_key_value_heads == 6);
  CHECK(c.head_dim == 8);
  c = config(R"({"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": null, "head_dim": null})");
  CHECK(c.num_key_value_heads == 6);
  CHECK(c.head_dim == 8);
  c = config(R"({"hidden_size": 50, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10})");
  CHECK(c.num_key_value_heads == 3);
  CHECK(c.head_dim == 10);
}

TEST_CASE("the base of rotary embeddings is read from either place") {
  CHECK(config(R"({"rope_theta": 500000.0, "rope_scaling": null})").rope.theta == 500000);
  CHECK(config(R"({"rope_parameters": {"rope_type": "default", "rope_theta": 1000000}})").rope.theta == 1e6);
  CHECK(config(R"({"rope_parameters": {"rope_theta": 1234}})").rope.theta == 1234);
  CHECK(config(R"({"rope_theta": 77, "rope_parameters": {}})").rope.theta == 77);
  CHECK(config(R"({"rope_theta": 77, "rope_parameters": null})").rope.theta == 77);
}

TEST_CASE("a field that changes the result and is not supported is an error") {
  struct Case {
    const char *config, *error;
  };
  const Case cases[] = {
      {R"({"model_type": "gemma"})",
       "[llama config] model_type is \"gemma\"; supported are llama, mistral, qwen2, qwen3"},
      {R"({"hidden_act": "gelu"})", "[llama config] hidden_act is \"gelu\"; only \"silu\" or \"swish\" or null is"},
      {R"({"attention_dropout": 1})", "[llama config] attention_dropout is 1; a probability is from 0 to below 1"},
      {R"({"rope_scaling": {"rope_type": "llama3"}})",
       "[llama config: rope_scaling] rope_type \"llama3\" needs a factor"},
      {R"({"rope_scaling": {"type": "linear", "factor": 0.5}})",
       "[llama config: rope_scaling] the factor of rope scaling is 0.5; it is at least 1"},
      {R"({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}})",
       "[llama config: rope_scaling] high_freq_factor 4 is not above low_freq_factor 4"},
      {R"({"rope_parameters": {"rope_type": "xpos", "rope_theta": 1}})",
       "[llama config: rope_parameters] rope_type is \"xpos\"; supported are default, linear, dynamic"},
      {R"({"rope_scaling": {"rope_type": "longrope", "factor": 4}})",
       "[llama config: rope_scaling] rope_type longrope needs short_factor, a list of numbers"},
      {R"({"rope_scaling": {"rope_type": "longrope", "factor": 4, "short_factor": [0]}})",
       "[llama config: rope_scaling] short_factor has 0; it needs numbers above 0"},
      {R"({"partial_rotary_factor": 2})", "[llama config] partial_rotary_factor is 2; it is at most 1"},
      {R"({"pretraining_tp": 2})", "[llama config] pretraining_tp is 2; only 1 or null is supported"},
      {R"({"tie_word_embeddings": 1})", "[llama config] tie_word_embeddings is 1; it needs true or false"},
      {R"({"pad_token_id": 32000})", "[llama config] pad_token_id is 32000; it needs a token from 0 to 31999, or null"},
      {R"({"model_type": "mistral", "layer_types": ["full_attention"]})",
       "[llama config] layer_types has 1 entries for 32 layers"},
      {R"({"model_type": "mistral", "num_hidden_layers": 1, "layer_types": ["chunked"]})",
       "[llama config] layer_types has \"chunked\"; supported are full_attention and sliding_attention"},
      {R"({"model_type": 7})", "[llama config] model_type is 7; it needs a string"},
      {R"({"model_type": "llama", "architectures": ["Qwen2ForCausalLM"]})",
       "[llama config] model_type is \"llama\", but architectures is [\"Qwen2ForCausalLM\"]"},
  };
  for (const Case& c : cases) CHECK_THAT(config_error(c.config), StartsWith(c.error));
  // Their supported values, and fields that change nothing.
  CHECK(
      config_error(
          R"({"model_type": "llama", "hidden_act": "silu", "attention_bias": false, "mlp_bias": false, "attention_dropout": 0.0,
    "tie_word_embeddings": false, "rope_scaling": null, "pretraining_tp": 1, "pad_token_id": null, "use_cache": true, "torch_dtype": "bfloat16", "bos_token_id": 1,
    "transformers_version": "4.40.0", "architectures": ["LlamaForCausalLM"]})") == "");
}

TEST_CASE("values of a config that make no sense are errors") {
  struct Case {
    const char *config, *error;
  };
  const Case cases[] = {
      {"[1]", "[llama config] the file is not a JSON object"},
      {R"({"vocab_size": 4294967297})",
       "[llama config] vocab_size is 4294967297; it needs an integer from 1 to 2147483647"},
      {R"({"hidden_size": 18446744073709551615})",
       "[llama config] hidden_size is 18446744073709551615; it needs an integer"},
      {R"({"rms_norm_eps": 0})", "[llama config] rms_norm_eps is 0; it needs a number above 0"},
      {R"({"rms_norm_eps": -1e-6})", "[llama config] rms_norm_eps is -1e-06; it needs a number above 0"},
      {R"({"rope_theta": -10000.0})", "[llama config] rope_theta is -10000; it needs a number above 0"},
      {R"({"rope_parameters": {"rope_theta": 0}})",
       "[llama config: rope_parameters] rope_theta is 0; it needs a number above 0"},
      {R"({"initializer_range": -0.02})",
       "[llama config] initializer_range is -0.02; a standard deviation is not negative"},
      {R"({"architectures": ["GemmaForCausalLM"]})",
       "[llama config] architectures is [\"GemmaForCausalLM\"]; supported are LlamaForCausalLM, MistralForCausalLM"},
      {R"({"architectures": "LlamaForCausalLM"})", "[llama config] architectures is \"LlamaForCausalLM\"; supported"},
      {R"({"vocab_size": 0})", "[llama config] vocab_size is 0; it needs an integer from 1 to 2147483647"},
      {R"({"hidden_size": -4})", "[llama config] hidden_size is -4; it needs an integer from 1 to 2147483647"},
      {R"({"intermediate_size": 10.5})",
       "[llama config] intermediate_size is 10.5; it needs an integer from 1 to 2147483647"},
      {R"({"num_hidden_layers": "2"})",
       "[llama config] num_hidden_layers is \"2\"; it needs an integer from 1 to 2147483647"},
      {R"({"rms_norm_eps": "small"})", "[llama config] rms_norm_eps is \"small\"; it needs a number"},
      {R"({"hidden_size": 50, "num_attention_heads": 6})",
       "[llama config] hidden_size 50 does not divide into 6 heads"},
      {R"({"num_attention_heads": 6, "num_key_value_heads": 4, "head_dim": 8})",
       "[llama config] 6 attention heads are no multiple of 4 key/value heads"},
      {R"({"quantization_config": {"bits": 4}})",
       "[llama config] quantization_config is {\"bits\":4}; only null is supported"},
      {R"({"head_dim": 7})", "[llama config] head_dim 7 is odd; rotary embeddings turn pairs"},
      {R"({"rope_parameters": {"rope_type": 3}})", "[llama config: rope_parameters] rope_type is 3; it needs a string"},
      {R"({"rope_parameters": {"rope_theta": "10000"}})",
       "[llama config: rope_parameters] rope_theta is \"10000\"; it needs a number"},
  };
  for (const Case& c : cases) {
    INFO(c.config);
    CHECK_THAT(config_error(c.config), StartsWith(c.error));
  }
  Folder folder;
  CHECK_THAT(error_of([] { LlamaConfig::load("/nowhere/config.json"); }),
             StartsWith("[llama config] cannot read /nowhere/config.json"));
  CHECK_THAT(error_of([&] { LlamaConfig::load(folder.path.string()); }),
             StartsWith("[llama config] cannot read " + folder.path.string() + "/config.json: no such file"));
  std::string file = folder.write("config.json", config_of(R"({"mlp_bias": 3})").dump());
  CHECK_THAT(error_of([&] { LlamaConfig::load(file); }), EndsWith("(in " + file + ")"));
  CHECK_THAT(error_of([&] { LlamaConfig::load(folder.path.string()); }), EndsWith("(in " + file + ")"));  // a folder's
  file = folder.write("config.json", R"({"hidden_size": 1e999})");
  CHECK_THAT(error_of([&] { LlamaConfig::load(file); }),
             StartsWith("[llama config] " + file + " is not JSON: ") && Contains("number overflow"));
  folder.write("config.json", config_of(R"({"vocab_size": 77})").dump());
  CHECK(LlamaConfig::load(folder.path.string()).vocab_size == 77);
  file = folder.write("config.json", "{");
  CHECK_THAT(error_of([&] { LlamaConfig::load(file); }), StartsWith("[llama config] " + file + " is not JSON"));
}

TEST_CASE("a JSON file that is no Llama's config is an error that names what it lacks, and what is near") {
  struct Case {
    const char *file, *error;
  };
  const std::string none = "[llama config] this is no config.json of a Llama: it lacks ";
  const Case cases[] = {
      {"{}", "vocab_size, and hidden_size, and intermediate_size, and num_hidden_layers, and num_attention_heads"},
      {R"({"dim": 2048, "n_layers": 16, "n_heads": 32, "vocab_size": 128256})",  // Meta's params.json
       "hidden_size, and intermediate_size, and num_hidden_layers, and num_attention_heads"},
      {R"({"bos_token_id": 1, "temperature": 0.6})", "vocab_size, and hidden_size"},
      {R"({"vocab_size": 259, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layer": 2, "num_attention_heads": 4})",
       "num_hidden_layers; the nearest is \"num_hidden_layer\""},
      {R"({"vocabsize": 259, "hiden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4})",
       "vocab_size; the nearest is \"vocabsize\", and hidden_size; the nearest is \"hiden_size\""},
      {R"({"tensor_parallel": {"axis": "tp", "plan": {}}})", "vocab_size, and hidden_size"},
  };
  for (const Case& c : cases)
    CHECK_THAT(error_of([&] { LlamaConfig::from_json(json(c.file)); }), StartsWith(none + c.error));
  CHECK(config_error(R"({"architectures": null})") == "");
  CHECK(config_error(R"({"architectures": ["LlamaForCausalLM"]})") == "");
}

TEST_CASE("parameters have the names and shapes of Hugging Face's checkpoints") {
  auto rank = Rank::recorded(1);
  DeviceMesh m(*rank, "dp=1");
  LlamaConfig c = small_llama(2);
  c.head_dim = 6;
  nn::LlamaForCausalLM model(m, c);
  std::vector<std::string> names, expected{"model.embed_tokens.weight[259,32]"};
  for (nn::Parameter* p : model.parameters()) names.push_back(p->path() + to_string(p->shape()));
  for (int l : {0, 1})
    for (const char* s :
         {"input_layernorm.weight[32]", "self_attn.q_proj.weight[24,32]", "self_attn.k_proj.weight[12,32]",
          "self_attn.v_proj.weight[12,32]", "self_attn.o_proj.weight[32,24]", "post_attention_layernorm.weight[32]",
          "mlp.gate_proj.weight[64,32]", "mlp.up_proj.weight[64,32]", "mlp.down_proj.weight[32,64]"})
      expected.push_back(fmt::format("model.layers.{}.{}", l, s));
  expected.push_back("model.norm.weight[32]"), expected.push_back("lm_head.weight[259,32]");
  CHECK(names == expected);
  CHECK(model.input_names == std::vector<std::string>{"input_ids"});
  const std::set<std::string_view> two = {"RMSNorm", "SwiGLULinear", "LinearCrossEntropyLoss"};
  for (nn::Module* x : model.modules())
    if (!x->path().empty() && x->kind() != "ModuleList")
      CHECK(x->input_names.size() == (x->kind() == "CoreAttention" ? 3u : two.contains(x->kind()) ? 2u : 1u));
}

TEST_CASE("the logits are those of a plain implementation in double") {
  for (int64_t kv : {1, 2, 4}) {
    LlamaConfig c = small_llama(kv, 61);
    c.rope.theta = 50, c.initializer_range = 0.3, c.rms_norm_eps = 1e-2;  // so that all of them matter
    Reference reference{c, {}};
    const std::vector<int64_t> ids{3, 60, 0, 17, 17, 42, 5, 9, 60, 1, 2};
    auto logits = on_mesh("dp=1", [&](const DeviceMesh& m) {
      nn::LlamaForCausalLM model(m, c);
      nn::materialize(model, 11);
      for (nn::Parameter* p : model.parameters()) {
        if (p->path().find("norm") != std::string::npos)
          p->stored().copy_(DistributedTensor::distribute(f32(p->shape(), 3), m, Layout()));
        reference.w[p->path()] = values(p->stored().local());
      }
      DistributedTensor y = model(DistributedTensor::distribute(Tensor::of<int64_t>({1, 11}, ids), m, Layout()));
      check(y.shape() == Shape{1, 11, 61}, "{}", to_string(y));
      return values(y.local());
    })[0];
    INFO(kv << " key/value heads");
    CHECK(difference(logits, reference.logits(ids)) < 2e-6);
  }
}

TEST_CASE("a block's last product adds to the residual, and no pass adds gradients, unless a plan comes between") {
  struct Counts : Observer {
    const Rank& rank;
    std::map<std::string, int> of;  // "forward add"
    explicit Counts(const Rank& r) : rank(r) {}
    void on_call(const CallEvent& e) override {
      ++of[(rank.phase == Phase::backward ? "backward " : "forward ") + std::string(e.op.name)];
    }
  };
  auto run = [](const char* mesh, const std::string& plan, bool hooked) {
    return on_mesh(mesh, [&](const DeviceMesh& m) {
      nn::LlamaForCausalLM model(m, small_llama(2, 64));
      nn::ParallelPlan::from_json(json(plan)).apply(model);
      for (nn::Module* x : model.modules())
        if (hooked && x->path().ends_with("down_proj"))
          x->add_after_hook([](nn::Module&, std::vector<DistributedTensor*>&) {});
      nn::materialize(model, 7);
      Counts counts(m.rank_state());
      Autograd autograd(m.rank_state());
      nn::watch_parameters(autograd, model.parameters());
      m.rank_state().add(counts);
      DistributedTensor y =
          model(DistributedTensor::distribute(Tensor::of<int64_t>({2, 3}, {5, 9, 60, 1, 2, 3}), m, Layout()));
      autograd.backward(ops::sum(ops::square(y)).redistribute(Layout()));
      m.rank_state().remove(counts);
      std::vector<std::vector<double>> all{values(y.full_tensor())};
      for (const DistributedTensor& g : nn::reduce_gradients(autograd, model.parameters()))
        all.push_back(values(g.full_tensor()));
      return std::pair(counts.of, all);
    })[0];
  };
  auto [ops, values] = run("tp=1", "{}", false);
  CHECK(ops["forward linear_add"] == 2);
  CHECK(ops["forward add"] == 0);
  CHECK(ops["backward add"] == 0);
  CHECK(ops["backward add_rms_norm_backward"] == 4);  // of both norms of both blocks
  auto [hooked_ops, hooked_values] = run("tp=1", "{}", true);
  CHECK(hooked_ops["forward linear_add"] == 0);
  CHECK(hooked_ops["forward add"] == 2);
  CHECK(hooked_values == values);
  const std::string plan = R"({"tensor_parallel": {"axis": "tp", "plan": {
    "model.layers.*.mlp.gate_proj": "ColwiseParallel", "model.layers.*.mlp.up_proj": "ColwiseParallel",
    "model.layers.*.mlp.down_proj": "RowwiseParallel"}}})";
  auto [sharded_ops, sharded_values] = run("tp=2", plan, false);
  CHECK(sharded_ops["forward linear_add"] == 0);
  CHECK(sharded_ops["backward add"] == 0);
  for (size_t i = 0; i < values.size(); ++i) CHECK(difference(sharded_values[i], values[i]) < 1e-5);
}

TEST_CASE("heads that do not divide are an error that says so") {
  // Key and value heads may stay whole: then any number of ranks will do.
  auto error = [](int64_t kv_heads, const char* mesh, const char* kv_style) {
    std::string plan = fmt::format(
        R"j({{"tensor_parallel": {{"axis": "tp", "plan": {{"model.layers.*.self_attn.q_proj": {0}, "model.layers.*.self_attn.k_proj": {0},
        "model.layers.*.self_attn.v_proj": {0}}}}}}})j",
        kv_style);
    return error_of([&] {
      on_mesh(mesh, [&](const DeviceMesh& m) {
        nn::LlamaForCausalLM model(m, small_llama(kv_heads));
        nn::ParallelPlan::from_json(json(plan)).apply(model);
        nn::materialize(model, 1);
        model(DistributedTensor::distribute(Tensor::of<int64_t>({1, 4}, {1, 2, 3, 4}), m, Layout()));
      });
    });
  };
  const char *sharded = R"("ColwiseParallel")",
             *gathered = R"j({"style": "ColwiseParallel", "output_layouts": "Replicate"})j";
  CHECK_THAT(
      error(2, "tp=4", sharded),
      StartsWith(
          "[model.layers.0.self_attn] 2 heads do not divide over 4 ranks (tp): use fewer ranks on that axis, or let "
          "the projection's plan line have \"output_layouts\": \"Replicate\""));
  CHECK_THAT(error(4, "tp=3", sharded),
             StartsWith("[model.layers.0.self_attn] 4 heads do not divide over 3 ranks (tp)"));
  CHECK(error(2, "tp=4", gathered) == "");
  CHECK(error(4, "tp=3", gathered) == "");
}
