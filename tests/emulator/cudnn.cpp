// cuDNN's attention by the library's own kernels, as awkward as the real one: what it writes beyond the lengths, and
// outside of runs, is NaN.
#include <set>

#include "dtensor/cuda/launch.cuh"
#include "ops/cuda/attention_engines.h"

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

// A tensor of runs, and the same as batch entries of the longest run's size.
template <class T>
struct Ragged {
  T *values, *dense;
  int64_t sequence, head, dense_run, dense_token, dense_head;  // strides
  const int64_t* offsets;
  const int32_t* lengths;
  int64_t runs, longest, tokens, heads, head_dim;

  // Whether what is given of a run is what cuDNN wants: elsewhere nothing is written, which stays NaN.
  __device__ bool is_sound(int64_t r) const {
    return lengths[r] >= 0 && lengths[r] <= longest && offsets[r] % sequence == 0 &&
           offsets[r] + lengths[r] * sequence <= offsets[r + 1] && offsets[runs] <= tokens * sequence;
  }
  template <class F>
  __device__ void each(F f) const {  // run, token, element of values, element of dense
    for (int64_t r = 0; r < runs; ++r)
      for (int64_t i = 0; i < longest; ++i)
        for (int64_t h = 0; h < heads; ++h)
          for (int64_t j = 0; j < head_dim; ++j)
            f(r, i, offsets[r] + i * sequence + h * head + j, r * dense_run + i * dense_token + h * dense_head + j);
  }
};
template <class T>
__global__ void gather_kernel(Ragged<T> t) {
  t.each([&](int64_t r, int64_t i, int64_t from, int64_t to) {
    t.dense[to] = t.is_sound(r) && i < t.lengths[r] ? t.values[from] : T(0);
  });
}
template <class T>
__global__ void scatter_kernel(Ragged<T> t) {
  for (int64_t i = 0; i < t.tokens; ++i)
    for (int64_t h = 0; h < t.heads; ++h)
      for (int64_t j = 0; j < t.head_dim; ++j) t.values[i * t.sequence + h * t.head + j] = T(NAN);
  t.each([&](int64_t r, int64_t i, int64_t to, int64_t from) {
    if (t.is_sound(r) && i < t.lengths[r]) t.values[to] = t.dense[from];
  });
}

// A call with runs, and the same with lengths.
class RaggedCall {
 public:
  RaggedCall(const CudnnAttention& call, const AttentionPointers& p, const AttentionLengths& lengths,
             std::shared_ptr<Allocator> allocator)
      : dense(call), given_(call), lengths_(lengths), allocator_(std::move(allocator)) {
    AttentionShape& s = dense.shape;
    dense.tokens = 0;
    void* const values[] = {const_cast<void*>(p.q),
                            const_cast<void*>(p.k),
                            const_cast<void*>(p.v),
                            p.out,
                            p.lse,
                            const_cast<void*>(p.dout),
                            p.dq,
                            p.dk,
                            p.dv};
    AttentionStrides* const strides[] = {&s.q, &s.k, &s.v, &s.out, nullptr, &s.dout, &s.dq, &s.dk, &s.dv};
    const bool of_keys[] = {false, true, true, false, false, false, false, true, true};
    for (int t = 0; t < attention_tensors; ++t) {
      if (!values[t]) continue;
      const int64_t heads = of_keys[t] ? s.kv_heads : s.heads;
      memory_[t] = Storage(allocator_, s.batch * s.queries * heads * (strides[t] ? s.head_dim * 2 : 4));
      of_[t] = {values[t], heads, strides[t] ? *strides[t] : AttentionStrides{0, heads, 1}};
      if (strides[t]) *strides[t] = {s.queries * heads * s.head_dim, heads * s.head_dim, s.head_dim};
      move(t, true);
    }
    auto at = [&](int t) { return memory_[t].data(); };
    pointers = {at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8)};
  }
  void finish() {
    if (given_.pass == AttentionPass::forward)
      move(3, false), move(4, false);
    else
      move(6, false), move(7, false), move(8, false);
  }

  CudnnAttention dense;
  AttentionPointers pointers{};

 private:
  template <class T>
  void launch_move(int t, int64_t head_dim, bool into, int64_t dense_token, int64_t dense_head) {
    const AttentionShape& s = given_.shape;
    const auto& [values, heads, strides] = of_[t];
    Ragged<T> r{static_cast<T*>(values),
                reinterpret_cast<T*>(memory_[t].data()),
                strides.sequence,
                strides.head,
                s.queries * heads * head_dim,
                dense_token,
                dense_head,
                lengths_.offsets + t * lengths_.offset_stride,
                lengths_.of_queries,
                s.batch,
                s.queries,
                given_.tokens,
                heads,
                head_dim};
    launch(into ? gather_kernel<T> : scatter_kernel<T>, 1, 1, 0, allocator_->stream(), r);
  }
  void move(int t, bool into) {
    const AttentionShape& s = given_.shape;
    if (t == 4)
      launch_move<float>(t, 1, into, 1, s.queries);
    else
      launch_move<bf16>(t, s.head_dim, into, of_[t].heads * s.head_dim, s.head_dim);
  }

  struct Of {
    void* values = nullptr;
    int64_t heads = 0;
    AttentionStrides strides = {};
  };
  CudnnAttention given_;
  AttentionLengths lengths_;
  std::shared_ptr<Allocator> allocator_;
  Storage memory_[attention_tensors];
  Of of_[attention_tensors];
};

}  // namespace

struct Cudnn::State {
  std::shared_ptr<Allocator> allocator;
  AttentionEngines engines;
  std::set<CudnnAttention> calls = {};
};
Cudnn::Cudnn(std::shared_ptr<Allocator> allocator, cudnn::Api api)
    : state_(new State{std::move(allocator), AttentionEngines(api.version)}) {}
Cudnn::~Cudnn() = default;

// Two engines accept each call, the heuristics' proposals 0 and 2, of which the second does nothing when it is timed.
std::vector<std::string> Cudnn::tune() {
  std::vector<std::string> found;
  for (const CudnnAttention& call : std::set(state_->calls)) {
    if (state_->engines.chosen(call)) continue;
    std::vector<AttentionEngines::Candidate> list;
    list.push_back({0, 10, [&](const AttentionPointers& p, const AttentionLengths& l) { run(call, p, 1, l); }});
    list.push_back({2, 12, [](const AttentionPointers&, const AttentionLengths&) {}});
    state_->engines.choose(call, list, state_->allocator, found);
  }
  return found;
}
void Cudnn::save(const std::string& path) const { state_->engines.save(path); }
void Cudnn::load(const std::string& path) { state_->engines.load(path); }

void Cudnn::run(const CudnnAttention& call, const AttentionPointers& p, double scale, const AttentionLengths& lengths) {
  state_->calls.insert(call);
  if (call.tokens) {
    RaggedCall ragged(call, p, lengths, state_->allocator);
    run(ragged.dense, ragged.pointers, scale, {lengths.of_queries, lengths.of_keys});
    return ragged.finish();
  }
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
