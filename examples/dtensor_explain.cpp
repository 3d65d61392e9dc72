// dtensor_explain: answers questions about layouts without running anything.
//
//     dtensor_explain --mesh dp=2,tp=4 layout "f32[5,16] dp=Shard(0) tp=Replicate"
//     dtensor_explain --mesh tp=4 redistribute "f32[8,16] tp=Shard(0)" "tp=Replicate"
//     dtensor_explain --mesh tp=4 op matmul "f32[8,16] tp=Shard(1)" "f32[16,4] tp=Shard(0)"
//
// prints who holds what; the steps and their bytes; what an op makes of its operands, and the ways it did not take.
// Attributes of an op follow its operands: dim=-1, shape=8,4,4, keepdim=true. Exit codes: 0 done, 2 bad input.
#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "ops/all.h"
#include "placement/redistribution.h"

using namespace dtensor;
using Json = nlohmann::ordered_json;

namespace {

constexpr size_t shown_alternatives = 5;

Json placements(const Layout& layout, const MeshShape& mesh) {
  Json j = Json::object();
  for (int a = 0; a < mesh.axes(); ++a) j[mesh.name(a)] = to_string(layout[a]);
  return j;
}

// {"0": ["tp", "dp"]} where a dimension is not split in mesh order.
void add_order(Json& j, const Layout& layout, const MeshShape& mesh) {
  for (int d = 0; d < max_dims; ++d) {
    const AxisList& list = layout.split[size_t(d)];
    if (std::is_sorted(list.begin(), list.end())) continue;
    for (int a : list) j["order"][std::to_string(d)].push_back(mesh.name(a));
  }
}

Json steps_json(const Plan& plan, const MeshShape& mesh) {
  Json list = Json::array();
  for (const Step& s : plan.steps) {
    Json axes = Json::array();
    for (int a = 0; a < mesh.axes(); ++a)
      if (has(s.axes, a)) axes.push_back(mesh.name(a));
    list.push_back({{"collective", collective_name(s.kind)},
                    {"axes", axes},
                    {"from", to_string(s.from, mesh)},
                    {"to", to_string(s.to, mesh)},
                    {"bytes", s.bytes}});
  }
  return list;
}

std::string step_text(const Step& s, const MeshShape& mesh) {
  return is_local(s.kind)
             ? fmt::format("local ({})  -> {}", s.kind == StepKind::slice ? "slice" : "pad", to_string(s.to, mesh))
             : fmt::format("{} over {}, {} bytes  -> {}", collective_name(s.kind), mesh.names(s.axes), s.bytes,
                           to_string(s.to, mesh));
}

Json layout_command(const MeshShape& mesh, const std::vector<std::string>& words, std::string& text) {
  check(words.size() == 1, "[dtensor_explain] layout takes one tensor, as in layout \"f32[5,16] {}=Shard(0)\"",
        mesh.axes() ? mesh.name(0) : "dp");
  TensorSpec spec = parse_spec(words[0], mesh);
  Json j{{"layout", to_string(spec, mesh)},
         {"shape", std::vector<int64_t>(spec.shape.begin(), spec.shape.end())},
         {"placements", placements(spec.layout, mesh)}};
  add_order(j, spec.layout, mesh);
  j["ranks"] = Json::array();
  text = to_string(spec, mesh) + "\n";
  for (int r = 0; r < mesh.world(); ++r) {
    Box box = local_box(mesh, spec.shape, spec.layout, r);
    Shape shape = box.shape(), offset = box.offset();
    Json coordinate = Json::object();
    std::string where;
    for (int a = 0; a < mesh.axes(); ++a) {
      coordinate[mesh.name(a)] = mesh.coordinate(r, a);
      where += fmt::format("{}{}={}", a ? " " : "", mesh.name(a), mesh.coordinate(r, a));
    }
    j["ranks"].push_back({{"rank", r},
                          {"coordinate", coordinate},
                          {"shape", std::vector<int64_t>(shape.begin(), shape.end())},
                          {"offset", std::vector<int64_t>(offset.begin(), offset.end())}});
    text += fmt::format("  rank {:<3} {:<16} {:<12} at {}{}\n", r, where, to_string(shape), to_string(offset),
                        spec.layout.partial ? "  (one contribution)" : "");
  }
  return j;
}

Json redistribute_command(const MeshShape& mesh, const std::vector<std::string>& words, std::string& text) {
  check(words.size() == 2,
        "[dtensor_explain] redistribute takes a tensor and a layout, as in redistribute \"f32[8,16] tp=Shard(0)\" "
        "\"tp=Replicate\"");
  TensorSpec from = parse_spec(words[0], mesh), to = from;
  to.layout = parse_layout(words[1], mesh, from.shape.dims());
  Plan plan = plan_redistribution(mesh, from.shape, itemsize(from.dtype), from.layout, to.layout);
  text = fmt::format("{} -> {}\n", to_string(from, mesh), to_string(to.layout, mesh));
  for (size_t i = 0; i < plan.steps.size(); ++i)
    text += fmt::format("  {}. {}\n", i + 1, step_text(plan.steps[i], mesh));
  text += fmt::format("  {} bytes received by one rank{}\n", plan.bytes(), plan.steps.empty() ? ": nothing to do" : "");
  return {{"from", to_string(from, mesh)},
          {"to", to_string(to.layout, mesh)},
          {"steps", steps_json(plan, mesh)},
          {"bytes", plan.bytes()}};
}

bool is_identifier(std::string_view s) {
  return !s.empty() && std::all_of(s.begin(), s.end(), [](char c) { return std::isalnum(uint8_t(c)) || c == '_'; });
}

// true, -1, 0.5, f32, 8,4,4
AttributeValue parse_value(std::string_view key, std::string_view text) {
  if (text == "true" || text == "false") return text == "true";
  for (DType t : {DType::f32, DType::f64, DType::bf16, DType::i64, DType::boolean})
    if (text == name(t)) return t;
  auto number = [&](std::string_view s, auto& value) {
    auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), value);
    return error == std::errc() && end == s.data() + s.size();
  };
  bool list = key == "shape" || key == "dims" || text.find(',') != std::string_view::npos;
  if (list) {
    std::vector<int64_t> values;
    for (size_t at = 0; at <= text.size();) {
      size_t comma = std::min(text.find(',', at), text.size());
      int64_t v;
      check(number(text.substr(at, comma - at), v), "[dtensor_explain] \"{}={}\": a list is integers with commas", key,
            text);
      values.push_back(v);
      at = comma + 1;
    }
    return values;
  }
  int64_t i;
  double d;
  if (number(text, i)) return i;
  check(number(text, d), "[dtensor_explain] \"{}={}\" has no value that an op takes", key, text);
  return d;
}

// The card behind a name of torch's, and its attributes: transpose is a permute, sum takes dim.
const Op& card_of(std::string op, std::span<const TensorSpec> inputs, Attributes& a) {
  int dims = inputs.empty() ? 0 : inputs[0].shape.dims();
  auto integer = [&](const char* key) { return int64_t(normalize_dim(op.c_str(), a.get<int64_t>(key), dims)); };
  if (op == "transpose") {
    std::vector<int64_t> order(static_cast<size_t>(dims));
    std::iota(order.begin(), order.end(), 0);
    std::swap(order[size_t(integer("dim0"))], order[size_t(integer("dim1"))]);
    a = {{"dims", order}};
    return ops::permute_op;
  }
  const Op& card = ops::find(op, "dtensor_explain");
  if (&card == &ops::sum_op || &card == &ops::amax_op) {
    std::vector<int64_t> over;
    if (a.has("dims"))
      over = a.get<std::vector<int64_t>>("dims");
    else if (a.has("dim"))
      over = {integer("dim")};
    else
      for (int d = 0; d < dims; ++d) over.push_back(d);
    check(!a.get<bool>("keepdim", false),
          "[dtensor_explain] keepdim=true is a {} and a reshape: explain them one by one", op);
    a = {{"dims", over}};
  }
  if (&card == &ops::rms_norm_op && !a.has("eps")) a.set("eps", 1e-6);
  return card;
}

Json op_command(const MeshShape& mesh, const std::vector<std::string>& words, std::string& text) {
  check(!words.empty(),
        "[dtensor_explain] op takes a name and its operands, as in op matmul \"f32[8,16]\" \"f32[16,4]\"");
  std::vector<TensorSpec> specs;
  Attributes attributes;
  for (size_t i = 1; i < words.size(); ++i) {
    size_t equals = words[i].find('=');
    if (words[i].find('[') == std::string::npos && equals != std::string::npos &&
        is_identifier(std::string_view(words[i]).substr(0, equals)))
      attributes.set(words[i].substr(0, equals), parse_value(std::string_view(words[i]).substr(0, equals),
                                                             std::string_view(words[i]).substr(equals + 1)));
    else
      specs.push_back(parse_spec(words[i], mesh));
  }
  const Op& card = card_of(words[0], specs, attributes);
  std::vector<const TensorSpec*> inputs;
  for (const TensorSpec& s : specs) inputs.push_back(&s);
  if (&card == &ops::linear_op && inputs.size() == 2) inputs.push_back(nullptr);  // no bias
  Explanation e = explain(card, mesh, inputs, attributes);

  const Explanation::Way& way = e.ways[0];
  check(!card.stays || !way.choice.bytes,
        "[{}] {} has no view of that shape where it is: redistribute it to {} first, or use reshape", card.name,
        inputs.empty() ? "" : to_string(*inputs[0], mesh), inputs.empty() ? "" : to_string(way.choice.inputs[0], mesh));
  Json j{{"op", card.name}, {"inputs", Json::array()}, {"outputs", Json::array()}, {"bytes", way.choice.bytes}};
  text = fmt::format("{}{}{}\n", card.name, attributes.empty() ? "" : " ", attributes.to_string());
  auto in_layout = [&](const TensorSpec& s, const Layout& l) {
    return to_string(TensorSpec{s.dtype, s.shape, l}, mesh);
  };
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i]) continue;
    std::string from = to_string(*inputs[i], mesh), to = in_layout(*inputs[i], way.choice.inputs[i]);
    j["inputs"].push_back({{"from", from}, {"to", to}, {"steps", steps_json(way.plans[i], mesh)}});
    text += fmt::format("  input {}   {}\n", i, from);
    for (const Step& s : way.plans[i].steps) text += fmt::format("            {}\n", step_text(s, mesh));
  }
  for (const TensorSpec& out : e.outputs) {
    Json o{{"layout", to_string(out, mesh)},
           {"shape", std::vector<int64_t>(out.shape.begin(), out.shape.end())},
           {"placements", placements(out.layout, mesh)}};
    add_order(o, out.layout, mesh);
    j["outputs"].push_back(o);
    text += fmt::format("  output    {}\n", to_string(out, mesh));
  }
  text += fmt::format("  {} bytes received by one rank\n", way.choice.bytes);

  j["alternatives"] = Json::array();
  for (size_t k = 1; k < e.ways.size() && k <= shown_alternatives; ++k) {
    const Choice& c = e.ways[k].choice;
    Json alternative{{"inputs", Json::array()}, {"outputs", Json::array()}, {"bytes", c.bytes}};
    std::string line;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!inputs[i]) continue;
      alternative["inputs"].push_back(to_string(c.inputs[i], mesh));
      line += (line.empty() ? "" : ", ") + to_string(c.inputs[i], mesh);
    }
    line += " ->";
    for (const Layout& o : c.outputs)
      alternative["outputs"].push_back(to_string(o, mesh)), line += " " + to_string(o, mesh);
    j["alternatives"].push_back(alternative);
    text += fmt::format("  {}{} bytes: {}\n", k == 1 ? "rejected  " : "          ", c.bytes, line);
  }
  return j;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Answers questions about layouts without running anything.", "dtensor_explain");
  std::string mesh_text, command;
  std::vector<std::string> words;
  bool json = false;
  app.add_option("--mesh", mesh_text, "axes and sizes, the last one fastest: dp=2,tp=4")->required();
  app.add_flag("--json", json, "print JSON");
  app.add_option("command", command,
                 "layout TENSOR | redistribute TENSOR LAYOUT | op NAME TENSOR... ATTRIBUTE=VALUE...")
      ->required()
      ->check(CLI::IsMember({"layout", "redistribute", "op"}));
  app.add_option("arguments", words, "tensors as in \"f32[8,16] tp=Shard(0)\"");
  app.positionals_at_end(false);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& e) {
    return app.exit(e);
  } catch (const CLI::Error& e) {
    std::fprintf(stderr, "dtensor_explain: %s; see --help\n", e.what());
    return 2;
  }
  try {
    MeshShape mesh = MeshShape::parse(mesh_text);
    std::string text;
    Json j = command == "layout" ? layout_command(mesh, words, text)
             : command == "op"   ? op_command(mesh, words, text)
                                 : redistribute_command(mesh, words, text);
    std::fputs(json ? (j.dump(2) + "\n").c_str() : text.c_str(), stdout);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "dtensor_explain: %s\n", e.what());
    return 2;
  }
  return 0;
}
