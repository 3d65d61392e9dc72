#include "nn/foresight/parallelism.h"

#include <fmt/ranges.h>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "nn/json.h"
#include "nn/models/auto_plan.h"
#include "placement/nearest.h"

namespace dtensor::nn {
namespace {

using Json = nlohmann::ordered_json;

// In the order of the mesh, the last one fastest: tensor parallelism stays inside a node.
const std::vector<std::string> axis_names = {"dp_replicate", "dp_shard", "cp", "tp"};

// {"layers.*.self_attn.q_proj": "colwise", ...}
bool is_style_map(const Json& j) {
  return j.is_object() && !j.empty() && std::all_of(j.begin(), j.end(), [](const Json& v) { return v.is_string(); });
}

std::string blocks_of(const ModelConfig& model) {
  if (model.model_type() == "gpt2") return "transformer.h.*";
  return model.model_type() == "gpt" ? "blocks.*" : "model.layers.*";
}

std::map<std::string, int> read_sizes(const std::string& text) {
  std::map<std::string, int> sizes;
  for (size_t at = 0; at <= text.size();) {
    size_t end = std::min(text.find(',', at), text.size());
    std::string part = text.substr(at, end - at), name = part.substr(0, part.find('='));
    check(std::ranges::find(axis_names, name) != axis_names.end(),
          "[parallelism] \"{}\" in \"{}\" is none of {}{}; pipeline and expert parallelism are not there yet", name,
          text, fmt::join(axis_names, ", "), nearest_hint(name, axis_names));
    char* rest = nullptr;
    long size = part.size() > name.size() + 1 ? std::strtol(part.c_str() + name.size() + 1, &rest, 10) : 0;
    check(size >= 1 && size <= 1 << 24 && !*rest, "[parallelism] \"{}\" is no size: write {}=8", part, name);
    check(sizes.emplace(name, int(size)).second, "[parallelism] {} is named twice in \"{}\"", name, text);
    at = end + 1;
  }
  return sizes;
}

}  // namespace

ParallelPlan read_plan(const Json& json) {
  if (json.is_object() && json.contains("base_model_tp_plan")) return read_plan(json["base_model_tp_plan"]);
  if (!is_style_map(json)) return ParallelPlan::from_json(json);
  Json lines = Json::object();
  for (const auto& [path, style] : json.items()) lines[path == "lm_head" ? path : "model." + path] = style;
  return ParallelPlan::from_json({{"tensor_parallel", {{"axis", "tp"}, {"plan", lines}}}, {"reduce_dtype", "bf16"}});
}

ParallelPlan read_plan(const std::string& file) {
  Json json = load_json(file, "plan");
  try {
    return read_plan(json);
  } catch (const Error& e) {
    fail("{} (in {})", e.what(), file);
  }
}

Parallelism read_parallelism(const std::string& text, const ModelConfig& model,
                             const std::optional<ParallelPlan>& given) {
  std::map<std::string, int> sizes = read_sizes(text);
  std::vector<int> mesh_sizes;
  std::vector<std::string> names, shard_axes;
  for (const std::string& name : axis_names)
    if (sizes.contains(name)) names.push_back(name), mesh_sizes.push_back(sizes[name]);
  Parallelism p{MeshShape(mesh_sizes, names), given.value_or(ParallelPlan())};
  if (given) return p;
  p.plan = auto_plan(model, p.mesh);
  p.plan.reduce_dtype = DType::bf16;
  for (const char* name : {"dp_shard", "cp"})
    if (sizes.contains(name)) shard_axes.emplace_back(name);
  if (!shard_axes.empty()) {
    p.plan.fully_shard = FullyShardPlan{.axes = shard_axes, .modules = {blocks_of(model), ""}};
    p.plan.fully_shard->reshard_after_forward.kind = ReshardAfterForward::Kind::by_default;
    if (sizes.contains("dp_replicate")) p.plan.fully_shard->replicate_axis = "dp_replicate";
  } else if (sizes.contains("dp_replicate")) {
    p.plan.data_parallel = DataParallelPlan{"dp_replicate"};
  }
  if (sizes.contains("cp")) p.plan.context_parallel = ContextParallelPlan{"cp"};
  return p;
}

}  // namespace dtensor::nn
