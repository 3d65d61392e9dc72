// Elements by their indices (i64). An index outside its dimension is an error on CPU. A rank with part of the indexed
// dimension looks up, or adds to, its range only. Additions happen in the order of indices.
#pragma once

#include "ops/core/call.h"
#include "ops/family/dims.h"

namespace dtensor::ops {

// Of `dim`; `any`: of bools, joined by a maximum where zeros stand; `size`: along it, where an absent x does not tell.
struct AtIndex {
  int64_t dim;
  bool any = false;
  std::optional<int64_t> size = {};
  static constexpr auto fields() {
    return std::tuple(field("dim", &AtIndex::dim), field("any", &AtIndex::any), field("size", &AtIndex::size));
  }
};
struct OneHot {
  int64_t num_classes;
  static constexpr auto fields() { return std::tuple(field("num_classes", &OneHot::num_classes)); }
};

extern const Op index_select_op, index_add_op, index_copy_op, gather_op, scatter_add_op, one_hot_op;

// The slices of x at index [k] of `dim`: k along it. Where it is sharded: Partial(sum), for bool Partial(max).
DistributedTensor index_select(const DistributedTensor& x, int64_t dim, const DistributedTensor& index);
// x, and source [.., k, ..] added to its slices at index [k] of `dim`. Where k is sharded: Partial(sum).
DistributedTensor index_add(const DistributedTensor& x, int64_t dim, const DistributedTensor& index,
                            const DistributedTensor& source);
// Writes source [.., k, ..] over the slices of x at index [k] of `dim`, in place, and returns x: a key/value cache. Of
// equal indices the last one counts. x stays in its layout, whatever that is.
DistributedTensor index_copy_(const DistributedTensor& x, int64_t dim, const DistributedTensor& index,
                              const DistributedTensor& source);

// y[a, e, c] = x[a, index[a, e, c], c] for dim=1. Of index's shape, which may be smaller than x's in all dimensions but
// `dim`: then x is sliced. Where `dim` of x is sharded: Partial(sum), for bool Partial(max).
DistributedTensor gather(const DistributedTensor& x, int64_t dim, const DistributedTensor& index);
// x with y[a, index[a, e, c], c] += source[a, e, c] for dim=1. index's sizes are at most source's, and at most x's but
// for `dim`. Where `dim` of index is sharded: Partial(sum).
DistributedTensor scatter_add(const DistributedTensor& x, int64_t dim, const DistributedTensor& index,
                              const DistributedTensor& source);

// x i64 [...] -> i64 [..., num_classes]: 1 at the class, 0 elsewhere.
DistributedTensor one_hot(const DistributedTensor& x, int64_t num_classes);

}  // namespace dtensor::ops
