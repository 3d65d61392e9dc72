// --trace of llama_pretrain: some steps of all ranks in one file.
#pragma once

#include <fstream>

#include "nn/report/trace.h"

namespace dtensor {

// Of one rank; every rank makes one. The first step of a process is left out where others follow: it allocates what
// they find.
class RunTrace {
 public:
  // `steps` are traced of the `coming` ones. An empty path is no trace.
  RunTrace(const DeviceMesh& mesh, std::string path, int64_t steps, int64_t coming, nlohmann::ordered_json about)
      : path_(std::move(path)),
        steps_(std::min(steps, coming > 1 ? coming - 1 : coming)),
        skip_(coming > 1 ? 1 : 0),
        about_(std::move(about)) {
    if (!path_.empty()) trace_.emplace(mesh);
  }

  // After each step; with the last one that is traced the file is written, so all ranks call it. What there is to say.
  std::string step(const nn::StepClock& clock, int64_t step) {
    if (!trace_ || skip_-- > 0) return "";
    trace_->add(clock, step);
    return trace_->steps() == steps_ ? finish() : "";
  }
  // Where the run ends before.
  std::string finish() {
    if (!trace_) return "";
    std::string text = trace_->gather(about_);
    int64_t steps = trace_->steps();
    trace_.reset();
    if (text.empty()) return "";
    std::ofstream file(path_, std::ios::binary);
    file << text;
    check(bool(file.flush()), "[llama_pretrain] cannot write to --trace {}: is the disk full?", path_);
    return fmt::format("trace of {} steps: {}, to be opened in ui.perfetto.dev", steps, path_);
  }

 private:
  std::string path_;
  int64_t steps_, skip_;
  nlohmann::ordered_json about_;
  std::optional<nn::Trace> trace_;
};

}  // namespace dtensor
