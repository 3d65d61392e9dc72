// A build without CUDA.
#include "ops/cuda/attention_backend.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/matmul.h"
#include "ops/cuda/optim.h"
#include "ops/cuda/tuning.h"
#include "placement/error.h"

namespace dtensor::cuda {
namespace {
[[noreturn]] void none() { fail("[cuda] this build has no CUDA: configure it where nvcc is found, or use the CPU"); }
}  // namespace

Kernel find_kernel(const Op&) { return nullptr; }

Tuned tune(Rank&) { none(); }
void save_tuned(Rank&, const std::string&) { none(); }
void load_tuned(Rank&, const std::string&) { none(); }

std::string missing_cudnn(Rank&) { none(); }

void multiply(const Context&, const Tensor&, const Tensor&, const Tensor&) { none(); }

// Of tensors that no such build can make.
void adamw(StreamHandle, const AdamWTensor*, int, const AdamWConstants&, const AdamWNumbers*, const double*, float) {}
int64_t sum_squares_scratch(const ConstTensor*, int) { return 0; }
void sum_squares(StreamHandle, DType, const ConstTensor*, int, double*, double*) {}

}  // namespace dtensor::cuda
