// Where a step's time goes on this rank.
#pragma once

#include <chrono>
#include <optional>
#include <vector>

#include "dtensor/cuda/runtime.h"
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
// ended. What lies between two ends belongs to the later activity, the dispatcher's part of it too. On CUDA it is the
// device's time, by an event on the rank's stream after each activity, and begin() and end() wait for the device. A
// step that is replayed as a graph has no activities: observers are not told of any.
class StepClock : public Observer {
 public:
  using Time = std::chrono::steady_clock::time_point;
  struct Moment {
    Time end;
    int64_t bytes_in_use;
  };

  // Errors: a rank on meta.
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
  void on_host_copy(const DistributedTensor&) override { note(); }

 private:
  void note();
  void stop();

  bool on_device() const { return rank_.device() == Device::cuda; }
  void mark();  // the next event, on the rank's stream

  Rank& rank_;
  std::optional<Timeline> timeline_;
  std::vector<Moment> moments_;
  Time begin_, loaded_, end_;
  std::vector<cuda::Event>
      events_;  // on CUDA: the step's beginning, and what ends moments; used again by the next step
  size_t marked_ = 0;
  std::vector<size_t> event_of_;  // of each moment
};

}  // namespace dtensor::nn
