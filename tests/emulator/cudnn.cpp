// cuDNN's attention by the library's own kernels, as awkward as the real one: what it writes beyond the lengths is NaN.
#include "dtensor/cuda/launch.cuh"
#include "ops/cuda/cudnn_attention.h"

namespace dtensor::cuda {
namespace cudnn {
Api load(const std::vector<std::string>&) { return {}; }
}  // namespace cudnn

namespace {

// The lengths as the own kernels take them: those of queries as documents, of which no key is.
__global__ void widen_kernel(AttentionShape s, AttentionLengths lengths, int64_t* documents, int64_t* of_keys) {
  for (int64_t b = 0; b < s.batch; ++b) {
    of_keys[b] = lengths.of_keys[b];
    for (int64_t i = 0; i < s.queries; ++i) documents[b * s.queries + i] = i < lengths.of_queries[b] ? 0 : -1;
  }
  for (int64_t j = 0; j < s.keys; ++j) documents[s.batch * s.queries + j] = 0;
}

struct Written {
  bf16* values;
  AttentionStrides strides;
  int64_t batch, rows, heads, head_dim;
  const int32_t* lengths;
};
__global__ void spoil_kernel(Written t) {
  for (int64_t b = 0; b < t.batch; ++b)
    for (int64_t i = t.lengths[b]; i < t.rows; ++i)
      for (int64_t h = 0; h < t.heads; ++h)
        for (int64_t j = 0; j < t.head_dim; ++j)
          t.values[b * t.strides.batch + i * t.strides.sequence + h * t.strides.head + j] = bf16(NAN);
}

}  // namespace

struct Cudnn::State {
  std::shared_ptr<Allocator> allocator;
};
Cudnn::Cudnn(std::shared_ptr<Allocator> allocator, cudnn::Api) : state_(new State{std::move(allocator)}) {}
Cudnn::~Cudnn() = default;

void Cudnn::run(const CudnnAttention& call, const AttentionPointers& p, double scale, const AttentionLengths& lengths) {
  const AttentionShape& s = call.shape;
  StreamHandle stream = state_->allocator->stream();
  AttentionScores scores;
  Storage memory(state_->allocator, (s.batch * (s.queries + 1) + s.keys) * 8);
  if (call.padded) {
    auto* documents = reinterpret_cast<int64_t*>(memory.data());
    int64_t* of_keys = documents + s.batch * s.queries + s.keys;
    launch(widen_kernel, 1, 1, 0, stream, s, lengths, documents, of_keys);
    scores.key_lengths = of_keys, scores.key_length_stride = 1;
    scores.query_documents = documents, scores.query_document_stride = s.queries;
    scores.key_documents = documents + s.batch * s.queries;
  }
  auto spoil = [&](void* values, const AttentionStrides& strides, bool of_queries) {
    if (!call.padded) return;
    Written t{static_cast<bf16*>(values),
              strides,
              s.batch,
              of_queries ? s.queries : s.keys,
              of_queries ? s.heads : s.kv_heads,
              s.head_dim,
              of_queries ? lengths.of_queries : lengths.of_keys};
    launch(spoil_kernel, 1, 1, 0, stream, t);
  };
  if (call.pass == AttentionPass::forward) {
    attention_forward(s, scores, p, scale, stream);
    return spoil(p.out, s.out, true);
  }
  if (call.padded) clear_beyond(s, AttentionPass::forward, p, lengths, stream);  // the own kernels read it
  Storage delta(state_->allocator, s.batch * s.heads * s.queries * 4);
  attention_backward(s, scores, p, delta.data(), scale, stream);
  spoil(p.dq, s.dq, true), spoil(p.dk, s.dk, false), spoil(p.dv, s.dv, false);
}

}  // namespace dtensor::cuda
