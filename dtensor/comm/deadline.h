// Times of waiting. What the clock cannot hold is never.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace dtensor {

// The time that is `wait` from now, or the end of the clock.
inline std::chrono::steady_clock::time_point time_after(std::chrono::milliseconds wait) {
  using Clock = std::chrono::steady_clock;
  Clock::time_point now = Clock::now();
  auto most = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::time_point::max() - now);
  return wait >= most ? Clock::time_point::max() : now + wait;
}

// Any number of seconds, infinity too.
inline std::chrono::milliseconds milliseconds_of(double seconds) {
  constexpr auto most = std::chrono::milliseconds::max();
  return seconds * 1000 >= double(most.count()) ? most : std::chrono::milliseconds(std::int64_t(seconds * 1000));
}

}  // namespace dtensor
