// Reductions along dimensions, and what spreads values of slices over them again.
#pragma once

#include "dtensor/cuda/runtime.h"
#include "placement/dtype.h"

namespace dtensor::cuda {

constexpr int64_t max_parts = 65536, reduce_room = max_parts * 16;

// x: [outer, n, inner], contiguous. Slice i of outer * inner has n terms; results have one element of each slice.
struct Terms {
  const void* x;
  int64_t outer, n, inner;
  void* room = nullptr;  // reduce_room bytes, for reductions
};

// --- reduce.cu

enum class Reducing {
  sum,            // all types but bool
  count_nonzero,  // all types -> i64
  product,        // all types but bool
  max,            // all types; NaN wins
  min,
  sum_squares,  // floating -> f64
};
void reduce(StreamHandle stream, Reducing what, DType type, const Terms& t, void* out);
// -> the product of what is not zero; i64: how often zero is there
void product_parts(StreamHandle stream, DType type, const Terms& t, void* products, void* zeros);
// dy, products, zeros of each slice -> dx
void product_backward(StreamHandle stream, DType type, const Terms& x, const void* dy, const void* products,
                      const void* zeros, void* dx);
// How many terms equal y, a value of each slice, as that type; not of bool.
void ties(StreamHandle stream, DType type, const Terms& t, const void* y, void* out);
// dx = share where x equals y, elsewhere 0 * share; not of bool.
void ties_backward(StreamHandle stream, DType type, const Terms& x, const void* share, const void* y, void* dx);

// --- statistics.cu: floating types. Statistics are f32 for bf16, else of the rows' type.

// The sum in the type of statistics.
void sum_exact(StreamHandle stream, DType type, const Terms& t, void* out);
// factor * the sum of (x - sum/count)^2 (sum null: of x^2), or its root. `rounded`: as the rows' type, not statistics'.
struct Centred {
  const void* sum;
  double count, factor = 1;
  bool root = false, rounded = false;
};
void centred_squares(StreamHandle stream, DType type, const Terms& t, const Centred& c, void* out);
// dy, sum of x, y (var, or std where `root`) of each slice -> dx
void var_backward(StreamHandle stream, DType type, const Terms& x, const Centred& c, const void* dy, const void* y,
                  void* dx);
// The largest (or smallest) x, or |x| where `size`, in the type of statistics.
void extreme(StreamHandle stream, DType type, const Terms& t, bool smallest, bool size, void* out);
// The sum of |x|^p, scaled by extreme sizes `m`; `root`: the norm, as the rows' type.
void power_sum(StreamHandle stream, DType type, const Terms& t, double p, const void* m, bool root, void* out);
// scaled sums of powers, extreme sizes -> norms, all n of the type of statistics
void norm_root(StreamHandle stream, DType type, int64_t n, double p, const void* sums, const void* m, void* out);
void norm_backward(StreamHandle stream, DType type, const Terms& x, double p, const void* dy, const void* y, void* dx);
// The sum of exp(x - m); where m is infinite, of exp(x). `log`: m + its logarithm, as the rows' type.
void exp_sum(StreamHandle stream, DType type, const Terms& t, const void* m, bool log, void* out);
// dx = dy * exp(x - y)
void logsumexp_backward(StreamHandle stream, DType type, const Terms& x, const void* dy, const void* y, void* dx);

// --- order.cu: all types unless said

// y = the sum of the terms up to each, or from it on where `reverse`; not of bool.
void cumsum(StreamHandle stream, DType type, const Terms& t, bool reverse, void* y);
// The place in its slice of the first of the largest (or smallest) terms; NaN is beyond all.
void first_extreme(StreamHandle stream, DType type, const Terms& t, bool largest, void* out);
// The global index of the first term that equals `extreme` of its slice, as NaN does NaN; the largest i64 if none does.
struct GlobalDims {  // that the slice has, the outermost first
  int count;
  int64_t begin[8], local[8], global[8];
};
void first_index(StreamHandle stream, DType type, const Terms& t, const GlobalDims& dims, const void* extreme,
                 void* out);

}  // namespace dtensor::cuda
