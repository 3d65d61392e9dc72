#include "ops/layer/attention.h"

#include <cmath>
#include <numeric>

#include "ops/cards.h"
#include "ops/cpu/attention.h"
#include "ops/cpu/fused.h"
#include "ops/family/kernel.h"
#include "ops/family/samples.h"
#include "ops/functions.h"

namespace dtensor::ops {
namespace {

// The positions of this rank's sequence: as given, [s] or [batch, s], or the global indices [s].
std::vector<int64_t> positions_of(Range s, const Tensor& given) {
  std::vector<int64_t> list(size_t(given.defined() ? given.numel() : s.size()));
  if (given.defined())
    std::copy_n(given.contiguous().data<int64_t>(), list.size(), list.begin());
  else
    std::iota(list.begin(), list.end(), s.begin);
  return list;
}

// One tensor or several, of one sequence and head size, and its positions or nothing.
void rotary_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  int64_t d = in[0].size(3), batch = in[0].size(0), half = d / 2;
  Range s = c.range('s');
  check_pairs(d);
  const Tensor& given = in.back();
  std::vector<int64_t> positions = positions_of(s, given);
  int64_t next = given.defined() && given.dims() == 2 ? s.size() * half : 0;  // the next batch entry's angles
  auto strides = [](const Tensor& t) { return cpu::Strides{t.strides()[0], t.strides()[1], t.strides()[2]}; };
  for_floating(c, in[0].dtype(), [&]<class T>() {
    std::vector<T> cos(positions.size() * size_t(half)), sin(cos.size());
    c.pool.parallel_for(int64_t(positions.size()), std::max<int64_t>(1, pointwise_grain / 16 / std::max<int64_t>(d, 1)),
                        [&](int64_t b, int64_t e, int) {
                          cpu::rotary_table(e - b, positions.data() + b, d, c.attributes.as<Rotary>().theta,
                                            cos.data() + b * half, sin.data() + b * half);
                        });
    bool inverse = c.attributes.as<Rotary>().inverse;
    for (size_t i = 0; i < out.size(); ++i) {
      Tensor x = with_whole_rows(in[i]);
      const Tensor& y = out[i];
      int64_t heads = x.size(2),
              grain = std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(batch * heads * d, 1));
      c.pool.parallel_for(s.size(), grain, [&](int64_t b, int64_t e, int) {
        for (int64_t n = 0; n < batch; ++n)
          cpu::rotary(1, e - b, heads, d, x.data<T>() + n * x.strides()[0] + b * x.strides()[1], strides(x),
                      cos.data() + n * next + b * half, sin.data() + n * next + b * half, inverse,
                      y.data<T>() + n * y.strides()[0] + b * y.strides()[1], strides(y));
      });
    }
  });
}

// A rule's term for positions: [sequence] or [batch, sequence].
std::string positions_term(const Shape* positions, const char* sequence) {
  if (!positions) return "";
  return (positions->dims() == 2 ? "b" : "") + std::string(sequence);
}
Rule rotary_rule(std::span<const Shape* const> in, const Attributes&) {
  return {"bsh[d]," + positions_term(in[1], "s") + "->bsh[d]"};
}
Rule rotary_pair_rule(std::span<const Shape* const> in, const Attributes&) {
  return {"bs(gr)[d],bsg[d]," + positions_term(in[2], "s") + "->bs(gr)[d],bsg[d]"};
}
DType rotary_types(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a, int output) {
  check(!in.back() || in.back()->dtype == DType::i64, "[rotary] positions are i64, not {}",
        in.back() ? name(in.back()->dtype) : "");
  return same_types(op, in.first(in.size() - 1), a, output);
}

Rotary turned_back(const Attributes& a) { return {a.as<Rotary>().theta, !a.as<Rotary>().inverse}; }
void rotary_gradient(Gradient& g) {
  g.set(0, call(rotary_op, {&g.of_output(), &g.input(1)}, turned_back(g.attributes())));
}
void rotary_pair_gradient(Gradient& g) {
  const DistributedTensor &dq = g.of_output(0), &dk = g.of_output(1), &positions = g.input(2);
  Rotary back = turned_back(g.attributes());
  if (dq.defined() && dk.defined()) {
    auto d = call_all(rotary_pair_op, {&dq, &dk, &positions}, back);
    g.set(0, d[0]);
    g.set(1, d[1]);
  } else {  // one of them is not used
    g.set(dq.defined() ? 0 : 1, call(rotary_op, {dq.defined() ? &dq : &dk, &positions}, back));
  }
}

// What attention_op takes besides q, k and v, and attention_backward_op besides those, dout, out and lse. All may be
// absent: mask; the step, rows and positions of ops/layer/dropout.h; lengths.
struct More {
  Tensor mask, step, rows, q_positions, k_positions, k_lengths;

  explicit More(std::span<const Tensor> in)
      : mask(in[0]), step(in[1]), rows(in[2]), q_positions(in[3]), k_positions(in[4]), k_lengths(in[5]) {
    for (Tensor* t : {&rows, &q_positions, &k_positions, &k_lengths})
      if (t->defined()) *t = t->contiguous();
  }
};
constexpr int more_operands = 6;

// Heads of this rank; head h of the queries reads key head h / repeats.
template <class T>
struct Heads {
  int64_t batch, heads, kv_heads, repeats;
  const More& more;
  cpu::Drop drop;
  Shape mask_strides;
  int64_t first_batch, first_head, all_heads, all_queries;

  Heads(const Context& c, const Tensor& q, const Tensor& k, const More& more)
      : batch(q.size(0)),
        heads(q.size(2)),
        kv_heads(k.size(2)),
        repeats(kv_heads ? heads / kv_heads : 0),
        more(more),
        first_batch(c.range('b').begin),
        first_head(c.range('g').begin * repeats),
        all_heads(c.size('g') * repeats),
        all_queries(c.size('s')),
        shape_{q.size(1),
               k.size(1),
               q.size(3),
               c.range('s').begin,
               0,
               c.attributes.as<Attention>().causal,
               c.attributes.as<Attention>().scale} {
    if (more.step.defined())
      drop = {key_at_step(uint64_t(c.attributes.as<Attention>().key), *more.step.data<int64_t>()),
              c.attributes.as<Attention>().dropout_p};
    if (more.mask.defined()) mask_strides = broadcast_strides(more.mask, {batch, heads, queries(), keys()});
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
    s.drop_stride = keys();
    s.drop_first = (row * all_heads + first_head + h) * all_queries * keys();
    return s;
  }

 private:
  cpu::Attention shape_;
};

template <class T>
T* head(const Tensor& t, int64_t batch, int64_t h) {
  return t.data<T>() + batch * t.strides()[0] + h * t.strides()[2];
}

// q [b,s,(g r),d], k and v [b,t,g,d], More -> out [b,s,(g r),d], and the logarithm of each row's sum [b,(g r),s]
// for the gradient
void attention_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Tensor q = with_whole_rows(in[0]), k = with_whole_rows(in[1]), v = with_whole_rows(in[2]);
  for_floating(c, q.dtype(), [&]<class T>() {
    More more(in.subspan(3));
    Heads<T> n(c, q, k, more);
    T* lse = out[1].data<T>();
    c.pool.parallel_for(n.batch * n.heads, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i) {
        int64_t b = i / n.heads, h = i % n.heads, g = h / n.repeats;
        cpu::attention(n.shape(b), head<T>(q, b, h), q.strides()[1], head<T>(k, b, g), k.strides()[1], head<T>(v, b, g),
                       v.strides()[1], head<T>(out[0], b, h), out[0].strides()[1], lse + i * n.queries(),
                       c.scratch(worker), n.scores(b, h));
      }
    });
  });
}

// dout, q, k, v, out, lse, More -> dq, dk, dv, and where it is asked for that of the scores [b,(g r),s,t]
void attention_backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> grad) {
  Tensor dout = with_whole_rows(in[0]), q = with_whole_rows(in[1]), k = with_whole_rows(in[2]),
         v = with_whole_rows(in[3]), out = with_whole_rows(in[4]), rows = in[5].contiguous();
  fill(grad[1], 0);
  fill(grad[2], 0);
  if (grad.size() > 3 && in[11].defined()) fill(grad[3], 0);  // of keys that take no part
  for_floating(c, q.dtype(), [&]<class T>() {
    More more(in.subspan(6));
    Heads<T> n(c, q, k, more);
    const T* lse = rows.data<T>();
    c.pool.parallel_for(n.batch * n.kv_heads, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t r = 0; r < n.repeats; ++r) {
          int64_t b = i / n.kv_heads, g = i % n.kv_heads, h = g * n.repeats + r,
                  first = (b * n.heads + h) * n.queries();
          cpu::Scores<T> scores = n.scores(b, h);
          if (grad.size() > 3) scores.bias_gradient = grad[3].data<T>() + first * n.keys();
          scores.bias_gradient_stride = n.keys();
          cpu::attention_backward(n.shape(b), head<T>(q, b, h), q.strides()[1], head<T>(k, b, g), k.strides()[1],
                                  head<T>(v, b, g), v.strides()[1], head<T>(out, b, h), out.strides()[1],
                                  head<T>(dout, b, h), dout.strides()[1], lse + first, head<T>(grad[0], b, h),
                                  grad[0].strides()[1], head<T>(grad[1], b, g), grad[1].strides()[1],
                                  head<T>(grad[2], b, g), grad[2].strides()[1], c.scratch(worker), scores);
        }
    });
  });
}

// The mask's term: a dimension of size 1 that is broadcast has no factor in common with the scores.
std::string mask_term(const Shape* mask, const Shape& q, const Shape& k) {
  if (!mask) return "";
  const char* names[] = {"b", "(gr)", "s", "[t]"};
  const char* broadcast[] = {"[w]", "[x]", "[y]", "[z]"};
  int64_t sizes[] = {q[0], q[2], q[1], k[1]};
  std::string term;
  for (int d = 0; d < 4; ++d) term += (*mask)[d] == 1 && sizes[d] != 1 ? broadcast[d] : names[d];
  return term;
}
// More: the mask, step, rows, positions and lengths.
std::string more_terms(std::span<const Shape* const> more, const Shape& q, const Shape& k) {
  return mask_term(more[0], q, k) + ",," + (more[2] ? "b" : "") + "," + positions_term(more[3], "s") + "," +
         positions_term(more[4], "[t]") + "," + (more[5] && more[5]->dims() ? "b" : "");
}
Rule attention_rule(std::span<const Shape* const> in, const Attributes&) {
  return {"bs(gr)[d],b[t]g[d],b[t]g[d]," + more_terms(in.subspan(3), *in[0], *in[1]) + "->bs(gr)[d],b(gr)s"};
}
Rule attention_backward_rule(std::span<const Shape* const> in, const Attributes& a) {
  return {"bs(gr)[d],bs(gr)[d],b[t]g[d],b[t]g[d],bs(gr)[d],b(gr)s," + more_terms(in.subspan(6), *in[1], *in[2]) +
          "->bs(gr)[d],b[t]g[d],b[t]g[d]" + (a.as<AttentionBackward>().mask_gradient ? ",b(gr)s[t]" : "")};
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

Attention attention_attributes(bool causal, double dropout_p = 0) {
  return {.causal = causal, .scale = 0.5, .dropout_p = dropout_p, .key = 77};
}
AttentionBackward backward_attributes(bool causal, double dropout_p, bool mask_gradient) {
  return {attention_attributes(causal, dropout_p), mask_gradient};
}
Rotary turn(bool inverse) { return {100, inverse}; }
using Kind = SampleInput::Kind;
const SampleInput a_step = ids({}, 1000);

}  // namespace

const Op rotary_op = {
    .name = "rotary",
    .functions = {function(
        "rotary(x, positions=none, theta=10000)", "pairs of elements turned by their position",
        [](Arguments& a) -> List { return {rotary(a.tensor(0), a.number("theta", 10000), a.optional_tensor(1))}; })},
    .rule = rotary_rule,
    .passes = {linear_in({0})},
    .types = rotary_types,
    .optional = {1},
    .strided = true,
    .cpu = rotary_kernel,
    .gradient = rotary_gradient,
    .keeps = {.inputs = {1}},
    .sample = {{{{2, 5, 3, 4}, absent}, turn(false)},
               {{{1, 0, 2, 2}, absent}, turn(true)},
               {{{2, 5, 3, 4}, ids({5}, 100)}, turn(false)},
               {{{2, 5, 3, 4}, ids({2, 5}, 100)}, turn(true)}}};
const Op rotary_pair_op = {
    .name = "rotary_pair",
    .rule = rotary_pair_rule,
    .passes = {linear_in({0, 1}), passes({0}, Reduce::sum).only_to({0}), passes({1}, Reduce::sum).only_to({1})},
    .types = rotary_types,
    .optional = {2},
    .strided = true,
    .cpu = rotary_kernel,
    .gradient = rotary_pair_gradient,
    .keeps = {.inputs = {2}},
    .sample = {{{{2, 5, 6, 4}, {2, 5, 3, 4}, absent}, turn(false)},
               {{{1, 3, 4, 2}, {1, 3, 4, 2}, absent}, turn(true)},
               {{{2, 5, 6, 4}, {2, 5, 3, 4}, ids({2, 5}, 100)}, turn(false)}}};
const Op attention_op = {
    .name = "attention",
    .functions = {function(
        "scaled_dot_product_attention(q, k, v, attn_mask=none, q_positions=none, k_positions=none, k_lengths=none, "
        "dropout_p=0, is_causal=false, scale=1/sqrt(d), seed=0)",
        "softmax(q k^T * scale) v, of heads",
        [](Arguments& a) -> List {
          return {scaled_dot_product_attention(
              a.tensor(0), a.tensor(1), a.tensor(2),
              {.causal = a.flag("is_causal"),
               .scale = a.number("scale", 0),
               .attn_mask = a.optional_tensor(3),
               .q_positions = a.optional_tensor(4),
               .k_positions = a.optional_tensor(5),
               .k_lengths = a.optional_tensor(6),
               .dropout_p = a.number("dropout_p", 0),
               .stream = RandomStream{.seed = uint64_t(a.integer("seed", 0)), .purpose = "dropout"}})};
        })},
    .rule = attention_rule,
    .passes = {passes({2}, Reduce::sum).only_to({0})},
    .types = attention_types,
    .optional = {3, 4, 5, 6, 7, 8},
    .strided = true,
    .cpu = attention_kernel,
    .gradient = attention_gradient,
    .keeps = {.inputs = {0, 1, 2, 3, 4, 5, 6, 7, 8}, .outputs = {0, 1}},
    .sample = {
        {{{2, 5, 12, 4}, {2, 5, 6, 4}, {2, 5, 6, 4}, absent, absent, absent, absent, absent, absent},
         attention_attributes(true)},
        {{{1, 5, 3, 2}, {1, 7, 3, 2}, {1, 7, 3, 2}, absent, absent, absent, absent, absent, absent},
         attention_attributes(false)},
        {{{2, 5, 6, 2}, {2, 4, 3, 2}, {2, 4, 3, 2}, {2, 6, 5, 4}, absent, absent, absent, absent, absent},
         attention_attributes(false)},
        {{{2, 3, 4, 2}, {2, 4, 2, 2}, {2, 4, 2, 2}, {1, 4, 1, 4}, absent, absent, absent, absent, absent},
         attention_attributes(false)},
        {{{2, 3, 2, 2},
          {2, 4, 2, 2},
          {2, 4, 2, 2},
          {Kind::boolean, {2, 1, 3, 4}},
          a_step,
          absent,
          absent,
          absent,
          absent},
         attention_attributes(false, 0.25)},
        {{{2, 5, 4, 2}, {2, 5, 2, 2}, {2, 5, 2, 2}, absent, a_step, absent, absent, absent, absent},
         attention_attributes(true, 0.5)},
        {{{2, 5, 4, 2}, {2, 7, 2, 2}, {2, 7, 2, 2}, absent, absent, absent, ids({5}, 7), absent, absent},
         attention_attributes(true)},
        {{{2, 5, 4, 2},
          {2, 7, 2, 2},
          {2, 7, 2, 2},
          absent,
          a_step,
          ids({2}, 9),
          ids({2, 5}, 7),
          ids({2, 7}, 7),
          ids({2}, 8)},
         attention_attributes(true, 0.25)},
        {{{2, 3, 4, 2}, {2, 5, 2, 2}, {2, 5, 2, 2}, {2, 4, 3, 5}, absent, absent, absent, absent, ids({}, 6)},
         attention_attributes(false)},
    }};
const Op attention_backward_op = {.name = "attention_backward",
                                  .rule = attention_backward_rule,
                                  .types = attention_backward_types,
                                  .optional = {6, 7, 8, 9, 10, 11},
                                  .strided = true,
                                  .cpu = attention_backward_kernel,
                                  .sample = {{{{2, 5, 12, 4},
                                               {2, 5, 12, 4},
                                               {2, 5, 6, 4},
                                               {2, 5, 6, 4},
                                               {2, 5, 12, 4},
                                               {Kind::positive, {2, 12, 5}},
                                               absent,
                                               absent,
                                               absent,
                                               absent,
                                               absent,
                                               absent},
                                              backward_attributes(true, 0, false)},
                                             {{{2, 3, 4, 2},
                                               {2, 3, 4, 2},
                                               {2, 5, 2, 2},
                                               {2, 5, 2, 2},
                                               {2, 3, 4, 2},
                                               {Kind::positive, {2, 4, 3}},
                                               {2, 4, 3, 5},
                                               a_step,
                                               ids({2}, 9),
                                               absent,
                                               absent,
                                               ids({2}, 6)},
                                              backward_attributes(false, 0.25, true)},
                                             {{{2, 5, 4, 2},
                                               {2, 5, 4, 2},
                                               {2, 7, 2, 2},
                                               {2, 7, 2, 2},
                                               {2, 5, 4, 2},
                                               {Kind::positive, {2, 4, 5}},
                                               absent,
                                               a_step,
                                               absent,
                                               ids({5}, 7),
                                               ids({2, 7}, 7),
                                               ids({}, 8)},
                                              backward_attributes(true, 0.25, false)}}};

namespace {
constexpr const Op* list[] = {&rotary_op, &rotary_pair_op, &attention_op, &attention_backward_op};
}  // namespace
const Cards attention_cards = list;

Tensor with_whole_heads(const Tensor& t) { return t.strides().back() == 1 || t.shape().back() == 1 ? t : t.clone(); }
void check_pairs(int64_t d) { check(d % 2 == 0, "[rotary] heads of {} elements; pairs need an even number", d); }

namespace {

// Of a dimension `n` long, sequence or keys, of a tensor that has `batch` entries.
void check_positions(std::string_view who, std::string_view what, const DistributedTensor& positions, int64_t batch,
                     int64_t n) {
  if (!positions.defined()) return;
  const Shape& s = positions.shape();
  check(positions.dtype() == DType::i64 && (s == Shape{n} || s == Shape{batch, n}),
        "[{}] {} are {}, not i64[{}] or i64[{},{}]", who, what, positions, n, batch, n);
}

}  // namespace

DistributedTensor rotary(const DistributedTensor& x, double theta, const DistributedTensor& positions) {
  check_defined("rotary", x);
  if (x.dims() == 4) check_positions("rotary", "positions", positions, x.size(0), x.size(1));
  return call(rotary_op, {&x, &positions}, Rotary{theta, false});
}

std::tuple<DistributedTensor, DistributedTensor> rotary(const DistributedTensor& q, const DistributedTensor& k,
                                                        double theta, const DistributedTensor& positions) {
  check_defined("rotary", q);
  if (q.dims() == 4) check_positions("rotary", "positions", positions, q.size(0), q.size(1));
  auto outputs = call_all(rotary_pair_op, {&q, &k, &positions}, Rotary{theta, false});
  return {outputs[0], outputs[1]};
}

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

}  // namespace

DistributedTensor scaled_dot_product_attention(const DistributedTensor& q, const DistributedTensor& k,
                                               const DistributedTensor& v, const AttentionOptions& options) {
  check_defined("scaled_dot_product_attention", q);
  check_defined("scaled_dot_product_attention", k, 1);
  check_defined("scaled_dot_product_attention", v, 2);
  check(q.dims() == 4 && k.dims() == 4 && v.dims() == 4,
        "[scaled_dot_product_attention] operands are [batch, heads, sequence, head_dim]: {}, {}, {}", q, k, v);
  check(k.shape() == v.shape() && q.size(0) == k.size(0) && q.size(3) == k.size(3),
        "[scaled_dot_product_attention] q {}, k {} and v {}: k and v have one shape, and q's batch and head_dim", q, k,
        v);
  check(k.size(1) > 0 && q.size(1) % k.size(1) == 0,
        "[scaled_dot_product_attention] {} query heads are no multiple of {} key/value heads", q.size(1), k.size(1));
  const char* who = "scaled_dot_product_attention";
  DistributedTensor mask = mask_of(q, k, options);
  check_positions(who, "q_positions", options.q_positions, q.size(0), q.size(2));
  check_positions(who, "k_positions", options.k_positions, k.size(0), k.size(2));
  check((!options.q_positions.defined() && !options.k_positions.defined()) || options.causal || options.dropout_p > 0,
        "[{}] q_positions and k_positions say what is_causal hides, or which weights dropout_p drops: neither is asked "
        "for",
        who);
  const DistributedTensor& lengths = options.k_lengths;
  if (lengths.defined())
    check(lengths.dtype() == DType::i64 && (lengths.dims() == 0 || lengths.shape() == Shape{q.size(0)}),
          "[{}] k_lengths is {}, not i64[] or i64[{}]", who, lengths, q.size(0));
  check_probability(who, options.dropout_p);
  std::optional<Draw> d;
  if (options.dropout_p > 0)
    d = options.stream ? draw_from_stream(who, q.mesh(), *options.stream) : draw_from_scope(who, q.mesh());
  if (!d) d.emplace();
  double scale = options.scale != 0 ? std::abs(options.scale) : 1 / std::sqrt(double(q.size(3)));
  DistributedTensor qs = transpose(options.scale < 0 ? neg(q) : q, 1, 2), ks = transpose(k, 1, 2),
                    vs = transpose(v, 1, 2);
  bool drops = d->step.defined();
  Attention attributes{.causal = options.causal,
                       .scale = scale,
                       .dropout_p = drops ? options.dropout_p : 0,
                       .key = d->key,
                       .deterministic = options.deterministic};
  return transpose(
      call(attention_op,
           {&qs, &ks, &vs, &mask, &d->step, &d->rows, &options.q_positions, &options.k_positions, &lengths},
           attributes),
      1, 2);
}

}  // namespace dtensor::ops
