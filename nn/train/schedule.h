// Learning rates.
#pragma once

#include <concepts>
#include <cstdint>
#include <functional>

namespace dtensor::nn {

// The learning rate of each step, counted from 0: a number, or any function of the step.
class Schedule {
 public:
  Schedule(double constant) : lr_([constant](int64_t) { return constant; }) {}
  template <std::invocable<int64_t> F>
  Schedule(F lr) : lr_(std::move(lr)) {}
  double operator()(int64_t step) const { return lr_(step); }

 private:
  std::function<double(int64_t)> lr_;
};

// How a learning rate falls after its warm-up. wsd ("warm-up, stable, decay"; Hu et al., "MiniCPM", 2024) stays at the
// peak and falls in a line over the last fifth of all steps.
enum class Decay : uint8_t { cosine, linear, wsd };

struct ScheduleOptions {
  Decay decay = Decay::cosine;
  double peak = 1e-3;
  int64_t warmup = 0;  // steps, in a line from a tenth of the peak
  int64_t total = 1;   // steps; from then on the rate is `least`
  double least = 0;
};
// Errors: a least rate above the peak.
Schedule warmup_then_decay(const ScheduleOptions& options);

// Linear warm-up from a tenth of `peak`, then a cosine to zero at `total` (torch: LinearLR(0.1), then
// CosineAnnealingLR).
Schedule warmup_cosine(double peak, int64_t warmup, int64_t total);

}  // namespace dtensor::nn
