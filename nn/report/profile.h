// Where the time of some steps went, by what ran: the table of llama_pretrain --profile.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "nn/report/step_clock.h"

namespace dtensor::nn {

// Of one rank.
class Profile {
 public:
  // Each call is compared with what `ceilings` says that it takes. `update_bytes`: bytes_of_update(), for the
  // optimizer.
  Profile(MeshShape mesh, std::optional<Hardware> ceilings, int64_t update_bytes);

  // The step that the clock measured last.
  void add(const StepClock& clock);
  int64_t steps() const { return steps_; }

  // A line for each op and each wait for a collective, the longest first: calls, milliseconds and their share of a
  // step, GB/s, TFLOP/s, and with ceilings the milliseconds there and their share of those measured. Then what the
  // whole step took, and would take at the ceilings. Means over the steps. Errors: no step was added.
  std::string table() const;

 private:
  struct Line {
    int64_t calls = 0, bytes = 0;
    double seconds = 0, operations = 0, ceiling = 0;
    Line& operator+=(const Line& l);
  };
  std::vector<std::string> text_of(const std::string& name, const Line& l, double step) const;

  MeshShape mesh_;
  std::optional<Hardware> ceilings_;
  int64_t update_bytes_;
  int64_t steps_ = 0;
  double seconds_ = 0, at_ceilings_ = 0;  // of all steps
  std::map<std::string, Line> lines_;
};

}  // namespace dtensor::nn
