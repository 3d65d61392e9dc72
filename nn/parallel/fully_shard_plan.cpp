#include "nn/parallel/fully_shard_plan.h"

#include <fmt/format.h>

#include "nn/parallel/fully_shard.h"
#include "nn/parallel/json_place.h"
#include "nn/parallel/module_paths.h"

namespace dtensor::nn {

FullyShardPlan FullyShardPlan::from_json(const JsonPlace& p) {
  p.fields({"axis", "replicate_axis", "modules", "param_dtype", "reduce_dtype", "reshard_after_forward"},
           {"axis", "modules"});
  FullyShardPlan f;
  f.axes = p.at("axis").texts();
  f.modules = p.at("modules").texts();
  if (f.axes.empty()) p.at("axis").error("an empty list shards over nothing: name an axis");
  if (f.modules.empty()) p.at("modules").error("an empty list shards nothing: write [\"\"] for the whole model");
  if (p.has("replicate_axis")) f.replicate_axis = p.at("replicate_axis").text();
  if (p.has("reshard_after_forward")) f.reshard_after_forward = p.at("reshard_after_forward").boolean();
  if (p.has("param_dtype")) {
    std::string type = p.at("param_dtype").text();
    if (type != "fp32" && type != "bf16")
      p.at("param_dtype").error(fmt::format("\"{}\" is not supported; use \"fp32\" or \"bf16\"", type));
    f.param_dtype = type == "bf16" ? DType::bf16 : DType::f32;
  }
  if (p.has("reduce_dtype") && p.at("reduce_dtype").text() != "fp32")
    p.at("reduce_dtype")
        .error(fmt::format("{} is not supported; gradients are reduced in \"fp32\"", p.value["reduce_dtype"].dump()));
  return f;
}

nlohmann::ordered_json FullyShardPlan::to_json() const {
  nlohmann::ordered_json object{{"axis", one_or_list(axes, [](const std::string& s) { return s; })}};
  if (replicate_axis) object["replicate_axis"] = *replicate_axis;
  object["modules"] = modules;
  if (!reshard_after_forward) object["reshard_after_forward"] = false;
  if (param_dtype) object["param_dtype"] = *param_dtype == DType::bf16 ? "bf16" : "fp32";
  return object;
}

void FullyShardPlan::apply(Module& model) const {
  FullyShardOptions options{{}, reshard_after_forward};
  for (const std::string& axis : axes) options.axes.push_back(model.mesh().shape().axis(axis, "plan"));
  std::vector<Module*> list = find_modules(model, modules, "fully_shard.modules");
  auto depth = [](Module* m) {
    return m->path().empty() ? 0 : 1 + std::count(m->path().begin(), m->path().end(), '.');
  };
  std::stable_sort(list.begin(), list.end(), [&](Module* a, Module* b) { return depth(a) > depth(b); });
  for (Module* m : list) {
    if (param_dtype)
      for (Parameter* p : m->parameters())
        if (!p->group()) p->compute_in(*param_dtype);
    nn::fully_shard(*m, options);
  }
  prefetch(model);
}

}  // namespace dtensor::nn
