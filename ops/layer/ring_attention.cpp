// Attention whose keys and values go round a ring of ranks.
#include <cmath>
#include <limits>

#include "dtensor/point_to_point.h"
#include "dtensor/redistribute.h"
#include "ops/cards.h"
#include "ops/family/kernel.h"
#include "ops/family/samples.h"
#include "ops/functions.h"
#include "ops/layer/attention.h"

namespace dtensor::ops {
namespace {

// --- Two results of the same queries, of other keys each

// out [b,s,h,d] and lse [b,h,s] of the type of statistics; out of any floating type, lse -> out, lse
void merge_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const int64_t queries = in[0].size(1), heads = in[0].size(2), d = in[0].size(3);
  for_floating(c, in[2].dtype(), [&]<class T>() {
    using A = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const A *x = in[0].data<A>(), *x_lse = in[1].data<A>(), *y_lse = in[3].data<A>();
    const T* y = in[2].data<T>();
    A *to = out[0].data<A>(), *to_lse = out[1].data<A>();
    c.pool.parallel_for(in[1].numel(), std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(d, 1)),
                        [&](int64_t begin, int64_t end, int) {
                          for (int64_t row = begin; row < end; ++row) {  // (b, h, s)
                            const int64_t s = row % queries, h = row / queries % heads, b = row / queries / heads;
                            const int64_t at = ((b * queries + s) * heads + h) * d;
                            const A a = x_lse[row], z = y_lse[row], most = std::max(a, z);
                            // Neither saw a key: the sum is 0, and out is.
                            const A of_x = most == -std::numeric_limits<A>::infinity() ? 1 : std::exp(a - most);
                            const A of_y = most == -std::numeric_limits<A>::infinity() ? 0 : std::exp(z - most);
                            const A sum = of_x + of_y, p = of_x / sum, q = of_y / sum;
                            to_lse[row] = most + std::log(sum);
                            for (int64_t i = at; i < at + d; ++i) to[i] = p * x[i] + q * A(y[i]);
                          }
                        });
  });
}
DType merge_types(std::string_view op, std::span<const TensorSpec* const> in, const Attributes&, int) {
  DType t = statistics_type(in[2]->dtype);
  for (int i : {0, 1, 3})
    check(in[size_t(i)]->dtype == t, "[{}] operand {} is {}, not {}", op, i, name(in[size_t(i)]->dtype), name(t));
  return t;
}

// --- The ring

constexpr const char* ring_name = "ring_attention";

// Tensors that go round, all in one launch: to the next rank while this one computes with those it has.
class Ring {
 public:
  Ring(const DeviceMesh& mesh, const Attributes& a) : mesh_(mesh), axis_(int(a.as<RingAttention>().axis)) {}

  int ranks() const { return mesh_.shape().size(axis_); }
  // The tensors with the sequence, dimension 1 of four and else the last one, sharded over the axis alone, as it mostly
  // is.
  std::vector<DistributedTensor> divided(std::vector<DistributedTensor> list) const {
    std::vector<DistributedTensor> there;
    std::vector<Layout> layouts;
    for (const DistributedTensor& x : list)
      if (x.defined()) {
        const int d = x.dims() == 4 ? 1 : x.dims() - 1;
        Layout alone = x.layout().with(axis_, Shard(d));
        for (int axis = 0; axis < mesh_.shape().axes(); ++axis)
          if (axis != axis_ && alone[axis] == Shard(d)) alone = alone.with(axis, Replicate());
        there.push_back(x), layouts.push_back(alone);
      }
    there = redistribute(there, layouts, {.reason = ring_name});
    size_t next = 0;
    for (DistributedTensor& x : list)
      if (x.defined()) x = there[next++];
    return list;
  }
  void begin(const std::vector<DistributedTensor>& list, std::string_view what) {
    moving_.clear(), from_.clear(), places_.clear();
    for (const DistributedTensor& x : list) {
      if (!x.defined()) continue;
      from_.push_back(x.local().contiguous());
      places_.emplace_back(mesh_.rank_state().allocator(), x.dtype(), x.local().shape(), x.local().device());
    }
    moving_ = list;
    work_ = shift(mesh_, mesh_.shape().name(axis_), 1, from_, places_, what);
  }
  // What the rank before had, at the places of what this one has.
  std::vector<DistributedTensor> finish() {
    work_.wait();
    size_t next = 0;
    for (DistributedTensor& x : moving_)
      if (x.defined()) x = DistributedTensor::empty(mesh_, mesh_.intern(x.spec()), places_[next++]);
    return std::exchange(moving_, {});
  }

 private:
  const DeviceMesh& mesh_;
  int axis_;
  std::vector<DistributedTensor> moving_;
  std::vector<Tensor> from_, places_;
  Work work_;  // the last member: it ends before what it moves does
};

// Operands of ring_attention_op.
enum : size_t { q_, k_, v_, step_, rows_, q_positions_, k_positions_, q_documents_, k_documents_ };

DistributedTensor or_none(const DistributedTensor* x) { return x ? *x : DistributedTensor(); }

// A call on this rank's chunks.
struct RingChunks {
  DistributedTensor q, q_positions, q_documents;
  std::vector<DistributedTensor> keys;  // k, v, k_positions, k_documents: what goes round
  Attention attention;

  RingChunks(const Ring& ring, const std::vector<DistributedTensor>& list, const Attributes& a)
      : attention(a.as<Attention>()) {
    std::vector<DistributedTensor> all = ring.divided(list);
    q = all[0], q_positions = all[1], q_documents = all[2];
    keys.assign(all.begin() + 3, all.end());
    attention.chunks = ring.ranks();
  }
};

std::vector<DistributedTensor> ring_composite(std::span<const DistributedTensor* const> in, const Attributes& a) {
  const DType type = in[q_]->dtype(), precise = statistics_type(type);
  Ring ring(in[q_]->mesh(), a);
  RingChunks c(ring,
               {*in[q_], or_none(in[q_positions_]), or_none(in[q_documents_]), *in[k_], *in[v_],
                or_none(in[k_positions_]), or_none(in[k_documents_])},
               a);
  DistributedTensor out, lse;
  for (int i = 0; i < ring.ranks(); ++i) {
    bool last = i + 1 == ring.ranks();
    if (!last) ring.begin(c.keys, "ring_attention: keys and values");
    auto part = call_all(attention_op,
                         {&c.q, &c.keys[0], &c.keys[1], nullptr, in[step_], in[rows_], &c.q_positions, &c.keys[2],
                          nullptr, &c.q_documents, &c.keys[3]},
                         c.attention);
    if (i == 0)
      out = cast(part[0], precise), lse = part[1];
    else
      part = call_all(merge_attention_op, {&out, &lse, &part[0], &part[1]}), out = part[0], lse = part[1];
    if (!last) c.keys = ring.finish();
  }
  return {cast(out, type), lse};
}

// The gradients of keys and values follow them round, one rank behind, and are home after as many steps as ranks.
void ring_gradient(Gradient& g) {
  const DType type = g.input_spec(q_).dtype, precise = statistics_type(type);
  const DeviceMesh& mesh = g.input(q_).mesh();
  Ring ring(mesh, g.attributes()), back(mesh, g.attributes());
  RingChunks c(ring,
               {g.input(q_), g.input(q_positions_), g.input(q_documents_), g.input(k_), g.input(v_),
                g.input(k_positions_), g.input(k_documents_)},
               g.attributes());
  DistributedTensor dq, dout = ring.divided({g.of_output()})[0];
  std::vector<DistributedTensor> of_keys;  // dk, dv
  for (int i = 0; i < ring.ranks(); ++i) {
    bool last = i + 1 == ring.ranks();
    if (!last) ring.begin(c.keys, "ring_attention: keys and values");
    auto d = call_all(attention_backward_op,
                      {&dout, &c.q, &c.keys[0], &c.keys[1], &g.output(0), &g.output(1), nullptr, &g.input(step_),
                       &g.input(rows_), &c.q_positions, &c.keys[2], nullptr, &c.q_documents, &c.keys[3]},
                      AttentionBackward{c.attention, false});
    for (DistributedTensor& x : d) x = cast(x, precise);
    dq = i ? add(dq, d[0]) : d[0];
    if (i) of_keys = back.finish();
    of_keys = i ? std::vector{add(of_keys[0], d[1]), add(of_keys[1], d[2])} : std::vector{d[1], d[2]};
    if (ring.ranks() > 1) back.begin(of_keys, "ring_attention: gradients of keys and values");
    if (!last) c.keys = ring.finish();
  }
  if (ring.ranks() > 1) of_keys = back.finish();
  g.set(0, cast(dq, type));
  for (int i : {1, 2}) g.set(i, cast(of_keys[size_t(i - 1)], type));
}

Sample sample(const SampleInput& q, const SampleInput& k, RingAttention a, const SampleInput& documents = absent) {
  SampleInput positions = a.causal ? ids({q.shape[1]}, q.shape[1]) : absent, step = a.causal ? ids({}, 1000) : absent;
  a.scale = 0.5;
  return {{q, k, k, step, absent, positions, positions, documents, documents}, a};
}

}  // namespace

const Op merge_attention_op = {.name = "merge_attention",
                               .rule = "bsh[d],bhs,bsh[d],bhs->bsh[d],bhs",
                               .passes = {linear_in({0, 2}).only_to({0})},
                               .types = merge_types,
                               .cpu = merge_kernel,
                               .sample = {{{{2, 3, 4, 2}, {2, 4, 3}, {2, 3, 4, 2}, {2, 4, 3}}}}};
const Op ring_attention_op = {
    .name = ring_name,
    .types = floating_types,
    .optional = {3, 4, 5, 6, 7, 8},
    .composite = ring_composite,
    .gradient = ring_gradient,
    .keeps = {.inputs = {0, 1, 2, 3, 4, 5, 6, 7, 8}, .outputs = {0, 1}},
    .sample = {sample({2, 12, 4, 2}, {2, 12, 2, 2}, {{.causal = true, .dropout_p = 0.25}, 0}, ids({2, 12}, 3)),
               sample({1, 12, 2, 2}, {1, 12, 2, 2}, {})}};

namespace {
constexpr const Op* ring_attention_ops[] = {&merge_attention_op, &ring_attention_op};
}  // namespace
const Cards ring_attention_cards = ring_attention_ops;

}  // namespace dtensor::ops
