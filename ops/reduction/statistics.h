// Variance, norms and log-sum-exp. All are over the dimensions given, all where there are none; keepdim leaves
// dimensions of size 1; of floating types only.
//
// A dimension that is whole on every rank is reduced in one pass, and nothing moves. Of one that is sharded only
// per-slice values are all-reduced, as told below, and the result is not Partial. No gradient communicates.
#pragma once

#include "ops/core/call.h"
#include "ops/family/dims.h"

namespace dtensor::ops {

struct Var : Over {
  using Base = Over;
  double correction;
  bool std;
  static constexpr auto fields() {
    return std::tuple_cat(Over::fields(), std::tuple(field("correction", &Var::correction), field("std", &Var::std)));
  }
};
struct VectorNorm : Over {
  using Base = Over;
  double p;
  static constexpr auto fields() { return std::tuple_cat(Over::fields(), std::tuple(field("p", &VectorNorm::p))); }
};
struct Root {
  double p;
  static constexpr auto fields() { return std::tuple(field("p", &Root::p)); }
};

extern const Op var_op, sharded_var_op, centred_squares_op, var_backward_op;
extern const Op norm_op, sharded_norm_op, power_sum_op, norm_root_op, norm_backward_op;
extern const Op logsumexp_op, sharded_logsumexp_op, exp_sum_op, logsumexp_backward_op;

// sum((x - mean)^2) / max(0, n - correction): NaN where n <= correction, as in PyTorch. Sharded: an all-reduce of sums,
// then one of centred squares.
DistributedTensor var(const DistributedTensor& x, const Dims& dims = {}, double correction = 1, bool keepdim = false);
// Its square root, of gradient 0 where that is 0.
DistributedTensor std(const DistributedTensor& x, const Dims& dims = {}, double correction = 1, bool keepdim = false);

// (sum |x|^p)^(1/p), as torch.linalg.vector_norm; p = 0 counts what is not zero; p = infinity is the largest |x|, minus
// infinity the smallest, as amax and amin of abs(x). Terms are scaled by a power of two, so that no power overflows
// whose root does not. Sharded: an all-reduce of the largest |x| (the smallest, for p < 0), then one of sums. Errors:
// no elements and a p that is infinite or negative.
DistributedTensor norm(const DistributedTensor& x, double p = 2, const Dims& dims = {}, bool keepdim = false);

// log(sum(exp(x))) without overflow. Sharded: an all-reduce of maxima, then one of sums.
DistributedTensor logsumexp(const DistributedTensor& x, const Dims& dims, bool keepdim = false);

// For kernels of var: what the sum of centred squares is multiplied by.
double variance_factor(double n, double correction);

}  // namespace dtensor::ops
