// Random numbers that belong to global indices (law 5): element i of a tensor gets the same number on every mesh.
#pragma once

#include <cstdint>
#include <string_view>

#include "dtensor/distributed_tensor.h"
#include "dtensor/philox.h"

namespace dtensor {

// Which sequence of numbers: never a generator's state, so that recomputation and any order of execution repeat it. The
// micro-batch is no part of it: a row's numbers are those of its place in the global batch.
struct RandomStream {
  uint64_t seed = 0;
  std::string_view purpose = {};  // "init", "dropout"
  std::string_view path = {};     // of the module or parameter
  int64_t step = 0, call = 0;

  uint64_t key() const { return key_at_step(key_at_step_0(), step); }
  // Of all but the step, which kernels read from memory (random_scope.h).
  uint64_t key_at_step_0() const;
};

// The uniform numbers of a part of a tensor, in host memory: out[i] for the i-th element of `box`, in row-major order,
// is in [0, 1), a multiple of 2^-24. The element with global row-major index g gets word g % 4 of Philox(key, g / 4),
// so the numbers do not depend on the box.
void fill_unit(uint64_t key, const Shape& shape, const Box& box, float* out);

// In place, each rank its part, from 32 random bits per number; on Partial axes the ranks that keep a value get the
// numbers and the others the identity of the reduction. Errors: an element type that is not f32 or f64; not finite
// bounds, low > high; std < 0.
void fill_normal(DistributedTensor& x, const RandomStream& stream, double mean, double std);
// In [low, high); `low` where both are equal.
void fill_uniform(DistributedTensor& x, const RandomStream& stream, double low, double high);
// 1 with probability p, else 0; of i64 and bool too. Errors: p outside of [0, 1].
void fill_bernoulli(DistributedTensor& x, const RandomStream& stream, double p);

}  // namespace dtensor
