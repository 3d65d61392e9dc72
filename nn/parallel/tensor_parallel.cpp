#include "nn/parallel/tensor_parallel.h"

#include <fmt/format.h>

#include "nn/parallel/module_paths.h"
#include "placement/nearest.h"

namespace dtensor::nn {
namespace {

using Json = nlohmann::ordered_json;
using Place = JsonPlace;
using Kind = Style::Kind;

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
Style::Layouts parse_layouts(const Place& p) {
  if (!p.value.is_array()) return {parse_optional_layout(p)};
  Style::Layouts list;
  for (size_t i = 0; i < p.value.size(); ++i) list.push_back(parse_optional_layout(p.at(i)));
  return list;
}

// {"hidden_states": "Shard(1)"}
Style::NamedLayouts parse_named_layouts(const Place& p) {
  if (!p.value.is_object()) p.error(fmt::format("{} is no object of inputs and their layouts", p.value.dump()));
  Style::NamedLayouts list;
  for (const auto& [key, value] : p.value.items()) list.emplace_back(key, parse_optional_layout(p.at(key)));
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

// The fields of a style, in the order in which they are written. Every one may say use_local_output.
std::vector<std::string> fields_of(Kind kind) {
  switch (kind) {
    case Kind::colwise:
    case Kind::rowwise:
    case Kind::swiglu_linear:
      return {"input_layouts", "output_layouts"};
    case Kind::sequence:
      return {"sequence_dim"};
    case Kind::prepare_input:
      return {"input_layouts", "desired_input_layouts", "input_kwarg_layouts", "desired_input_kwarg_layouts"};
    case Kind::prepare_output:
      return {"output_layouts", "desired_output_layouts"};
    case Kind::prepare_input_output:
      return {"input_layouts",  "desired_input_layouts",  "input_kwarg_layouts", "desired_input_kwarg_layouts",
              "output_layouts", "desired_output_layouts", "use_local_input"};
    case Kind::prepare_weight:
      return {"layouts"};
    case Kind::linear_loss:
      return {"sequence_dim", "output_layouts"};
    default:
      return {};
  }
}

// Hugging Face's base_model_tp_plan strings.
const std::vector<std::pair<std::string, Style>>& hugging_face_styles() {
  static const Style column_gathered = {.kind = Kind::colwise, .output_layouts = {Replicate()}},
                     row_of_whole = {.kind = Kind::rowwise, .input_layouts = {Replicate()}};
  static const std::vector<std::pair<std::string, Style>> list = {
      {"colwise", {.kind = Kind::colwise}},
      {"colwise_rep", column_gathered},
      {"colwise_gather_output", column_gathered},
      {"packed_colwise", {.kind = Kind::colwise}},
      {"rowwise", {.kind = Kind::rowwise}},
      {"rowwise_rep", row_of_whole},
      {"rowwise_split_input", row_of_whole},
      {"embedding_rowwise", {.kind = Kind::rowwise}},
      {"embedding_colwise", column_gathered},
      {"local_colwise", {.kind = Kind::local_colwise}},
      {"local_rowwise", {.kind = Kind::local_rowwise}},
      {"gather", {.kind = Kind::gather}},
      {"all_reduce", {.kind = Kind::gather}},
      {"replicate", {.kind = Kind::replicated}},
      {"replicated_with_grad_allreduce", {.kind = Kind::replicated}},
      {"sequence_parallel", {.kind = Kind::sequence}}};
  return list;
}
// Of experts, latent attention, and attention sinks, which are parameters of no module that has a forward.
constexpr std::string_view not_yet[] = {
    "local",       "local_packed_rowwise", "packed_rowwise", "grouped_gemm", "moe_tp_experts", "moe_identity_expert",
    "ep_router",   "ep_rowwise",           "ep_colwise",     "isolated",     "megablocks_mlp", "mla_kv_a_proj",
    "local_params"};
constexpr Kind own_kinds[] = {Kind::colwise,        Kind::rowwise,        Kind::sequence,
                              Kind::prepare_input,  Kind::prepare_output, Kind::prepare_input_output,
                              Kind::prepare_weight, Kind::linear_loss,    Kind::swiglu_linear};

Style parse_name(const Place& p, const std::string& given) {
  std::vector<std::string> names;
  for (const auto& [theirs, s] : hugging_face_styles()) {
    names.push_back(theirs);
    if (given == theirs) return s;
  }
  for (Kind kind : own_kinds) {
    names.emplace_back(name(kind));
    if (given == name(kind)) return {.kind = kind};
  }
  if (std::find(std::begin(not_yet), std::end(not_yet), given) != std::end(not_yet))
    p.error(
        fmt::format("\"{}\" is for experts, latent attention or attention sinks, which are not supported yet", given));
  p.error(fmt::format("there is no style \"{}\"{} (styles: {})", given, nearest_hint(given, names),
                      fmt::join(names, ", ")));
}

// As many layouts that things have as layouts that they are to have.
void check_pairs(const Place& p, std::string_view style, const char* what, size_t have, size_t desired) {
  if (have != desired) p.error(fmt::format("{} needs as many {}_layouts as desired_{}_layouts", style, what, what));
}

void check_complete(const Place& p, const Style& s) {
  std::string_view style = name(s.kind);
  bool inputs = s.kind == Kind::prepare_input || s.kind == Kind::prepare_input_output,
       outputs = s.kind == Kind::prepare_output || s.kind == Kind::prepare_input_output;
  if (inputs && s.input_layouts.empty() && s.input_kwarg_layouts.empty())
    p.error(fmt::format("{} needs input_layouts and desired_input_layouts, or those of input_kwarg_layouts", style));
  if (outputs && s.output_layouts.empty())
    p.error(fmt::format("{} needs output_layouts and desired_output_layouts", style));
  if (inputs) {
    check_pairs(p, style, "input", s.input_layouts.size(), s.desired_input_layouts.size());
    check_pairs(p, style, "input_kwarg", s.input_kwarg_layouts.size(), s.desired_input_kwarg_layouts.size());
    for (size_t i = 0; i < s.input_kwarg_layouts.size(); ++i)
      if (s.input_kwarg_layouts[i].first != s.desired_input_kwarg_layouts[i].first)
        p.error(
            fmt::format("input_kwarg_layouts has \"{}\" where desired_input_kwarg_layouts has \"{}\": name the "
                        "same inputs in both, in one order",
                        s.input_kwarg_layouts[i].first, s.desired_input_kwarg_layouts[i].first));
  }
  if (outputs) check_pairs(p, style, "output", s.output_layouts.size(), s.desired_output_layouts.size());
}

Style parse_style(const Place& p) {
  if (!p.value.is_object()) {
    Style style = parse_name(p, p.text());
    check_complete(p, style);
    return style;
  }
  if (!p.has("style")) p.error("a style object needs \"style\"");
  Style style = parse_name(p, p.at("style").text());
  std::vector<std::string> known = {"style"};
  for (const std::string& f : fields_of(style.kind)) known.push_back(f);
  known.emplace_back("use_local_output");
  p.fields(known);
  auto layouts = [&](const char* key, auto& list) {
    if (p.has(key)) list = parse_layouts(p.at(key));
  };
  layouts("input_layouts", style.input_layouts);
  layouts("desired_input_layouts", style.desired_input_layouts);
  layouts("output_layouts", style.output_layouts);
  layouts("desired_output_layouts", style.desired_output_layouts);
  if (p.has("input_kwarg_layouts")) style.input_kwarg_layouts = parse_named_layouts(p.at("input_kwarg_layouts"));
  if (p.has("desired_input_kwarg_layouts"))
    style.desired_input_kwarg_layouts = parse_named_layouts(p.at("desired_input_kwarg_layouts"));
  if (p.has("layouts")) {
    std::optional<Placement> one = parse_optional_layout(p.at("layouts"));
    if (!one) p.at("layouts").error("null is no layout of a parameter");
    style.layouts = *one;
  }
  if (p.has("sequence_dim")) style.sequence_dim = parse_dim(p.at("sequence_dim"));
  for (const char* local : {"use_local_output", "use_local_input"})
    if (p.has(local)) p.at(local).boolean();
  check_complete(p, style);
  return style;
}

Json to_json(const std::optional<Placement>& p) { return p ? Json(to_string(*p)) : Json(); }
Json to_json(const Style::NamedLayouts& named) {
  Json object = Json::object();
  for (const auto& [key, layout] : named) object[key] = to_json(layout);
  return object;
}

Json to_json(const Style& s) {
  Json object{{"style", name(s.kind)}};
  auto layouts = [&](const char* key, const Style::Layouts& list) {
    if (!list.empty()) object[key] = one_or_list(list, [](const auto& p) { return to_json(p); });
  };
  layouts("input_layouts", s.input_layouts);
  layouts("desired_input_layouts", s.desired_input_layouts);
  if (!s.input_kwarg_layouts.empty()) object["input_kwarg_layouts"] = to_json(s.input_kwarg_layouts);
  if (!s.desired_input_kwarg_layouts.empty())
    object["desired_input_kwarg_layouts"] = to_json(s.desired_input_kwarg_layouts);
  layouts("output_layouts", s.output_layouts);
  layouts("desired_output_layouts", s.desired_output_layouts);
  if (s.layouts != Style().layouts) object["layouts"] = to_string(s.layouts);
  if (s.sequence_dim != Style().sequence_dim) object["sequence_dim"] = s.sequence_dim;
  return object.size() == 1 ? object["style"] : object;
}

}  // namespace

TensorParallelPlan TensorParallelPlan::from_json(const JsonPlace& p) {
  p.fields({"axis", "plan", "async"}, {"axis", "plan"});
  if (p.has("async") && p.at("async").boolean())
    p.at("async").error("asynchronous tensor parallelism is not supported yet; set it to false");
  TensorParallelPlan t{p.at("axis").text(), {}};
  Place plan = p.at("plan");
  if (!plan.value.is_object()) plan.error("a plan is an object of module paths and styles");
  for (const auto& [key, value] : plan.value.items()) t.lines.emplace_back(key, parse_style(plan.at(key)));
  return t;
}

Json TensorParallelPlan::to_json() const {
  Json object = Json::object();
  for (const auto& [path, style] : lines) {
    check(!object.contains(path), "[to_json] two lines of the plan for {} have the path \"{}\"; keep one of them", axis,
          path);
    object[path] = nn::to_json(style);
  }
  return {{"axis", axis}, {"plan", object}};
}

void TensorParallelPlan::apply(Module& model, std::map<Module*, std::string>& matched) const {
  int index = model.mesh().shape().axis(axis, "plan");
  for (const auto& [pattern, style] : lines)
    for (Module* m : find_modules(model, pattern, "tensor_parallel.plan")) {
      auto [it, fresh] = matched.emplace(m, pattern);
      check(fresh, "[plan] tensor_parallel.plan: module {} is matched by \"{}\" and \"{}\"; keep one of them",
            m->path(), it->second, pattern);
      nn::apply(*m, index, style, fmt::format("{}: {}", quoted(pattern), name(style.kind)));
    }
}

std::vector<std::string> TensorParallelPlan::notes(Module& model) const {
  std::vector<std::string> patterns;
  for (const auto& [pattern, style] : lines) patterns.push_back(pattern);
  return left_out(model, patterns, "tensor_parallel.plan");
}

}  // namespace dtensor::nn
