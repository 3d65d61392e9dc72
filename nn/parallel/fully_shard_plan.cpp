#include "nn/parallel/fully_shard_plan.h"

#include <fmt/format.h>

#include "nn/parallel/fully_shard.h"
#include "nn/parallel/json_place.h"
#include "nn/parallel/module_paths.h"

namespace dtensor::nn {
namespace {

using Kind = ReshardAfterForward::Kind;

ReshardAfterForward read_reshard(const JsonPlace& p) {
  if (p.value.is_boolean()) return {p.value.get<bool>() ? Kind::always : Kind::never};
  if (p.value.is_number_integer()) return {Kind::to_ranks, p.integer(1, 1 << 20)};
  for (auto [name, kind] : {std::pair("always", Kind::always), {"never", Kind::never}, {"default", Kind::by_default}})
    if (p.value == name) return {kind};
  p.error(fmt::format("{} is none of true, false, \"default\", \"always\", \"never\" or a number of ranks",
                      p.value.dump()));
}

bool read_offload(const JsonPlace& p) {
  if (p.value != "cpu" && p.value != false)
    p.error(fmt::format("{} is not supported; use \"cpu\" or false", p.value.dump()));
  return p.value == "cpu";
}

std::optional<DType> read_dtype(const JsonPlace& p, const char* key) {
  return p.has(key) ? std::optional(p.at(key).dtype()) : std::nullopt;
}

int depth(const Module* m) { return m->path().empty() ? 0 : 1 + int(std::ranges::count(m->path(), '.')); }

// Of the modules that are sharded, but the root, the one that is used last.
const Module* last_used(Module& model, const std::vector<Module*>& sharded) {
  const Module* last = nullptr;
  for (const Module* m : model.modules())
    if (!m->path().empty() && std::ranges::find(sharded, m) != sharded.end()) last = m;
  return last;
}

// How many of the first axes have that many ranks together.
int axes_of_ranks(const MeshShape& mesh, const std::vector<int>& axes, int ranks) {
  int product = 1;
  for (size_t n = 0; n <= axes.size(); ++n) {
    if (product == ranks) return int(n);
    if (n < axes.size()) product *= mesh.size(axes[n]);
  }
  std::vector<std::string> names;
  for (int a : axes) names.push_back(fmt::format("{}={}", mesh.name(a), mesh.size(a)));
  fail(
      "[plan] fully_shard.reshard_after_forward: shards over {} ranks are not those over the first axes of {}: divide "
      "the axis in two, of which the first one has {} ranks",
      ranks, fmt::join(names, ","), ranks);
}

}  // namespace

FullyShardPlan FullyShardPlan::from_json(const JsonPlace& p) {
  p.fields({"axis", "replicate_axis", "stage", "modules", "reshard_after_forward", "sync_each_batch", "param_dtype",
            "reduce_dtype", "output_dtype", "offload"},
           {"axis", "modules"});
  FullyShardPlan f;
  f.axes = p.at("axis").texts();
  f.modules = p.at("modules").texts();
  if (f.axes.empty()) p.at("axis").error("an empty list shards over nothing: name an axis");
  if (f.modules.empty()) p.at("modules").error("an empty list shards nothing: write [\"\"] for the whole model");
  if (p.has("replicate_axis")) f.replicate_axis = p.at("replicate_axis").text();
  if (p.has("stage")) f.stage = p.at("stage").integer(1, 3);
  if (p.has("reshard_after_forward")) f.reshard_after_forward = read_reshard(p.at("reshard_after_forward"));
  if (f.stage < 3 && f.reshard_after_forward != ReshardAfterForward())
    p.at("reshard_after_forward").error(fmt::format("stage {} keeps whole parameters: remove one of them", f.stage));
  if (p.has("sync_each_batch")) f.sync_each_batch = p.at("sync_each_batch").boolean();
  if (f.stage == 1 && f.sync_each_batch)
    p.at("sync_each_batch").error("stage 1 keeps whole gradients until the step ends: use stage 2");
  f.param_dtype = read_dtype(p, "param_dtype");
  f.reduce_dtype = read_dtype(p, "reduce_dtype");
  f.output_dtype = read_dtype(p, "output_dtype");
  if (f.reduce_dtype == DType::f32) f.reduce_dtype.reset();  // as they are
  if (p.has("offload")) f.offload = read_offload(p.at("offload"));
  return f;
}

nlohmann::ordered_json FullyShardPlan::to_json() const {
  nlohmann::ordered_json object{{"axis", one_or_list(axes, [](const std::string& s) { return s; })}};
  auto dtype = [&](const char* key, std::optional<DType> type) {
    if (type) object[key] = json_name(*type);
  };
  if (replicate_axis) object["replicate_axis"] = *replicate_axis;
  if (stage != 3) object["stage"] = stage;
  object["modules"] = modules;
  switch (reshard_after_forward.kind) {
    case Kind::always:
      break;
    case Kind::never:
      object["reshard_after_forward"] = false;
      break;
    case Kind::by_default:
      object["reshard_after_forward"] = "default";
      break;
    case Kind::to_ranks:
      object["reshard_after_forward"] = reshard_after_forward.ranks;
  }
  if (sync_each_batch) object["sync_each_batch"] = true;
  dtype("param_dtype", param_dtype);
  dtype("reduce_dtype", reduce_dtype);
  dtype("output_dtype", output_dtype);
  if (offload) object["offload"] = "cpu";
  return object;
}

void FullyShardPlan::apply(Module& model) const {
  const MeshShape& mesh = model.mesh().shape();
  FullyShardOptions options{
      .stage = stage, .sync_each_batch = sync_each_batch, .reduce_dtype = reduce_dtype, .offload = offload};
  for (const std::string& axis : axes) options.axes.push_back(mesh.axis(axis, "plan"));
  if (reshard_after_forward.kind == Kind::to_ranks)
    options.kept_axes = axes_of_ranks(mesh, options.axes, reshard_after_forward.ranks);
  options.reshard_after_forward = reshard_after_forward.kind != Kind::never;
  if (options.kept_axes == 0 && reshard_after_forward.kind == Kind::to_ranks) options.reshard_after_forward = false;
  if (options.kept_axes == int(axes.size())) options.kept_axes = 0;

  std::vector<Module*> list = find_modules(model, modules, "fully_shard.modules");
  const Module* last = last_used(model, list);
  std::ranges::stable_sort(list, [](Module* a, Module* b) { return depth(a) > depth(b); });
  for (Module* m : list) {
    if (param_dtype)
      for (Parameter* p : m->parameters())
        if (!p->group()) p->compute_in(*param_dtype);
    FullyShardOptions of_module = options;
    if (reshard_after_forward.kind == Kind::by_default) of_module.reshard_after_forward = m != last;
    if (depth(m) == depth(list.back())) of_module.output_dtype = output_dtype;
    nn::fully_shard(*m, of_module);
  }
  prefetch(model);
}

std::vector<std::string> FullyShardPlan::notes(Module& model) const {
  std::vector<std::string> list = left_out(model, modules, "fully_shard.modules");
  AxisSet over = 0;
  for (const std::string& axis : axes) over |= axis_bit(model.mesh().shape().axis(axis, "plan"));
  std::vector<const Parameter*> whole;
  for (const Parameter* p : model.parameters())
    if (!(p->stored().layout().sharded() & over)) whole.push_back(p);
  if (model.mesh().shape().product(over) > 1 && !whole.empty())
    list.push_back(
        fmt::format("fully_shard.modules: {}{} in no group, so that every rank stores the whole: add their modules, or "
                    "\"\", the root, for all that is left",
                    whole[0]->path(), whole.size() > 1 ? fmt::format(" and {} more are", whole.size() - 1) : " is"));
  return list;
}

}  // namespace dtensor::nn
