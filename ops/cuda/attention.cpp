// Attention's tensors and attributes as the kernels want them; ops/layer/attention.cpp has the card.
#include "ops/layer/attention.h"

#include <limits>

#include "ops/core/call.h"
#include "ops/cuda/attention_backend.h"
#include "ops/cuda/kernels.h"
#include "ops/family/kernel.h"

namespace dtensor::cuda {
namespace {

// Where a dimension has one element, its stride means nothing; any other would only make another plan.
AttentionStrides strides_of(const Tensor& t) {
  Shape whole = contiguous_strides(t.shape());
  auto stride = [&](int d) { return t.size(d) == 1 ? whole[d] : t.strides()[d]; };
  return {stride(0), stride(1), stride(2)};
}

// The key heads that this rank's query heads read: all that it has, or some, where every rank has all.
struct KeyHeads {
  int64_t begin, end, first_head, repeats;

  KeyHeads(const Context& c, const Tensor& q, const Tensor& k) : begin(0), end(k.size(2)), first_head(0) {
    repeats = end ? q.size(2) / end : 1;
    if (!c.attributes.as<ops::Attention>().whole_kv) return;
    Range heads = c.range('h');
    repeats = end ? std::max<int64_t>((c.size('h') + end - 1) / end, 1) : 1;
    begin = std::min(heads.begin / repeats, end), end = std::min((heads.end + repeats - 1) / repeats, end);
    first_head = heads.begin - begin * repeats;
    if (end - begin == 1) repeats = heads.size(), first_head = 0;  // all of them read the one
  }
  Tensor of(const Tensor& t) const { return t.narrow(2, begin, end - begin); }
};

AttentionShape shape_of(const Context& c, const Tensor& q, const Tensor& k, const KeyHeads& heads) {
  return {.dtype = q.dtype(),
          .batch = q.size(0),
          .heads = q.size(2),
          .kv_heads = k.size(2),
          .queries = q.size(1),
          .keys = k.size(1),
          .head_dim = q.size(3),
          .causal = c.attributes.as<ops::Attention>().causal,
          .diagonal = c.range('s').begin,
          .window = c.attributes.as<ops::Attention>().window,
          .first_head = heads.first_head,
          .repeats = heads.repeats};
}

const int64_t* integers(const Tensor& t) {
  return t.defined() ? reinterpret_cast<const int64_t*>(t.bytes_data()) : nullptr;
}

// What both cards take besides: mask, step, rows, positions of queries and of keys, lengths, documents.
class More {
 public:
  More(const Context& c, const AttentionShape& s, std::span<const Tensor> in) : mask_(in[0]), step_(in[1]) {
    for (size_t i = 0; i < list_.size(); ++i)
      if (in[2 + i].defined()) list_[i] = in[2 + i].contiguous();
    const auto& [rows, queries, keys, lengths, query_documents, key_documents] = list_;
    if (mask_.defined()) {
      if (mask_.dtype() == DType::boolean)
        scores.visible = reinterpret_cast<const bool*>(mask_.bytes_data());
      else
        scores.bias = mask_.bytes_data();
      Shape strides = broadcast_strides(mask_, {s.batch, s.heads, s.queries, s.keys});
      std::copy(strides.begin(), strides.end(), scores.strides);
    }
    scores.query_positions = integers(queries), scores.key_positions = integers(keys);
    if (queries.defined()) scores.query_position_stride = queries.dims() == 2 ? s.queries : 0;
    if (keys.defined()) scores.key_position_stride = keys.dims() == 2 ? s.keys : 0;
    scores.key_lengths = integers(lengths), scores.key_length_stride = lengths.defined() ? lengths.dims() : 0;
    scores.query_documents = integers(query_documents), scores.key_documents = integers(key_documents);
    if (query_documents.defined()) scores.query_document_stride = query_documents.dims() == 2 ? s.queries : 0;
    if (key_documents.defined()) scores.key_document_stride = key_documents.dims() == 2 ? s.keys : 0;
    if (!step_.defined()) return;
    scores.drop_step = integers(step_), scores.rows = integers(rows);
    scores.drop_key = uint64_t(c.attributes.as<ops::Attention>().key),
    scores.drop_p = c.attributes.as<ops::Attention>().dropout_p;
    const int64_t chunks = c.attributes.as<ops::Attention>().chunks;
    scores.first_row = c.range('b').begin, scores.all_queries = c.size('s') * chunks, scores.all_keys = s.keys * chunks;
    if (c.attributes.as<ops::Attention>().whole_kv)
      scores.first_head = c.range('h').begin, scores.all_heads = c.size('h');
    else
      scores.first_head = c.range('g').begin * s.repeats, scores.all_heads = c.size('g') * s.repeats;
  }

  AttentionScores scores;

 private:
  Tensor mask_, step_;
  std::array<Tensor, 6> list_;  // contiguous
};

// A rank's device and its cuDNN, which is looked for at the first call.
struct Backends {
  AttentionDevice device{.capability = properties(current_device()).major};
  std::unique_ptr<Cudnn> cudnn;

  explicit Backends(const std::shared_ptr<Allocator>& allocator) {
    if (device.capability != 9) return;
    cudnn::Api api;
    try {
      api = cudnn::load();
    } catch (const Error& e) {
      device.no_cudnn = e.what();
      return;
    }
    cudnn = std::make_unique<Cudnn>(allocator, std::move(api));
  }
};

CudnnAttention cudnn_call(const Context& c, const AttentionShape& s, const AttentionScores& scores,
                          AttentionPass pass) {
  CudnnAttention call{.shape = without_unseen_keys(s),
                      .pass = pass,
                      .padded = scores.key_lengths != nullptr,
                      .deterministic = c.attributes.as<ops::Attention>().deterministic};
  const int64_t documents = c.attributes.as<ops::Attention>().max_documents;
  if (!scores.query_documents || !documents || s.queries != s.keys || s.diagonal) return call;
  call.padded = true, call.tokens = s.batch * s.queries;
  call.shape.batch *= std::min(documents, s.queries);
  AttentionShape& t = call.shape;
  for (AttentionStrides* of : {&t.q, &t.k, &t.v, &t.out, &t.dout, &t.dq, &t.dk, &t.dv})
    if (s.batch == 1) of->batch = s.queries * of->sequence;  // it means nothing
  return call;
}

bool cudnn_takes(const Context& c, const CudnnAttention& call, const AttentionScores& scores,
                 const AttentionPointers& pointers) {
  return attention_backend(call, scores, pointers, c.workspace().get<Backends>().device).name == "cudnn";
}

// `s`: of the rows.
void run_documents(const Context& c, const CudnnAttention& call, const AttentionShape& s, const AttentionScores& scores,
                   const AttentionPointers& pointers) {
  const int64_t runs = call.shape.batch, stride = (runs + 2) / 2 * 2, lengths = (runs + 3) / 4 * 4,
                rows = (s.batch + 3) / 4 * 4;  // so that all begin at 16 bytes
  Storage memory(c.allocator, attention_tensors * stride * 8 + (lengths + rows + call.tokens * s.heads) * 4);
  auto* offsets = reinterpret_cast<int64_t*>(memory.data());
  auto* counts = reinterpret_cast<int32_t*>(offsets + attention_tensors * stride);
  AttentionRuns to{runs / std::max<int64_t>(s.batch, 1),
                   {counts, counts, offsets, stride},
                   counts + lengths,
                   reinterpret_cast<float*>(counts + lengths + rows)};
  find_runs(s, scores, to, c.stream());
  if (call.pass == AttentionPass::backward) lse_to_runs(s, static_cast<const float*>(pointers.lse), to, c.stream());
  AttentionPointers given = pointers;
  given.lse = to.lse;
  c.workspace().get<Backends>().cudnn->run(call, given, c.attributes.as<ops::Attention>().scale, to.lengths);
  settle_runs(s, call.pass, pointers, scores, to, c.stream());
}

// `s`: what the call was made of.
void run_cudnn(const Context& c, const CudnnAttention& call, const AttentionShape& s, const AttentionScores& scores,
               const AttentionPointers& pointers) {
  if (call.tokens) return run_documents(c, call, s, scores, pointers);
  Cudnn& cudnn = *c.workspace().get<Backends>().cudnn;
  double scale = c.attributes.as<ops::Attention>().scale;
  if (!call.padded) return cudnn.run(call, pointers, scale);
  int64_t n = (call.shape.batch + 3) / 4 * 4;  // so that both begin at 16 bytes
  Storage memory(c.allocator, 2 * n * int64_t(sizeof(int32_t)));
  auto* first = reinterpret_cast<int32_t*>(memory.data());
  AttentionLengths lengths{first, first + n};
  lengths_for_cudnn(call.shape, scores, lengths, c.stream());
  cudnn.run(call, pointers, scale, lengths);
  clear_beyond(call.shape, call.pass, pointers, lengths, c.stream());
}

// q [b,s,(g r),d], k and v [b,t,g,d], More -> out [b,s,(g r),d], lse [b,(g r),s]
void forward_of_chunk(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  if (in[1].size(2) == 0) {  // nothing is seen
    fill(out[0], 0), fill(out[1], -std::numeric_limits<double>::infinity());
    return;
  }
  KeyHeads heads(c, in[0], in[1]);
  Tensor q = with_whole_rows(in[0]), k = with_whole_rows(heads.of(in[1])), v = with_whole_rows(heads.of(in[2]));
  AttentionShape s = shape_of(c, q, k, heads);
  s.q = strides_of(q), s.k = strides_of(k), s.v = strides_of(v), s.out = strides_of(out[0]);
  More more(c, s, in.subspan(3));
  const AttentionScores& scores = more.scores;
  AttentionPointers pointers{q.bytes_data(), k.bytes_data(), v.bytes_data(), out[0].bytes_data(), out[1].bytes_data()};
  CudnnAttention call = cudnn_call(c, s, scores, AttentionPass::forward);
  if (cudnn_takes(c, call, scores, pointers))
    run_cudnn(c, call, s, scores, pointers);
  else
    attention_forward(s, scores, pointers, c.attributes.as<ops::Attention>().scale, c.stream());
}

// dout, q, k, v, out, lse, More -> dq, dk, dv, and where it is asked for that of the scores [b,(g r),s,t]
void backward_of_chunk(const Context& c, std::span<const Tensor> in, std::span<Tensor> grad) {
  if (in[2].size(2) == 0) {
    for (const Tensor& t : grad) fill(t, 0);
    return;
  }
  KeyHeads heads(c, in[1], in[2]);
  Tensor dout = with_whole_rows(in[0]), q = with_whole_rows(in[1]), k = with_whole_rows(heads.of(in[2])),
         v = with_whole_rows(heads.of(in[3])), out = with_whole_rows(in[4]), lse = in[5].contiguous();
  Tensor dk = heads.of(grad[1]), dv = heads.of(grad[2]);
  AttentionShape s = shape_of(c, q, k, heads);
  s.q = strides_of(q), s.k = strides_of(k), s.v = strides_of(v), s.out = strides_of(out), s.dout = strides_of(dout);
  s.dq = strides_of(grad[0]), s.dk = strides_of(dk), s.dv = strides_of(dv);
  More more(c, s, in.subspan(6));
  const AttentionScores& scores = more.scores;
  AttentionPointers pointers{q.bytes_data(),       k.bytes_data(),   v.bytes_data(),
                             out.bytes_data(),     lse.bytes_data(), dout.bytes_data(),
                             grad[0].bytes_data(), dk.bytes_data(),  dv.bytes_data()};
  if (grad.size() > 3) pointers.dscores = grad[3].bytes_data();
  CudnnAttention call = cudnn_call(c, s, scores, AttentionPass::backward);
  bool by_cudnn = cudnn_takes(c, call, scores, pointers);
  if ((by_cudnn && call.shape.keys < s.keys) || s.kv_heads < grad[1].size(2))
    for (const Tensor& t : {grad[1], grad[2]}) zero(t.bytes_data(), t.bytes(), c.stream());
  if (by_cudnn) {
    run_cudnn(c, call, s, scores, pointers);
  } else {
    Tensor delta(c.allocator, lse.dtype(), lse.shape());
    attention_backward(s, scores, pointers, delta.bytes_data(), c.attributes.as<ops::Attention>().scale, c.stream());
  }
}

void forward(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  ops::for_chunks(c, in, out, forward_of_chunk);
}
void backward(const Context& c, std::span<const Tensor> in, std::span<Tensor> grad) {
  ops::for_chunks(c, in, grad, backward_of_chunk);
}

// out [b,s,h,d], lse [b,h,s], out, lse -> out, lse
void merge(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  merge_attention({in[0].size(0), in[0].size(1), in[0].size(2), in[0].size(3)}, in[2].dtype(),
                  {in[0].bytes_data(), in[1].bytes_data()}, {in[2].bytes_data(), in[3].bytes_data()},
                  {out[0].bytes_data(), out[1].bytes_data()}, c.stream());
}

}  // namespace

std::string missing_cudnn(Rank& rank) { return workspace_of(rank).get<Backends>().device.no_cudnn; }
Cudnn* find_cudnn(Rank& rank) { return workspace_of(rank).get<Backends>().cudnn.get(); }

extern const KernelTable attention_kernels;
const KernelTable attention_kernels = {
    {&ops::attention_op, forward}, {&ops::attention_backward_op, backward}, {&ops::merge_attention_op, merge}};

}  // namespace dtensor::cuda
