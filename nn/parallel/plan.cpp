#include "nn/parallel/plan.h"

#include <fmt/format.h>
#include <map>
#include <nlohmann/json.hpp>

#include "nn/json.h"
#include "nn/parallel/json_place.h"
#include "nn/parallel/module_paths.h"
#include "placement/nearest.h"

namespace dtensor::nn {
namespace {

using Json = nlohmann::ordered_json;

using Place = JsonPlace;

std::optional<Placement> parse_optional_layout(const Place& p) {
  if (p.value.is_null()) return std::nullopt;
  std::string text = p.text();
  try {
    return parse_placement(text, "plan");
  } catch (const Error& e) {
    throw Error(fmt::format("[plan] {}: {}", p.path, std::string_view(e.what()).substr(7)));
  }
}

// One layout, or a list of them.
std::vector<std::optional<Placement>> parse_layouts(const Place& p) {
  if (!p.value.is_array()) return {parse_optional_layout(p)};
  std::vector<std::optional<Placement>> list;
  for (size_t i = 0; i < p.value.size(); ++i) list.push_back(parse_optional_layout(p.at(i)));
  return list;
}

// A dimension of a tensor, negative ones from the back.
int parse_dim(const Place& p) {
  if (!p.value.is_number_integer())
    p.error(fmt::format("{} is no dimension: a dimension is an integer", p.value.dump()));
  // What is beyond int64_t would be read as something else.
  bool huge = p.value.is_number_unsigned() && p.value.get<uint64_t>() > INT64_MAX;
  int64_t dim = huge ? INT64_MAX : p.value.get<int64_t>();
  if (dim < -max_dims || dim >= max_dims)
    p.error(fmt::format("{} is no dimension: tensors have at most {}, so it is from {} to {}", p.value.dump(), max_dims,
                        -max_dims, max_dims - 1));
  return int(dim);
}

struct StyleName {
  const char* name;
  Style::Kind kind;
  std::vector<std::string> fields;
};
const std::vector<StyleName>& style_names() {
  static const std::vector<StyleName> list = {
      {"ColwiseParallel", Style::Kind::colwise, {"style", "input_layouts", "output_layouts", "use_local_output"}},
      {"RowwiseParallel", Style::Kind::rowwise, {"style", "input_layouts", "output_layouts", "use_local_output"}},
      {"SequenceParallel", Style::Kind::sequence, {"style", "sequence_dim", "use_local_output"}},
      {"PrepareModuleInput",
       Style::Kind::prepare_input,
       {"style", "input_layouts", "desired_input_layouts", "use_local_output"}},
      {"PrepareModuleOutput",
       Style::Kind::prepare_output,
       {"style", "output_layouts", "desired_output_layouts", "use_local_output"}},
  };
  return list;
}

// Hugging Face's base_model_tp_plan strings.
const std::vector<std::pair<std::string, Style>>& hugging_face_styles() {
  using Kind = Style::Kind;
  static const Style column_gathered = {.kind = Kind::colwise, .output_layouts = {Replicate()}},
                     row_of_whole = {.kind = Kind::rowwise, .input_layouts = {Replicate()}};
  static const std::vector<std::pair<std::string, Style>> list = {{"colwise", {.kind = Kind::colwise}},
                                                                  {"colwise_rep", column_gathered},
                                                                  {"colwise_gather_output", column_gathered},
                                                                  {"rowwise", {.kind = Kind::rowwise}},
                                                                  {"rowwise_rep", row_of_whole},
                                                                  {"rowwise_split_input", row_of_whole},
                                                                  {"sequence_parallel", {.kind = Kind::sequence}}};
  return list;
}

Style parse_style(const Place& p) {
  bool object = p.value.is_object();
  if (object && !p.value.contains("style")) p.error("a style object needs \"style\"");
  std::string name = object ? p.at("style").text() : p.text();
  std::optional<Style> style;
  std::vector<std::string> names, fields = {"style"};
  for (const auto& [theirs, s] : hugging_face_styles()) {
    names.push_back(theirs);
    if (name == theirs) style = s;
  }
  for (const StyleName& s : style_names()) {
    names.emplace_back(s.name);
    if (name != s.name) continue;
    style = Style{.kind = s.kind};
    fields = s.fields;
  }
  if (!style)
    p.error(fmt::format("there is no style \"{}\"{} (styles: {})", name, nearest_hint(name, names),
                        fmt::join(names, ", ")));
  if (object) {
    p.fields(fields);
    auto layouts = [&](const char* key, auto& list) {
      if (p.value.contains(key)) list = parse_layouts(p.at(key));
    };
    layouts("input_layouts", style->input_layouts);
    layouts("desired_input_layouts", style->desired_input_layouts);
    layouts("output_layouts", style->output_layouts);
    layouts("desired_output_layouts", style->desired_output_layouts);
    if (p.value.contains("sequence_dim")) style->sequence_dim = parse_dim(p.at("sequence_dim"));
  }
  if (style->kind == Style::Kind::prepare_input && style->input_layouts.empty())
    p.error("PrepareModuleInput needs input_layouts and desired_input_layouts");
  if (style->kind == Style::Kind::prepare_output && style->output_layouts.empty())
    p.error("PrepareModuleOutput needs output_layouts and desired_output_layouts");
  if (style->kind == Style::Kind::prepare_input && style->input_layouts.size() != style->desired_input_layouts.size())
    p.error("PrepareModuleInput needs as many input_layouts as desired_input_layouts");
  if (style->kind == Style::Kind::prepare_output &&
      style->output_layouts.size() != style->desired_output_layouts.size())
    p.error("PrepareModuleOutput needs as many output_layouts as desired_output_layouts");
  return *style;
}

TensorParallelPlan parse_tensor_parallel(const Place& p) {
  p.fields({"axis", "plan"}, {"axis", "plan"});
  TensorParallelPlan t{p.at("axis").text(), {}};
  Place plan = p.at("plan");
  if (!plan.value.is_object()) plan.error("a plan is an object of module paths and styles");
  for (const auto& [key, value] : plan.value.items()) t.lines.emplace_back(key, parse_style(plan.at(key)));
  return t;
}

void apply_tensor_parallel(Module& model, const TensorParallelPlan& plan, std::map<Module*, std::string>& matched) {
  int axis = model.mesh().shape().axis(plan.axis, "plan");
  for (const auto& [pattern, style] : plan.lines)
    for (Module* m : find_modules(model, pattern, "tensor_parallel.plan")) {
      auto [it, fresh] = matched.emplace(m, pattern);
      check(fresh, "[plan] tensor_parallel.plan: module {} is matched by \"{}\" and \"{}\"; keep one of them",
            m->path(), it->second, pattern);
      nn::apply(*m, axis, style, fmt::format("{}: {}", quoted(pattern), name(style.kind)));
    }
}

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
               "context_parallel"});
  ParallelPlan plan;
  if (object.contains("tensor_parallel")) {
    Place tp = root.at("tensor_parallel");
    if (!tp.value.is_array())
      plan.tensor_parallel.push_back(parse_tensor_parallel(tp));
    else
      for (size_t i = 0; i < tp.value.size(); ++i) plan.tensor_parallel.push_back(parse_tensor_parallel(tp.at(i)));
  }
  if (object.contains("loss_parallel")) {
    if (!object["loss_parallel"].is_boolean()) root.at("loss_parallel").error("true or false");
    plan.loss_parallel = object["loss_parallel"].get<bool>();
    if (plan.tensor_parallel.empty()) root.at("loss_parallel").error("needs tensor_parallel");
  }
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

namespace {

Json to_json(const std::optional<Placement>& p) { return p ? Json(to_string(*p)) : Json(); }

Json to_json(const Style& s) {
  Json object{{"style", name(s.kind)}};
  auto layouts = [&](const char* key, const std::vector<std::optional<Placement>>& list) {
    if (!list.empty()) object[key] = one_or_list(list, [](const auto& p) { return to_json(p); });
  };
  layouts("input_layouts", s.input_layouts);
  layouts("desired_input_layouts", s.desired_input_layouts);
  layouts("output_layouts", s.output_layouts);
  layouts("desired_output_layouts", s.desired_output_layouts);
  if (s.sequence_dim != Style().sequence_dim) object["sequence_dim"] = s.sequence_dim;
  return object.size() == 1 ? object["style"] : object;
}

Json to_json(const TensorParallelPlan& t) {
  Json lines = Json::object();
  for (const auto& [path, style] : t.lines) {
    check(!lines.contains(path), "[to_json] two lines of the plan for {} have the path \"{}\"; keep one of them",
          t.axis, path);
    lines[path] = to_json(style);
  }
  return {{"axis", t.axis}, {"plan", lines}};
}

}  // namespace

Json ParallelPlan::to_json() const {
  Json object = Json::object();
  if (!tensor_parallel.empty())
    object["tensor_parallel"] = one_or_list(tensor_parallel, [](const auto& t) { return nn::to_json(t); });
  if (loss_parallel) object["loss_parallel"] = *loss_parallel;
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

void ParallelPlan::apply(Module& model) const {
  const MeshShape& mesh = model.mesh().shape();
  for (const std::string& axis : axes())
    check(mesh.find(axis) >= 0, "[plan] the plan uses axis \"{}\", which mesh {} lacks: add it, as in --mesh {},{}=2",
          axis, to_string(mesh), to_string(mesh), axis);
  std::map<std::string, std::map<Module*, std::string>> matched;  // by axis
  for (const auto& t : tensor_parallel) apply_tensor_parallel(model, t, matched[t.axis]);
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
