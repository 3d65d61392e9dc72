// A shuffled order that is computed, not stored.
#pragma once

#include <bit>
#include <cstdint>

namespace dtensor::nn {

// A permutation of 0 .. size - 1 by (seed, epoch): a Feistel network over the next even number of bits, walked along
// its cycle until it is back in range (Black and Rogaway, 2002). An index costs some 20 ns, and no memory.
class Permutation {
 public:
  Permutation(int64_t size, uint64_t seed, int64_t epoch)
      : size_(uint64_t(size)), key_(mix(seed ^ mix(uint64_t(epoch) + 1))) {
    half_ = (std::bit_width(size_ > 1 ? size_ - 1 : 1) + 1) / 2;
  }
  int64_t operator()(int64_t i) const {
    auto x = uint64_t(i);
    do x = network(x);
    while (x >= size_);
    return int64_t(x);
  }

 private:
  static uint64_t mix(uint64_t x) {  // SplitMix64's
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
  }
  uint64_t network(uint64_t x) const {
    uint64_t mask = (uint64_t(1) << half_) - 1, left = x >> half_, right = x & mask;
    for (uint64_t round = 1; round <= 6; ++round) {
      uint64_t next = left ^ (mix(right + key_ + round * 0x9E3779B97F4A7C15u) & mask);
      left = right, right = next;
    }
    return left << half_ | right;
  }
  uint64_t size_, key_;
  int half_;
};

}  // namespace dtensor::nn
