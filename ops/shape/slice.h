// Parts of a tensor along its dimensions. All are views: elements move only where a sharded dimension has to be whole.
#pragma once

#include <optional>

#include "ops/core/call.h"
#include "ops/family/dims.h"

namespace dtensor::ops {

// Elements `step` apart from `start` on, along `dim`.
struct Steps {
  int64_t dim;
  int64_t start;
  int64_t step;
  static constexpr auto fields() {
    return std::tuple(field("dim", &Steps::dim), run_time("start", &Steps::start), run_time("step", &Steps::step));
  }
};
// `length` of them.
struct Part : Steps {
  using Base = Steps;
  int64_t length;
  static constexpr auto fields() { return std::tuple_cat(Steps::fields(), std::tuple(field("length", &Part::length))); }
};
// All that there are in a dimension of that size.
struct PartOf : Steps {
  using Base = Steps;
  int64_t size;
  static constexpr auto fields() { return std::tuple_cat(Steps::fields(), std::tuple(field("size", &PartOf::size))); }
};
// `any`: of bools, joined by a maximum.
struct At {
  int64_t dim;
  int64_t index;
  bool any = false;
  static constexpr auto fields() {
    return std::tuple(field("dim", &At::dim), run_time("index", &At::index), field("any", &At::any));
  }
};

extern const Op slice_op, slice_backward_op, select_op;

// x[start:end:step] along `dim`, as in Python: bounds may count from the back, and are clamped; absent ones are the
// dimension's own. Another part than the whole of a sharded dimension gathers it. Errors: a step below 1.
DistributedTensor slice(const DistributedTensor& x, int64_t dim = 0, std::optional<int64_t> start = {},
                        std::optional<int64_t> end = {}, int64_t step = 1);
// [start, start + length) of `dim`; start may count from the back. Errors: a range that is not within the dimension.
DistributedTensor narrow(const DistributedTensor& x, int64_t dim, int64_t start, int64_t length);
// x without `dim`, at `index` of it. Of a sharded dimension, the rank that has it shows it and the others have zeros:
// Partial(sum), for bool Partial(max). Errors: an index that is not within the dimension.
DistributedTensor select(const DistributedTensor& x, int64_t dim, int64_t index);

// Indexing: x[1:5, 3, ..., None] is index(x, {Slice(1, 5), 3, ellipsis, newaxis}), and Slice() is ":". Dimensions that
// are not mentioned are taken whole. Errors: more indices than dimensions, two ellipses; those of slice and select.
struct Slice {
  std::optional<int64_t> start = {}, end = {};
  int64_t step = 1;

  Slice() = default;
  Slice(std::optional<int64_t> start, std::optional<int64_t> end, int64_t step = 1)
      : start(start), end(end), step(step) {}
};
struct Ellipsis {};
struct NewAxis {};
inline constexpr Ellipsis ellipsis;
inline constexpr NewAxis newaxis;
using Index = std::variant<int64_t, Slice, Ellipsis, NewAxis>;
DistributedTensor index(const DistributedTensor& x, const std::vector<Index>& indices);

}  // namespace dtensor::ops

namespace dtensor {

using ops::ellipsis, ops::newaxis, ops::Slice;  // ops::index(x, {Slice(1, 5), 3, ellipsis})

}  // namespace dtensor
