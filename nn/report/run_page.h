// Runs as a page to look at: one run while it goes on and at its end, or several beside each other.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "nn/report/metrics.h"

namespace dtensor::nn {

// What a run comes to. Numbers that its metrics lack are 0.
struct RunSummary {
  int64_t steps = 0;  // the number of the last one
  double first_loss = 0, last_loss = 0;
  double eval_loss = 0;                              // the least
  double tokens = 0, seconds = 0;                    // of all steps that are told
  double tokens_per_second = 0;                      // the median, without the first step where there are others
  double peak_memory_bytes = 0;                      // the largest
  std::vector<std::pair<std::string, double>> time;  // parts of a step, their mean in seconds, without the first step
};
RunSummary summary(const RunMetrics& m);

// A run's name is shown beside its curves.
struct NamedRun {
  std::string name;
  const RunMetrics* metrics;
};

// The summaries, a column for each run, as lines of a table: the first one is the heading.
std::vector<std::vector<std::string>> comparison(const std::vector<NamedRun>& runs);

// One self-contained page of all runs: figures, curves, where time goes, texts, commands. `sections` is HTML that goes
// before the commands; `again`: seconds after which the page is read again, 0: never.
std::string run_page(const std::vector<NamedRun>& runs, const std::string& title, const std::string& introduction,
                     const std::string& sections = "", int again = 0);

// Writes the page of a run while it goes on: after its first step, then every ten seconds or more, and at its end.
class RunPage : public MetricsListener {
 public:
  // Errors: the file cannot be written.
  RunPage(std::string file, std::string title, std::string sections);
  void begin(int64_t done, const std::vector<nlohmann::ordered_json>& before) override;
  void line(const nlohmann::ordered_json& line) override;
  void end(const std::string& how) override;

 private:
  void write(const std::string& state, int again);

  std::string file_, title_, sections_;
  RunMetrics metrics_;
  std::chrono::steady_clock::time_point next_{};  // when it is due
};

}  // namespace dtensor::nn
