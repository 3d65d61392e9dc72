// A build without CUDA.
#include "ops/cuda/attention_backend.h"
#include "ops/cuda/gemm.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/matmul.h"
#include "ops/cuda/optim.h"
#include "placement/error.h"

namespace dtensor::cuda {
namespace {
[[noreturn]] void none() { fail("[cuda] this build has no CUDA: configure it where nvcc is found, or use the CPU"); }
}  // namespace

struct GemmState {};

Kernel find_kernel(const Op&) { return nullptr; }

Gemm::Gemm(std::shared_ptr<Allocator>, int64_t) { none(); }
Gemm::~Gemm() = default;
void Gemm::run(std::string_view, const Product&) { none(); }
int64_t Gemm::decisions() const { none(); }
int Gemm::tune() { none(); }
void Gemm::save(const std::string&) const { none(); }
void Gemm::load(const std::string&) { none(); }
Gemm& gemm(Rank&) { none(); }

std::string missing_cudnn(Rank&) { none(); }

void multiply(const Context&, const Tensor&, const Tensor&, const Tensor&) { none(); }

// Of tensors that no such build can make.
void adamw(StreamHandle, const AdamWTensor*, int, const AdamWConstants&, const AdamWNumbers*, const double*, float) {}
int64_t sum_squares_scratch(const ConstTensor*, int) { return 0; }
void sum_squares(StreamHandle, DType, const ConstTensor*, int, double*, double*) {}

}  // namespace dtensor::cuda
