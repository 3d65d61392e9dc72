// dtensor_bisect: where two runs part, by their metrics files.
//
//     llama_pretrain ... --hash --metrics a.jsonl       (and b.jsonl, on another mesh, or of another version)
//     dtensor_bisect a.jsonl b.jsonl
//
// prints the first step whose hashes differ, what differs in it, and the runs. Exit codes: 0 the same, 1 they differ,
// 2 bad input.
#include <fmt/format.h>

#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "examples/program/program.h"
#include "placement/error.h"

using namespace dtensor;
using Json = nlohmann::ordered_json;

namespace {

struct Metrics {
  std::vector<Json> runs;         // lines of kind "run"
  std::map<int64_t, Json> steps;  // lines of steps, with their hashes
};

Metrics read(const std::string& file) {
  std::ifstream in(file);
  check(in.good(), "[dtensor_bisect] cannot read {}", file);
  Metrics m;
  int64_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    Json j = Json::parse(line, nullptr, false);
    check(j.is_object(), "[dtensor_bisect] {}:{}: no JSON object: is it a file of llama_pretrain --metrics?", file,
          number);
    if (j.value("kind", "") == "run") m.runs.push_back(j);
    if (!j.contains("loss")) continue;
    check(j.contains("hash") && j.contains("step"), "[dtensor_bisect] {}:{}: the step has no hash: train with --hash",
          file, number);
    m.steps[j["step"].get<int64_t>()] = j;
  }
  check(!m.steps.empty(), "[dtensor_bisect] {} has no steps", file);
  return m;
}

void print_runs(const std::string& file, const Metrics& m) {
  for (const Json& run : m.runs)
    fmt::print("{}: {} (version {}, mesh {})\n", file, run.value("command", "?"), run.value("version", "?"),
               run.value("mesh", "?"));
}

// What of a step differs first: gradients come before the parameters that they change.
std::string difference(const Json& a, const Json& b) {
  for (const char* what : {"gradients", "parameters"})
    if (a["hash"][what] != b["hash"][what]) return what;
  return "";
}

int compare(const std::string& file_a, const std::string& file_b) {
  Metrics a = read(file_a), b = read(file_b);
  int64_t common = 0, last = 0;
  for (const auto& [step, line] : a.steps) {
    auto other = b.steps.find(step);
    if (other == b.steps.end()) continue;
    std::string what = difference(line, other->second);
    if (what.empty()) {
      ++common, last = step;
      continue;
    }
    fmt::print("step {} is the first that differs: in its {}\n", step, what);
    if (common > 0) fmt::print("step {} is the last that is the same, of {}\n", last, common);
    for (const auto& [file, j] : {std::pair{file_a, line}, std::pair{file_b, other->second}})
      fmt::print("{}: loss {}, grad_norm {}, hash {}\n", file, j["loss"].dump(), j["grad_norm"].dump(),
                 j["hash"].dump());
    print_runs(file_a, a);
    print_runs(file_b, b);
    return 1;
  }
  check(common > 0, "[dtensor_bisect] {} and {} have no step in common", file_a, file_b);
  fmt::print("the same in all {} steps that both have, up to step {}\n", common, last);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> files;
  CLI::App app("Finds the first step in which two runs differ, by metrics files that were written with --hash.",
               "dtensor_bisect");
  app.add_option("FILES", files, "two metrics files")->required()->expected(2);
  int code = 0;
  int failed = run_program(app, argc, argv, [&] { code = compare(files[0], files[1]); });
  return failed ? failed : code;
}
