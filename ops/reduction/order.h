// Where extreme elements are, and sorting.
#pragma once

#include <optional>
#include <tuple>

#include "ops/core/call.h"
#include "ops/family/dims.h"

namespace dtensor::ops {

struct Sort : Over {
  using Base = Over;
  bool descending;
  static constexpr auto fields() {
    return std::tuple_cat(Over::fields(), std::tuple(field("descending", &Sort::descending)));
  }
};
struct TopK : Over {
  using Base = Over;
  int64_t k;
  bool largest;
  static constexpr auto fields() {
    return std::tuple_cat(Over::fields(), std::tuple(field("k", &TopK::k), field("largest", &TopK::largest)));
  }
};

extern const Op argmax_op, argmin_op, sharded_argmax_op, sharded_argmin_op, first_index_op, sort_op, topk_op;

// The index of the largest (smallest) element along `dim`, i64; without one, into the tensor laid out in row-major
// order, and then keepdim leaves all dimensions of size 1. The first of several that are equal; NaN counts as the most
// extreme. A sharded dimension costs an all-reduce of the extremes, then one of indices. Errors: no elements.
DistributedTensor argmax(const DistributedTensor& x, std::optional<int64_t> dim = {}, bool keepdim = false);
DistributedTensor argmin(const DistributedTensor& x, std::optional<int64_t> dim = {}, bool keepdim = false);

// {values, indices i64} along `dim`, which must be whole on every rank. Equal elements stay in their order (`stable` or
// not); NaN counts as the largest.
std::tuple<DistributedTensor, DistributedTensor> sort(const DistributedTensor& x, int64_t dim = -1,
                                                      bool descending = false, bool stable = true);
DistributedTensor argsort(const DistributedTensor& x, int64_t dim = -1, bool descending = false, bool stable = true);
// {values, indices i64} of the k largest (smallest) elements along `dim`, which must be whole on every rank; in order,
// whether `sorted` or not; of equal ones the first. Errors: a k that is negative or larger than the dimension.
std::tuple<DistributedTensor, DistributedTensor> topk(const DistributedTensor& x, int64_t k, int64_t dim = -1,
                                                      bool largest = true, bool sorted = true);

}  // namespace dtensor::ops
