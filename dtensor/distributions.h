// Numbers of a distribution from random words, for the CPU and the GPU.
#pragma once

#include <cmath>
#include <numbers>

#include "dtensor/philox.h"

namespace dtensor {

// Box and Muller, in float64.
template <class T>
struct Normal {
  double mean, std;
  DTENSOR_HOST_DEVICE T operator()(uint32_t a, uint32_t b) const {
    double radius = std::sqrt(-2 * std::log(unit_above_0(a)));
    return T(mean + std * radius * std::cos(2 * std::numbers::pi * unit_above_0(b)));
  }

 private:
  DTENSOR_HOST_DEVICE static double unit_above_0(uint32_t word) { return (double(word) + 1) * 0x1p-32; }  // (0, 1]
};

// In [low, high): `below` is the largest T there, as rounding may reach `high`.
template <class T>
struct Uniform {
  double low, high;
  T below;
  DTENSOR_HOST_DEVICE T operator()(uint32_t word) const {
    T x = T(low + (high - low) * (double(word) * 0x1p-32));
    return below < x ? below : x;
  }
};

template <class T>
struct Bernoulli {
  double p;
  DTENSOR_HOST_DEVICE T operator()(uint32_t word) const { return T(double(word) * 0x1p-32 < p); }
};

}  // namespace dtensor
