#include "ops/cuda/attention_backend.h"

#include <algorithm>
#include <span>

#include "placement/error.h"

namespace dtensor::cuda {
namespace {

int64_t score_gradient_bytes(const AttentionShape& s, int64_t batch, int64_t kv_heads) {
  auto whole = [](int64_t n) { return (n + 63) / 64 * 64; };
  return batch * kv_heads * (s.heads / s.kv_heads) * whole(s.queries) * whole(s.keys) * 2;
}

std::string refusal(const CudnnAttention& call, const AttentionScores& scores, const AttentionPointers& p,
                    const AttentionDevice& device) {
  if (device.capability != 9)
    return fmt::format("cuDNN's attention is used on compute capability 9, not {}", device.capability);
  if (!device.no_cudnn.empty()) return device.no_cudnn;
  if (scores.bias || scores.visible) return "cuDNN is not given masks";
  if (scores.query_documents && !call.tokens)
    return "cuDNN takes documents of whole sequences, of which it is said how many are in each: max_documents";
  if (call.tokens && scores.key_lengths) return "cuDNN is given documents, or lengths of keys";
  if (scores.by_position() && !call.tokens) return "cuDNN is not given positions";
  if (scores.drop_step) return "dropout's numbers are the library's own";
  const AttentionShape& s = call.shape;
  if (!s.has_whole_groups()) return "cuDNN takes as many query heads for each key head";
  if (s.dtype != DType::bf16) return fmt::format("cuDNN is asked for bf16, not {}", name(s.dtype));
  if (s.batch * s.heads * s.queries * s.keys * s.head_dim == 0) return "nothing is to be computed";
  if (s.head_dim % 8 || s.head_dim > 256)
    return fmt::format("cuDNN takes heads of at most 256 elements, a multiple of 8, not {}", s.head_dim);
  bool backward = call.pass == AttentionPass::backward;
  auto fits = [](int64_t stride) { return stride > 0 && stride % 8 == 0; };
  const AttentionStrides strides[] = {s.q, s.k, s.v, s.out, s.dout, s.dq, s.dk, s.dv};
  for (const AttentionStrides& t : std::span(strides).first(backward ? 8 : 4))
    if (!fits(t.batch) || !fits(t.sequence) || !fits(t.head))
      return fmt::format("cuDNN takes strides that are multiples of 8, not {}, {} and {}", t.batch, t.sequence, t.head);
  if (call.tokens) {
    if (s.batch > 65535) return fmt::format("cuDNN is given at most 65535 documents, not {}", s.batch);
    for (const AttentionStrides& t : std::span(strides).first(backward ? 8 : 4))
      if (t.batch != s.queries * t.sequence || t.head > t.sequence)
        return fmt::format("cuDNN takes documents where token follows token, not with strides {}, {} and {}", t.batch,
                           t.sequence, t.head);
    if (backward && s.head_dim % 16)
      return fmt::format("cuDNN's backward pass of documents takes heads of a multiple of 16 elements, not {}",
                         s.head_dim);
  }
  if (s.causal && s.diagonal && (call.padded || s.diagonal != s.keys - s.queries))
    return fmt::format(
        "cuDNN's causal mask begins at the first or ends at the last key: {} queries from {} on and {} keys", s.queries,
        s.diagonal, s.keys);
  if (backward && call.deterministic && attention_part(call).batch == 0)
    return fmt::format(
        "no part of the deterministic backward pass begins at 16 bytes and takes at most {}: the scores "
        "of one {} have gradients of {} bytes",
        most_score_gradients, call.tokens ? "document" : "key head",
        score_gradient_bytes(s, 1, call.tokens ? s.kv_heads : 1));
  for (const void* pointer : {p.q, p.k, p.v, static_cast<const void*>(p.out), p.dout})
    if (reinterpret_cast<uintptr_t>(pointer) % 16) return "cuDNN takes tensors that begin at multiples of 16 bytes";
  return "";
}

}  // namespace

AttentionBackend attention_backend(const CudnnAttention& call, const AttentionScores& scores,
                                   const AttentionPointers& pointers, const AttentionDevice& device) {
  std::string reason = refusal(call, scores, pointers, device);
  if (reason.empty()) return {"cudnn", ""};
  check(call.shape.head_dim <= own_attention_head_dim,
        "[attention] heads of {} elements: on CUDA they may have at most {}", call.shape.head_dim,
        own_attention_head_dim);
  return {"own", reason};
}

AttentionShape without_unseen_keys(AttentionShape s) {
  if (s.causal) s.keys = std::min(s.keys, s.queries + s.diagonal);
  return s;
}

AttentionPart attention_part(const CudnnAttention& call, int64_t wanted_bytes, int64_t most_bytes) {
  const AttentionShape& s = call.shape;
  AttentionPart all{s.batch, s.kv_heads};
  if (call.pass == AttentionPass::forward || !call.deterministic) return all;
  if (call.tokens) {  // parts are of runs alone, which may begin anywhere
    const int64_t run = score_gradient_bytes(s, 1, s.kv_heads);
    if (run > most_bytes) return {0, 0};
    return {std::clamp<int64_t>(wanted_bytes / run, 1, s.batch), s.kv_heads};
  }
  auto bytes = [&](int64_t batch, int64_t kv_heads) { return score_gradient_bytes(s, batch, kv_heads); };
  // Parts begin at multiples of 16 bytes in lse, and in the lengths.
  auto aligned = [&](int64_t batch, int64_t kv_heads) {
    int64_t rows = s.heads * s.queries;
    if (batch < s.batch && (batch * rows % 4 || (call.padded && batch % 4))) return false;
    return kv_heads == s.kv_heads || kv_heads * (s.heads / s.kv_heads) * s.queries % 4 == 0;
  };
  for (int64_t b = s.batch; b > 0; --b)
    if (bytes(b, s.kv_heads) <= wanted_bytes && aligned(b, s.kv_heads)) return {b, s.kv_heads};
  for (int64_t g = s.kv_heads; g > 0; --g)
    if (bytes(1, g) <= (g == 1 ? most_bytes : wanted_bytes) && aligned(1, g)) return {1, g};
  return {0, 0};
}

}  // namespace dtensor::cuda
