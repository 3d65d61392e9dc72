#include "ops/layer/attention.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "dtensor/creation.h"
#include "ops/cards.h"
#include "ops/cpu/attention.h"
#include "ops/family/kernel.h"
#include "ops/family/samples.h"
#include "ops/functions.h"

namespace dtensor::ops {
namespace {

// What attention_op takes besides q, k and v, and attention_backward_op besides those, dout, out and lse. All may be
// absent: mask; the step, rows and positions of ops/layer/dropout.h; lengths; documents.
struct More {
  Tensor mask, step, rows, q_positions, k_positions, k_lengths, q_documents, k_documents;

  explicit More(std::span<const Tensor> in)
      : mask(in[0]),
        step(in[1]),
        rows(in[2]),
        q_positions(in[3]),
        k_positions(in[4]),
        k_lengths(in[5]),
        q_documents(in[6]),
        k_documents(in[7]) {
    for (Tensor* t : {&rows, &q_positions, &k_positions, &k_lengths, &q_documents, &k_documents})
      if (t->defined()) *t = t->contiguous();
  }
};
constexpr int more_operands = 8;

// Heads of this rank. Query head h reads key head kv_head(h).
template <class T>
struct Heads {
  int64_t batch, heads, kv_heads;
  const More& more;
  cpu::Drop drop;
  Shape mask_strides;
  int64_t first_batch, first_head, all_heads, all_queries, all_keys;

  Heads(const Context& c, const Tensor& q, const Tensor& k, const More& more)
      : batch(q.size(0)),
        heads(q.size(2)),
        kv_heads(k.size(2)),
        more(more),
        first_batch(c.range('b').begin),
        all_queries(c.size('s')),
        all_keys(k.size(1)),
        attributes_(c.attributes.as<Attention>()),
        shape_{.queries = q.size(1),
               .keys = k.size(1),
               .head_dim = q.size(3),
               .query_begin = c.range('s').begin,
               .key_begin = 0,
               .causal = attributes_.causal,
               .scale = attributes_.scale,
               .window = attributes_.window} {
    all_queries *= attributes_.chunks, all_keys *= attributes_.chunks;
    if (attributes_.whole_kv) {
      first_head = c.range('h').begin, all_heads = c.size('h');
    } else {
      int64_t repeats = kv_heads ? heads / kv_heads : 0;
      first_head = c.range('g').begin * repeats, all_heads = c.size('g') * repeats;
    }
    if (more.step.defined())
      drop = {key_at_step(uint64_t(attributes_.key), *more.step.data<int64_t>()), attributes_.dropout_p};
    if (more.mask.defined()) mask_strides = broadcast_strides(more.mask, {batch, heads, queries(), keys()});
  }

  int64_t kv_head(int64_t h) const {
    int64_t first = attributes_.whole_kv ? first_head : 0, all = attributes_.whole_kv ? all_heads : heads;
    return (first + h) / ((all + kv_heads - 1) / kv_heads);
  }
  // The query heads of this rank that read key head g.
  Range readers(int64_t g) const {
    Range r{0, 0};
    while (r.begin < heads && kv_head(r.begin) < g) ++r.begin;
    for (r.end = r.begin; r.end < heads && kv_head(r.end) == g;) ++r.end;
    return r;
  }
  int64_t queries() const { return shape_.queries; }
  int64_t keys() const { return shape_.keys; }

  // Of one batch entry: with the keys that take part.
  cpu::Attention shape(int64_t b) const {
    cpu::Attention a = shape_;
    auto of = [b](const Tensor& t, int64_t n) {
      return t.defined() ? t.data<int64_t>() + (t.dims() == 2 ? b * n : 0) : nullptr;
    };
    a.query_positions = of(more.q_positions, queries()), a.key_positions = of(more.k_positions, keys());
    a.query_documents = of(more.q_documents, queries()), a.key_documents = of(more.k_documents, keys());
    if (const Tensor& lengths = more.k_lengths; lengths.defined()) {
      a.keys = lengths.data<int64_t>()[lengths.dims() ? b : 0];
      check(a.keys >= 0 && a.keys <= keys(), "[scaled_dot_product_attention] k_lengths has {}, outside [0,{}]", a.keys,
            keys());
    }
    return a;
  }

  cpu::Scores<T> scores(int64_t b, int64_t h) const {
    cpu::Scores<T> s;
    if (const Tensor& mask = more.mask; mask.defined()) {
      int64_t at = b * mask_strides[0] + h * mask_strides[1];
      s.row_stride = mask_strides[2], s.key_stride = mask_strides[3];
      if (mask.dtype() == DType::boolean)
        s.visible = mask.data<bool>() + at;
      else
        s.bias = mask.data<T>() + at;
    }
    int64_t row = more.rows.defined() ? more.rows.data<int64_t>()[b] : first_batch + b;
    s.drop = drop;
    s.drop_stride = all_keys;
    s.drop_first = (row * all_heads + first_head + h) * all_queries * all_keys;
    return s;
  }

 private:
  Attention attributes_;
  cpu::Attention shape_;
};

// What max_documents says of row b: Attention options has the words.
void check_documents(const Context& c, const cpu::Attention& a, int64_t b) {
  const char* who = "scaled_dot_product_attention";
  const int64_t most = c.attributes.as<Attention>().max_documents, row = c.range('b').begin + b;
  const char* remedy = "max_documents promises otherwise: give 0, which needs no such order";
  auto document = [](const int64_t* list, int64_t i) { return std::max<int64_t>(list[i], -1); };
  int64_t last = -1, count = 0;
  for (int64_t j = 0; j < a.keys; ++j) {
    const int64_t d = document(a.key_documents, j);
    if (d < 0 || (j > 0 && d == a.key_documents[j - 1])) continue;
    check(d > last, "[{}] row {} goes from document {} to {} at token {}: {}", who, row, last, d, j, remedy);
    check(++count <= most,
          "[{}] row {} has more documents than max_documents = {}: another begins at token {}; give what the data has, "
          "or 0",
          who, row, most, j);
    last = d;
  }
  for (int64_t i = 0; i < a.queries; ++i) {
    const int64_t j = a.query_begin + i, d = document(a.query_documents, i), of_key = document(a.key_documents, j);
    check(d == of_key, "[{}] query {} of row {} is of document {}, and key {} of {}: {}", who, j, row, d, j, of_key,
          remedy);
    if (d < 0) continue;
    const int64_t at = a.query_position(i), of = a.key_position(j);
    check(at == of, "[{}] query {} of row {} is at position {}, and key {} at {}: {}", who, j, row, at, j, of, remedy);
    if (i > 0 && a.query_documents[i - 1] == d)
      check(at == a.query_position(i - 1) + 1,
            "[{}] positions of document {} in row {} go from {} to {} at token {}: {}", who, d, row,
            a.query_position(i - 1), at, j, remedy);
  }
}

template <class T>
T* head(const Tensor& t, int64_t batch, int64_t h) {
  return t.data<T>() + batch * t.strides()[0] + h * t.strides()[2];
}

// q [b,s,(g r),d], k and v [b,t,g,d], More -> out [b,s,(g r),d], and the logarithm of each row's sum [b,(g r),s]
// for the gradient
void attention_of_chunk(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Tensor q = with_whole_rows(in[0]), k = with_whole_rows(in[1]), v = with_whole_rows(in[2]);
  if (k.size(2) == 0) {  // nothing is seen
    fill(out[0], 0), fill(out[1], -std::numeric_limits<double>::infinity());
    return;
  }
  for_floating(c, q.dtype(), [&]<class T>() {
    More more(in.subspan(3));
    Heads<T> n(c, q, k, more);
    for (int64_t b = 0; c.attributes.as<Attention>().max_documents && b < n.batch; ++b)
      check_documents(c, n.shape(b), b);
    T* lse = out[1].data<T>();
    // One query, as in generation: the heads that read a key head are rows of one product, which reads the keys once.
    const bool one = n.queries() == 1 && n.drop.p == 0 && n.batch * n.kv_heads >= c.pool.size();
    const int64_t each = one ? n.kv_heads : n.heads;
    c.pool.parallel_for(n.batch * each, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / each, g = one ? i % each : n.kv_head(i % each);
        const Range h = one ? n.readers(g) : Range{i % each, i % each + 1};
        if (h.begin == h.end) continue;
        cpu::Attention shape = n.shape(b);
        cpu::Scores<T> scores = n.scores(b, h.begin);
        if (one) {
          shape.queries = h.end - h.begin, shape.query_step = 0;
          if (n.more.mask.defined()) scores.row_stride = n.mask_strides[1];
        }
        const int row = one ? 2 : 1;  // the dimension of the rows
        cpu::attention(shape, head<T>(q, b, h.begin), q.strides()[row], head<T>(k, b, g), k.strides()[1],
                       head<T>(v, b, g), v.strides()[1], head<T>(out[0], b, h.begin), out[0].strides()[row],
                       lse + (b * n.heads + h.begin) * n.queries(), c.scratch(worker), scores);
      }
    });
  });
}

// dout, q, k, v, out, lse, More -> dq, dk, dv, and where it is asked for that of the scores [b,(g r),s,t]
void backward_of_chunk(const Context& c, std::span<const Tensor> in, std::span<Tensor> grad) {
  Tensor dout = with_whole_rows(in[0]), q = with_whole_rows(in[1]), k = with_whole_rows(in[2]),
         v = with_whole_rows(in[3]), out = with_whole_rows(in[4]), rows = in[5].contiguous();
  fill(grad[1], 0);
  fill(grad[2], 0);
  if (grad.size() > 3) fill(grad[3], 0);  // of keys that take no part
  if (k.size(2) == 0) return fill(grad[0], 0);
  for_floating(c, q.dtype(), [&]<class T>() {
    More more(in.subspan(6));
    Heads<T> n(c, q, k, more);
    const T* lse = rows.data<T>();
    c.pool.parallel_for(n.batch * n.kv_heads, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i) {
        int64_t b = i / n.kv_heads, g = i % n.kv_heads;
        Range readers = n.readers(g);
        for (int64_t h = readers.begin; h < readers.end; ++h) {
          int64_t first = (b * n.heads + h) * n.queries();
          cpu::Scores<T> scores = n.scores(b, h);
          if (grad.size() > 3) scores.bias_gradient = grad[3].data<T>() + first * n.keys();
          scores.bias_gradient_stride = n.keys();
          cpu::attention_backward(n.shape(b), head<T>(q, b, h), q.strides()[1], head<T>(k, b, g), k.strides()[1],
                                  head<T>(v, b, g), v.strides()[1], head<T>(out, b, h), out.strides()[1],
                                  head<T>(dout, b, h), dout.strides()[1], lse + first, head<T>(grad[0], b, h),
                                  grad[0].strides()[1], head<T>(grad[1], b, g), grad[1].strides()[1],
                                  head<T>(grad[2], b, g), grad[2].strides()[1], c.scratch(worker), scores);
        }
      }
    });
  });
}

void attention_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_chunks(c, in, out, attention_of_chunk);
}
void attention_backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> grad) {
  for_chunks(c, in, grad, backward_of_chunk);
}

// What a call's dimensions are in the rule.
struct Terms {
  const char *heads, *kv_heads, *queries, *keys;

  explicit Terms(const Attributes& attributes) {
    const auto& a = attributes.as<Attention>();
    heads = a.whole_kv ? "h" : "(gr)", kv_heads = a.whole_kv ? "[g]" : "g";
    queries = a.chunks > 1 ? "(cs)" : "s", keys = a.chunks > 1 ? "(ct)" : "[t]";
  }
};

// The mask's term: a dimension of size 1 that is broadcast has no factor in common with the scores.
std::string mask_term(const Shape* mask, const Shape& q, const Shape& k, const Terms& t) {
  if (!mask) return "";
  const char* names[] = {"b", t.heads, t.queries, t.keys};
  const char* broadcast[] = {"[w]", "[x]", "[y]", "[z]"};
  int64_t sizes[] = {q[0], q[2], q[1], k[1]};
  std::string term;
  for (int d = 0; d < 4; ++d) term += (*mask)[d] == 1 && sizes[d] != 1 ? broadcast[d] : names[d];
  return term;
}
// More: the mask, step, rows, positions, lengths and documents.
std::string more_terms(std::span<const Shape* const> more, const Shape& q, const Shape& k, const Terms& t) {
  return mask_term(more[0], q, k, t) + ",," + (more[2] ? "b" : "") + "," + positions_term(more[3], t.queries) + "," +
         positions_term(more[4], t.keys) + "," + (more[5] && more[5]->dims() ? "b" : "") + "," +
         positions_term(more[6], t.queries) + "," + positions_term(more[7], t.keys);
}
Rule rule_of(std::string text, const Attributes& a) {
  Rule r{std::move(text)};
  if (int64_t chunks = a.as<Attention>().chunks; chunks > 1) r.sizes = {{'c', chunks}};
  return r;
}
Rule attention_rule(std::span<const Shape* const> in, const Attributes& a) {
  Terms t(a);
  std::string q = fmt::format("b{}{}[d]", t.queries, t.heads), k = fmt::format("b{}{}[d]", t.keys, t.kv_heads),
              more = more_terms(in.subspan(3), *in[0], *in[1], t);
  return rule_of(fmt::format("{0},{1},{1},{2}->{0},b{3}{4}", q, k, more, t.heads, t.queries), a);
}
Rule attention_backward_rule(std::span<const Shape* const> in, const Attributes& a) {
  Terms t(a);
  std::string q = fmt::format("b{}{}[d]", t.queries, t.heads), k = fmt::format("b{}{}[d]", t.keys, t.kv_heads),
              more = more_terms(in.subspan(6), *in[1], *in[2], t), lse = fmt::format("b{}{}", t.heads, t.queries),
              scores = a.as<AttentionBackward>().mask_gradient ? fmt::format(",{}{}", lse, t.keys) : "";
  return rule_of(fmt::format("{0},{0},{1},{1},{0},{2},{3}->{0},{1},{1}{4}", q, k, lse, more, scores), a);
}
// Masks may be bool, and what else there is besides is i64.
DType attention_backward_types(std::string_view, std::span<const TensorSpec* const> in, const Attributes& a,
                               int output) {
  return same_types("scaled_dot_product_attention", in.first(3), a, output);
}
// bf16 would leave too little of the logarithms: exp(score - lse) is taken of them.
DType attention_types(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a, int output) {
  DType t = attention_backward_types(op, in, a, output);
  return output == 1 && t == DType::bf16 ? DType::f32 : t;
}

void attention_gradient(Gradient& g) {
  bool of_mask = g.needs(3);
  std::vector<const DistributedTensor*> in{&g.of_output(), &g.input(0),  &g.input(1),
                                           &g.input(2),    &g.output(0), &g.output(1)};
  for (int i = 0; i < more_operands; ++i) in.push_back(&g.input(3 + i));
  auto d = call_all(attention_backward_op, in, AttentionBackward{g.attributes().as<Attention>(), of_mask});
  for (int i = 0; i < 3; ++i) g.set(i, d[size_t(i)]);
  if (of_mask) g.set(3, sum_to(d[3], g.input_spec(3).shape));
}

using Kind = SampleInput::Kind;

// What a sample has besides q, k and v; all else is absent.
struct MoreSamples {
  SampleInput mask = absent, step = absent, rows = absent, q_positions = absent, k_positions = absent,
              k_lengths = absent, q_documents = absent, k_documents = absent;
};
std::vector<SampleInput> with(std::vector<SampleInput> list, const MoreSamples& m) {
  for (const SampleInput* i :
       {&m.mask, &m.step, &m.rows, &m.q_positions, &m.k_positions, &m.k_lengths, &m.q_documents, &m.k_documents})
    list.push_back(*i);
  return list;
}
const SampleInput a_step = ids({}, 1000);

// `k` of the keys and values.
Sample sample(const SampleInput& q, const SampleInput& k, Attention a, const MoreSamples& more = {}) {
  a.scale = 0.5, a.key = 77;
  return {with({q, k, k}, more), a};
}
Sample backward_sample(const SampleInput& q, const SampleInput& k, Attention a, const MoreSamples& more = {},
                       bool mask_gradient = false) {
  a.scale = 0.5, a.key = 77;
  SampleInput lse(Kind::positive, {q.shape[0], q.shape[2], q.shape[1]});
  return {with({q, q, k, k, q, lse}, more), AttentionBackward{a, mask_gradient}};
}

std::vector<Sample> attention_samples() {
  return {sample({2, 5, 12, 4}, {2, 5, 6, 4}, {.causal = true}),
          sample({1, 5, 3, 2}, {1, 7, 3, 2}, {}),
          sample({2, 5, 6, 2}, {2, 4, 3, 2}, {}, {.mask = {2, 6, 5, 4}}),
          sample({2, 3, 4, 2}, {2, 4, 2, 2}, {}, {.mask = {1, 4, 1, 4}}),
          sample({2, 3, 2, 2}, {2, 4, 2, 2}, {.dropout_p = 0.25}, {.mask = flags({2, 1, 3, 4}), .step = a_step}),
          sample({2, 5, 4, 2}, {2, 5, 2, 2}, {.causal = true, .dropout_p = 0.5}, {.step = a_step}),
          sample({2, 5, 4, 2}, {2, 7, 2, 2}, {.causal = true}, {.q_positions = ids({5}, 7)}),
          sample({2, 5, 4, 2}, {2, 7, 2, 2}, {.causal = true, .dropout_p = 0.25},
                 {.step = a_step,
                  .rows = ids({2}, 9),
                  .q_positions = ids({2, 5}, 7),
                  .k_positions = ids({2, 7}, 7),
                  .k_lengths = ids({2}, 8)}),
          sample({2, 3, 4, 2}, {2, 5, 2, 2}, {}, {.mask = {2, 4, 3, 5}, .k_lengths = ids({}, 6)}),
          sample({2, 5, 4, 2}, {2, 5, 2, 2}, {.causal = true, .window = 2}),
          sample({2, 5, 4, 2}, {2, 7, 2, 2}, {.causal = true, .window = 3},
                 {.k_positions = ids({7}, 7), .q_documents = ids({2, 5}, 2), .k_documents = ids({2, 7}, 2)}),
          sample({2, 5, 2, 2}, {2, 4, 2, 2}, {}, {.q_documents = ids({5}, 3), .k_documents = ids({4}, 3)}),
          sample({2, 5, 6, 4}, {2, 5, 3, 4}, {.causal = true, .whole_kv = true}),
          sample({2, 8, 4, 2}, {2, 12, 2, 2}, {.chunks = 4}),
          sample({2, 8, 4, 2}, {2, 8, 2, 2}, {.causal = true, .window = 3, .chunks = 4, .dropout_p = 0.25},
                 {.step = a_step,
                  .q_positions = ids({8}, 8),
                  .k_positions = ids({2, 8}, 8),
                  .q_documents = ids({2, 8}, 2),
                  .k_documents = ids({8}, 2)}),
          sample({2, 3, 6, 2}, {2, 4, 1, 2}, {.whole_kv = true, .dropout_p = 0.25},
                 {.mask = {2, 6, 3, 4}, .step = a_step})};
}
std::vector<Sample> attention_backward_samples() {
  return {backward_sample({2, 5, 12, 4}, {2, 5, 6, 4}, {.causal = true}),
          backward_sample({2, 3, 4, 2}, {2, 5, 2, 2}, {.dropout_p = 0.25},
                          {.mask = {2, 4, 3, 5}, .step = a_step, .rows = ids({2}, 9), .k_lengths = ids({2}, 6)}, true),
          backward_sample(
              {2, 5, 4, 2}, {2, 7, 2, 2}, {.causal = true, .dropout_p = 0.25},
              {.step = a_step, .q_positions = ids({5}, 7), .k_positions = ids({2, 7}, 7), .k_lengths = ids({}, 8)}),
          backward_sample({2, 5, 4, 2}, {2, 5, 2, 2}, {.causal = true, .window = 2},
                          {.q_documents = ids({2, 5}, 2), .k_documents = ids({2, 5}, 2)}),
          backward_sample({2, 5, 6, 2}, {2, 5, 3, 2}, {.causal = true, .whole_kv = true}),
          backward_sample({2, 3, 6, 2}, {2, 4, 1, 2}, {.whole_kv = true}, {.mask = {2, 6, 3, 4}}, true),
          backward_sample({2, 8, 4, 2}, {2, 8, 2, 2}, {.causal = true, .chunks = 4, .dropout_p = 0.25},
                          {.step = a_step, .q_positions = ids({2, 8}, 8), .k_positions = ids({8}, 8)})};
}

}  // namespace

const Op attention_op = {
    .name = "attention",
    .functions = {function(
        "scaled_dot_product_attention(q, k, v, attn_mask=none, q_positions=none, k_positions=none, k_lengths=none, "
        "q_documents=none, k_documents=none, max_documents=0, dropout_p=0, is_causal=false, window=0, "
        "scale=1/sqrt(d), seed=0)",
        "softmax(q k^T * scale) v, of heads",
        [](Arguments& a) -> List {
          return {scaled_dot_product_attention(
              a.tensor(0), a.tensor(1), a.tensor(2),
              {.causal = a.flag("is_causal"),
               .window = a.integer("window", 0),
               .scale = a.number("scale", 0),
               .attn_mask = a.optional_tensor(3),
               .q_positions = a.optional_tensor(4),
               .k_positions = a.optional_tensor(5),
               .q_documents = a.optional_tensor(7),
               .k_documents = a.optional_tensor(8),
               .max_documents = a.integer("max_documents", 0),
               .k_lengths = a.optional_tensor(6),
               .dropout_p = a.number("dropout_p", 0),
               .stream = RandomStream{.seed = uint64_t(a.integer("seed", 0)), .purpose = "dropout"}})};
        })},
    .rule = attention_rule,
    .passes = {passes({2}, Reduce::sum).only_to({0})},
    .types = attention_types,
    .optional = {3, 4, 5, 6, 7, 8, 9, 10},
    .strided = true,
    .cpu = attention_kernel,
    .gradient = attention_gradient,
    .keeps = {.inputs = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, .outputs = {0, 1}},
    .sample = attention_samples()};
const Op attention_backward_op = {.name = "attention_backward",
                                  .rule = attention_backward_rule,
                                  .types = attention_backward_types,
                                  .optional = {6, 7, 8, 9, 10, 11, 12, 13},
                                  .strided = true,
                                  .cpu = attention_backward_kernel,
                                  .sample = attention_backward_samples()};

namespace {
constexpr const Op* attention_ops[] = {&attention_op, &attention_backward_op};
}  // namespace
const Cards attention_cards = attention_ops;

namespace {

// The mask of 4 dimensions, if there is one.
DistributedTensor mask_of(const DistributedTensor& q, const DistributedTensor& k, const AttentionOptions& options) {
  const DistributedTensor& mask = options.attn_mask;
  if (!mask.defined()) return mask;
  const Shape scores{q.size(0), q.size(1), q.size(2), k.size(2)};
  check(!options.causal,
        "[scaled_dot_product_attention] attn_mask and is_causal are both given: put the triangle into the mask");
  check(mask.dtype() == DType::boolean || mask.dtype() == q.dtype(),
        "[scaled_dot_product_attention] attn_mask is bool or of the queries' type, not {}: {}", name(mask.dtype()),
        mask);
  check(mask.dims() <= 4, "[scaled_dot_product_attention] attn_mask {} has more than 4 dimensions", mask);
  Shape shape = Shape::filled(4, 1);
  for (int d = 0; d < mask.dims(); ++d) shape[4 - mask.dims() + d] = mask.shape()[d];
  for (int d = 0; d < 4; ++d)
    check(shape[d] == 1 || shape[d] == scores[d],
          "[scaled_dot_product_attention] attn_mask {} does not broadcast to [batch, heads, queries, keys] {}", mask,
          scores);
  return mask.dims() < 4 ? view(mask, shape) : mask;
}

// What a call is checked for and made of. Inside, dimensions are [batch, sequence, heads, head_dim].
struct Prepared {
  DistributedTensor q, k, v, mask;
  Draw drops;
  Attention attributes;

  Prepared(const char* who, const DistributedTensor& q, const DistributedTensor& k, const DistributedTensor& v,
           const AttentionOptions& options);
};

void check_operands(const char* who, const DistributedTensor& q, const DistributedTensor& k,
                    const DistributedTensor& v) {
  check_defined(who, q);
  check_defined(who, k, 1);
  check_defined(who, v, 2);
  check(q.dims() == 4 && k.dims() == 4 && v.dims() == 4,
        "[{}] operands are [batch, heads, sequence, head_dim]: {}, {}, {}", who, q, k, v);
  check(k.shape() == v.shape() && q.size(0) == k.size(0) && q.size(3) == k.size(3),
        "[{}] q {}, k {} and v {}: k and v have one shape, and q's batch and head_dim", who, q, k, v);
  check(k.size(1) > 0 && q.size(1) % k.size(1) == 0, "[{}] {} query heads are no multiple of {} key/value heads", who,
        q.size(1), k.size(1));
}

void check_options(const char* who, const DistributedTensor& q, const DistributedTensor& k,
                   const AttentionOptions& options) {
  check_positions(who, "q_positions", options.q_positions, q.size(0), q.size(2));
  check_positions(who, "k_positions", options.k_positions, k.size(0), k.size(2));
  check_positions(who, "q_documents", options.q_documents, q.size(0), q.size(2));
  check_positions(who, "k_documents", options.k_documents, k.size(0), k.size(2));
  check(options.q_documents.defined() == options.k_documents.defined(),
        "[{}] documents are given of queries or of keys alone: give q_documents and k_documents, or neither", who);
  check(options.max_documents >= 0 && (options.max_documents == 0 || options.q_documents.defined()),
        "[{}] max_documents = {}{}: it is how many a row of q_documents has at most, or 0", who, options.max_documents,
        options.q_documents.defined() ? "" : " without q_documents");
  check(options.max_documents == 0 || q.size(2) == k.size(2),
        "[{}] max_documents = {} of {} queries and {} keys: it is of queries and keys that are the same tokens", who,
        options.max_documents, q.size(2), k.size(2));
  check(options.window >= 0 && (options.window == 0 || options.causal),
        "[{}] a window of {}{}: it is a number of keys up to the query's own, with is_causal", who, options.window,
        options.causal ? "" : " without is_causal");
  check((!options.q_positions.defined() && !options.k_positions.defined()) || options.causal || options.dropout_p > 0,
        "[{}] q_positions and k_positions say what is_causal hides, or which weights dropout_p drops: neither is asked "
        "for",
        who);
  const DistributedTensor& lengths = options.k_lengths;
  if (lengths.defined())
    check(lengths.dtype() == DType::i64 && (lengths.dims() == 0 || lengths.shape() == Shape{q.size(0)}),
          "[{}] k_lengths is {}, not i64[] or i64[{}]", who, lengths, q.size(0));
  check_probability(who, options.dropout_p);
}

Prepared::Prepared(const char* who, const DistributedTensor& q_heads, const DistributedTensor& k_heads,
                   const DistributedTensor& v_heads, const AttentionOptions& options) {
  check_operands(who, q_heads, k_heads, v_heads);
  mask = mask_of(q_heads, k_heads, options);
  check_options(who, q_heads, k_heads, options);
  const DeviceMesh& mesh = q_heads.mesh();
  std::optional<Draw> d;
  if (options.dropout_p > 0)
    d = options.stream ? draw_from_stream(who, mesh, *options.stream) : draw_from_scope(who, mesh);
  if (d) drops = *d;
  q = transpose(options.scale < 0 ? neg(q_heads) : q_heads, 1, 2), k = transpose(k_heads, 1, 2),
  v = transpose(v_heads, 1, 2);
  attributes = {.causal = options.causal,
                .window = options.window,
                .whole_kv = k_heads.size(1) % mesh.shape().product(q_heads.layout().split[1].set()) != 0,
                .scale = options.scale != 0 ? std::abs(options.scale) : 1 / std::sqrt(double(q_heads.size(3))),
                .dropout_p = drops.step.defined() ? options.dropout_p : 0,
                .key = drops.key,
                .deterministic = options.deterministic,
                .max_documents = options.max_documents};
}

}  // namespace

void for_chunks(const Context& c, std::span<const Tensor> in, std::span<Tensor> out, Kernel kernel) {
  int64_t chunks = c.attributes.as<Attention>().chunks > 1 ? c.range('c').size() : 1;
  if (chunks == 1) return kernel(c, in, out);
  bool backward = out.size() > 2;
  size_t heads = backward ? 5 : 3;  // operands [batch, sequence, heads, head_dim]; before the rows' sums of `backward`
  size_t more = backward ? 6 : 3;
  auto chunk = [&](const Tensor& t, int dim, int64_t i) {
    int64_t n = t.size(dim) / chunks;
    return t.narrow(dim, i * n, n);
  };
  for (int64_t i = 0; i < chunks; ++i) {
    std::vector<Tensor> of_in(in.begin(), in.end()), of_out;
    for (size_t k = 0; k < heads; ++k) of_in[k] = chunk(in[k], 1, i);
    if (backward) of_in[5] = chunk(in[5], 2, i);
    for (size_t k : {more + 3, more + 4, more + 6, more + 7})  // positions and documents
      if (in[k].defined()) of_in[k] = chunk(in[k], in[k].dims() - 1, i);
    auto dim = [&](size_t k) { return !backward && k == 1 ? 2 : 1; };
    for (size_t k = 0; k < out.size(); ++k) {
      Shape shape = out[k].shape();
      shape[dim(k)] /= chunks;
      of_out.emplace_back(c.allocator, out[k].dtype(), shape, out[k].device());
    }
    kernel(c, of_in, of_out);
    for (size_t k = 0; k < out.size(); ++k) copy(of_out[k], chunk(out[k], dim(k), i));
  }
}

DistributedTensor scaled_dot_product_attention(const DistributedTensor& q, const DistributedTensor& k,
                                               const DistributedTensor& v, const AttentionOptions& options) {
  Prepared p("scaled_dot_product_attention", q, k, v, options);
  return transpose(call(attention_op,
                        {&p.q, &p.k, &p.v, &p.mask, &p.drops.step, &p.drops.rows, &options.q_positions,
                         &options.k_positions, &options.k_lengths, &options.q_documents, &options.k_documents},
                        p.attributes),
                   1, 2);
}

DistributedTensor ring_attention(const DistributedTensor& q, const DistributedTensor& k, const DistributedTensor& v,
                                 int axis, const AttentionOptions& options) {
  const char* who = "ring_attention";
  check_operands(who, q, k, v);
  const MeshShape& mesh = q.mesh().shape();
  check(axis >= 0 && axis < mesh.axes(), "[{}] axis {} of mesh {}", who, axis, to_string(mesh));
  if (mesh.size(axis) == 1) return scaled_dot_product_attention(q, k, v, options);
  check(!options.attn_mask.defined() && !options.k_lengths.defined(),
        "[{}] attn_mask and k_lengths do not go round a ring: say who sees whom by positions and documents", who);
  for (const DistributedTensor* x : {&q, &k, &v}) {
    const AxisList& split = x->layout().split[2];
    check(split.set() == axis_bit(axis), "[{}] {} is not sharded over {}, and it alone, along the sequence", who, *x,
          mesh.name(axis));
    check(x->size(2) % mesh.size(axis) == 0,
          "[{}] a sequence of {} tokens does not divide over the {} ranks of {}: pad it, or gather the keys", who,
          x->size(2), mesh.size(axis), mesh.name(axis));
  }
  AttentionOptions given = options;
  auto indices = [&](const DistributedTensor& x) {
    Layout layout = Layout().with(axis, Shard(0));
    return arange(x.mesh(), TensorSpec{DType::i64, {x.size(2)}, layout});
  };
  if (options.causal || options.dropout_p > 0) {  // a chunk's own indices would begin at 0
    if (!given.q_positions.defined()) given.q_positions = indices(q);
    if (!given.k_positions.defined()) given.k_positions = indices(k);
  }
  Prepared p(who, q, k, v, given);
  return transpose(call(ring_attention_op,
                        {&p.q, &p.k, &p.v, &p.drops.step, &p.drops.rows, &given.q_positions, &given.k_positions,
                         &given.q_documents, &given.k_documents},
                        RingAttention{p.attributes, axis}),
                   1, 2);
}

}  // namespace dtensor::ops
