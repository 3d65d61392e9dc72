// Random numbers that belong to global indices (law 5): element i of a tensor gets the same number on every mesh.
#pragma once

#include <cstdint>
#include <string_view>

#include "dtensor/distributed_tensor.h"

namespace dtensor {

// Which sequence of numbers: never a generator's state, so that recomputation and any order of execution repeat it.
struct RandomStream {
  uint64_t seed = 0;
  std::string_view purpose = {};  // "init", "dropout"
  std::string_view path = {};     // of the module or parameter
  int64_t step = 0, micro_batch = 0, call = 0;

  uint64_t key() const;
};

// Philox4x32-10, a counter-based generator. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
// (2011).
struct Philox {
  uint32_t word[4];
  Philox(uint64_t key, uint64_t counter);
};

// In place, each rank its part; the elements' numbers are found from their global row-major index.
void fill_normal(DistributedTensor& x, const RandomStream& stream, double mean, double std);
void fill_uniform(DistributedTensor& x, const RandomStream& stream, double low, double high);

}  // namespace dtensor
