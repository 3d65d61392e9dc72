#include "ops/attention.h"

#include <cmath>

#include "ops/cpu/attention.h"
#include "ops/cpu/fused.h"
#include "ops/kernel.h"
#include "ops/view.h"

namespace dtensor::ops {
namespace {

// [batch, sequence, heads, d] with contiguous heads, any other strides.
Tensor with_whole_heads(const Tensor& t) { return t.strides().back() == 1 || t.shape().back() == 1 ? t : t.clone(); }

// One tensor or several, of one sequence and head size.
void rotary_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  int64_t d = in[0].size(3);
  Range s = c.range('s');
  check(d % 2 == 0, "[rotary] heads of {} elements; pairs need an even number", d);
  auto strides = [](const Tensor& t) { return cpu::Strides{t.strides()[0], t.strides()[1], t.strides()[2]}; };
  for_floating(c, in[0].dtype(), [&]<class T>() {
    std::vector<T> cos(size_t(s.size() * d / 2)), sin(cos.size());
    cpu::rotary_table(s.begin, s.end, d, c.attributes.get<double>("theta"), cos.data(), sin.data());
    bool inverse = c.attributes.get<bool>("inverse");
    for (size_t i = 0; i < in.size(); ++i) {
      Tensor x = with_whole_heads(in[i]);
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

// Heads [first, first + n) of the queries read key head `first / n`.
struct Heads {
  int64_t batch, heads, kv_heads, d, repeats;
  cpu::Attention shape;

  Heads(const Context& c, const Tensor& q, const Tensor& k)
      : batch(q.size(0)),
        heads(q.size(2)),
        kv_heads(k.size(2)),
        d(q.size(3)),
        repeats(kv_heads ? heads / kv_heads : 0),
        shape{q.size(1),
              k.size(1),
              d,
              c.range('s').begin,
              0,
              c.attributes.get<bool>("causal"),
              c.attributes.get<double>("scale")} {}
};

template <class T>
T* head(const Tensor& t, int64_t batch, int64_t h) {
  return t.data<T>() + batch * t.strides()[0] + h * t.strides()[2];
}

// q [b,s,(g r),d], k and v [b,t,g,d] -> out [b,s,(g r),d], and the logarithm of each row's sum [b,(g r),s] for the
// gradient
void attention_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Tensor q = with_whole_heads(in[0]), k = with_whole_heads(in[1]), v = with_whole_heads(in[2]);
  Heads n(c, q, k);
  for_floating(c, q.dtype(), [&]<class T>() {
    T* lse = out[1].data<T>();
    c.pool.parallel_for(n.batch * n.heads, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i) {
        int64_t b = i / n.heads, h = i % n.heads, g = h / n.repeats;
        cpu::attention(n.shape, head<T>(q, b, h), q.strides()[1], head<T>(k, b, g), k.strides()[1], head<T>(v, b, g),
                       v.strides()[1], head<T>(out[0], b, h), out[0].strides()[1], lse + i * n.shape.queries,
                       c.scratch(worker));
      }
    });
  });
}

// dout, q, k, v, out, lse -> dq, dk, dv
void attention_backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> grad) {
  Tensor dout = with_whole_heads(in[0]), q = with_whole_heads(in[1]), k = with_whole_heads(in[2]),
         v = with_whole_heads(in[3]), out = with_whole_heads(in[4]), rows = in[5].contiguous();
  Heads n(c, q, k);
  fill(grad[1], 0);
  fill(grad[2], 0);
  for_floating(c, q.dtype(), [&]<class T>() {
    const T* lse = rows.data<T>();
    c.pool.parallel_for(n.batch * n.kv_heads, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t r = 0; r < n.repeats; ++r) {
          int64_t b = i / n.kv_heads, g = i % n.kv_heads, h = g * n.repeats + r;
          cpu::attention_backward(n.shape, head<T>(q, b, h), q.strides()[1], head<T>(k, b, g), k.strides()[1],
                                  head<T>(v, b, g), v.strides()[1], head<T>(out, b, h), out.strides()[1],
                                  head<T>(dout, b, h), dout.strides()[1], lse + (b * n.heads + h) * n.shape.queries,
                                  head<T>(grad[0], b, h), grad[0].strides()[1], head<T>(grad[1], b, g),
                                  grad[1].strides()[1], head<T>(grad[2], b, g), grad[2].strides()[1],
                                  c.scratch(worker));
        }
    });
  });
}

void attention_gradient(Gradient& g) {
  auto d =
      call_all(attention_backward_op,
               {&g.of_output(), &g.input(0), &g.input(1), &g.input(2), &g.output(0), &g.output(1)}, g.attributes());
  for (int i = 0; i < 3; ++i) g.set(i, d[size_t(i)]);
}

Attributes attention_attributes(bool causal) { return {{"causal", causal}, {"scale", 0.5}}; }

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
const Op attention_op = {.name = "attention",
                         .rule = "bs(gr)[d],b[t]g[d],b[t]g[d]->bs(gr)[d],b(gr)s",
                         .passes = {{.inputs = {2}, .outputs = {0}}},
                         .strided = true,
                         .cpu = attention_kernel,
                         .gradient = attention_gradient,
                         .keeps = {.inputs = {0, 1, 2}, .outputs = {0, 1}},
                         .sample = {{{{2, 5, 12, 4}, {2, 5, 6, 4}, {2, 5, 6, 4}}, attention_attributes(true)},
                                    {{{1, 5, 3, 2}, {1, 7, 3, 2}, {1, 7, 3, 2}}, attention_attributes(false)}}};
const Op attention_backward_op = {
    .name = "attention_backward",
    .rule = "bs(gr)[d],bs(gr)[d],b[t]g[d],b[t]g[d],bs(gr)[d],b(gr)s->bs(gr)[d],b[t]g[d],b[t]g[d]",
    .strided = true,
    .cpu = attention_backward_kernel,
    .sample = {{{{2, 5, 12, 4},
                 {2, 5, 12, 4},
                 {2, 5, 6, 4},
                 {2, 5, 6, 4},
                 {2, 5, 12, 4},
                 {SampleInput::Kind::positive, {2, 12, 5}}},
                attention_attributes(true)}}};

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
  check(q.dims() == 4 && k.dims() == 4 && v.dims() == 4,
        "[scaled_dot_product_attention] operands are [batch, heads, sequence, head_dim]: {}, {}, {}", to_string(q),
        to_string(k), to_string(v));
  check(k.size(1) > 0 && q.size(1) % k.size(1) == 0,
        "[scaled_dot_product_attention] {} query heads are no multiple of {} key/value heads", q.size(1), k.size(1));
  double scale = options.scale > 0 ? options.scale : 1 / std::sqrt(double(q.size(3)));
  DistributedTensor qs = transpose(q, 1, 2), ks = transpose(k, 1, 2), vs = transpose(v, 1, 2);
  return transpose(call(attention_op, {&qs, &ks, &vs}, {{"causal", options.causal}, {"scale", scale}}), 1, 2);
}

}  // namespace dtensor::ops
