// What allocators of devices ask the device for. Blocks are cut from segments; small ones have segments of their own,
// so that they do not cut the large ones to pieces. In bytes.
#pragma once

#include <algorithm>
#include <cstdint>

namespace dtensor {

constexpr int64_t rounded_up(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

struct Segments {
  static constexpr int64_t grain = 512, small = int64_t(1) << 20, of_small = 2 << 20, grain_of_large = 2 << 20;

  static constexpr int64_t block(int64_t bytes) { return rounded_up(std::max<int64_t>(bytes, 1), grain); }
  static constexpr bool is_small(int64_t block) { return block <= small; }
  // From which a block is cut where none is free.
  static constexpr int64_t segment(int64_t block) {
    return is_small(block) ? of_small : rounded_up(block, grain_of_large);
  }
};

}  // namespace dtensor
