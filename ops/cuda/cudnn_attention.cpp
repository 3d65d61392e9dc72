#include "ops/cuda/cudnn_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <type_traits>

#include "ops/cuda/attention_backend.h"
#include "ops/cuda/attention_engines.h"
#include "ops/cuda/cudnn_plan.h"
#include "placement/error.h"

namespace dtensor::cuda {
namespace {

using namespace cudnn;

enum Id : int64_t {
  id_q = 1,
  id_k,
  id_v,
  id_out,
  id_lse,
  id_dout,
  id_dq,
  id_dk,
  id_dv,
  id_query_lengths,
  id_key_lengths,
  id_scale,
  id_hidden,  // the score of a hidden key
  id_one,
  id_queries,  // how many
  id_keys,
  id_window,
  id_delta,  // sum(dout * out) of each query
  id_dq_sum,
  id_dk_of_heads,  // before the query heads of a key head are added up
  id_dv_of_heads,
  id_offsets,  // + the id of the tensor, the nine that come first
};

// Keys' gradients by query head, in place of those by key head.
AttentionStrides of_heads(const AttentionShape& s, const AttentionStrides& t) {
  int64_t repeats = s.heads / s.kv_heads;
  return {t.batch * repeats, t.sequence * repeats, t.head};
}

// The graphs are those of cuDNN's documentation of its attention engines, which know them by their operations and
// order.
class Builder {
 public:
  Builder(const Api& api, const CudnnAttention& call) : call_(call), s_(call.shape), padded_(call.padded), graph_(api) {
    q_ = graph_.tensor(id_q, ragged(id_q, rows(s_.heads, s_.queries, s_.q)));
    k_ = graph_.tensor(id_k, ragged(id_k, columns(s_.k)));
    if (call_.tokens)  // cuDNN's own layout of what is ragged
      lse_options_.strides = {s_.queries * s_.heads, 1, s_.heads, 1};
    lse_ = graph_.tensor(id_lse, ragged(id_lse, lse_options_));
    scale_ = graph_.scalar(id_scale, CUDNN_DATA_FLOAT);
    if (padded_ || s_.causal) hidden_ = graph_.scalar(id_hidden, CUDNN_DATA_FLOAT);
    if (!padded_) return;
    TensorOptions lengths{CUDNN_DATA_INT32, {s_.batch, 1, 1, 1}, {1, 1, 1, 1}};
    if (call_.tokens) lengths.alignment = 4;  // a part's may begin anywhere
    query_lengths_ = graph_.tensor(id_query_lengths, lengths);
    key_lengths_ = graph_.tensor(id_key_lengths, lengths);
  }

  OperationGraph forward() {
    Node v = graph_.tensor(id_v, ragged(id_v, rows(s_.kv_heads, s_.keys, s_.v)));
    Node out = graph_.tensor(id_out, ragged(id_out, rows(s_.heads, s_.queries, s_.out)));
    Node scores = causal(pad(scaled_scores(padded_)));
    Node max = reduced(CUDNN_REDUCE_TENSOR_MAX, scores);
    Node weights = score(CUDNN_POINTWISE_EXP, score(CUDNN_POINTWISE_SUB, scores, max));
    Node sum = reduced(CUDNN_REDUCE_TENSOR_ADD, weights), log = graph_.virtual_tensor(by_query_);
    graph_.pointwise(CUDNN_POINTWISE_LOG, CUDNN_DATA_FLOAT, sum, log);
    graph_.pointwise(CUDNN_POINTWISE_ADD, CUDNN_DATA_FLOAT, max, lse_, log);
    Node p = graph_.virtual_tensor(scores_of(CUDNN_DATA_BFLOAT16));
    graph_.pointwise(CUDNN_POINTWISE_DIV, CUDNN_DATA_FLOAT, weights, p, sum);
    graph_.matmul(p, v, out, {.rows = query_lengths_, .inner = key_lengths_});
    return std::move(graph_);
  }

  OperationGraph backward() {
    Node v = graph_.tensor(id_v, ragged(id_v, columns(s_.v)));
    Node out = graph_.tensor(id_out, ragged(id_out, rows(s_.heads, s_.queries, s_.out)));
    Node dout = graph_.tensor(id_dout, ragged(id_dout, rows(s_.heads, s_.queries, s_.dout)));
    Node delta = deltas(dout, out);
    Node p = score(CUDNN_POINTWISE_EXP, causal(score(CUDNN_POINTWISE_SUB, pad(scaled_scores(false)), lse_)));
    by_key(p, dout, id_dv, id_dv_of_heads, s_.dv);
    Node dp = scores_virtual();
    graph_.matmul(dout, v, dp, {.rows = query_lengths_, .columns = key_lengths_});
    Node ds = score(CUDNN_POINTWISE_MUL, score(CUDNN_POINTWISE_SUB, dp, delta), p);
    ds = score(CUDNN_POINTWISE_MUL, ds, scale_);
    by_key(ds, q_, id_dk, id_dk_of_heads, s_.dk);
    TensorOptions k = ragged(id_k, rows(s_.kv_heads, s_.keys, s_.k)),
                  of_dq = ragged(id_dq, rows(s_.heads, s_.queries, s_.dq));
    k.type = CUDNN_DATA_FLOAT;
    Node k_rows = graph_.virtual_tensor(k), dq = graph_.tensor(id_dq, of_dq);
    graph_.reshape(k_, k_rows);
    if (call_.deterministic) {
      graph_.matmul(ds, k_rows, dq, {.rows = query_lengths_, .inner = key_lengths_});
    } else {  // added up in memory, block by block in any order
      TensorOptions sum = call_.tokens ? of_dq : packed(s_.queries);
      sum.type = CUDNN_DATA_FLOAT;
      Node dq_sum = graph_.tensor(id_dq_sum, sum);
      graph_.matmul(ds, k_rows, dq_sum, {.rows = query_lengths_, .inner = key_lengths_});
      graph_.pointwise(CUDNN_POINTWISE_IDENTITY, CUDNN_DATA_FLOAT, dq_sum, dq);
    }
    return std::move(graph_);
  }

 private:
  // [batch, heads, sequence, head_dim], and its transpose [batch, kv_heads, head_dim, keys].
  TensorOptions rows(int64_t heads, int64_t sequence, const AttentionStrides& t) const {
    return {CUDNN_DATA_BFLOAT16, {s_.batch, heads, sequence, s_.head_dim}, {t.batch, t.head, t.sequence, 1}};
  }
  TensorOptions columns(const AttentionStrides& t) const {
    return {CUDNN_DATA_BFLOAT16, {s_.batch, s_.kv_heads, s_.head_dim, s_.keys}, {t.batch, t.head, 1, t.sequence}};
  }
  TensorOptions packed(int64_t sequence) const {
    return rows(s_.heads, sequence, {s_.heads * sequence * s_.head_dim, s_.head_dim, sequence * s_.head_dim});
  }
  TensorOptions scores_of(DataType type) const {
    return {type,
            {s_.batch, s_.heads, s_.queries, s_.keys},
            {s_.heads * s_.queries * s_.keys, s_.queries * s_.keys, s_.keys, 1}};
  }
  // With where its runs begin, where there are runs.
  TensorOptions ragged(int64_t id, TensorOptions t) {
    if (!call_.tokens) return t;
    Node& offsets = offsets_[size_t(id - 1)];
    if (!offsets)
      offsets =
          graph_.tensor(id_offsets + id, {.type = CUDNN_DATA_INT64, .dims = {s_.batch + 1, 1, 1, 1}, .alignment = 8});
    t.ragged = offsets;
    return t;
  }
  Node scores_virtual(DataType type = CUDNN_DATA_FLOAT) { return graph_.virtual_tensor(scores_of(type)); }

  Node score(PointwiseMode mode, Node x, Node b = nullptr, Node t = nullptr, DataType type = CUDNN_DATA_FLOAT,
             int64_t axis = -1) {
    Node y = scores_virtual(type);
    graph_.pointwise(mode, type, x, y, b, t, axis);
    return y;
  }
  Node index(Node like, int64_t axis) {
    return score(CUDNN_POINTWISE_GEN_INDEX, like, nullptr, nullptr, CUDNN_DATA_INT32, axis);
  }
  Node reduced(ReduceTensorOp mode, Node x) {
    Node y = graph_.virtual_tensor(by_query_);
    graph_.reduce(mode, x, y);
    return y;
  }

  Node scaled_scores(bool pads) {
    Node y = scores_virtual();
    graph_.matmul(q_, k_, y, {.rows = query_lengths_, .columns = key_lengths_, .pads = pads});
    return score(CUDNN_POINTWISE_MUL, y, scale_);
  }
  Node pad(Node scores) {
    if (!padded_) return scores;
    Node row = index(scores, 2), column = index(scores, 3);
    Node row_in = score(CUDNN_POINTWISE_CMP_LT, row, query_lengths_, nullptr, CUDNN_DATA_BOOLEAN);
    Node column_in = score(CUDNN_POINTWISE_CMP_LT, column, key_lengths_, nullptr, CUDNN_DATA_BOOLEAN);
    Node in = score(CUDNN_POINTWISE_LOGICAL_AND, row_in, column_in, nullptr, CUDNN_DATA_BOOLEAN);
    return score(CUDNN_POINTWISE_BINARY_SELECT, scores, hidden_, in);
  }
  Node causal(Node scores) {
    if (!s_.causal) return scores;
    Node row = index(scores, 2), column = index(scores, 3);
    if (s_.diagonal) {  // row + keys - queries
      row = score(CUDNN_POINTWISE_ADD, row, graph_.scalar(id_keys, CUDNN_DATA_INT32), nullptr, CUDNN_DATA_INT32, 3);
      row = score(CUDNN_POINTWISE_SUB, row, graph_.scalar(id_queries, CUDNN_DATA_INT32), nullptr, CUDNN_DATA_INT32, 3);
    }
    Node seen = score(CUDNN_POINTWISE_CMP_GE, row, column, nullptr, CUDNN_DATA_BOOLEAN);
    scores = score(CUDNN_POINTWISE_BINARY_SELECT, scores, hidden_, seen);
    if (!s_.window) return scores;
    Node reach =
        score(CUDNN_POINTWISE_ADD, column, graph_.scalar(id_window, CUDNN_DATA_INT32), nullptr, CUDNN_DATA_INT32, 3);
    Node near = score(CUDNN_POINTWISE_CMP_GT, reach, row, nullptr, CUDNN_DATA_BOOLEAN);
    return score(CUDNN_POINTWISE_BINARY_SELECT, scores, hidden_, near);
  }

  Node deltas(Node dout, Node out) {
    TensorOptions product = rows(
        s_.heads, s_.queries, {s_.heads * s_.queries * s_.head_dim, s_.heads * s_.head_dim, s_.queries * s_.head_dim});
    product.type = CUDNN_DATA_FLOAT;
    Node y = graph_.virtual_tensor(product), delta = graph_.tensor(id_delta, ragged(id_lse, lse_options_));
    graph_.pointwise(CUDNN_POINTWISE_MUL, CUDNN_DATA_FLOAT, dout, y, out);
    graph_.pointwise(CUDNN_POINTWISE_MUL, CUDNN_DATA_FLOAT, reduced(CUDNN_REDUCE_TENSOR_ADD, y), delta,
                     graph_.scalar(id_one, CUDNN_DATA_FLOAT));
    return delta;
  }
  // The gradient of keys or values: the sum over queries of score * row, and over the query heads of a key head.
  void by_key(Node scores, Node by_row, int64_t id, int64_t id_of_heads, const AttentionStrides& strides) {
    TensorOptions transposed = scores_of(CUDNN_DATA_BFLOAT16);
    std::swap(transposed.dims[2], transposed.dims[3]), std::swap(transposed.strides[2], transposed.strides[3]);
    Node t = graph_.virtual_tensor(transposed);
    Node to = graph_.tensor(id, ragged(id, rows(s_.kv_heads, s_.keys, strides))), of_head = to;
    graph_.reshape(scores, t);
    bool grouped = s_.heads != s_.kv_heads;
    if (grouped && call_.tokens)  // in memory, or cuDNN would have the longest run's for each
      of_head = graph_.tensor(id_of_heads, ragged(id, rows(s_.heads, s_.keys, of_heads(s_, strides))));
    else if (grouped)
      of_head = graph_.virtual_tensor(packed(s_.keys));
    graph_.matmul(t, by_row, of_head, {.rows = key_lengths_, .inner = query_lengths_});
    if (grouped) graph_.reduce(CUDNN_REDUCE_TENSOR_ADD, of_head, to);
  }

  const CudnnAttention& call_;
  const AttentionShape& s_;
  bool padded_;
  OperationGraph graph_;
  TensorOptions by_query_{CUDNN_DATA_FLOAT,
                          {call_.shape.batch, call_.shape.heads, call_.shape.queries, 1},
                          {call_.shape.heads * call_.shape.queries, call_.shape.queries, 1, 1}};
  TensorOptions lse_options_ = by_query_;
  std::array<Node, attention_tensors> offsets_ = {};
  Node q_ = nullptr, k_ = nullptr, lse_ = nullptr, scale_ = nullptr, hidden_ = nullptr, query_lengths_ = nullptr,
       key_lengths_ = nullptr;
};

OperationGraph graph_of(const Api& api, const CudnnAttention& call) {
  Builder builder(api, call);
  return call.pass == AttentionPass::forward ? builder.forward() : builder.backward();
}

// The part of `all` that begins at batch entry b and key head g.
CudnnAttention part_of(const CudnnAttention& all, const AttentionPart& part, int64_t b, int64_t g) {
  CudnnAttention call = all;
  call.shape.batch = std::min(part.batch, all.shape.batch - b);
  call.shape.kv_heads = std::min(part.kv_heads, all.shape.kv_heads - g);
  call.shape.heads = call.shape.kv_heads * (all.shape.heads / all.shape.kv_heads);
  return call;
}
AttentionPointers pointers_of(const AttentionShape& s, const AttentionPointers& all, int64_t b, int64_t g) {
  int64_t h = g * (s.heads / s.kv_heads);
  auto at = [&](auto* memory, const AttentionStrides& strides, int64_t head) {
    using Byte =
        std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(memory)>>, const std::byte, std::byte>;
    return memory ? static_cast<Byte*>(memory) + (b * strides.batch + head * strides.head) * 2 : nullptr;
  };
  AttentionPointers part = all;
  part.q = at(all.q, s.q, h), part.k = at(all.k, s.k, g), part.v = at(all.v, s.v, g);
  part.out = at(all.out, s.out, h), part.lse = static_cast<float*>(all.lse) + (b * s.heads + h) * s.queries;
  part.dout = at(all.dout, s.dout, h);
  part.dq = at(all.dq, s.dq, h), part.dk = at(all.dk, s.dk, g), part.dv = at(all.dv, s.dv, g);
  return part;
}

AttentionLengths lengths_from(AttentionLengths lengths, int64_t b) {
  if (lengths.of_queries) lengths.of_queries += b, lengths.of_keys += b;
  if (lengths.offsets) lengths.offsets += b;
  return lengths;
}

}  // namespace

std::vector<CudnnEngine> cudnn_engines(const Api& api, const CudnnAttention& call, const std::string& device_properties,
                                       std::optional<int64_t> proposal) {
  Target target(api, device_properties);
  std::vector<Plan> plans;
  if (proposal)
    plans.push_back(Plan::make(graph_of(api, call), target, call.deterministic, proposal));
  else
    plans = Plan::make_all(graph_of(api, call), target, call.deterministic);
  std::vector<CudnnEngine> engines;
  for (const Plan& plan : plans) engines.push_back({plan.proposal(), plan.engine()});
  return engines;
}

// --- Running.

struct Cudnn::State {
  std::shared_ptr<Allocator> allocator;
  Api api;
  Handle handle = nullptr;
  std::map<CudnnAttention, Plan> plans;
  AttentionEngines engines{api.version};

  ~State() {
    if (handle) api.Destroy(handle);
  }
  const Plan& plan(const CudnnAttention& call) {
    auto at = plans.find(call);
    if (at != plans.end()) return at->second;
    Plan made = Plan::make(graph_of(api, call), Target(api, handle), call.deterministic, engines.chosen(call));
    return plans.emplace(call, std::move(made)).first->second;
  }
  void run(const Plan& plan, const CudnnAttention& call, const AttentionPointers& p, double scale,
           const AttentionLengths& lengths);
};

Cudnn::Cudnn(std::shared_ptr<Allocator> allocator, Api api) : state_(std::make_unique<State>()) {
  state_->allocator = std::move(allocator), state_->api = std::move(api);
  const Api& a = state_->api;
  check_call(a, a.Create(&state_->handle), "cudnnCreate");
  check_call(a, a.SetStream(state_->handle, state_->allocator->stream()), "cudnnSetStream");
}
Cudnn::~Cudnn() = default;

void Cudnn::State::run(const Plan& plan, const CudnnAttention& call, const AttentionPointers& p, double scale,
                       const AttentionLengths& lengths) {
  const AttentionShape& s = call.shape;
  bool backward = call.pass == AttentionPass::backward;
  auto aligned = [](int64_t bytes) { return (bytes + 255) / 256 * 256; };
  const int64_t queries_in_all = call.tokens ? call.tokens : s.batch * s.queries;
  // Of runs, as much as NVIDIA's frontend gives: float32 of all tokens, also where it is bf16.
  auto of_tokens = [&](bool needed, int64_t stride) { return needed ? aligned(call.tokens * stride * 4) : 0; };
  bool grouped = backward && call.tokens && s.heads != s.kv_heads, summed = backward && !call.deterministic;
  int64_t own = aligned(plan.workspace_bytes()), delta = backward ? aligned(queries_in_all * s.heads * 4) : 0,
          dq_sum = call.tokens ? of_tokens(summed, s.dq.sequence)
                   : summed    ? aligned(s.batch * s.heads * s.queries * s.head_dim * 4)
                               : 0,
          dk_of_heads = of_tokens(grouped, of_heads(s, s.dk).sequence),
          dv_of_heads = of_tokens(grouped, of_heads(s, s.dv).sequence);
  Storage workspace(allocator, own + delta + dq_sum + dk_of_heads + dv_of_heads);

  float by = float(scale), hidden = -std::numeric_limits<float>::infinity(), one = 1;
  int32_t queries = int32_t(s.queries), keys = int32_t(s.keys), window = int32_t(s.window);
  std::vector<std::pair<int64_t, void*>> values;
  auto give = [&](bool needed, int64_t id, const void* value) {
    if (needed) values.emplace_back(id, const_cast<void*>(value));
  };
  give(true, id_q, p.q), give(true, id_k, p.k), give(true, id_v, p.v), give(true, id_out, p.out);
  give(true, id_lse, p.lse), give(true, id_scale, &by), give(call.padded || s.causal, id_hidden, &hidden);
  give(call.padded, id_query_lengths, lengths.of_queries), give(call.padded, id_key_lengths, lengths.of_keys);
  give(s.causal && s.diagonal, id_queries, &queries), give(s.causal && s.diagonal, id_keys, &keys);
  give(s.window != 0, id_window, &window);
  give(backward, id_dout, p.dout), give(backward, id_dq, p.dq), give(backward, id_dk, p.dk);
  give(backward, id_dv, p.dv), give(backward, id_one, &one), give(backward, id_delta, workspace.data() + own);
  give(dq_sum > 0, id_dq_sum, workspace.data() + own + delta);
  give(grouped, id_dk_of_heads, workspace.data() + own + delta + dq_sum);
  give(grouped, id_dv_of_heads, workspace.data() + own + delta + dq_sum + dk_of_heads);
  for (int64_t id = id_q; id <= (backward ? id_dv : id_lse); ++id)
    give(call.tokens != 0, id_offsets + id, lengths.offsets + (id - 1) * lengths.offset_stride);
  plan.run(handle, values, workspace.data());
}

void Cudnn::run(const CudnnAttention& call, const AttentionPointers& pointers, double scale,
                const AttentionLengths& lengths) {
  AttentionPart part = attention_part(call);
  for (int64_t b = 0; b < call.shape.batch; b += part.batch)
    for (int64_t g = 0; g < call.shape.kv_heads; g += part.kv_heads) {
      CudnnAttention one = part_of(call, part, b, g);
      state_->run(state_->plan(one), one, call.tokens ? pointers : pointers_of(call.shape, pointers, b, g), scale,
                  lengths_from(lengths, b));
    }
}

std::vector<std::string> Cudnn::tune() {
  std::vector<std::string> found;
  for (auto& [call, plan] : state_->plans) {
    if (state_->engines.chosen(call)) continue;
    std::vector<Plan> plans =
        Plan::make_all(graph_of(state_->api, call), Target(state_->api, state_->handle), call.deterministic);
    std::vector<AttentionEngines::Candidate> list;
    for (const Plan& p : plans)
      list.push_back(
          {p.proposal(), p.engine(), [&, call = call](const AttentionPointers& to, const AttentionLengths& lengths) {
             state_->run(p, call, to, 1 / std::sqrt(double(call.shape.head_dim)), lengths);
           }});
    plan = std::move(plans[state_->engines.choose(call, list, state_->allocator, found)]);
  }
  return found;
}
void Cudnn::save(const std::string& path) const { state_->engines.save(path); }
void Cudnn::load(const std::string& path) {
  state_->engines.load(path);
  std::erase_if(state_->plans, [&](const auto& p) { return state_->engines.chosen(p.first).has_value(); });
}

}  // namespace dtensor::cuda
