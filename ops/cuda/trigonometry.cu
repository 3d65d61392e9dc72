// The kernels of ops/pointwise/trigonometry.inc.
#include "ops/cuda/unary.cuh"

namespace dtensor::cuda {

#include "ops/pointwise/trigonometry.inc"

}  // namespace dtensor::cuda
