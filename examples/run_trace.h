// --trace and --profile of llama_pretrain: some steps, looked at closely.
#pragma once

#include <fstream>

#include "nn/report/profile.h"
#include "nn/report/trace.h"

namespace dtensor {

// The first step of a process is left out where others follow: it allocates what they find.
class SomeSteps {
 public:
  // `steps` of the `coming` ones.
  SomeSteps(int64_t steps, int64_t coming)
      : steps_(std::min(steps, coming > 1 ? coming - 1 : coming)), skip_(coming > 1 ? 1 : 0) {}
  int64_t steps() const { return steps_; }
  bool take() { return skip_-- <= 0; }

 private:
  int64_t steps_, skip_;
};

inline void write_text(const std::string& path, const std::string& text, std::string_view option) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  check(bool(file.flush()), "[llama_pretrain] cannot write to {} {}: is the disk full?", option, path);
}

// Of one rank; every rank makes one. An empty path is no trace.
class RunTrace {
 public:
  RunTrace(const DeviceMesh& mesh, std::string path, SomeSteps steps, nlohmann::ordered_json about)
      : path_(std::move(path)), steps_(steps), about_(std::move(about)) {
    if (!path_.empty()) trace_.emplace(mesh);
  }

  // After each step; with the last one that is traced the file is written, so all ranks call it. What there is to say.
  std::string step(const nn::StepClock& clock, int64_t step) {
    if (!trace_ || !steps_.take()) return "";
    trace_->add(clock, step);
    return trace_->steps() == steps_.steps() ? finish() : "";
  }
  // Where the run ends before.
  std::string finish() {
    if (!trace_) return "";
    std::string text = trace_->gather(about_);
    int64_t steps = trace_->steps();
    trace_.reset();
    if (text.empty()) return "";
    write_text(path_, text, "--trace");
    return fmt::format("trace of {} steps: {}, to be opened in ui.perfetto.dev", steps, path_);
  }

 private:
  std::string path_;
  SomeSteps steps_;
  nlohmann::ordered_json about_;
  std::optional<nn::Trace> trace_;
};

// Of the first rank alone. An empty path is no profile.
class RunProfile {
 public:
  RunProfile(std::string path, SomeSteps steps, nn::Profile profile) : path_(std::move(path)), steps_(steps) {
    if (!path_.empty()) profile_.emplace(std::move(profile));
  }

  // After each step; with the last one the file is written. What there is to say.
  std::string step(const nn::StepClock& clock) {
    if (!profile_ || !steps_.take()) return "";
    profile_->add(clock);
    return profile_->steps() == steps_.steps() ? finish() : "";
  }
  // Where the run ends before.
  std::string finish() {
    if (!profile_ || profile_->steps() == 0) return "";
    std::string table = profile_->table();
    int64_t steps = profile_->steps();
    profile_.reset();
    write_text(path_, table, "--profile");
    return fmt::format("profile of {} steps: {}\n{}", steps, path_, table);
  }

 private:
  std::string path_;
  SomeSteps steps_;
  std::optional<nn::Profile> profile_;
};

}  // namespace dtensor
