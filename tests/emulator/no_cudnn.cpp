// There is no emulated cuDNN.
#include "ops/cuda/cudnn_attention.h"
#include "placement/error.h"

namespace dtensor::cuda {
namespace cudnn {
Api load(const std::vector<std::string>&) { fail("[cudnn] the emulator has none"); }
}  // namespace cudnn

struct Cudnn::State {};
Cudnn::Cudnn(std::shared_ptr<Allocator>, cudnn::Api) { cudnn::load({}); }
Cudnn::~Cudnn() = default;
void Cudnn::run(const CudnnAttention&, const AttentionPointers&, double, const int32_t*, const int32_t*) {}

}  // namespace dtensor::cuda
