// The kernels of ops/pointwise/unary.inc.
#include "ops/cuda/unary.cuh"

namespace dtensor::cuda {

#include "ops/pointwise/unary.inc"

}  // namespace dtensor::cuda
