// What dropout multiplies elements by, by their global index (law 5).
#pragma once

#include "dtensor/random.h"

namespace dtensor::cpu {

// Element i is kept where the number in [0,1) that fill_uniform gives element i of the stream with this key is at least
// p. p in [0,1].
struct Drop {
  uint64_t key = 0;
  double p = 0;
  double kept = 1 / (1 - p);  // what kept elements are multiplied by

  double factor(int64_t i) const { return double(Philox(key, uint64_t(i)).word[0]) * 0x1p-32 < p ? 0 : kept; }
};

}  // namespace dtensor::cpu
