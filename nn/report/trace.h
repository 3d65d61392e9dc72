// Steps as a trace to look at, in Perfetto (ui.perfetto.dev) or chrome://tracing: Chrome's trace event format.
#pragma once

#include <string>

#include "nn/report/step_clock.h"

namespace dtensor::nn {

// The traced steps of one rank. In the file each rank is a process; its rows are what it computes, module in module,
// with waiting; its collectives, a row for each communicator by its axes; and its memory in use. Every rank makes one.
class Trace {
 public:
  // All ranks together: their clocks are brought to one beginning, which is right to the time of a barrier.
  explicit Trace(const DeviceMesh& mesh);

  // The step that the clock measured last.
  void add(const StepClock& clock, int64_t step);
  int64_t steps() const { return steps_; }
  // What was added, as one JSON text of all ranks; "" but on rank 0. All ranks call it. `about` is kept in the file.
  std::string gather(const nlohmann::ordered_json& about) const;

 private:
  void add_computing(const StepClock& clock, int64_t step);
  void add_collectives(const StepClock& clock);
  void add_memory(const StepClock& clock);
  double microseconds(StepClock::Time t) const;
  void event(const std::string& fields);
  void name_row(int row, const std::string& name);
  void slice(int row, const std::string& name, std::string_view category, double begin, double end,
             const std::string& arguments);

  DeviceMesh mesh_;
  StepClock::Time origin_;
  int64_t steps_ = 0;
  std::string events_;              // joined by ",\n"
  std::map<AxisSet, double> rows_;  // of communicators: where their last slice ended
};

}  // namespace dtensor::nn
