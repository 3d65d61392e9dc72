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

// Linear warm-up from a tenth of `peak`, then a cosine to zero at `total` (torch: LinearLR(0.1), then
// CosineAnnealingLR).
Schedule warmup_cosine(double peak, int64_t warmup, int64_t total);

}  // namespace dtensor::nn
