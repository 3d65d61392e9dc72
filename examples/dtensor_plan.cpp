// dtensor_plan: whether a parallel plan fits a model, what it costs, and what another changes; without a GPU.
//
//     dtensor_plan check --model config.json --mesh dp=2,tp=4 --plan plan.json --hardware h100
//     dtensor_plan cost --model config.json --parallelism tp=8,dp_shard=64,cp=2 --hardware h100 --batch-size 128
//     dtensor_plan diff --model config.json --mesh dp=2,tp=4 --plan old.json new.json
//
// A plan is this library's, Hugging Face's base_model_tp_plan, or flags as torchtitan's. `check` says "fits", or what
// is wrong; `cost` says what a step communicates, holds and takes; `diff` what changes from the first plan to the
// second. Exit codes: 0 done, 2 bad input.
#include <fmt/format.h>
#include <charconv>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "dtensor/table.h"
#include "examples/program/program.h"
#include "nn/foresight/forecast.h"
#include "nn/foresight/parallelism.h"
#include "nn/models/auto_plan.h"

using namespace dtensor;
using Json = nlohmann::ordered_json;

namespace {

struct Options {
  std::string model, mesh, parallelism, hardware, dtype = "bf16";
  std::vector<std::string> plans;
  std::vector<std::string> ranks{"first"};  // at least one
  int64_t batch_size = 0, micro_batch_size = 0, seq_len = 0;
  bool json = false, strict = false;
};

void declare(CLI::App& command, Options& o) {
  command.add_option("--model", o.model, "Hugging Face config.json, or its folder")->required();
  command.add_option("--mesh", o.mesh, "axes and sizes, the last one fastest: dp=2,tp=4");
  command.add_option("--plan", o.plans, "plan file, or Hugging Face's base_model_tp_plan; auto: of the model_type");
  command.add_option("--parallelism", o.parallelism,
                     "in place of --mesh, and of --plan where there is none: tp=8,dp_shard=64,cp=2,dp_replicate=4");
  command.add_option("--batch-size", o.batch_size, "sequences per step, over all ranks [one for each data rank]");
  command.add_option("--micro-batch-size", o.micro_batch_size, "of these, in one pass, over all ranks [all]");
  command.add_option("--seq-len", o.seq_len, "tokens per sequence [the model's most, at most 8192]");
  command.add_option("--dtype", o.dtype, "to compute in")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  command.add_option("--hardware", o.hardware, "a100, h100, h200, b200, or a file as dtensor_calibrate writes");
  command
      .add_option("--ranks", o.ranks,
                  "which ranks to look at: first, last or numbers; the one that holds the most is told")
      ->delimiter(',')
      ->capture_default_str();
  command.add_flag("--strict", o.strict, "communication that nobody asked for is an error");
  command.add_flag("--json", o.json, "as JSON");
}

// A model on a mesh by a plan.
struct Setting {
  nn::ModelConfig model;
  MeshShape mesh;
  nn::ParallelPlan plan;
};

Setting read(const Options& o, size_t plan) {
  nn::ModelConfig model = nn::ModelConfig::load(o.model);
  check(o.mesh.empty() || o.parallelism.empty(), "[dtensor_plan] --mesh {} and --parallelism {}: give one of them",
        o.mesh, o.parallelism);
  check(!o.mesh.empty() || !o.parallelism.empty(), "[dtensor_plan] --mesh is missing: give it, or --parallelism");
  std::optional<nn::ParallelPlan> given;
  bool is_auto = plan < o.plans.size() && o.plans[plan] == "auto";
  if (plan < o.plans.size() && !is_auto) given = nn::read_plan(o.plans[plan]);
  if (!o.parallelism.empty()) {
    nn::Parallelism p = nn::read_parallelism(o.parallelism, model, given);
    return {model, p.mesh, p.plan};
  }
  MeshShape mesh = MeshShape::parse(o.mesh);
  return {model, mesh, is_auto ? nn::auto_plan(model, mesh) : given.value_or(nn::ParallelPlan())};
}

int rank_of(const std::string& text, const MeshShape& mesh) {
  if (text == "first") return 0;
  if (text == "last") return mesh.world() - 1;
  int rank = -1;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), rank);
  check(error == std::errc() && end == text.data() + text.size() && rank >= 0 && rank < mesh.world(),
        "[dtensor_plan] --ranks {}: mesh {} has ranks 0 to {}; give numbers of them, first or last", text, mesh,
        mesh.world() - 1);
  return rank;
}

// Of the ranks asked for, the one that holds the most.
nn::Forecast look(const Options& o, const Setting& s, int warm_up) {
  nn::ForecastOptions options{.batch_size = o.batch_size, .seq_len = o.seq_len, .strict = o.strict};
  int data_ranks = s.mesh.product(nn::batch_layout(s.mesh, s.plan).split[0].set());
  if (options.batch_size == 0) options.batch_size = data_ranks;
  if (options.seq_len == 0) options.seq_len = std::min(s.model.max_position_embeddings(), int64_t(8192));
  check(options.batch_size % data_ranks == 0, "[dtensor_plan] --batch-size {} does not divide over {} data ranks of {}",
        options.batch_size, data_ranks, s.mesh);
  check(options.seq_len <= s.model.max_position_embeddings(),
        "[dtensor_plan] --seq-len {} is more than the model's max_position_embeddings {}", options.seq_len,
        s.model.max_position_embeddings());
  options.train.micro_batch_size = o.micro_batch_size;
  options.train.dtype = o.dtype == "bf16" ? DType::bf16 : DType::f32;
  options.warm_up = warm_up;
  std::optional<nn::Hardware> hardware;
  if (!o.hardware.empty()) hardware = nn::Hardware::load(o.hardware);
  std::optional<nn::Forecast> most;
  for (const std::string& rank : o.ranks) {
    options.rank = rank_of(rank, s.mesh);
    nn::Forecast f = nn::forecast(s.mesh, s.model, s.plan, options, hardware);
    if (!most || f.memory.peak_bytes > most->memory.peak_bytes) most = std::move(f);
  }
  return *std::move(most);
}

void tell_notes(const nn::Forecast& f) {
  for (const std::string& note : f.implicit) std::fprintf(stderr, "dtensor_plan: note: %s\n", note.c_str());
}

void check_command(const Options& o) {
  nn::Forecast f = look(o, read(o, 0), 0);
  tell_notes(f);
  std::string wrong = nn::what_is_wrong(f);
  check(wrong.empty(), "{}", wrong);
  if (o.json)
    fmt::print("{}\n", Json{{"fits", true}, {"peak_bytes", f.memory.peak_bytes}, {"notes", f.implicit}}.dump(2));
  else
    fmt::print("fits\n");
}

void cost_command(const Options& o) {
  nn::Forecast f = look(o, read(o, 0), 1);
  tell_notes(f);
  for (const std::string& doubt : f.doubts) std::fprintf(stderr, "dtensor_plan: note: %s\n", doubt.c_str());
  fmt::print("{}", o.json ? nn::to_json(f).dump(2) + "\n" : nn::to_string(f));
}

// What two forecasts differ in: {"what", of the first, of the second}.
std::vector<std::pair<std::string, std::pair<double, double>>> differences(const nn::Forecast& a,
                                                                           const nn::Forecast& b) {
  using By = CommLog::By;
  std::map<std::string, std::pair<double, double>> found;  // launches and bytes of a kind stand together
  auto add = [&](const nn::Forecast& f, double std::pair<double, double>::*side) {
    for (const CommTotal& t : totals(f.collectives, {By::phase, By::collective, By::axes})) {
      std::string key = fmt::format("{} {} over {}", t.key[0], t.key[1], t.key[2]);
      found[key + ", launches"].*side += double(t.launches);
      found[key + ", bytes"].*side += double(t.bytes);
    }
  };
  add(a, &std::pair<double, double>::first);
  add(b, &std::pair<double, double>::second);
  std::vector<std::pair<std::string, std::pair<double, double>>> list(found.begin(), found.end());
  list.push_back({"peak memory, bytes", {double(a.memory.peak_bytes), double(b.memory.peak_bytes)}});
  for (int k = 0; k < nn::memory_kinds; ++k)
    list.push_back({fmt::format("of it {}, bytes", name(nn::MemoryKind(k))),
                    {double(a.memory.of_kind[k]), double(b.memory.of_kind[k])}});
  list.push_back({"operations of all ranks", {a.hardware_flops, b.hardware_flops}});
  if (a.hardware) {
    list.push_back({"step, seconds", {a.time.step, b.time.step}});
    list.push_back(
        {"of it waiting for communication, seconds", {a.time.exposed_communication, b.time.exposed_communication}});
  }
  return list;
}

void diff_command(const Options& o) {
  check(o.plans.size() == 2, "[dtensor_plan] diff takes two plans, --plan OLD NEW, and was given {}", o.plans.size());
  nn::Forecast a = look(o, read(o, 0), 1), b = look(o, read(o, 1), 1);
  Json json = Json::object();
  std::vector<std::vector<std::string>> lines{{"", o.plans[0], o.plans[1]}};
  for (const auto& [what, values] : differences(a, b)) {
    if (values.first == values.second) continue;
    lines.push_back({what, fmt::format("{:.6g}", values.first), fmt::format("{:.6g}", values.second)});
    json[what] = {values.first, values.second};
  }
  if (o.json)
    fmt::print("{}\n", json.dump(2));
  else
    fmt::print("{}", lines.size() == 1 ? "the two plans do the same\n" : table("<>>", lines));
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app("Checks, costs and compares parallel plans, without a GPU.", "dtensor_plan");
  app.require_subcommand(1);
  CLI::App* check_plan = app.add_subcommand("check", "says \"fits\", or what is wrong");
  CLI::App* cost = app.add_subcommand("cost", "what a step communicates, holds and takes");
  CLI::App* diff = app.add_subcommand("diff", "what changes from the first --plan to the second");
  for (CLI::App* command : {check_plan, cost, diff}) declare(*command, o);
  return run_program(app, argc, argv, [&] {
    if (*check_plan) check_command(o);
    if (*cost) cost_command(o);
    if (*diff) diff_command(o);
  });
}
