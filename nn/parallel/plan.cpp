#include "nn/parallel/plan.h"

#include <fmt/format.h>
#include <map>
#include <nlohmann/json.hpp>

#include "nn/json.h"
#include "nn/parallel/fully_shard.h"
#include "placement/nearest.h"

namespace dtensor::nn {
namespace {

using Json = nlohmann::ordered_json;

// As a part of a JSON path: lm_head, "model.norm".
std::string quoted(const std::string& key) {
  bool plain = key.find_first_of(".*\" ") == std::string::npos && !key.empty();
  return plain ? key : fmt::format("\"{}\"", key);
}

// A value in the file and where it stands: tensor_parallel.plan."lm_head".style
struct Place {
  const Json& value;
  std::string path;

  Place at(const std::string& key) const {
    return {value.at(key), fmt::format("{}{}{}", path, path.empty() ? "" : ".", quoted(key))};
  }
  [[noreturn]] void error(const std::string& what) const {
    fail("[plan] {}: {}", path.empty() ? "the file" : path, what);
  }
  std::string text() const {
    if (!value.is_string()) error(fmt::format("{} is no string", value.dump()));
    return value.get<std::string>();
  }
  void fields(const std::vector<std::string>& known) const {
    if (!value.is_object()) error(fmt::format("{} is no object", value.dump()));
    for (const auto& [key, v] : value.items())
      if (std::find(known.begin(), known.end(), key) == known.end())
        error(fmt::format("there is no field \"{}\"{} (fields: {})", key, nearest_hint(key, known),
                          fmt::join(known, ", ")));
  }
};

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
  for (size_t i = 0; i < p.value.size(); ++i)
    list.push_back(parse_optional_layout({p.value[i], fmt::format("{}[{}]", p.path, i)}));
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
  p.fields({"axis", "plan"});
  for (const char* key : {"axis", "plan"})
    if (!p.value.contains(key)) p.error(fmt::format("\"{}\" is missing", key));
  TensorParallelPlan t{p.at("axis").text(), {}};
  Place plan = p.at("plan");
  if (!plan.value.is_object()) plan.error("a plan is an object of module paths and styles");
  for (const auto& [key, value] : plan.value.items()) t.lines.emplace_back(key, parse_style(plan.at(key)));
  return t;
}

FullyShardPlan parse_fully_shard(const Place& p) {
  p.fields({"axis", "replicate_axis", "modules", "param_dtype", "reduce_dtype", "reshard_after_forward"});
  for (const char* key : {"axis", "modules"})
    if (!p.value.contains(key)) p.error(fmt::format("\"{}\" is missing", key));
  FullyShardPlan f;
  auto strings = [](const Place& list) {
    std::vector<std::string> out;
    if (!list.value.is_array()) return out.push_back(list.text()), out;
    for (size_t i = 0; i < list.value.size(); ++i)
      out.push_back(Place{list.value[i], fmt::format("{}[{}]", list.path, i)}.text());
    return out;
  };
  f.axes = strings(p.at("axis"));
  f.modules = strings(p.at("modules"));
  if (f.axes.empty()) p.at("axis").error("an empty list shards over nothing: name an axis");
  if (f.modules.empty()) p.at("modules").error("an empty list shards nothing: write [\"\"] for the whole model");
  if (p.value.contains("replicate_axis")) f.replicate_axis = p.at("replicate_axis").text();
  if (p.value.contains("reshard_after_forward")) {
    if (!p.value["reshard_after_forward"].is_boolean()) p.at("reshard_after_forward").error("true or false");
    f.reshard_after_forward = p.value["reshard_after_forward"].get<bool>();
  }
  if (p.value.contains("param_dtype")) {
    std::string type = p.at("param_dtype").text();
    if (type != "fp32" && type != "bf16")
      p.at("param_dtype").error(fmt::format("\"{}\" is not supported; use \"fp32\" or \"bf16\"", type));
    f.param_dtype = type == "bf16" ? DType::bf16 : DType::f32;
  }
  if (p.value.contains("reduce_dtype") && p.at("reduce_dtype").text() != "fp32")
    p.at("reduce_dtype")
        .error(fmt::format("{} is not supported; gradients are reduced in \"fp32\"", p.value["reduce_dtype"].dump()));
  return f;
}

// "model.layers.*.mlp" matches "model.layers.0.mlp": * is any one segment.
bool matches(std::string_view pattern, std::string_view path) {
  while (true) {
    size_t a = std::min(pattern.find('.'), pattern.size()), b = std::min(path.find('.'), path.size());
    if (pattern.substr(0, a) != "*" && pattern.substr(0, a) != path.substr(0, b)) return false;
    if (a == pattern.size() || b == path.size()) return a == pattern.size() && b == path.size();
    pattern.remove_prefix(a + 1), path.remove_prefix(b + 1);
  }
}

// The modules that a pattern names; an error with the nearest name where there are none.
std::vector<Module*> find_modules(Module& model, const std::string& pattern, const char* place) {
  std::vector<Module*> found;
  std::vector<std::string> names;
  for (Module* m : model.modules()) {
    if (matches(pattern, m->path())) found.push_back(m);
    if (m->path().empty()) continue;
    std::string& name = names.emplace_back(m->path());
    if (pattern.find('*') == std::string::npos) continue;
    for (size_t i = 0, end; i < name.size(); i = end + 1) {  // as a pattern, where the mistyped one is
      end = std::min(name.find('.', i), name.size());
      if (name.find_first_not_of("0123456789", i) >= end) name.replace(i, end - i, 1, '*'), end = i + 1;
    }
  }
  if (found.empty()) fail("[plan] {}: \"{}\" matches no module{}", place, pattern, nearest_hint(pattern, names));
  return found;
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

// Inner modules first, so that a parameter belongs to the innermost group.
void apply_fully_shard(Module& model, const FullyShardPlan& plan) {
  FullyShardOptions options{{}, plan.reshard_after_forward};
  for (const std::string& axis : plan.axes) options.axes.push_back(model.mesh().shape().axis(axis, "plan"));
  std::vector<Module*> list;
  for (const std::string& pattern : plan.modules)
    for (Module* m : find_modules(model, pattern, "fully_shard.modules")) {
      check(std::find(list.begin(), list.end(), m) == list.end(),
            "[plan] fully_shard.modules: module \"{}\" is named twice", m->path());
      list.push_back(m);
    }
  auto depth = [](Module* m) {
    return m->path().empty() ? 0 : 1 + std::count(m->path().begin(), m->path().end(), '.');
  };
  std::stable_sort(list.begin(), list.end(), [&](Module* a, Module* b) { return depth(a) > depth(b); });
  for (Module* m : list) {
    if (plan.param_dtype)
      for (Parameter* p : m->parameters())
        if (!p->group()) p->compute_in(*plan.param_dtype);
    nn::fully_shard(*m, options);
  }
  prefetch(model);
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
  for (const char* later : {"activation_checkpoint", "context_parallel"})
    if (object.contains(later)) root.at(later).error("not supported yet; remove it");
  if (object.contains("tensor_parallel")) {
    Place tp = root.at("tensor_parallel");
    if (!tp.value.is_array())
      plan.tensor_parallel.push_back(parse_tensor_parallel(tp));
    else
      for (size_t i = 0; i < tp.value.size(); ++i)
        plan.tensor_parallel.push_back(parse_tensor_parallel({tp.value[i], fmt::format("tensor_parallel[{}]", i)}));
  }
  if (object.contains("loss_parallel")) {
    if (!object["loss_parallel"].is_boolean()) root.at("loss_parallel").error("true or false");
    plan.loss_parallel = object["loss_parallel"].get<bool>();
    if (plan.tensor_parallel.empty()) root.at("loss_parallel").error("needs tensor_parallel");
  }
  if (object.contains("data_parallel")) {
    Place dp = root.at("data_parallel");
    dp.fields({"axis"});
    if (!dp.value.contains("axis")) dp.error("\"axis\" is missing");
    plan.data_parallel = dp.at("axis").text();
  }
  if (object.contains("fully_shard")) plan.fully_shard = parse_fully_shard(root.at("fully_shard"));
  return plan;
}

namespace {

Json to_json(const std::optional<Placement>& p) { return p ? Json(to_string(*p)) : Json(); }

// A list of one is written as its element.
template <class T, class F>
Json one_or_list(const std::vector<T>& list, F to) {
  if (list.size() == 1) return to(list[0]);
  Json array = Json::array();
  for (const T& x : list) array.push_back(to(x));
  return array;
}

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

Json to_json(const FullyShardPlan& f) {
  auto text = [](const std::string& s) { return Json(s); };
  Json object{{"axis", one_or_list(f.axes, text)}};
  if (f.replicate_axis) object["replicate_axis"] = *f.replicate_axis;
  object["modules"] = f.modules;
  if (!f.reshard_after_forward) object["reshard_after_forward"] = false;
  if (f.param_dtype) object["param_dtype"] = *f.param_dtype == DType::bf16 ? "bf16" : "fp32";
  return object;
}

}  // namespace

Json ParallelPlan::to_json() const {
  Json object = Json::object();
  if (!tensor_parallel.empty())
    object["tensor_parallel"] = one_or_list(tensor_parallel, [](const auto& t) { return nn::to_json(t); });
  if (loss_parallel) object["loss_parallel"] = *loss_parallel;
  if (data_parallel) object["data_parallel"] = {{"axis", *data_parallel}};
  if (fully_shard) object["fully_shard"] = nn::to_json(*fully_shard);
  return object;
}

std::vector<std::string> ParallelPlan::data_axes() const {
  std::vector<std::string> list;
  if (data_parallel) list.push_back(*data_parallel);
  if (fully_shard) {
    list.insert(list.end(), fully_shard->axes.begin(), fully_shard->axes.end());
    if (fully_shard->replicate_axis) list.push_back(*fully_shard->replicate_axis);
  }
  return list;
}

std::vector<std::string> ParallelPlan::axes() const {
  std::vector<std::string> list, data = data_axes();
  for (const auto& t : tensor_parallel) list.push_back(t.axis);
  list.insert(list.end(), data.begin(), data.end());
  return list;
}

void ParallelPlan::apply(Module& model) const {
  const MeshShape& mesh = model.mesh().shape();
  for (const std::string& axis : axes())
    check(mesh.find(axis) >= 0, "[plan] the plan uses axis \"{}\", which mesh {} lacks: add it, as in --mesh {},{}=2",
          axis, to_string(mesh), to_string(mesh), axis);
  std::map<std::string, std::map<Module*, std::string>> matched;  // by axis
  for (const auto& t : tensor_parallel) apply_tensor_parallel(model, t, matched[t.axis]);
  if (fully_shard) apply_fully_shard(model, *fully_shard);
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
  for (int a = 0; a < mesh.axes(); ++a)
    if (std::find(axes.begin(), axes.end(), mesh.name(a)) != axes.end()) l = l.with(a, Shard(0));
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
