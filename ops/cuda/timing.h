// How calls of libraries are timed against each other.
#pragma once

#include <algorithm>
#include <array>

#include "dtensor/cuda/runtime.h"

namespace dtensor::cuda {

constexpr int timed_samples = 5, timed_launches = 10;  // of 5 x 10 launches the median ten count

// Milliseconds of ten launches; launch(i) gives the i-th of all to the stream. Waits for it.
template <class F>
double time_launches(StreamHandle stream, F launch) {
  std::array<double, timed_samples> times;
  Event begin(true), end(true);
  for (int s = 0; s < timed_samples; ++s) {
    begin.record(stream);
    for (int i = 0; i < timed_launches; ++i) launch(s * timed_launches + i);
    end.record(stream);
    end.synchronize();
    times[size_t(s)] = end.milliseconds_since(begin);
  }
  std::nth_element(times.begin(), times.begin() + timed_samples / 2, times.end());
  return times[timed_samples / 2];
}

// Numbers of bf16 in [-1, 1): four in a row are an f64 of that range as well, and two an f32. Products of zeros would
// be faster, because they take less power.
void fill_random(std::byte* memory, int64_t bytes, StreamHandle stream);

}  // namespace dtensor::cuda
