#include "nn/report/step_clock.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace dtensor::nn {

nlohmann::ordered_json to_json(const TimeSplit& t) {
  return {{"data", t.data},       {"products", t.products},           {"attention", t.attention},
          {"kernels", t.kernels}, {"communication", t.communication}, {"update", t.update},
          {"host", t.host}};
}

StepClock::StepClock(Rank& rank) : rank_(rank) {
  check(rank.device() != Device::meta, "[StepClock] rank {} is on meta, where nothing takes time: see Timeline::time()",
        rank.rank());
}

void StepClock::stop() {
  rank_.remove(*this);
  if (timeline_) rank_.remove(*timeline_);
}

void StepClock::begin() {
  stop();
  timeline_.emplace(rank_);  // is told before this
  rank_.add(*this);
  moments_.clear(), event_of_.clear(), marked_ = 0;
  rank_.synchronize();  // so that host and device begin together
  if (on_device()) mark();
  begin_ = loaded_ = std::chrono::steady_clock::now();
}

void StepClock::mark() {
  if (events_.size() == marked_) events_.emplace_back(true);
  events_[marked_++].record(rank_.allocator()->stream());
}

void StepClock::loaded() { loaded_ = std::chrono::steady_clock::now(); }

void StepClock::end() {
  rank_.synchronize();
  end_ = std::chrono::steady_clock::now();
  stop();
  for (size_t i = 0; i < event_of_.size(); ++i) {
    std::chrono::duration<double, std::milli> since(events_[event_of_[i]].milliseconds_since(events_[0]));
    moments_[i].end = std::max(loaded_, begin_ + std::chrono::duration_cast<Time::duration>(since));
  }
}

void StepClock::note() {
  size_t n = timeline_->activities().size();
  if (moments_.size() == n) return;
  moments_.resize(n, {std::chrono::steady_clock::now(), rank_.allocator()->bytes_in_use()});
  if (!on_device()) return;
  mark();
  event_of_.resize(n, marked_ - 1);
}

TimeSplit StepClock::split() const {
  using Kind = Activity::Kind;
  TimeSplit t;
  auto seconds = [](Time from, Time to) { return std::chrono::duration<double>(to - from).count(); };
  t.data = seconds(begin_, loaded_);
  Time last = loaded_;
  for (size_t i = 0; i < moments_.size(); ++i) {
    const std::vector<Activity>& all = timeline_->activities();
    // A collective that another one waits to begin is what was waited for.
    bool waits =
        all[i].kind == Kind::wait || (all[i].kind == Kind::collective && i > 0 && all[i - 1].kind == all[i].kind);
    double& part = waits                             ? t.communication
                   : all[i].kind == Kind::collective ? t.host
                   : all[i].kind == Kind::product    ? t.products
                   : all[i].kind == Kind::attention  ? t.attention
                                                     : t.kernels;
    part += seconds(last, moments_[i].end);
    last = moments_[i].end;
  }
  t.update = seconds(last, end_);
  return t;
}

}  // namespace dtensor::nn
