#include "nn/train/schedule.h"

#include <cmath>
#include <numbers>

#include "placement/error.h"

namespace dtensor::nn {

Schedule warmup_cosine(double peak, int64_t warmup, int64_t total) {
  return [=](int64_t step) {
    if (step < warmup) return peak * (0.1 + 0.9 * double(step) / double(warmup));
    if (total <= warmup) return peak;
    double done = std::min(1.0, double(step - warmup) / double(total - warmup));
    return peak * 0.5 * (1 + std::cos(std::numbers::pi * done));
  };
}

}  // namespace dtensor::nn
