// A build without cuDNN.
#include "ops/cuda/cudnn_attention.h"
#include "placement/error.h"

namespace dtensor::cuda {
namespace {
[[noreturn]] void none() {
  fail("[cudnn] this build has no cuDNN: configure it where cudnn.h and libcudnn, 9.16 or newer, are found");
}
}  // namespace

bool cudnn_is_built() { return false; }
int64_t cudnn_engine(const CudnnAttention&, const std::string&) { none(); }
void check_cudnn_version(size_t) { none(); }

struct Cudnn::State {};
Cudnn::Cudnn(std::shared_ptr<Allocator>) { none(); }
Cudnn::~Cudnn() = default;
void Cudnn::run(const CudnnAttention&, const AttentionPointers&, double, const int32_t*, const int32_t*) { none(); }

}  // namespace dtensor::cuda
