// Where a step's time goes on this rank.
#pragma once

#include <chrono>
#include <optional>
#include <vector>

#include "nn/foresight/timeline.h"

namespace dtensor::nn {

// The parts of a step, in seconds, which add up to it.
struct TimeSplit {
  double data = 0;           // until its batch was there
  double products = 0;       // products of matrices
  double attention = 0;      // attention's kernels
  double kernels = 0;        // all other kernels
  double communication = 0;  // waiting for collectives: what kernels did not hide, and ranks that are late
  double update = 0;         // of the optimizer
  double host = 0;           // what the library does before it begins a collective

  double sum() const { return data + products + attention + kernels + communication + update + host; }
};
// {"data": 0.1, ...}
nlohmann::ordered_json to_json(const TimeSplit& t);

// Measures one step after the other: the activities that a dry run predicts (Timeline), each with the time at which it
// ended. What lies between two ends belongs to the later activity, the dispatcher's part of it too. On the CPU, where
// kernels have ended when observers are told; on CUDA it would see the host.
class StepClock : public Observer {
 public:
  using Time = std::chrono::steady_clock::time_point;
  struct Moment {
    Time end;
    int64_t bytes_in_use;
  };

  // Errors: a rank that is not on the CPU.
  explicit StepClock(Rank& rank);
  ~StepClock() override { stop(); }
  StepClock(const StepClock&) = delete;

  void begin();   // a step: its batch is loaded next
  void loaded();  // the batch is there
  void end();     // its numbers are read
  TimeSplit split() const;

  // Of the step that ended last. moments()[i] is that of timeline().activities()[i].
  const Timeline& timeline() const { return *timeline_; }
  const std::vector<Moment>& moments() const { return moments_; }
  Time began_at() const { return begin_; }
  Time loaded_at() const { return loaded_; }
  Time ended_at() const { return end_; }

  void on_call(const CallEvent&) override { note(); }
  void on_collective(const CollectiveEvent&) override { note(); }
  void on_redistribute(const RedistributeEvent&) override { note(); }

 private:
  void note();
  void stop();

  Rank& rank_;
  std::optional<Timeline> timeline_;
  std::vector<Moment> moments_;
  Time begin_, loaded_, end_;
};

}  // namespace dtensor::nn
