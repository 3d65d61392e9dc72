#include "ops/attention.h"

#include <cmath>

#include "ops/cpu/attention.h"
#include "ops/cpu/fused.h"
#include "ops/dropout.h"
#include "ops/kernel.h"
#include "ops/reduce.h"
#include "ops/unary.h"
#include "ops/view.h"

namespace dtensor::ops {
namespace {

// One tensor or several, of one sequence and head size.
void rotary_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  int64_t d = in[0].size(3);
  Range s = c.range('s');
  check_pairs(d);
  auto strides = [](const Tensor& t) { return cpu::Strides{t.strides()[0], t.strides()[1], t.strides()[2]}; };
  for_floating(c, in[0].dtype(), [&]<class T>() {
    std::vector<T> cos(size_t(s.size() * d / 2)), sin(cos.size());
    cpu::rotary_table(s.begin, s.end, d, c.attributes.get<double>("theta"), cos.data(), sin.data());
    bool inverse = c.attributes.get<bool>("inverse");
    for (size_t i = 0; i < in.size(); ++i) {
      Tensor x = with_whole_rows(in[i]);
      const Tensor& y = out[i];
      int64_t batch = x.size(0), heads = x.size(2);
      const T* from = x.data<T>();
      T* to = y.data<T>();
      int64_t grain = std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(batch * heads * d, 1));
      c.pool.parallel_for(s.size(), grain, [&](int64_t b, int64_t e, int) {
        cpu::rotary(batch, e - b, heads, d, from + b * x.strides()[1], strides(x), cos.data() + b * (d / 2),
                    sin.data() + b * (d / 2), inverse, to + b * y.strides()[1], strides(y));
      });
    }
  });
}

Attributes turned_back(const Attributes& a) {
  return {{"theta", a.get<double>("theta")}, {"inverse", !a.get<bool>("inverse")}};
}
void rotary_gradient(Gradient& g) { g.set(0, call(rotary_op, {&g.of_output()}, turned_back(g.attributes()))); }
void rotary_pair_gradient(Gradient& g) {
  const DistributedTensor &dq = g.of_output(0), &dk = g.of_output(1);
  Attributes back = turned_back(g.attributes());
  if (dq.defined() && dk.defined()) {
    auto d = call_all(rotary_pair_op, {&dq, &dk}, back);
    g.set(0, d[0]);
    g.set(1, d[1]);
  } else {  // one of them is not used
    g.set(dq.defined() ? 0 : 1, call(rotary_op, {dq.defined() ? &dq : &dk}, back));
  }
}

// Heads of this rank; head h of the queries reads key head h / repeats. Mask and key may be absent.
template <class T>
struct Heads {
  int64_t batch, heads, kv_heads, repeats;
  cpu::Attention shape;
  cpu::Drop drop;
  Tensor mask;
  Shape mask_strides;
  int64_t first_batch, first_head, all_heads, all_queries;

  Heads(const Context& c, const Tensor& q, const Tensor& k, const Tensor& mask, const Tensor& key)
      : batch(q.size(0)),
        heads(q.size(2)),
        kv_heads(k.size(2)),
        repeats(kv_heads ? heads / kv_heads : 0),
        shape{q.size(1),
              k.size(1),
              q.size(3),
              c.range('s').begin,
              0,
              c.attributes.get<bool>("causal"),
              c.attributes.get<double>("scale")},
        mask(mask),
        first_batch(c.range('b').begin),
        first_head(c.range('g').begin * repeats),
        all_heads(c.size('g') * repeats),
        all_queries(c.size('s')) {
    if (key.defined()) drop = {uint64_t(*key.data<int64_t>()), c.attributes.get<double>("dropout_p")};
    if (mask.defined()) mask_strides = broadcast_strides(mask, {batch, heads, shape.queries, shape.keys});
  }

  cpu::Scores<T> scores(int64_t b, int64_t h) const {
    cpu::Scores<T> s;
    if (mask.defined()) {
      int64_t at = b * mask_strides[0] + h * mask_strides[1];
      s.row_stride = mask_strides[2], s.key_stride = mask_strides[3];
      if (mask.dtype() == DType::boolean)
        s.visible = mask.data<bool>() + at;
      else
        s.bias = mask.data<T>() + at;
    }
    s.drop = drop;
    s.drop_stride = shape.keys;
    s.drop_first = (((first_batch + b) * all_heads + first_head + h) * all_queries + shape.query_begin) * shape.keys;
    return s;
  }
};

template <class T>
T* head(const Tensor& t, int64_t batch, int64_t h) {
  return t.data<T>() + batch * t.strides()[0] + h * t.strides()[2];
}

// q [b,s,(g r),d], k and v [b,t,g,d], mask, key -> out [b,s,(g r),d], and the logarithm of each row's sum [b,(g r),s]
// for the gradient
void attention_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Tensor q = with_whole_rows(in[0]), k = with_whole_rows(in[1]), v = with_whole_rows(in[2]);
  for_floating(c, q.dtype(), [&]<class T>() {
    Heads<T> n(c, q, k, in[3], in[4]);
    T* lse = out[1].data<T>();
    c.pool.parallel_for(n.batch * n.heads, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i) {
        int64_t b = i / n.heads, h = i % n.heads, g = h / n.repeats;
        cpu::attention(n.shape, head<T>(q, b, h), q.strides()[1], head<T>(k, b, g), k.strides()[1], head<T>(v, b, g),
                       v.strides()[1], head<T>(out[0], b, h), out[0].strides()[1], lse + i * n.shape.queries,
                       c.scratch(worker), n.scores(b, h));
      }
    });
  });
}

// dout, q, k, v, out, lse, mask, key -> dq, dk, dv, and where it is asked for that of the scores [b,(g r),s,t]
void attention_backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> grad) {
  Tensor dout = with_whole_rows(in[0]), q = with_whole_rows(in[1]), k = with_whole_rows(in[2]),
         v = with_whole_rows(in[3]), out = with_whole_rows(in[4]), rows = in[5].contiguous();
  fill(grad[1], 0);
  fill(grad[2], 0);
  for_floating(c, q.dtype(), [&]<class T>() {
    Heads<T> n(c, q, k, in[6], in[7]);
    const T* lse = rows.data<T>();
    c.pool.parallel_for(n.batch * n.kv_heads, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t r = 0; r < n.repeats; ++r) {
          int64_t b = i / n.kv_heads, g = i % n.kv_heads, h = g * n.repeats + r,
                  first = (b * n.heads + h) * n.shape.queries;
          cpu::Scores<T> scores = n.scores(b, h);
          if (grad.size() > 3) scores.bias_gradient = grad[3].data<T>() + first * n.shape.keys;
          cpu::attention_backward(n.shape, head<T>(q, b, h), q.strides()[1], head<T>(k, b, g), k.strides()[1],
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
Rule attention_rule(std::span<const Shape* const> in, const Attributes&) {
  return {"bs(gr)[d],b[t]g[d],b[t]g[d]," + mask_term(in[3], *in[0], *in[1]) + ",->bs(gr)[d],b(gr)s"};
}
Rule attention_backward_rule(std::span<const Shape* const> in, const Attributes& a) {
  return {"bs(gr)[d],bs(gr)[d],b[t]g[d],b[t]g[d],bs(gr)[d],b(gr)s," + mask_term(in[6], *in[1], *in[2]) +
          ",->bs(gr)[d],b[t]g[d],b[t]g[d]" + (a.get<bool>("mask_gradient") ? ",b(gr)s[t]" : "")};
}
// Masks may be bool, and keys of random streams are i64.
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
  Attributes a = g.attributes();
  bool of_mask = g.needs(3);
  a.set("mask_gradient", of_mask);
  auto d = call_all(
      attention_backward_op,
      {&g.of_output(), &g.input(0), &g.input(1), &g.input(2), &g.output(0), &g.output(1), &g.input(3), &g.input(4)}, a);
  for (int i = 0; i < 3; ++i) g.set(i, d[size_t(i)]);
  if (of_mask) g.set(3, sum_to(d[3], g.input_spec(3).shape));
}

Attributes attention_attributes(bool causal, double dropout_p = 0) {
  return {{"causal", causal}, {"scale", 0.5}, {"dropout_p", dropout_p}};
}
Attributes backward_attributes(bool causal, double dropout_p, bool mask_gradient) {
  Attributes a = attention_attributes(causal, dropout_p);
  a.set("mask_gradient", mask_gradient);
  return a;
}
using Kind = SampleInput::Kind;
const SampleInput absent(Kind::absent, {}), random_key(Kind::index, {}, 1000);

}  // namespace

const Op rotary_op = {.name = "rotary",
                      .rule = "bsh[d]->bsh[d]",
                      .linear = {{0}},
                      .strided = true,
                      .cpu = rotary_kernel,
                      .gradient = rotary_gradient,
                      .sample = {{{{2, 5, 3, 4}}, {{"theta", 100.0}, {"inverse", false}}},
                                 {{{1, 0, 2, 2}}, {{"theta", 100.0}, {"inverse", true}}}}};
const Op rotary_pair_op = {.name = "rotary_pair",
                           .rule = "bs(gr)[d],bsg[d]->bs(gr)[d],bsg[d]",
                           .linear = {{0, 1}},
                           .passes = {{.inputs = {0}, .outputs = {0}}, {.inputs = {1}, .outputs = {1}}},
                           .strided = true,
                           .cpu = rotary_kernel,
                           .gradient = rotary_pair_gradient,
                           .sample = {{{{2, 5, 6, 4}, {2, 5, 3, 4}}, {{"theta", 100.0}, {"inverse", false}}},
                                      {{{1, 3, 4, 2}, {1, 3, 4, 2}}, {{"theta", 100.0}, {"inverse", true}}}}};
const Op attention_op = {
    .name = "attention",
    .rule = attention_rule,
    .passes = {{.inputs = {2}, .outputs = {0}}},
    .types = attention_types,
    .optional = {3, 4},
    .strided = true,
    .cpu = attention_kernel,
    .gradient = attention_gradient,
    .keeps = {.inputs = {0, 1, 2, 3, 4}, .outputs = {0, 1}},
    .sample = {{{{2, 5, 12, 4}, {2, 5, 6, 4}, {2, 5, 6, 4}, absent, absent}, attention_attributes(true)},
               {{{1, 5, 3, 2}, {1, 7, 3, 2}, {1, 7, 3, 2}, absent, absent}, attention_attributes(false)},
               {{{2, 5, 6, 2}, {2, 4, 3, 2}, {2, 4, 3, 2}, {2, 6, 5, 4}, absent}, attention_attributes(false)},
               {{{2, 3, 4, 2}, {2, 4, 2, 2}, {2, 4, 2, 2}, {1, 4, 1, 4}, absent}, attention_attributes(false)},
               {{{2, 3, 2, 2}, {2, 4, 2, 2}, {2, 4, 2, 2}, {Kind::boolean, {2, 1, 3, 4}}, random_key},
                attention_attributes(false, 0.25)},
               {{{2, 5, 4, 2}, {2, 5, 2, 2}, {2, 5, 2, 2}, absent, random_key}, attention_attributes(true, 0.5)}}};
const Op attention_backward_op = {.name = "attention_backward",
                                  .rule = attention_backward_rule,
                                  .types = attention_backward_types,
                                  .optional = {6, 7},
                                  .strided = true,
                                  .cpu = attention_backward_kernel,
                                  .sample = {{{{2, 5, 12, 4},
                                               {2, 5, 12, 4},
                                               {2, 5, 6, 4},
                                               {2, 5, 6, 4},
                                               {2, 5, 12, 4},
                                               {Kind::positive, {2, 12, 5}},
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
                                               random_key},
                                              backward_attributes(false, 0.25, true)}}};

Tensor with_whole_heads(const Tensor& t) { return t.strides().back() == 1 || t.shape().back() == 1 ? t : t.clone(); }
void check_pairs(int64_t d) { check(d % 2 == 0, "[rotary] heads of {} elements; pairs need an even number", d); }

DistributedTensor rotary(const DistributedTensor& x, double theta) {
  return call(rotary_op, {&x}, {{"theta", theta}, {"inverse", false}});
}

std::tuple<DistributedTensor, DistributedTensor> rotary(const DistributedTensor& q, const DistributedTensor& k,
                                                        double theta) {
  auto outputs = call_all(rotary_pair_op, {&q, &k}, {{"theta", theta}, {"inverse", false}});
  return {outputs[0], outputs[1]};
}

DistributedTensor scaled_dot_product_attention(const DistributedTensor& q, const DistributedTensor& k,
                                               const DistributedTensor& v, const AttentionOptions& options) {
  check_defined("scaled_dot_product_attention", q);
  check_defined("scaled_dot_product_attention", k, 1);
  check_defined("scaled_dot_product_attention", v, 2);
  check(q.dims() == 4 && k.dims() == 4 && v.dims() == 4,
        "[scaled_dot_product_attention] operands are [batch, heads, sequence, head_dim]: {}, {}, {}", to_string(q),
        to_string(k), to_string(v));
  check(k.shape() == v.shape() && q.size(0) == k.size(0) && q.size(3) == k.size(3),
        "[scaled_dot_product_attention] q {}, k {} and v {}: k and v have one shape, and q's batch and head_dim",
        to_string(q), to_string(k), to_string(v));
  check(k.size(1) > 0 && q.size(1) % k.size(1) == 0,
        "[scaled_dot_product_attention] {} query heads are no multiple of {} key/value heads", q.size(1), k.size(1));
  const Shape scores{q.size(0), q.size(1), q.size(2), k.size(2)};
  DistributedTensor mask = options.attn_mask, key;
  if (mask.defined()) {
    check(!options.causal,
          "[scaled_dot_product_attention] attn_mask and is_causal are both given: put the triangle into "
          "the mask");
    check(mask.dtype() == DType::boolean || mask.dtype() == q.dtype(),
          "[scaled_dot_product_attention] attn_mask is bool or of the queries' type, not {}: {}", name(mask.dtype()),
          to_string(mask));
    check(mask.dims() <= 4, "[scaled_dot_product_attention] attn_mask {} has more than 4 dimensions", to_string(mask));
    Shape shape = Shape::filled(4, 1);
    for (int d = 0; d < mask.dims(); ++d) shape[4 - mask.dims() + d] = mask.shape()[d];
    for (int d = 0; d < 4; ++d)
      check(shape[d] == 1 || shape[d] == scores[d],
            "[scaled_dot_product_attention] attn_mask {} does not broadcast to [batch, heads, queries, keys] {}",
            to_string(mask), to_string(scores));
    if (mask.dims() < 4) mask = view(mask, shape);
  }
  check_probability("scaled_dot_product_attention", options.dropout_p);
  if (options.dropout_p > 0) key = stream_key(q.mesh(), options.stream);
  double scale = options.scale != 0 ? std::abs(options.scale) : 1 / std::sqrt(double(q.size(3)));
  DistributedTensor qs = transpose(options.scale < 0 ? neg(q) : q, 1, 2), ks = transpose(k, 1, 2),
                    vs = transpose(v, 1, 2);
  Attributes attributes{{"causal", options.causal}, {"scale", scale}, {"dropout_p", options.dropout_p}};
  if (!options.deterministic) attributes.set("deterministic", false);
  return transpose(call(attention_op, {&qs, &ks, &vs, &mask, &key}, attributes), 1, 2);
}

}  // namespace dtensor::ops
