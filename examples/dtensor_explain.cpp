// dtensor_explain: answers questions about layouts without running anything.
//
//     dtensor_explain --mesh dp=2,tp=4 layout "f32[5,16] dp=Shard(0) tp=Replicate"
//     dtensor_explain --mesh dp=2,tp=4 visualize "f32[5,16] dp=Shard(0) tp=Shard(1)"
//     dtensor_explain --mesh tp=4 redistribute "f32[8,16] tp=Shard(0)" "tp=Replicate"
//     dtensor_explain --mesh tp=4 op matmul "f32[8,16] tp=Shard(1)" "f32[16,4] tp=Shard(0)"
//     dtensor_explain ops
//     dtensor_explain --mesh dp=2,tp=4 plan --model config.json --plan plan.json --module model.layers.0
//
// prints who holds what, as a list or a picture; the steps and their bytes; what an op makes of its operands, why, and
// the ways it did not take; the names and arguments of ops; each tensor of a module's forward pass with the plan line
// or rule that made its layout. Attributes of an op follow its operands: dim=-1, shape=8,4,4, keepdim=true. Exit
// codes: 0 done, 2 bad input.
#include <fmt/format.h>
#include <charconv>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "examples/program/program.h"
#include "nn/foresight/parallelism.h"
#include "nn/foresight/walk.h"
#include "nn/models/auto_plan.h"
#include "ops/cards.h"
#include "ops/explain.h"
#include "placement/redistribution.h"
#include "placement/visualize.h"

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
        mesh.name(0));
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

Json visualize_command(const MeshShape& mesh, const std::vector<std::string>& words, std::string& text) {
  check(words.size() == 1, "[dtensor_explain] visualize takes one tensor, as in visualize \"f32[5,16] {}=Shard(0)\"",
        mesh.name(0));
  TensorSpec spec = parse_spec(words[0], mesh);
  std::string picture = visualize(spec, mesh);
  text = to_string(spec, mesh) + "\n" + picture;
  return {{"layout", to_string(spec, mesh)}, {"picture", picture}};
}

Json redistribute_command(const MeshShape& mesh, const std::vector<std::string>& words, std::string& text) {
  check(words.size() == 2,
        "[dtensor_explain] redistribute takes a tensor and a layout, as in redistribute \"f32[8,16] tp=Shard(0)\" "
        "\"tp=Replicate\"");
  TensorSpec from = parse_spec(words[0], mesh), to = from;
  to.layout = parse_target(words[1], mesh, from.shape.dims(), from.layout);
  Plan plan = plan_redistribution(mesh, from.shape, from.dtype, from.layout, to.layout);
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

// true, -1, 0.5, f32, 8,4,4, 1,0.5, mean
NamedValue parse_value(std::string_view key, std::string_view text) {
  if (text == "true" || text == "false") return text == "true";
  for (DType t : {DType::f32, DType::f64, DType::bf16, DType::i64, DType::boolean})
    if (text == name(t)) return t;
  auto number = [&](std::string_view s, auto& value) {
    auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), value);
    return error == std::errc() && end == s.data() + s.size();
  };
  if (text.find(',') != std::string_view::npos && text.find_first_not_of("0123456789,-.e") == std::string_view::npos) {
    std::vector<int64_t> integers;
    std::vector<double> numbers;
    for (size_t at = 0; at <= text.size();) {
      std::string_view word = text.substr(at, std::min(text.find(',', at), text.size()) - at);
      int64_t i;
      check(number(word, numbers.emplace_back()), "[dtensor_explain] \"{}={}\": a list is numbers with commas", key,
            text);
      if (number(word, i)) integers.push_back(i);
      at += word.size() + 1;
    }
    if (integers.size() == numbers.size()) return integers;
    return numbers;
  }
  int64_t i;
  double d;
  if (number(text, i)) return i;
  if (number(text, d)) return d;
  return std::string(text);
}

// Operands as in "f32[8,16] tp=Shard(0)", `none` for an absent one, and attributes as in dim=-1.
struct CallWords {
  std::vector<std::optional<TensorSpec>> operands;
  NamedValues values;
};

CallWords parse_call(const MeshShape& mesh, std::span<const std::string> words) {
  CallWords call;
  for (const std::string& word : words) {
    size_t equals = word.find('=');
    bool attribute = word.find('[') == std::string::npos && equals != std::string::npos;
    if (attribute && is_identifier(std::string_view(word).substr(0, equals)))
      call.values.set(word.substr(0, equals),
                      parse_value(std::string_view(word).substr(0, equals), word.substr(equals + 1)));
    else
      call.operands.push_back(word == "none" ? std::nullopt : std::optional(parse_spec(word, mesh)));
  }
  return call;
}

std::string in_layout(const TensorSpec& s, const Layout& l, const MeshShape& mesh) {
  return to_string(TensorSpec{s.dtype, s.shape, l}, mesh);
}

Json inputs_json(const std::vector<Explanation::Move>& moves, const MeshShape& mesh) {
  Json list = Json::array();
  for (const Explanation::Move& m : moves)
    list.push_back({{"from", to_string(m.from, mesh)},
                    {"to", in_layout(m.from, m.to, mesh)},
                    {"steps", steps_json(m.plan, mesh)}});
  return list;
}

Json outputs_json(const std::vector<TensorSpec>& outputs, const MeshShape& mesh) {
  Json list = Json::array();
  for (const TensorSpec& out : outputs) {
    Json o{{"layout", to_string(out, mesh)},
           {"shape", std::vector<int64_t>(out.shape.begin(), out.shape.end())},
           {"placements", placements(out.layout, mesh)}};
    add_order(o, out.layout, mesh);
    list.push_back(o);
  }
  return list;
}

// The ways not taken, the cheapest first.
Json alternatives_json(const Ways& ways, const MeshShape& mesh) {
  Json list = Json::array();
  for (size_t k = 1; k < ways.list.size() && k <= shown_alternatives; ++k) {
    const Choice& c = ways.list[k].choice;
    Json way{{"inputs", Json::array()}, {"outputs", Json::array()}, {"bytes", c.bytes}};
    for (const Layout& in : c.inputs) way["inputs"].push_back(to_string(in, mesh));
    for (const Layout& out : c.outputs) way["outputs"].push_back(to_string(out, mesh));
    list.push_back(way);
  }
  return list;
}

std::string alternatives_text(const Ways& ways, const MeshShape& mesh) {
  std::string text;
  for (size_t k = 1; k < ways.list.size() && k <= shown_alternatives; ++k) {
    const Choice& c = ways.list[k].choice;
    text += fmt::format("  {:<9} {} bytes: ", k == 1 ? "rejected" : "", c.bytes);
    for (size_t i = 0; i < c.inputs.size(); ++i) text += (i ? ", " : "") + to_string(c.inputs[i], mesh);
    text += " ->";
    for (size_t o = 0; o < c.outputs.size(); ++o) text += (o ? ", " : " ") + to_string(c.outputs[o], mesh);
    text += "\n";
  }
  if (ways.list.size() > shown_alternatives + 1)
    text += fmt::format("            and {}{} more\n", ways.all() ? "" : "at least ",
                        ways.list.size() - shown_alternatives - 1);
  return text;
}

// One line for each collective, then one for the op.
std::string event_text(const Explanation::Event& e, const MeshShape& mesh) {
  std::string text;
  for (const Explanation::Move& m : e.inputs)
    for (const Step& s : m.plan.steps)
      text += fmt::format("            {}{}\n", step_text(s, mesh), e.reason.empty() ? "" : ", for " + e.reason);
  if (!e.op) return text;
  text += fmt::format("  {:<22}", e.op->name);
  for (size_t o = 0; o < e.outputs.size(); ++o) text += (o ? ", " : " ") + to_string(e.outputs[o], mesh);
  return text + "\n";
}

// The ways to run the one card of a function that is no view. Where there are several, each call tells its own.
const Ways* main_ways(const Explanation& e) {
  const Ways* found = nullptr;
  for (const Explanation::Event& event : e.events) {
    bool counts = event.op && (!event.op->view || e.events.size() == 1);
    if (counts && found) return nullptr;
    if (counts) found = &event.ways;
  }
  return found;
}

Json op_command(const MeshShape& mesh, const std::vector<std::string>& words, std::string& text) {
  check(!words.empty(),
        "[dtensor_explain] op takes a name and its operands, as in op matmul \"f32[8,16]\" \"f32[16,4]\"; "
        "`dtensor_explain ops` lists the names");
  CallWords call = parse_call(mesh, std::span(words).subspan(1));
  std::vector<const TensorSpec*> operands;
  for (const auto& s : call.operands) operands.push_back(s ? &*s : nullptr);
  Explanation e = explain(words[0], mesh, operands, call.values);
  const bool one = e.events.size() == 1 && e.events[0].op;
  const Ways* ways = main_ways(e);

  Json j{{"op", words[0]},
         {"inputs", inputs_json(e.inputs, mesh)},
         {"outputs", outputs_json(e.outputs, mesh)},
         {"bytes", e.bytes()},
         {"alternatives", ways ? alternatives_json(*ways, mesh) : Json::array()}};
  text = fmt::format("{}{}{}\n", words[0], call.values.empty() ? "" : " ", call.values.to_string());
  for (size_t i = 0; i < e.inputs.size(); ++i) {
    text += fmt::format("  input {}   {}\n", i, call.operands[i] ? to_string(e.inputs[i].from, mesh) : "none");
    for (const Step& s : e.inputs[i].plan.steps)
      if (one) text += fmt::format("            {}\n", step_text(s, mesh));
  }
  if (!one) {
    j["calls"] = Json::array();
    for (const Explanation::Event& event : e.events) {
      Json c{{"op", event.op ? event.op->name : "redistribute"},
             {"inputs", inputs_json(event.inputs, mesh)},
             {"outputs", outputs_json(event.outputs, mesh)},
             {"bytes", event.bytes()}};
      if (event.op) c["alternatives"] = alternatives_json(event.ways, mesh);
      if (!event.reason.empty()) c["reason"] = event.reason;
      j["calls"].push_back(c);
      text += event_text(event, mesh);
    }
  }
  for (const TensorSpec& out : e.outputs) text += fmt::format("  output    {}\n", to_string(out, mesh));
  text += fmt::format("  {} bytes received by one rank", e.bytes());
  text += one ? fmt::format(": {}\n", ways->why())
              : fmt::format(", {} collectives in {} launches\n", e.collectives(), e.launches);
  if (ways) text += alternatives_text(*ways, mesh);
  return j;
}

// What `plan` walks.
struct PlanOptions {
  std::string model, plan, module;
  int64_t batch_size = 0, seq_len = 0;
};

Json plan_command(const MeshShape& mesh, const PlanOptions& o, const std::vector<std::string>& words,
                  std::string& text) {
  check(words.empty(), "[dtensor_explain] plan takes no \"{}\": give --model, --plan and --module", words[0]);
  check(!o.model.empty(), "[dtensor_explain] plan needs --model, a Hugging Face config.json");
  nn::ModelConfig model = nn::ModelConfig::load(o.model);
  nn::ParallelPlan plan;
  if (!o.plan.empty()) plan = o.plan == "auto" ? nn::auto_plan(model, mesh) : nn::read_plan(o.plan);
  int64_t data_ranks = mesh.product(nn::batch_layout(mesh, plan).split[0].set());
  nn::ForecastOptions options{
      .batch_size = o.batch_size ? o.batch_size : data_ranks,
      .seq_len = o.seq_len ? o.seq_len : std::min(model.max_position_embeddings(), int64_t(128))};
  std::vector<nn::WalkStep> steps = nn::walk(mesh, model, plan, options, o.module);
  text = nn::to_string(steps);
  return nn::to_json(steps);
}

// What `op` takes.
Json ops_command(std::string& text) {
  Json list = Json::array();
  for (const ops::Function& f : ops::functions()) {
    list.push_back({{"name", f.name}, {"signature", f.signature}});
    text += fmt::format("{}\n", f.signature);
  }
  return list;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Answers questions about layouts without running anything.", "dtensor_explain");
  std::string mesh_text, command;
  std::vector<std::string> words;
  PlanOptions plan;
  bool json = false;
  app.add_option("--mesh", mesh_text, "axes and sizes, the last one fastest: dp=2,tp=4");
  app.add_flag("--json", json, "print JSON");
  app.add_option(
         "command", command,
         "layout TENSOR | visualize TENSOR | redistribute TENSOR LAYOUT | op NAME TENSOR... ATTRIBUTE=VALUE... | ops | "
         "plan")
      ->required()
      ->check(CLI::IsMember({"layout", "visualize", "redistribute", "op", "ops", "plan"}));
  app.add_option("arguments", words,
                 "tensors as in \"f32[8,16] tp=Shard(0)\", none for an absent one; values as in dim=-1");
  std::vector<CLI::Option*> of_plan{
      app.add_option("--model", plan.model, "of plan: Hugging Face config.json, or its folder"),
      app.add_option("--plan", plan.plan, "of plan: a plan file, or auto"),
      app.add_option("--module", plan.module, "of plan: the module to walk, as model.layers.0 [all of the model]"),
      app.add_option("--batch-size", plan.batch_size, "of plan: rows over all ranks [one for each data rank]"),
      app.add_option("--seq-len", plan.seq_len, "of plan: tokens per sequence [at most 128]")};
  app.positionals_at_end(false);
  return run_program(app, argc, argv, [&] {
    std::string text;
    Json j;
    for (const CLI::Option* option : of_plan)
      check(command == "plan" || option->count() == 0, "[dtensor_explain] {} is for plan, not for {}",
            option->get_name(), command);
    if (command == "ops") {
      j = ops_command(text);
    } else {
      check(!mesh_text.empty(), "[dtensor_explain] --mesh is required, as in --mesh dp=2,tp=4");
      MeshShape mesh = MeshShape::parse(mesh_text);
      j = command == "layout"      ? layout_command(mesh, words, text)
          : command == "visualize" ? visualize_command(mesh, words, text)
          : command == "op"        ? op_command(mesh, words, text)
          : command == "plan"      ? plan_command(mesh, plan, words, text)
                                   : redistribute_command(mesh, words, text);
    }
    std::fputs(json ? (j.dump(2) + "\n").c_str() : text.c_str(), stdout);
  });
}
