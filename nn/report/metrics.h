// A run's metrics: JSON lines (docs/formats.md), read back, or as they are written.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

namespace dtensor::nn {

// The numbers of one line by name, in its order, but for "step": {"loss", 2.5}. Those of an object inside have its name
// before theirs: {"time/communication", 0.1}. What is no number is left out.
std::vector<std::pair<std::string, double>> numbers(const nlohmann::ordered_json& line);

// A number over the steps of a run.
struct Series {
  std::vector<int64_t> steps;
  std::vector<double> values;
};

// A run as its lines tell it.
struct RunMetrics {
  struct Sample {
    int64_t step;
    std::string prompt, text;
  };
  nlohmann::ordered_json run;  // its line of kind "run", the last one where it was resumed; null: none
  int64_t steps = 0;           // the number of the last step
  std::map<std::string, Series, std::less<>> series;
  std::vector<Sample> samples;

  // Errors: a file that cannot be read; a line that is no JSON object, with its number; a file without a step.
  static RunMetrics load(const std::string& file);
  void add(const nlohmann::ordered_json& line);
  // The series of that name, or an empty one.
  const Series& operator[](std::string_view name) const;
};

// Is told a run's lines as they are written.
class MetricsListener {
 public:
  virtual ~MetricsListener() = default;
  // Before the first line: how many steps were done before, and the lines of these that are known.
  virtual void begin(int64_t done, const std::vector<nlohmann::ordered_json>& before) = 0;
  virtual void line(const nlohmann::ordered_json& line) = 0;
  // The run has ended: "done", or why not.
  virtual void end(const std::string&) {}
};

}  // namespace dtensor::nn
