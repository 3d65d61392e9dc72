// ops::multiply on CUDA.
#pragma once

#include "ops/core/op.h"

namespace dtensor::cuda {

// y = a b: y [..., m, n] contiguous, a [..., m, k] and b [..., k, n] of any strides, leading dimensions broadcast to
// y's. Nothing is copied whose rows or columns are contiguous.
void multiply(const Context& c, const Tensor& a, const Tensor& b, const Tensor& y);

}  // namespace dtensor::cuda
