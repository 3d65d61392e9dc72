// Element-wise functions of one operand, of floating types unless it says otherwise. NaN gives NaN, but sign(NaN) is 0.
#pragma once

#include <optional>

#include "ops/call.h"

namespace dtensor::ops {

extern const Op neg_op, abs_op, sign_op, square_op, clamp_op, clamp_backward_op;
extern const Op exp_op, expm1_op, log_op, log1p_op, sqrt_op, rsqrt_op, reciprocal_op;
extern const Op sin_op, cos_op, erf_op, floor_op, ceil_op, round_op;

// i64 too:
DistributedTensor neg(const DistributedTensor& x);
DistributedTensor abs(const DistributedTensor& x);
DistributedTensor sign(const DistributedTensor& x);  // -1, 0 or 1
DistributedTensor square(const DistributedTensor& x);
// At least min and at most max, max where min > max. Its gradient passes strictly between them. Errors: neither is
// given.
DistributedTensor clamp(const DistributedTensor& x, std::optional<double> min, std::optional<double> max = {});

DistributedTensor exp(const DistributedTensor& x);
DistributedTensor expm1(const DistributedTensor& x);  // exp(x) - 1, exact near 0
DistributedTensor log(const DistributedTensor& x);
DistributedTensor log1p(const DistributedTensor& x);  // log(1 + x), exact near 0
DistributedTensor sqrt(const DistributedTensor& x);
DistributedTensor rsqrt(const DistributedTensor& x);
DistributedTensor reciprocal(const DistributedTensor& x);
DistributedTensor sin(const DistributedTensor& x);
DistributedTensor cos(const DistributedTensor& x);
DistributedTensor erf(const DistributedTensor& x);

// Steps, whose gradient is zero: none is recorded.
DistributedTensor floor(const DistributedTensor& x);
DistributedTensor ceil(const DistributedTensor& x);
DistributedTensor round(const DistributedTensor& x);  // halves to even

}  // namespace dtensor::ops
