#include "nn/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "placement/error.h"

namespace dtensor::nn {

Schedule warmup_then_decay(const ScheduleOptions& o) {
  check(o.least <= o.peak, "[Schedule] the least learning rate {} is above the peak {}", o.least, o.peak);
  return [o](int64_t step) {
    if (step < o.warmup) return o.peak * (0.1 + 0.9 * double(step) / double(o.warmup));
    if (o.total <= o.warmup) return o.peak;
    // What is left of the fall: from 1 to 0.
    double falling = double(o.total - o.warmup);
    if (o.decay == Decay::wsd) falling = std::min(falling, 0.2 * double(o.total));
    double left = std::clamp(double(o.total - step) / falling, 0.0, 1.0);
    if (o.decay == Decay::cosine) left = 0.5 * (1 + std::cos(std::numbers::pi * (1 - left)));
    return o.least + (o.peak - o.least) * left;
  };
}

Schedule warmup_cosine(double peak, int64_t warmup, int64_t total) {
  return warmup_then_decay({.peak = peak, .warmup = warmup, .total = total});
}

}  // namespace dtensor::nn
