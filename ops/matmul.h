// Matrix products, in float32 with the same bits on any mesh (ops/cpu/gemm.h).
#pragma once

#include "ops/call.h"

namespace dtensor::ops {

extern const Op matmul_op, linear_op, linear_weight_gradient_op;

// [..., m, k] x [..., k, n] -> [..., m, n]; leading dimensions broadcast. Both have at least two dimensions.
DistributedTensor matmul(const DistributedTensor& a, const DistributedTensor& b);
// x [..., k], weight [n, k], bias [n] or absent -> [..., n]: x weight^T + bias, as torch.nn.functional.linear.
DistributedTensor linear(const DistributedTensor& x, const DistributedTensor& weight,
                         const DistributedTensor& bias = {});
// dy [..., n], x [..., k] -> [n, k]: the sum over all leading dimensions of dy^T x.
DistributedTensor linear_weight_gradient(const DistributedTensor& dy, const DistributedTensor& x);

}  // namespace dtensor::ops
