#include "nn/report/metrics.h"

#include <fstream>

#include "nn/json.h"
#include "placement/error.h"

namespace dtensor::nn {
namespace {

using Json = nlohmann::ordered_json;

void collect(const Json& object, const std::string& prefix, std::vector<std::pair<std::string, double>>& to) {
  for (const auto& [key, value] : object.items()) {
    if (value.is_number() && !(prefix.empty() && key == "step")) to.emplace_back(prefix + key, value.get<double>());
    if (value.is_object()) collect(value, prefix + key + "/", to);
  }
}

}  // namespace

std::vector<std::pair<std::string, double>> numbers(const Json& line) {
  std::vector<std::pair<std::string, double>> all;
  if (line.value("kind", "") != "run") collect(line, "", all);
  return all;
}

RunMetrics RunMetrics::load(const std::string& file) {
  std::ifstream in(file);
  check(in.good(), "[metrics] cannot read {}", file);
  RunMetrics m;
  int64_t number = 0;
  for (std::string text; std::getline(in, text);) {
    if (++number; text.empty()) continue;
    Json line = parse_json(text, file + " line " + std::to_string(number), "metrics");
    check(line.is_object(), "[metrics] {} line {} is no JSON object: this is no metrics file", file, number);
    nlohmann::ordered_json step = line.value("step", nlohmann::ordered_json(0));
    check(step.is_number_integer(), "[metrics] {} line {}: \"step\" is {}, no number of a step", file, number,
          step.dump());
    m.add(line);
  }
  check(m.steps > 0, "[metrics] {} has no steps: give the file of llama_pretrain --metrics", file);
  return m;
}

void RunMetrics::add(const Json& line) {
  std::string kind = line.value("kind", "");
  if (kind == "run") run = line;
  if (!line.contains("step")) return;
  int64_t step = line.at("step").get<int64_t>();
  if (kind.empty()) steps = step;
  if (kind == "sample") samples.push_back({step, line.value("prompt", ""), line.value("text", "")});
  for (const auto& [name, value] : numbers(line)) {
    Series& s = series[name];
    s.steps.push_back(step);
    s.values.push_back(value);
  }
}

const Series& RunMetrics::operator[](std::string_view name) const {
  static const Series none;
  auto it = series.find(name);
  return it == series.end() ? none : it->second;
}

}  // namespace dtensor::nn
