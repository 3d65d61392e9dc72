// What dropout multiplies elements by, by their global index (law 5).
#pragma once

#include <algorithm>

#include "dtensor/random.h"

namespace dtensor::cpu {

// Element i is kept where the number in [0,1) that fill_unit gives element i of the stream with this key is at least p.
// p in [0,1].
struct Drop {
  uint64_t key = 0;
  double p = 0;
  double kept = 1 / (1 - p);  // what kept elements are multiplied by

  // out[k] = what element first + k is multiplied by. Four elements share one counter.
  template <class T>
  void factors(int64_t first, int64_t n, T* out) const {
    for (int64_t i = first, end = first + n; i < end;) {
      Philox words(key, uint64_t(i / 4));
      for (int64_t stop = std::min(end, (i / 4 + 1) * 4); i < stop; ++i)
        *out++ = float(words.word[i % 4] >> 8) * 0x1p-24f < p ? T(0) : T(kept);
    }
  }
};

}  // namespace dtensor::cpu
