// The elements of a tensor again, in another order, or in part. Copies, of all element types.
#pragma once

#include "ops/core/call.h"
#include "ops/family/dims.h"

namespace dtensor::ops {

struct Repeat {
  Dims repeats;
  static constexpr auto fields() { return std::tuple(field("repeats", &Repeat::repeats)); }
};
struct Roll : Over {
  using Base = Over;
  Dims shifts;
  static constexpr auto fields() {
    return std::tuple_cat(Over::fields(), std::tuple(run_time("shifts", &Roll::shifts)));
  }
};
struct Diagonal {
  int64_t diagonal;
  static constexpr auto fields() { return std::tuple(run_time("diagonal", &Diagonal::diagonal)); }
};

extern const Op repeat_op, flip_op, roll_op, tril_op, triu_op;

// x behind itself repeats[d] times along each dimension d; further repeats in front make new dimensions. A repeated
// dimension is whole on every rank in x, and may be sharded in the result. Errors: fewer repeats than dimensions.
DistributedTensor repeat(const DistributedTensor& x, const std::vector<int64_t>& repeats);
// The dimensions `dims` from back to front; each is whole on every rank.
DistributedTensor flip(const DistributedTensor& x, const Dims& dims);
// Elements move by shifts[i] along dims[i], round the end; without dims, of the flattened tensor.
DistributedTensor roll(const DistributedTensor& x, const std::vector<int64_t>& shifts,
                       const std::vector<int64_t>& dims = {});

// Of matrices [..., r, c]: elements with column - row <= diagonal (tril), or >= (triu); 0 elsewhere.
DistributedTensor tril(const DistributedTensor& x, int64_t diagonal = 0);
DistributedTensor triu(const DistributedTensor& x, int64_t diagonal = 0);

}  // namespace dtensor::ops
