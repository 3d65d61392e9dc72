// A build without CUDA.
#include "ops/cuda/kernels.h"
#include "ops/cuda/optim.h"

namespace dtensor::cuda {

Kernel find_kernel(std::string_view) { return nullptr; }
std::vector<std::string_view> kernel_names() { return {}; }

// Of tensors that no such build can make.
void adamw(StreamHandle, const AdamWTensor*, int, const AdamWConstants&, const AdamWNumbers*, const double*, float) {}
int64_t sum_squares_scratch(const ConstTensor*, int) { return 0; }
void sum_squares(StreamHandle, DType, const ConstTensor*, int, double*, double*) {}

}  // namespace dtensor::cuda
