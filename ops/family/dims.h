// What ops along some dimensions share: names for a rule's dimensions, operands as slices, and who is sharded.
#pragma once

#include "ops/core/call.h"
#include "ops/family/kernel.h"

namespace dtensor::ops {

// A list of dimensions; at most max_dims, so that no call allocates.
using Dims = Shape;

// Attributes of cards along some dimensions. Others derive from it.
struct Over {
  Dims dims;  // normalized by whoever makes the call
  static constexpr auto fields() { return std::tuple(field("dims", &Over::dims)); }
};
inline Over over(const Dims& dims) { return {dims}; }

// Counted from the front and sorted; all of them where none is given. What has no dimensions takes 0 and -1, as in
// PyTorch. Errors: a dimension that does not exist, or is named twice.
Dims normalized_dims(std::string_view who, const Dims& dims, int count);
inline const Dims& dims_of(const Attributes& a) { return a.as<Over>().dims; }

// For rules, of a tensor of `count` dimensions: "abc"; "a[b]c" where `whole` must be whole on every rank.
std::string factors(int count, const Dims& whole = {});
// "ac": those that are not in `dims`.
std::string other_factors(int count, const Dims& dims);
// "b": those that are.
std::string factors_in(const Dims& dims);

// "abc,ac->ac": a tensor and a value of each slice, reduced to one of each slice.
Rule with_slices_rule(std::span<const Shape* const> in, const Attributes& a);
// "ac,abc,ac->abc": values of each slice, the second operand the tensor, made one tensor again.
Rule onto_slices_rule(std::span<const Shape* const> in, const Attributes& a);

// The shape without the dimensions, and with them, of size 1.
Shape dropped_shape(const Shape& shape, const Dims& dims);
Shape kept_shape(const Shape& shape, const Dims& dims);
// Elements per slice: the product of the sizes.
int64_t slice_size(const Shape& shape, const Dims& dims);

// Whether any of the dimensions is split over ranks.
bool sharded_along(const DistributedTensor& x, const Dims& dims);
// The values reduced where they are Partial, all in as few launches as possible; what is sharded stays so.
std::vector<DistributedTensor> reduced(std::vector<DistributedTensor> list);
DistributedTensor reduced(const DistributedTensor& x);

// Statistics of rows (a norm's rstd, the sum of a softmax) are f32 where the rows are bf16, else of the rows' type.
inline DType statistics_type(DType t) { return t == DType::bf16 ? DType::f32 : t; }
// x in the statistics_type of its own.
DistributedTensor exact(const DistributedTensor& x);
// The type of the operands that are neither `statistics` nor `indices` (bit i: operand i), which have one floating
// type. Errors: others differ; statistics are not of that type's statistics_type, or indices not i64.
DType rows_type(std::string_view op, std::span<const TensorSpec* const> inputs, const Attributes&, unsigned statistics,
                unsigned indices = 0);
// Types of a card on rows: of which inputs and outputs are statistics, and which inputs are indices, bit by bit.
template <unsigned statistics, unsigned output_statistics, unsigned indices = 0>
DType row_types(std::string_view op, std::span<const TensorSpec* const> inputs, const Attributes& a, int output) {
  DType t = rows_type(op, inputs, a, statistics, indices);
  return output_statistics >> output & 1 ? statistics_type(t) : t;
}

// Types of a card on statistics alone: of what they are of, bf16 is an error.
template <unsigned indices = 0>
DType statistics_types(std::string_view op, std::span<const TensorSpec* const> inputs, const Attributes& a, int) {
  DType t = rows_type(op, inputs, a, 0, indices);
  check(t == statistics_type(t), "[{}] element type {}: statistics are {}; use cast()", op, name(t),
        name(statistics_type(t)));
  return t;
}

// For kernels: a tensor as `count` slices of n elements each, which lie along `dims`; contiguous, slice by slice.
struct Slices {
  Tensor x;
  int64_t count, n;
};
Slices slices_of(const Tensor& x, const Dims& dims);
// The order of dimensions that puts `dims` last.
std::vector<int> dims_last(int count, const Dims& dims);

// f(i) for every slice, on the pool.
template <class F>
void each_slice(const Context& c, const Slices& s, F f) {
  c.pool.parallel_for(s.count, std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(s.n, 1)),
                      [&](int64_t begin, int64_t end, int worker) {
                        for (int64_t i = begin; i < end; ++i) f(i, worker);
                      });
}

// write(t): t shows `out`, or takes its place, with `dims` last and contiguous.
template <class F>
void write_slices(const Context& c, Tensor& out, const Dims& dims, F write) {
  Tensor view = out.permute(dims_last(out.dims(), dims));
  if (view.is_contiguous()) return write(view);
  Tensor t(c.allocator, out.dtype(), view.shape());
  write(t);
  copy(t, view);
}

}  // namespace dtensor::ops
