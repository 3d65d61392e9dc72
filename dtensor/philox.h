// Philox4x32-10, a counter-based generator, for the CPU and the GPU. Source: Salmon et al., "Parallel random numbers:
// as easy as 1, 2, 3" (2011).
#pragma once

#include <cstdint>

#include "dtensor/cuda/host_device.h"

namespace dtensor {

// The finalizer of splitmix64.
DTENSOR_HOST_DEVICE inline uint64_t mixed(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}
// The key of a hash and one more value.
DTENSOR_HOST_DEVICE inline uint64_t mixed(uint64_t key, uint64_t value) {
  return mixed((key ^ value) + 0x9e3779b97f4a7c15u);
}
// Of a stream at a step, from its key at step 0 (RandomStream).
DTENSOR_HOST_DEVICE inline uint64_t key_at_step(uint64_t key, int64_t step) {
  return step == 0 ? key : mixed(key, uint64_t(step));
}

// The four words of a counter, and the keys of the round.
DTENSOR_HOST_DEVICE inline void philox_round(uint32_t& w0, uint32_t& w1, uint32_t& w2, uint32_t& w3, uint32_t k0,
                                             uint32_t k1) {
  uint64_t a = uint64_t(0xd2511f53u) * w0, b = uint64_t(0xcd9e8d57u) * w2;
  w0 = uint32_t(b >> 32) ^ w1 ^ k0, w1 = uint32_t(b);
  w2 = uint32_t(a >> 32) ^ w3 ^ k1, w3 = uint32_t(a);
}

// Calls round(k0, k1) with the keys of each round.
template <class Round>
DTENSOR_HOST_DEVICE inline void philox_rounds(uint64_t key, Round round) {
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int i = 0; i < 10; ++i, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) round(k0, k1);
}

struct Philox {
  uint32_t word[4];
  DTENSOR_HOST_DEVICE Philox(uint64_t key, uint64_t counter) : word{uint32_t(counter), uint32_t(counter >> 32), 0, 0} {
    philox_rounds(key, [this](uint32_t k0, uint32_t k1) { philox_round(word[0], word[1], word[2], word[3], k0, k1); });
  }

  // word[i], which a GPU could index only in memory.
  DTENSOR_HOST_DEVICE uint32_t at(int64_t i) const {
    return i < 2 ? (i == 0 ? word[0] : word[1]) : (i == 2 ? word[2] : word[3]);
  }
};

// In [0, 1), a multiple of 2^-24.
DTENSOR_HOST_DEVICE inline float unit_of(uint32_t word) { return float(word >> 8) * 0x1p-24f; }

}  // namespace dtensor
