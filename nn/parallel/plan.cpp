#include "nn/parallel/plan.h"

#include <fmt/format.h>
#include <map>
#include <nlohmann/json.hpp>

#include "nn/json.h"

namespace dtensor::nn {
namespace {

using Json = nlohmann::ordered_json;

using Place = JsonPlace;

// An axis divides the batch once: replicating and sharding over it are two plans.
void check_data_axes(const Place& root, const ParallelPlan& plan) {
  std::vector<std::string> axes = plan.data_axes();
  for (size_t i = 0; i < axes.size(); ++i)
    if (std::find(axes.begin(), axes.begin() + int64_t(i), axes[i]) != axes.begin() + int64_t(i))
      root.error(
          fmt::format("axis \"{}\" is named twice by data_parallel and fully_shard: parameters are replicated "
                      "or sharded over it, once",
                      axes[i]));
}

}  // namespace

ParallelPlan ParallelPlan::load(const std::string& file) {
  Json parsed = load_json(file, "plan");
  try {
    return from_json(parsed);
  } catch (const Error& e) {
    fail("{} (in {})", e.what(), file);
  }
}

ParallelPlan ParallelPlan::from_json(const Json& object) {
  Place root{object, ""};
  root.fields({"tensor_parallel", "loss_parallel", "data_parallel", "fully_shard", "activation_checkpoint",
               "context_parallel", "reduce_dtype"});
  ParallelPlan plan;
  if (object.contains("tensor_parallel")) {
    Place tp = root.at("tensor_parallel");
    if (!tp.value.is_array())
      plan.tensor_parallel.push_back(TensorParallelPlan::from_json(tp));
    else
      for (size_t i = 0; i < tp.value.size(); ++i)
        plan.tensor_parallel.push_back(TensorParallelPlan::from_json(tp.at(i)));
  }
  if (object.contains("loss_parallel")) {
    if (!object["loss_parallel"].is_boolean()) root.at("loss_parallel").error("true or false");
    plan.loss_parallel = object["loss_parallel"].get<bool>();
    if (plan.tensor_parallel.empty()) root.at("loss_parallel").error("needs tensor_parallel");
  }
  if (root.has("reduce_dtype")) plan.reduce_dtype = root.at("reduce_dtype").dtype();
  auto section = [&]<class T>(const char* name, std::optional<T>& to) {
    if (object.contains(name)) to = T::from_json(root.at(name));
  };
  section("activation_checkpoint", plan.activation_checkpoint);
  section("fully_shard", plan.fully_shard);
  section("data_parallel", plan.data_parallel);
  section("context_parallel", plan.context_parallel);
  check_data_axes(root, plan);
  return plan;
}

Json ParallelPlan::to_json() const {
  Json object = Json::object();
  if (!tensor_parallel.empty())
    object["tensor_parallel"] = one_or_list(tensor_parallel, [](const auto& t) { return t.to_json(); });
  if (loss_parallel) object["loss_parallel"] = *loss_parallel;
  if (reduce_dtype) object["reduce_dtype"] = json_name(*reduce_dtype);
  if (context_parallel) object["context_parallel"] = context_parallel->to_json();
  if (activation_checkpoint) object["activation_checkpoint"] = activation_checkpoint->to_json();
  if (fully_shard) object["fully_shard"] = fully_shard->to_json();
  if (data_parallel) object["data_parallel"] = data_parallel->to_json();
  return object;
}

std::vector<std::string> ParallelPlan::data_axes() const {
  std::vector<std::string> list;
  if (data_parallel) list.push_back(data_parallel->axis);
  if (fully_shard) {
    list.insert(list.end(), fully_shard->axes.begin(), fully_shard->axes.end());
    if (fully_shard->replicate_axis) list.push_back(*fully_shard->replicate_axis);
  }
  std::erase(list, sequence_axis());  // over which parameters may be sharded too
  return list;
}

std::string ParallelPlan::sequence_axis() const { return context_parallel ? context_parallel->axis : "cp"; }

std::vector<std::string> ParallelPlan::axes() const {
  std::vector<std::string> list, data = data_axes();
  for (const auto& t : tensor_parallel) list.push_back(t.axis);
  list.insert(list.end(), data.begin(), data.end());
  if (context_parallel) list.push_back(context_parallel->axis);
  if (fully_shard)
    for (const std::string& axis : fully_shard->axes)
      if (std::find(list.begin(), list.end(), axis) == list.end()) list.push_back(axis);
  return list;
}

std::vector<std::string> ParallelPlan::notes(Module& model) const {
  std::vector<std::string> list;
  for (const TensorParallelPlan& t : tensor_parallel)
    for (std::string& note : t.notes(model)) list.push_back("[plan] " + std::move(note));
  if (fully_shard)
    for (std::string& note : fully_shard->notes(model)) list.push_back("[plan] " + std::move(note));
  return list;
}

void ParallelPlan::apply(Module& model) const {
  const MeshShape& mesh = model.mesh().shape();
  for (const std::string& axis : axes())
    check(mesh.find(axis) >= 0, "[plan] the plan uses axis \"{}\", which mesh {} lacks: add it, as in --mesh {},{}=2",
          axis, to_string(mesh), to_string(mesh), axis);
  model.mesh().rank_state().reduce_dtype = reduce_dtype.value_or(DType::f32);
  std::map<std::string, std::map<Module*, std::string>> matched;  // by axis
  for (const auto& t : tensor_parallel) t.apply(model, matched[t.axis]);
  if (context_parallel) context_parallel->apply(model);
  if (activation_checkpoint) activation_checkpoint->apply(model);
  if (fully_shard) fully_shard->apply(model);
  if (data_parallel) data_parallel->apply(model);
  if (!loss_parallel) return;
  for (const auto& t : tensor_parallel) {
    int axis = mesh.axis(t.axis, "plan");
    bool keep = *loss_parallel;
    model.add_after_hook([axis, keep](Module& m, std::vector<DistributedTensor*>& outputs) {
      if (m.mesh().shape().size(axis) == 1) return;
      DistributedTensor& logits = *outputs.at(0);
      if (logits.dims() == 0) return;  // a loss: there are none
      Placement p = logits.layout()[axis];
      if (keep)
        check(p == Shard(logits.dims() - 1),
              "[plan] loss_parallel: logits arrive as {}, not sharded over their classes on {}: give lm_head "
              "\"output_layouts\": \"Shard(-1)\", or set loss_parallel to false",
              to_string(logits), m.mesh().shape().name(axis));
      if (keep || p.is_replicate()) return;
      LabelScope label(m.mesh().rank_state(), Label::Kind::plan_line, "loss_parallel: false");
      logits = logits.redistribute(logits.layout().with(axis, Replicate()));
    });
  }
}

Layout batch_layout(const MeshShape& mesh, const ParallelPlan& plan) {
  std::vector<std::string> axes = plan.data_axes();
  axes.insert(axes.end(), {"dp", "dp_replicate", "dp_shard"});
  Layout l;
  for (int a = 0; a < mesh.axes(); ++a) {
    if (std::find(axes.begin(), axes.end(), mesh.name(a)) != axes.end()) l = l.with(a, Shard(0));
    if (mesh.name(a) == plan.sequence_axis()) l = l.with(a, Shard(1));
  }
  return l;
}

void ParallelPlan::check_uses(const MeshShape& mesh) const {
  std::vector<std::string> used = axes();
  AxisSet of_batch = batch_layout(mesh, *this).sharded();
  for (int a = 0; a < mesh.axes(); ++a)
    check(mesh.size(a) == 1 || has(of_batch, a) || std::find(used.begin(), used.end(), mesh.name(a)) != used.end(),
          "[mesh] nothing uses axis \"{}\" of {}: give a plan that does, or name it dp to divide the batch",
          mesh.name(a), to_string(mesh));
}

}  // namespace dtensor::nn
