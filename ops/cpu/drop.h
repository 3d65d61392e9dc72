// What dropout multiplies elements by, by their global index (law 5).
#pragma once

#include <algorithm>

#include "dtensor/philox.h"

namespace dtensor::cpu {

// Element i is kept where the number in [0,1) that fill_unit gives element i of the stream with this key is at least p.
// p in [0,1].
struct Drop {
  uint64_t key = 0;
  double p = 0;
  double kept = 1 / (1 - p);  // what kept elements are multiplied by

  // What element i is multiplied by.
  DTENSOR_HOST_DEVICE double factor(int64_t i) const {
    return unit_of(Philox(key, uint64_t(i) / 4).at(i % 4)) < p ? 0 : kept;
  }
  // out[k] = what element first + k is multiplied by. Four elements share one counter.
  template <class T>
  void factors(int64_t first, int64_t n, T* out) const {
    for (int64_t i = first, end = first + n; i < end;) {
      Philox words(key, uint64_t(i / 4));
      for (int64_t stop = std::min(end, (i / 4 + 1) * 4); i < stop; ++i)
        *out++ = unit_of(words.word[i % 4]) < p ? T(0) : T(kept);
    }
  }
};

}  // namespace dtensor::cpu
