// A build without cuDNN.
#include "ops/cuda/cudnn_attention.h"
#include "placement/error.h"

namespace dtensor::cuda {
namespace {
constexpr const char* reason =
    "this build has no cuDNN: configure it where cudnn.h and libcudnn (9.16 or newer) are found";
}

std::string cudnn_refusal(const CudnnAttention&) { return reason; }
AttentionPart attention_part(const CudnnAttention& call, int64_t) { return {call.shape.batch, call.shape.kv_heads}; }
int64_t cudnn_engine(const CudnnAttention&, const std::string&) { fail("[cudnn] {}", reason); }
void check_cudnn_version(size_t) { fail("[cudnn] {}", reason); }

struct Cudnn::State {};
Cudnn::Cudnn(StreamHandle) { fail("[cudnn] {}", reason); }
Cudnn::~Cudnn() = default;
void Cudnn::run(const CudnnAttention&, const AttentionPointers&, double, const std::shared_ptr<Allocator>&,
                const int32_t*, const int32_t*) {
  fail("[cudnn] {}", reason);
}

}  // namespace dtensor::cuda
