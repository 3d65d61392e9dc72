#include "nn/report/step_clock.h"

#include <nlohmann/json.hpp>

namespace dtensor::nn {

nlohmann::ordered_json to_json(const TimeSplit& t) {
  return {{"data", t.data},       {"products", t.products},           {"attention", t.attention},
          {"kernels", t.kernels}, {"communication", t.communication}, {"update", t.update},
          {"host", t.host}};
}

StepClock::StepClock(Rank& rank) : rank_(rank) {
  check(rank.device() == Device::cpu, "[StepClock] rank {} is on {}, where kernels run on after observers were told",
        rank.rank(), dtensor::name(rank.device()));
}

void StepClock::stop() {
  rank_.remove(*this);
  if (timeline_) rank_.remove(*timeline_);
}

void StepClock::begin() {
  stop();
  timeline_.emplace(rank_);  // is told before this
  rank_.add(*this);
  moments_.clear();
  begin_ = loaded_ = std::chrono::steady_clock::now();
}

void StepClock::loaded() { loaded_ = std::chrono::steady_clock::now(); }

void StepClock::end() {
  end_ = std::chrono::steady_clock::now();
  stop();
}

void StepClock::note() {
  size_t n = timeline_->activities().size();
  if (moments_.size() < n) moments_.resize(n, {std::chrono::steady_clock::now(), rank_.allocator()->bytes_in_use()});
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
