#include "nn/parallel/plan.h"

#include <fmt/format.h>

#include "tests/nn/helpers.h"

using namespace dtensor;
using namespace dtensor::testing;
using nn::ParallelPlan;
using nn::Style;

namespace {

std::string tp(const std::string& lines, const std::string& rest = "") {
  return R"({"tensor_parallel": {"axis": "tp", "plan": {)" + lines + "}}" + rest + "}";
}

std::string parse_error(const std::string& text) {
  return error_of([&] { ParallelPlan::from_json(json(text)); });
}

// Reads, applies and runs a plan on a small Llama of 4 query heads; the first error.
std::string run_error(const std::string& text, const std::string& mesh = "tp=2", int64_t kv_heads = 4) {
  return error_of([&] {
    on_mesh(mesh, [&](const DeviceMesh& m) {
      nn::LlamaForCausalLM model(m, small_llama(kv_heads));
      ParallelPlan::from_json(json(text)).apply(model);
      nn::materialize(model, 1);
      std::vector<int64_t> ids(16, 3);
      model(DistributedTensor::distribute(Tensor::of<int64_t>({2, 8}, ids), m, Layout()));
    });
  });
}

// Where the parameters are after a plan: "tp=Shard(0)" by path.
std::map<std::string, std::string> placed(const std::string& text, const std::string& mesh = "tp=2") {
  auto rank = Rank::recorded(MeshShape::parse(mesh).world());
  DeviceMesh m(*rank, mesh);
  nn::LlamaForCausalLM model(m, small_llama());
  ParallelPlan::from_json(json(text)).apply(model);
  std::map<std::string, std::string> result;
  for (nn::Parameter* p : model.parameters())
    if (!p->stored().layout().is_replicated()) result[p->path()] = to_string(p->stored().layout(), m.shape());
  return result;
}

const std::string columns =
    R"("model.layers.*.self_attn.q_proj": "ColwiseParallel", "model.layers.*.self_attn.k_proj": "ColwiseParallel",
  "model.layers.*.self_attn.v_proj": "ColwiseParallel", "model.layers.*.self_attn.o_proj": "RowwiseParallel")";

}  // namespace

TEST_CASE("plans that cannot be read: the error names the place and what is near") {
  struct Case {
    std::string plan;
    std::vector<const char*> error;  // all of them in the message
  };
  const Case cases[] = {
      {R"(["tensor_parallel"])", {"[plan] the file: ", "is no object"}},
      {R"({"tensor_paralel": {}})",
       {"[plan] the file: there is no field \"tensor_paralel\"; the nearest is \"tensor_parallel\""}},
      {R"({"tensor_parallel": {"plan": {}}})", {"[plan] tensor_parallel: \"axis\" is missing"}},
      {R"({"tensor_parallel": {"axis": "tp"}})", {"[plan] tensor_parallel: \"plan\" is missing"}},
      {R"({"tensor_parallel": {"axes": "tp", "plan": {}}})",
       {"[plan] tensor_parallel: there is no field \"axes\"; the nearest is \"axis\""}},
      {R"({"tensor_parallel": {"axis": 1, "plan": {}}})", {"[plan] tensor_parallel.axis: 1 is no string"}},
      {R"({"tensor_parallel": {"axis": "tp", "plan": ["lm_head"]}})",
       {"[plan] tensor_parallel.plan: a plan is an object"}},
      {R"({"tensor_parallel": "tp"})", {"[plan] tensor_parallel: \"tp\" is no object"}},
      {R"({"tensor_parallel": [{"axis": "tp", "plan": {}}, {"axis": "tp2"}]})",
       {"[plan] tensor_parallel[1]: \"plan\" is missing"}},
      {tp(R"("lm_head": "ColumnParallel")"),
       {"[plan] tensor_parallel.plan.lm_head: there is no style \"ColumnParallel\"; the nearest is "
        "\"ColwiseParallel\""}},
      {tp(R"("lm_head": {"style": "colwize"})"),
       {"[plan] tensor_parallel.plan.lm_head: there is no style \"colwize\""}},
      {tp(R"("lm_head": 3)"), {"[plan] tensor_parallel.plan.lm_head: 3 is no string"}},
      {tp(R"("lm_head": {"output_layouts": "Replicate"})"),
       {"[plan] tensor_parallel.plan.lm_head: a style object needs \"style\""}},
      {tp(R"("lm_head": {"style": "ColwiseParallel", "output_layout": "Replicate"})"),
       {"[plan] tensor_parallel.plan.lm_head: there is no field \"output_layout\"; the nearest is \"output_layouts\""}},
      {tp(R"("lm_head": {"style": "ColwiseParallel", "desired_input_layouts": "Replicate"})"),
       {"there is no field \"desired_input_layouts\""}},
      {tp(R"("lm_head": {"style": "SequenceParallel", "input_layouts": "Replicate"})"),
       {"there is no field \"input_layouts\""}},
      {tp(R"j("lm_head": {"style": "ColwiseParallel", "output_layouts": "Shard"})j"),
       {"[plan] tensor_parallel.plan.lm_head.output_layouts: ", "Shard"}},
      {tp(R"j("lm_head": {"style": "ColwiseParallel", "output_layouts": "Sharded(0)"})j"),
       {"[plan] tensor_parallel.plan.lm_head.output_layouts: ", "Sharded(0)"}},
      {tp(R"j("model.norm": "PrepareModuleInput")j"),
       {"[plan] tensor_parallel.plan.\"model.norm\": PrepareModuleInput needs input_layouts and"}},
      {tp(R"j("model.norm": {"style": "PrepareModuleInput", "input_layouts": ["Shard(1)", "Replicated"], "desired_input_layouts": [null, null]})j"),
       {"[plan] tensor_parallel.plan.\"model.norm\".input_layouts[1]: ", "Replicated"}},
      {tp(R"j("lm_head": {"style": "ColwiseParallel", "output_layouts": 5})j"),
       {"[plan] tensor_parallel.plan.lm_head.output_layouts: 5 is no string"}},
      {tp(R"j("model.norm": {"style": "SequenceParallel", "sequence_dim": "1"})j"),
       {"[plan] tensor_parallel.plan.\"model.norm\".sequence_dim: \"1\" is no dimension: a dimension is an integer"}},
      {tp(R"j("model.norm": {"style": "SequenceParallel", "sequence_dim": 7.0})j"),
       {"[plan] tensor_parallel.plan.\"model.norm\".sequence_dim: 7.0 is no dimension: a dimension is an integer"}},
      {tp(R"j("model.norm": {"style": "SequenceParallel", "sequence_dim": 8})j"),
       {"[plan] tensor_parallel.plan.\"model.norm\".sequence_dim: 8 is no dimension: tensors have at most 8, so it is "
        "from -8 to 7"}},
      {tp(R"j("model.norm": {"style": "SequenceParallel", "sequence_dim": 257})j"),
       {"[plan] tensor_parallel.plan.\"model.norm\".sequence_dim: 257 is no dimension"}},
      {tp(R"j("model.norm": {"style": "SequenceParallel", "sequence_dim": 4294967297})j"),
       {"[plan] tensor_parallel.plan.\"model.norm\".sequence_dim: 4294967297 is no dimension"}},
      {tp(R"j("model.norm": {"style": "SequenceParallel", "sequence_dim": 99999999999})j"),
       {"[plan] tensor_parallel.plan.\"model.norm\".sequence_dim: 99999999999 is no dimension"}},
      {tp(R"j("model.norm": {"style": "SequenceParallel", "sequence_dim": 18446744073709551615})j"),
       {"[plan] tensor_parallel.plan.\"model.norm\".sequence_dim: 18446744073709551615 is no dimension: tensors"}},
      {tp(R"j("model.norm": {"style": "SequenceParallel", "sequence_dim": -9})j"),
       {"[plan] tensor_parallel.plan.\"model.norm\".sequence_dim: -9 is no dimension"}},
      {tp(R"j("model.norm": {"style": "SequenceParallel", "sequence_dim": -4294967295})j"),
       {"[plan] tensor_parallel.plan.\"model.norm\".sequence_dim: -4294967295 is no dimension"}},
      {R"({"fully_shard": {"axis": "dp", "modules": []}})",
       {"[plan] fully_shard.modules: an empty list shards nothing: write [\"\"] for the whole model"}},
      {R"({"fully_shard": {"axis": [], "modules": [""]}})",
       {"[plan] fully_shard.axis: an empty list shards over nothing: name an axis"}},
      {tp(R"j("lm_head": "embeding_rowwise")j"),
       {"[plan] tensor_parallel.plan.lm_head: there is no style \"embeding_rowwise\"; the nearest is "
        "\"embedding_rowwise\" (styles: "}},
      {tp(R"j("lm_head": "moe_tp_experts")j"),
       {"[plan] tensor_parallel.plan.lm_head: \"moe_tp_experts\" is for experts, latent attention or attention sinks, "
        "which are not "
        "supported yet"}},
      {R"({"tensor_parallel": {"axis": "tp", "async": true, "plan": {}}})",
       {"[plan] tensor_parallel.async: asynchronous tensor parallelism is not supported yet"}},
      {tp(R"j("lm_head": {"style": "ColwiseParallel", "use_local_output": 1})j"),
       {"[plan] tensor_parallel.plan.lm_head.use_local_output: "}},
      {tp(R"j("lm_head": {"style": "PrepareModuleWeight", "layouts": null})j"),
       {"[plan] tensor_parallel.plan.lm_head.layouts: null is no layout of a parameter"}},
      {tp(R"j("model.norm": {"style": "PrepareModuleInput", "input_kwarg_layouts": ["Shard(1)"]})j"),
       {"[plan] tensor_parallel.plan.\"model.norm\".input_kwarg_layouts: [\"Shard(1)\"] is no object of inputs and "
        "their layouts"}},
      {tp(R"j("model.norm": {"style": "PrepareModuleInput", "input_kwarg_layouts": {"a": "Shard(1)"}})j"),
       {"PrepareModuleInput needs as many input_kwarg_layouts as desired_input_kwarg_layouts"}},
      {tp(R"j("model.norm": {"style": "PrepareModuleInput", "input_kwarg_layouts": {"a": "Shard(1)"}, "desired_input_kwarg_layouts": {"b": "Shard(1)"}})j"),
       {"input_kwarg_layouts has \"a\" where desired_input_kwarg_layouts has \"b\": name the same inputs in both"}},
      {tp(R"j("model.norm": {"style": "PrepareModuleInputOutput", "input_layouts": "Shard(1)", "desired_input_layouts": "Shard(1)"})j"),
       {"PrepareModuleInputOutput needs output_layouts and desired_output_layouts"}},
      {tp(R"j("lm_head": "ring")j"), {"[plan] tensor_parallel.plan.lm_head: there is no style \"ring\" (styles: "}},
      {tp(R"j("model.norm": "PrepareModuleInput")j"),
       {"[plan] tensor_parallel.plan.\"model.norm\": PrepareModuleInput needs input_layouts and"}},
      {tp(R"j("model.norm": {"style": "PrepareModuleInput", "input_layouts": ["Shard(1)"]})j"),
       {"[plan] tensor_parallel.plan.\"model.norm\": PrepareModuleInput needs as many"}},
      {tp(R"j("model.norm": {"style": "PrepareModuleOutput", "output_layouts": ["Shard(1)"]})j"),
       {"[plan] tensor_parallel.plan.\"model.norm\": PrepareModuleOutput needs as many"}},
      {tp(R"("lm_head": "ColwiseParallel")", R"(, "loss_parallel": 1)"), {"[plan] loss_parallel: true or false"}},
      {R"({"loss_parallel": true})", {"[plan] loss_parallel: needs tensor_parallel"}},
      {R"({"reduce_dtype": "fp16"})", {"[plan] reduce_dtype: \"fp16\" is not supported; use \"fp32\" or \"bf16\""}},
      {R"({"data_parallel": {}})", {"[plan] data_parallel: \"axis\" is missing"}},
      {R"({"data_parallel": {"axis": "dp", "size": 2}})", {"[plan] data_parallel: there is no field \"size\""}},
  };
  for (const Case& c : cases) {
    std::string error = parse_error(c.plan);
    INFO(c.plan);
    CHECK_THAT(error, StartsWith("[plan] "));
    for (const char* text : c.error) CHECK_THAT(error, Contains(text));
    for (size_t at = error.find("[plan]"); at != std::string::npos; at = error.find("[plan]", at + 1))
      CHECK(at == 0);  // once
    if (size_t at = error.find("tensor_parallel.plan."); at != std::string::npos)
      CHECK(error.find("tensor_parallel.plan.", at + 1) == std::string::npos);
  }
}

TEST_CASE("plans that do not fit the model or the mesh: the error says what would") {
  struct Case {
    std::string plan;
    const char* mesh;
    std::vector<const char*> error;
  };
  const Case cases[] = {
      {tp(R"("lm_head": "ColwiseParallel")"),
       "dp=2",
       {"[plan] the plan uses axis \"tp\", which mesh dp=2 lacks", "--mesh dp=2,tp=2"}},
      {R"({"data_parallel": {"axis": "dp"}})", "tp=2", {"[plan] the plan uses axis \"dp\", which mesh tp=2 lacks"}},
      {tp(R"("lm_heat": "ColwiseParallel")"),
       "tp=2",
       {"[plan] tensor_parallel.plan: \"lm_heat\" matches no module; the nearest is \"lm_head\""}},
      {tp(R"("model.layers.*.mlp.gate_poj": "ColwiseParallel")"),
       "tp=2",
       {"\"model.layers.*.mlp.gate_poj\" matches no module; the nearest is \"model.layers.*.mlp.gate_proj\""}},
      {tp(R"("model.layers.7.mlp.up_proj": "ColwiseParallel")"),
       "tp=2",
       {"matches no module; the nearest is \"model.layers.0.mlp.up_proj\""}},
      {tp(R"("model.layers.*": "SequenceParallel", "layers.*": "SequenceParallel")"),
       "tp=2",
       {"\"layers.*\" matches no module; the nearest is \"model.layers.*\""}},
      {tp(R"("model.layers.*.mlp.up_proj": "ColwiseParallel", "model.layers.1.mlp.up_proj": "RowwiseParallel")"),
       "tp=2",
       {"[plan] tensor_parallel.plan: module model.layers.1.mlp.up_proj is matched by \"model.layers.*.mlp.up_proj\" "
        "and \"model.layers.1.mlp.up_proj\"; keep one"}},
      {tp(R"("*": "SequenceParallel", "lm_head": "ColwiseParallel")"),
       "tp=2",
       {"module lm_head is matched by \"*\" and \"lm_head\""}},
      {R"({"tensor_parallel": [{"axis": "tp", "plan": {"lm_head": "ColwiseParallel"}}, {"axis": "tp", "plan": {"lm_head": "RowwiseParallel"}}]})",
       "tp=2",
       {"lm_head is matched by \"lm_head\" and \"lm_head\""}},  // on one axis, in two objects
      {tp(R"("model.norm": "ColwiseParallel")"),
       "tp=2",
       {"[model.norm] \"model.norm\": ", "ColwiseParallel fits Linear and Embedding, not RMSNorm"}},
      {tp(R"j("lm_head": {"style": "ColwiseParallel", "input_layouts": "Shard(1)"})j"),
       "tp=2",
       {"[lm_head] lm_head: ColwiseParallel claims that input 0 arrives as tp=Shard(1), but it is f32[2,8,32] "
        "tp=Replicate"}},
      // Layer 0 drifts by itself: who moved it is named beside the line that finds it out.
      {tp(R"("model.layers.*.mlp.gate_proj": "ColwiseParallel")"),
       "tp=2",
       {"[model.layers.1.mlp.gate_proj] ", "claims that input 0 arrives as tp=Replicate",
        "; the last op to bring a tensor to tp=Shard(0) unasked was rms_norm in "
        "model.layers.1.input_layernorm, of f32[2,8,32] tp=Partial(sum)"}},
      {tp(R"j("lm_head": {"style": "ColwiseParallel", "output_layouts": "Shard(3)"})j"),
       "tp=2",
       {"[lm_head] lm_head: ColwiseParallel: Shard(3) names no dimension of f32[2,8,259]"}},
      {tp(R"j("": {"style": "PrepareModuleInput", "input_layouts": "Shard(1)", "desired_input_layouts": "Replicate"})j"),
       "tp=2",
       {"[the root module] \"\": PrepareModuleInput claims that input 0 arrives as tp=Shard(1), but it is i64[2,8] "
        "tp=Replicate"}},
      {tp(R"j("model.norm": "PrepareModuleInput")j"),
       "tp=2",
       {"[plan] tensor_parallel.plan.\"model.norm\": PrepareModuleInput needs input_layouts and"}},
      {tp(R"j("model.norm": {"style": "PrepareModuleInput", "input_layouts": ["Replicate", null], "desired_input_layouts": ["Replicate", "Shard(0)"]})j"),
       "tp=2",
       {"[model.norm] ", "gives layouts of 2 inputs, but the module has 1 tensor inputs"}},
      {tp(R"j("lm_head": {"style": "ColwiseParallel", "output_layouts": "Replicate"})j", R"(, "loss_parallel": true)"),
       "tp=2",
       {"[plan] loss_parallel: logits arrive as f32[2,8,259] tp=Replicate, not sharded over their classes on tp: give "
        "lm_head \"output_layouts\": \"Shard(-1)\""}},
      {tp(columns),
       "tp=8",
       {"[model.layers.0.self_attn] 4 heads do not divide over 8 ranks (tp): use fewer ranks",
        "\"output_layouts\": \"Replicate\""}},
      {tp(columns), "dp=2,tp=3", {"[model.layers.0.self_attn] 4 heads do not divide over 3 ranks (tp)"}},
  };
  for (const Case& c : cases) {
    std::string error = run_error(c.plan, c.mesh);
    INFO(c.plan << " on " << c.mesh);
    for (const char* text : c.error) CHECK_THAT(error, Contains(text));
  }
  CHECK_THAT(run_error(tp(columns), "tp=4", 2),
             Contains("[model.layers.0.self_attn] 2 heads do not divide over 4 ranks (tp)"));
  CHECK(run_error(tp(columns), "tp=4") == "");
  CHECK(run_error(tp(columns), "tp=1") == "");
}

TEST_CASE("a plan file that cannot be read") {
  Folder folder;
  CHECK_THAT(error_of([&] { ParallelPlan::load("/nowhere/plan.json"); }),
             StartsWith("[plan] cannot read /nowhere/plan.json: no such file, or no permission"));
  std::string file = folder.write("plan.json", "{\"tensor_parallel\": ");
  CHECK_THAT(error_of([&] { ParallelPlan::load(file); }),
             StartsWith("[plan] " + file + " is not JSON: ") && Contains("line 1"));
  file = folder.write("twice.json", R"({"data_parallel": {"axis": "dp", "axis": "tp"}})");
  CHECK_THAT(error_of([&] { ParallelPlan::load(file); }), Contains("the key \"axis\" stands twice in one object"));
  file = folder.write("other.json", "{\"loss\": true}");
  CHECK_THAT(error_of([&] { ParallelPlan::load(file); }),
             Contains("there is no field \"loss\"") && Contains("(in " + file + ")"));
}

TEST_CASE("an asterisk stands for one segment of a path, or a part of one") {
  auto at = [](const char* pattern) {
    std::vector<std::string> paths;
    for (const auto& [path, layout] : placed(tp(fmt::format("\"{}\": \"ColwiseParallel\"", pattern))))
      paths.push_back(path);
    return paths;
  };
  using Paths = std::vector<std::string>;
  CHECK(at("lm_head") == Paths{"lm_head.weight"});
  CHECK(at("model.layers.*.mlp.up_proj") ==
        Paths{"model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"});
  CHECK(at("*.layers.1.mlp.up_proj") == Paths{"model.layers.1.mlp.up_proj.weight"});
  CHECK(at("model.layers.0.mlp.*_proj").size() == 3);
  CHECK(at("model.layers.*.*.*_proj").size() == 14);
  CHECK(at("model.layers.*.mlp.*p*proj").size() == 2);
  CHECK(at("model.layers.*.mlp.up*").size() == 2);
  CHECK(at("*.*.1.self_attn.q_*") == Paths{"model.layers.1.self_attn.q_proj.weight"});
  CHECK_THAT(run_error(tp(R"("model.*.mlp.up_proj": "ColwiseParallel")")), Contains("matches no module"));
  CHECK_THAT(run_error(tp(R"("model.layers.*.mlp.up_proj.*": "ColwiseParallel")")), Contains("matches no module"));
  CHECK_THAT(run_error(tp(R"("model.layers.*.mlp.up*p": "ColwiseParallel")")), Contains("matches no module"));
  CHECK_THAT(run_error(tp(R"("model.layers*mlp": "ColwiseParallel")")), Contains("matches no module"));
}

TEST_CASE("a plan says which modules its keys leave out beside others like them") {
  auto notes = [](const std::string& lines) {
    auto rank = Rank::recorded(2);
    nn::LlamaForCausalLM model(DeviceMesh(*rank, "tp=2"), small_llama());
    return ParallelPlan::from_json(json(tp(lines))).notes(model);
  };
  using Notes = std::vector<std::string>;
  CHECK(notes(R"("model.layers.*.mlp.up_proj": "ColwiseParallel", "lm_head": "ColwiseParallel")").empty());
  CHECK(notes(R"("model.layers.1.mlp.up_proj": "ColwiseParallel")") ==
        Notes{"[plan] tensor_parallel.plan.\"model.layers.1.mlp.up_proj\": leaves out model.layers.0.mlp.up_proj, "
              "which is like what it matches: name \"model.layers.*.mlp.up_proj\" for all of them"});
  CHECK(notes(R"("model.layers.1.mlp.up_proj": "ColwiseParallel", "*.*.0.mlp.up_proj": "ColwiseParallel")").empty());
}

TEST_CASE("styles of Hugging Face are those of PyTorch") {
  struct Case {
    const char *hugging_face, *ours, *module;
  };
  const Case cases[] = {
      {R"("colwise")", R"("ColwiseParallel")", "lm_head"},
      {R"("rowwise")", R"("RowwiseParallel")", "model.layers.*.mlp.down_proj"},
      {R"("colwise_rep")", R"j({"style": "ColwiseParallel", "output_layouts": "Replicate"})j", "lm_head"},
      {R"("colwise_gather_output")", R"j({"style": "ColwiseParallel", "output_layouts": "Replicate"})j", "lm_head"},
      {R"("rowwise_rep")", R"j({"style": "RowwiseParallel", "input_layouts": "Replicate"})j",
       "model.layers.*.mlp.down_proj"},
      {R"("rowwise_split_input")", R"j({"style": "RowwiseParallel", "input_layouts": "Replicate"})j",
       "model.layers.*.mlp.down_proj"},
      {R"("sequence_parallel")", R"("SequenceParallel")", "model.norm"},
      {R"("embedding_rowwise")", R"("RowwiseParallel")", "model.embed_tokens"},
      {R"("embedding_colwise")", R"j({"style": "ColwiseParallel", "output_layouts": "Replicate"})j",
       "model.embed_tokens"},
      {R"("packed_colwise")", R"("ColwiseParallel")", "lm_head"},
      {R"("replicate")", R"("replicated_with_grad_allreduce")", "model.norm"},
      {R"({"style": "colwise"})", R"("ColwiseParallel")", "lm_head"},
  };
  for (const Case& c : cases) {
    auto one = [&](const char* style) {
      return ParallelPlan::from_json(json(tp(fmt::format("\"{}\": {}", c.module, style))))
          .tensor_parallel.at(0)
          .lines.at(0);
    };
    auto [path, a] = one(c.hugging_face);
    auto [same, b] = one(c.ours);
    INFO(c.hugging_face);
    CHECK(path == c.module);
    CHECK(a == b);
  }
  // As a whole: Llama's base_model_tp_plan and lm_head's.
  std::string plan = tp(
      R"("model.layers.*.self_attn.q_proj": "colwise", "model.layers.*.self_attn.k_proj": "colwise", "model.layers.*.self_attn.v_proj": "colwise",
    "model.layers.*.self_attn.o_proj": "rowwise", "model.layers.*.mlp.gate_proj": "colwise", "model.layers.*.mlp.up_proj": "colwise",
    "model.layers.*.mlp.down_proj": "rowwise", "lm_head": "colwise_rep")");
  CHECK(run_error(plan) == "");
  CHECK(placed(plan).size() == 15);
  // Hooks on the parent: the row's output is a sum until the MLP's is gathered.
  plan = tp(R"("model.layers.*.mlp.gate_proj": "local_colwise", "model.layers.*.mlp.up_proj": "local_colwise",
    "model.layers.*.mlp.down_proj": "local_rowwise", "model.layers.*.mlp": "gather",
    "model.layers.*.input_layernorm": "replicated_with_grad_allreduce")");
  CHECK(run_error(plan) == "");
  CHECK(placed(plan).size() == 6);
}

TEST_CASE("what a plan says is read") {
  ParallelPlan plan = ParallelPlan::from_json(json(R"j({
    "tensor_parallel": [
      {"axis": "a", "plan": {"x.*": {"style": "PrepareModuleInput", "input_layouts": ["Shard(1)", null], "desired_input_layouts": ["Replicate", "Partial"], "use_local_output": false},
                             "y": {"style": "SequenceParallel", "sequence_dim": 0, "use_local_output": true}}},
      {"axis": "b", "plan": {"z": {"style": "ColwiseParallel", "output_layouts": "Shard(-1)", "use_local_output": false},
                             "": {"style": "PrepareModuleOutput", "output_layouts": ["Shard(0)"], "desired_output_layouts": ["Replicate"]}}}],
    "loss_parallel": false, "data_parallel": {"axis": "dp"}})j"));
  CHECK(plan.axes() == std::vector<std::string>{"a", "b", "dp"});
  CHECK(plan.loss_parallel == std::optional(false));
  REQUIRE(plan.tensor_parallel.size() == 2);
  using Layouts = std::vector<std::optional<Placement>>;
  const auto& [path, x] = plan.tensor_parallel[0].lines.at(0);
  CHECK(path == "x.*");
  CHECK(x.kind == Style::Kind::prepare_input);
  CHECK(x.input_layouts == Layouts{Shard(1), std::nullopt});
  CHECK(x.desired_input_layouts == Layouts{Replicate(), Partial()});
  CHECK(plan.tensor_parallel[0].lines.at(1).second.sequence_dim == 0);
  CHECK(plan.tensor_parallel[1].lines.at(0).second.output_layouts == Layouts{Shard(-1)});
  const Style& root = plan.tensor_parallel[1].lines.at(1).second;
  CHECK(root.kind == Style::Kind::prepare_output);
  CHECK(root.desired_output_layouts == Layouts{Replicate()});

  ParallelPlan empty = ParallelPlan::from_json(json("{}"));
  CHECK(empty.axes().empty());
  CHECK_FALSE(empty.loss_parallel.has_value());
}

TEST_CASE("a list of tensor parallel objects shards over several axes") {
  std::string plan =
      R"({"tensor_parallel": [{"axis": "a", "plan": {"lm_head": "ColwiseParallel", "model.layers.*.mlp.up_proj": "ColwiseParallel"}},
                                             {"axis": "b", "plan": {"lm_head": "ColwiseParallel"}}]})";
  auto at = placed(plan, "a=2,b=2");
  CHECK(at["lm_head.weight"] == "a=Shard(0) b=Shard(0)");
  CHECK(at["model.layers.1.mlp.up_proj.weight"] == "a=Shard(0) b=Replicate");
  CHECK(at.size() == 3);
}

TEST_CASE("tensor parallelism over two axes gives the same logits") {
  std::string plan = R"j({"tensor_parallel": [
    {"axis": "a", "plan": {"model.layers.*.mlp.gate_proj": "colwise", "model.layers.*.mlp.up_proj": "colwise", "model.layers.*.mlp.down_proj": "rowwise"}},
    {"axis": "b", "plan": {"model.layers.*.mlp.gate_proj": "colwise", "model.layers.*.mlp.up_proj": "colwise", "model.layers.*.mlp.down_proj": "rowwise", "lm_head": "colwise"}}]})j";
  auto logits = [](const char* mesh, const std::string& text) {
    return on_mesh(
               mesh,
               [&](const DeviceMesh& m) {
                 nn::LlamaForCausalLM model(m, small_llama());
                 ParallelPlan::from_json(json(text)).apply(model);
                 nn::materialize(model, 1);
                 std::vector<int64_t> ids;
                 for (int64_t i = 0; i < 16; ++i) ids.push_back(i * 16);
                 return values(
                     model(DistributedTensor::distribute(Tensor::of<int64_t>({2, 8}, ids), m, Layout())).full_tensor());
               })
        .back();
  };
  CHECK(difference(logits("a=2,b=2", plan), logits("a=1", "{}")) < 1e-6);
}

TEST_CASE("loss_parallel false gathers the logits and true keeps them") {
  auto layout = [](const char* loss_parallel, const char* mesh) {
    return on_mesh(mesh, [&](const DeviceMesh& m) {
      nn::LlamaForCausalLM model(m, small_llama());
      ParallelPlan::from_json(json(tp(R"("lm_head": "ColwiseParallel")", loss_parallel))).apply(model);
      nn::materialize(model, 1);
      CommLog log(m.rank_state());
      auto logits = model(DistributedTensor::distribute(Tensor::of<int64_t>({2, 2}, {1, 2, 3, 4}), m, Layout()));
      return to_string(logits) + (log.entries().empty() ? "" : "; " + log.entries().back().plan_line);
    })[0];
  };
  CHECK(layout("", "tp=2") == "f32[2,2,259] tp=Shard(2)");
  CHECK(layout(R"(, "loss_parallel": true)", "tp=2") == "f32[2,2,259] tp=Shard(2)");
  CHECK(layout(R"(, "loss_parallel": false)", "tp=2") == "f32[2,2,259] tp=Replicate; loss_parallel: false");
  CHECK(layout(R"(, "loss_parallel": true)", "tp=1") == "f32[2,2,259] tp=Replicate");
}

TEST_CASE("use_local_output has no effect") {
  for (const char* value : {"true", "false"}) {
    std::string plan = tp(fmt::format(
        R"j("lm_head": {{"style": "ColwiseParallel", "output_layouts": "Replicate", "use_local_output": {}}})j",
        value));
    CHECK(run_error(plan) == "");
    CHECK(placed(plan).size() == 1);
  }
}

TEST_CASE("a plan comes before the values") {
  CHECK_THAT(error_of([] {
               auto rank = Rank::single();
               DeviceMesh m(*rank, "tp=1");
               nn::LlamaForCausalLM model(m, small_llama());
               nn::materialize(model, 1);
               ParallelPlan::from_json(json(tp(R"("lm_head": "ColwiseParallel")"))).apply(model);
             }),
             Contains("lm_head.weight has values already: apply plans before materialize()"));
}

TEST_CASE("the shipped plans are read and fit the shipped model") {
  int plans = 0;
  for (const auto& entry : std::filesystem::directory_iterator(plan_file(""))) {
    if (entry.path().extension() != ".json" || model_of_plan(entry.path().filename()) != "llama") continue;
    INFO(entry.path());
    ++plans;
    ParallelPlan plan;
    CHECK_NOTHROW(plan = ParallelPlan::load(entry.path()));
    CHECK_FALSE(plan.axes().empty());
    std::string mesh;
    for (const std::string& axis : plan.axes()) mesh += (mesh.empty() ? "" : ",") + axis + "=2";
    auto rank = Rank::recorded(MeshShape::parse(mesh).world());
    DeviceMesh m(*rank, mesh);
    nn::LlamaForCausalLM model(
        m, nn::LlamaConfig::load(std::string(DTENSOR_SOURCE_DIR) + "/examples/configs/llama_tiny.json"));
    CHECK_NOTHROW(plan.apply(model));
  }
  CHECK(plans >= 3);
}

TEST_CASE("law 7: what a plan leaves to propagation is right and an error in strict mode where bytes move") {
  // Nothing says where the sum of the last MLP is taken; nothing after it makes a claim.
  std::string plan =
      tp(R"("model.layers.1.mlp.gate_proj": "ColwiseParallel", "model.layers.1.mlp.up_proj": "ColwiseParallel")");
  auto run = [&](const char* mesh, const std::string& text, bool strict) {
    return on_mesh(mesh, [&](const DeviceMesh& m) {
      m.rank_state().strict = strict;
      nn::LlamaForCausalLM model(m, small_llama());
      ParallelPlan::from_json(json(text)).apply(model);
      nn::materialize(model, 1);
      CommLog log(m.rank_state());
      auto logits = model(DistributedTensor::distribute(Tensor::of<int64_t>({1, 4}, {1, 2, 3, 4}), m, Layout()));
      for (const auto& e : log.entries()) check(!e.asked_for, "{} was not asked for", to_string(e));
      check(!strict || log.entries().empty(), "{}", listing(log.entries()));
      check(strict || mesh[3] == '1' || !log.entries().empty(), "no collectives");
      return values(logits.full_tensor());
    })[0];
  };
  CHECK(difference(run("tp=2", plan, false), run("tp=1", "{}", false)) < 1e-6);
  CHECK(run("tp=1", plan, true) == run("tp=1", "{}", true));
  std::string error = error_of([&] { run("tp=2", plan, true); });
  CHECK_THAT(error, Contains("strict mode: ") && Contains("which nobody asked for; bring the operand to ") &&
                        Contains("plan line"));
}

namespace {

// Any plan that JSON can say.
class RandomPlan {
 public:
  explicit RandomPlan(uint32_t seed) : state_(seed * 2654435761u + 1) {}
  ParallelPlan make() {
    ParallelPlan p;
    for (int i = below(3); i > 0; --i) {
      nn::TensorParallelPlan t{word(), {}};
      for (int n = below(4); n > 0; --n) t.lines.emplace_back(fmt::format("{}.{}", word(), n), style());
      if (below(3) == 0) t.lines.emplace_back("", style());
      p.tensor_parallel.push_back(t);
    }
    if (!p.tensor_parallel.empty() && below(2)) p.loss_parallel = below(2);
    if (below(2)) p.data_parallel = nn::DataParallelPlan{"data", below(2) ? 25.0 : 0.5};
    if (below(2)) p.reduce_dtype = below(2) ? DType::bf16 : DType::f32;
    if (below(2)) p.fully_shard = fully_shard();
    return p;
  }

 private:
  int below(int n) { return int((state_ = state_ * 1664525u + 1013904223u) >> 16) % n; }
  std::string word() {
    const char* list[] = {"", "tp", "dp", "model.layers.*", "lm_head", "a \"b\"", "*", "\xc3\xa9"};
    return list[below(8)];
  }
  std::vector<std::string> words() {
    std::vector<std::string> list;
    for (int n = 1 + below(3); n > 0; --n) list.push_back(word());
    return list;
  }
  nn::FullyShardPlan fully_shard() {
    using Kind = nn::ReshardAfterForward::Kind;
    nn::FullyShardPlan f;
    f.axes = below(2) ? std::vector<std::string>{"tp"} : std::vector<std::string>{"a \"b\"", "tp", ""};
    f.modules = words();
    if (below(2)) f.replicate_axis = "dp";
    f.stage = 1 + below(3);
    if (f.stage == 3) f.reshard_after_forward.kind = Kind(below(4));
    if (f.reshard_after_forward.kind == Kind::to_ranks) f.reshard_after_forward.ranks = 1 + below(8);
    if (f.stage > 1) f.sync_each_batch = below(2);
    f.offload = below(2);
    if (below(2)) f.param_dtype = below(2) ? DType::bf16 : DType::f32;
    if (below(2)) f.reduce_dtype = DType::bf16;
    if (below(2)) f.output_dtype = below(2) ? DType::bf16 : DType::f32;
    return f;
  }
  std::vector<std::optional<Placement>> layouts(int n) {
    std::vector<std::optional<Placement>> list;
    for (; n > 0; --n) {
      const std::optional<Placement> some[] = {std::nullopt,         Replicate(), Shard(below(8)),
                                               Shard(-1 - below(8)), Partial(),   Partial(Reduce::max)};
      list.push_back(some[below(6)]);
    }
    return list;
  }
  Style style() {
    Style s{.kind = Style::Kind(below(13))};
    if (s.kind == Style::Kind::colwise || s.kind == Style::Kind::rowwise)
      s.input_layouts = layouts(below(3)), s.output_layouts = layouts(below(3));
    if (s.kind == Style::Kind::sequence) s.sequence_dim = below(16) - 8;
    int n = 1 + below(3);
    if (s.kind == Style::Kind::prepare_input) s.input_layouts = layouts(n), s.desired_input_layouts = layouts(n);
    if (s.kind == Style::Kind::prepare_output) s.output_layouts = layouts(n), s.desired_output_layouts = layouts(n);
    if (s.kind == Style::Kind::prepare_input_output) {
      s.input_kwarg_layouts = {{"a", Replicate()}, {"b", std::nullopt}};
      s.desired_input_kwarg_layouts = {{"a", Shard(below(8))}, {"b", Replicate()}};
      s.output_layouts = layouts(n), s.desired_output_layouts = layouts(n);
    }
    if (s.kind == Style::Kind::prepare_weight) s.layouts = below(2) ? Placement(Shard(below(8))) : Replicate();
    if (s.kind == Style::Kind::linear_loss) s.sequence_dim = below(16) - 8, s.output_layouts = layouts(below(2));
    return s;
  }
  uint32_t state_;
};

}  // namespace

TEST_CASE("from_json of to_json is the same plan") {
  for (const auto& entry : std::filesystem::directory_iterator(plan_file(""))) {
    if (entry.path().extension() != ".json" || model_of_plan(entry.path().filename()) != "llama") continue;
    INFO(entry.path());
    ParallelPlan plan = ParallelPlan::load(entry.path());
    CHECK(ParallelPlan::from_json(plan.to_json()) == plan);
    CHECK(ParallelPlan::from_json(json(plan.to_json().dump())) == plan);
  }
  for (uint32_t seed = 0; seed < 2000; ++seed) {
    ParallelPlan plan = RandomPlan(seed).make();
    std::string text = plan.to_json().dump();
    CAPTURE(seed, text);
    REQUIRE(ParallelPlan::from_json(json(text)) == plan);
    REQUIRE(ParallelPlan::from_json(json(text)).to_json().dump() == text);
  }
}

TEST_CASE("to_json writes what people would") {
  struct Case {
    const char *from, *to;
  };
  const Case cases[] = {
      {"{}", "{}"},
      {R"({"tensor_parallel": []})", "{}"},
      {R"({"data_parallel": {"axis": "dp"}})", R"({"data_parallel":{"axis":"dp"}})"},
      {R"j({"tensor_parallel": [{"axis": "tp", "plan": {"a": "colwise", "b": {"style": "rowwise_rep"}, "c": {"style": "ColwiseParallel", "output_layouts": ["Shard(-1)"], "use_local_output": true},
            "d": {"style": "SequenceParallel", "sequence_dim": 1}, "e": {"style": "SequenceParallel", "sequence_dim": 0},
            "f": {"style": "PrepareModuleInput", "input_layouts": [null, "Partial"], "desired_input_layouts": ["Replicate", null]}}}], "loss_parallel": false})j",
       R"j({"tensor_parallel":{"axis":"tp","plan":{"a":"ColwiseParallel","b":{"style":"RowwiseParallel","input_layouts":"Replicate"},"c":{"style":"ColwiseParallel","output_layouts":"Shard(-1)"},)j"
       R"j("d":"SequenceParallel","e":{"style":"SequenceParallel","sequence_dim":0},)j"
       R"j("f":{"style":"PrepareModuleInput","input_layouts":[null,"Partial(sum)"],"desired_input_layouts":["Replicate",null]}}},"loss_parallel":false})j"},
      {R"({"fully_shard": {"axis": ["dp"], "modules": "", "reshard_after_forward": true, "reduce_dtype": "fp32", "param_dtype": "bf16"}})",
       R"({"fully_shard":{"axis":"dp","modules":[""],"param_dtype":"bf16"}})"},
      {R"({"fully_shard": {"axis": ["dp_shard", "cp"], "modules": ["a.*", ""], "reshard_after_forward": false, "replicate_axis": "dp_replicate"}})",
       R"({"fully_shard":{"axis":["dp_shard","cp"],"replicate_axis":"dp_replicate","modules":["a.*",""],"reshard_after_forward":false}})"},
      {R"({"fully_shard": {"axis": "dp", "modules": [""], "offload": "cpu", "output_dtype": "fp32"}})",
       R"({"fully_shard":{"axis":"dp","modules":[""],"output_dtype":"fp32","offload":"cpu"}})"},
      {R"({"reduce_dtype": "bf16"})", R"({"reduce_dtype":"bf16"})"},
      {R"({"fully_shard": {"axis": "dp", "modules": [""], "offload": false}})",
       R"({"fully_shard":{"axis":"dp","modules":[""]}})"},
  };
  for (const Case& c : cases) CHECK(ParallelPlan::from_json(json(c.from)).to_json().dump() == c.to);
  ParallelPlan twice;
  twice.tensor_parallel.push_back({"tp", {{"lm_head", {}}, {"lm_head", {.kind = Style::Kind::rowwise}}}});
  CHECK(error_of([&] { twice.to_json(); }) ==
        "[to_json] two lines of the plan for tp have the path \"lm_head\"; keep one of them");
}
