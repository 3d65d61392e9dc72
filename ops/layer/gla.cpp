#include "ops/layer/gla.h"

#include <fmt/format.h>

#include <cmath>

#include "dtensor/redistribute.h"
#include "ops/cards.h"
#include "ops/cpu/gla.h"
#include "ops/family/kernel.h"
#include "ops/family/samples.h"
#include "ops/functions.h"

namespace dtensor::ops {
namespace {

// Tensors of [..., s, h, n], and states [..., h, d, e], which are all contiguous.
struct GatedHeads {
  int64_t batch, rows, heads, keys, values;
  double scale;

  GatedHeads(const Context& c, const Tensor& k, const Tensor& v, double scale)
      : batch(rows_of(k, 3)),
        rows(k.size(k.dims() - 3)),
        heads(k.size(k.dims() - 2)),
        keys(k.shape().back()),
        values(v.shape().back()),
        scale(scale) {
    (void)c;
  }
  cpu::GatedLinear shape() const { return {rows, keys, values, heads * keys, heads * values, scale}; }
  // body(i, at): at(tensor) is where head i begins, null of an undefined one.
  template <class T, class Body>
  void each(const Context& c, Body body) const {
    c.pool.parallel_for(batch * heads, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; ++i) {
        auto sequence = [&](const Tensor& t) {
          return t.defined() ? t.data<T>() + (i / heads * rows * heads + i % heads) * t.shape().back() : nullptr;
        };
        auto state = [&](const Tensor& t) { return t.defined() ? t.data<T>() + i * keys * values : nullptr; };
        body(sequence, state, c.scratch(worker));
      }
    });
  }
};

// q, k, v, g, state -> out, the last state
void gated_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  check_rows(c, in.first(4), {{0, 3}, {1, 3}, {2, 3}, {3, 3}});
  if (in[4].defined()) check_rows(c, in, {{0, 3}, {4, 3}});
  GatedHeads n(c, in[1], in[2], c.attributes.as<GatedLinear>().scale);
  for_floating(c, in[3].dtype(), [&]<class T>() {
    n.each<T>(c, [&](auto sequence, auto state, cpu::Scratch& scratch) {
      cpu::gated_linear<T>(n.shape(), sequence(in[0]), sequence(in[1]), sequence(in[2]), sequence(in[3]), state(in[4]),
                           sequence(out[0]), state(out[1]), scratch);
    });
  });
}

// k, v, g -> the last state
void state_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  check_rows(c, in, {{0, 3}, {1, 3}, {2, 3}});
  GatedHeads n(c, in[0], in[1], 1);
  for_floating(c, in[2].dtype(), [&]<class T>() {
    n.each<T>(c, [&](auto sequence, auto state, cpu::Scratch& scratch) {
      cpu::gated_linear<T>(n.shape(), nullptr, sequence(in[0]), sequence(in[1]), sequence(in[2]), nullptr, nullptr,
                           state(out[0]), scratch);
    });
  });
}

// dout, dlast, q, k, v, g, state -> dk, dv, dg, and dq and dstate where there are those
void backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> grad) {
  check_rows(c, in, {{3, 3}, {4, 3}, {5, 3}});
  for (int i : {0, 1, 2, 6})
    if (in[size_t(i)].defined()) check_rows(c, in, {{3, 3}, {i, 3}});
  size_t next = 3;
  Tensor dq = in[2].defined() ? grad[next++] : Tensor(), dstate = in[6].defined() ? grad[next] : Tensor();
  GatedHeads n(c, in[3], in[4], c.attributes.as<GatedLinear>().scale);
  for_floating(c, in[5].dtype(), [&]<class T>() {
    n.each<T>(c, [&](auto sequence, auto state, cpu::Scratch& scratch) {
      cpu::gated_linear_backward<T>(
          n.shape(), sequence(in[0]), state(in[1]), sequence(in[2]), sequence(in[3]), sequence(in[4]), sequence(in[5]),
          state(in[6]), {sequence(dq), sequence(grad[0]), sequence(grad[1]), sequence(grad[2]), state(dstate)},
          scratch);
    });
  });
}

Rule gated_rule(std::span<const Shape* const> in, const Attributes&) {
  return {fmt::format("...[s]hd,...[s]hd,...[s]he,...[s]hd,{}->...[s]he,...hde", in[4] ? "...hde" : "")};
}
Rule backward_rule(std::span<const Shape* const> in, const Attributes&) {
  std::string rule =
      fmt::format("{},{},{},...[s]hd,...[s]he,...[s]hd,{}->...[s]hd,...[s]he,...[s]hd", in[0] ? "...[s]he" : "",
                  in[1] ? "...hde" : "", in[2] ? "...[s]hd" : "", in[6] ? "...hde" : "");
  if (in[2]) rule += ",...[s]hd";
  if (in[6]) rule += ",...hde";
  return {rule};
}

// Of gates and states: those of keys are rounded to bf16, these never.
DType wide(DType t) { return t == DType::bf16 ? DType::f32 : t; }
// `of`: one among keys and values; the others that are present must be of its type, or of states'.
void check_types(std::span<const TensorSpec* const> in, DType of, std::initializer_list<size_t> sequences,
                 std::initializer_list<size_t> states) {
  check(of == DType::bf16 || of == DType::f32 || of == DType::f64,
        "[gated_linear_attention] keys are {}, no floating numbers", name(of));
  for (size_t i : sequences)
    check(!in[i] || in[i]->dtype == of, "[gated_linear_attention] queries, keys and values are {} and {}: cast some",
          name(of), in[i] ? name(in[i]->dtype) : "");
  for (size_t i : states)
    check(!in[i] || in[i]->dtype == wide(of),
          "[gated_linear_attention] gates and states of {} keys are {}, not {}: cast them", name(of), name(wide(of)),
          in[i] ? name(in[i]->dtype) : "");
}
DType gated_types(std::string_view, std::span<const TensorSpec* const> in, const Attributes&, int output) {
  DType t = in[1]->dtype;
  check_types(in, t, {0, 2}, {3, 4});
  return output == 0 ? t : wide(t);
}
DType state_types(std::string_view, std::span<const TensorSpec* const> in, const Attributes&, int) {
  check_types(in, in[0]->dtype, {1}, {2});
  return wide(in[0]->dtype);
}
DType backward_types(std::string_view, std::span<const TensorSpec* const> in, const Attributes&, int output) {
  DType t = in[3]->dtype;
  check_types(in, t, {0, 2, 4}, {1, 5, 6});
  return output == 2 || (output == 3 && !in[2]) || output == 4 ? wide(t) : t;
}

void gated_gradient(Gradient& g) {
  const DistributedTensor &dout = g.of_output(0), &dlast = g.of_output(1), &state = g.input(4), none;
  const DistributedTensor& q = dout.defined() ? g.input(0) : none;
  auto d = call_all(gated_linear_attention_backward_op,
                    {&dout, &dlast, &q, &g.input(1), &g.input(2), &g.input(3), &state}, g.attributes());
  g.set(1, d[0]), g.set(2, d[1]), g.set(3, d[2]);
  size_t next = 3;
  if (q.defined()) g.set(0, d[next++]);
  if (state.defined()) g.set(4, d[next]);
}
void state_gradient(Gradient& g) {
  const DistributedTensor none;
  auto d = call_all(gated_linear_attention_backward_op,
                    {&none, &g.of_output(), &none, &g.input(0), &g.input(1), &g.input(2), &none}, GatedLinear{1});
  for (int i = 0; i < 3; ++i) g.set(i, d[size_t(i)]);
}

// --- The scan over parts of a sequence: before_0 = initial, before_{p+1} = exp(decay_p) before_p + own_p

struct Parts {
  int64_t batch, parts, rows, values;  // rows: heads * keys

  explicit Parts(const Tensor& own)
      : batch(own.size(0)), parts(own.size(1)), rows(own.size(2) * own.size(3)), values(own.size(4)) {}
  // body(b, row): whose decays are at (b * parts + p) * rows + row, and states at that times values.
  template <class Body>
  void each(const Context& c, Body body) const {
    c.pool.parallel_for(batch * rows, std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(1, parts * values)),
                        [&](int64_t begin, int64_t end, int) {
                          for (int64_t i = begin; i < end; ++i) body(i / rows, i % rows);
                        });
  }
};

// decay [b,p,h,d], own [b,p,h,d,e], initial [b,h,d,e] -> before [b,p,h,d,e], last [b,h,d,e]
void scan_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Parts n(in[1]);
  for_floating(c, in[1].dtype(), [&]<class T>() {
    const T *decay = in[0].data<T>(), *own = in[1].data<T>();
    T *before = out[0].data<T>(), *last = out[1].data<T>();
    n.each(c, [&](int64_t b, int64_t row) {
      T* state = last + (b * n.rows + row) * n.values;
      if (in[2].defined())
        std::copy_n(in[2].data<T>() + (b * n.rows + row) * n.values, n.values, state);
      else
        std::fill_n(state, n.values, T(0));
      for (int64_t p = 0; p < n.parts; ++p) {
        int64_t at = (b * n.parts + p) * n.rows + row;
        T kept = std::exp(decay[at]);
        for (int64_t e = 0; e < n.values; ++e) {
          before[at * n.values + e] = state[e];
          state[e] = kept * state[e] + own[at * n.values + e];
        }
      }
    });
  });
}

// dbefore, dlast, decay, before -> ddecay, down, dinitial
void scan_backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> grad) {
  Parts n(in[3]);
  for_floating(c, in[3].dtype(), [&]<class T>() {
    const T *decay = in[2].data<T>(), *before = in[3].data<T>();
    T *ddecay = grad[0].data<T>(), *down = grad[1].data<T>(), *dinitial = grad[2].data<T>();
    n.each(c, [&](int64_t b, int64_t row) {
      T* state = dinitial + (b * n.rows + row) * n.values;
      if (in[1].defined())
        std::copy_n(in[1].data<T>() + (b * n.rows + row) * n.values, n.values, state);
      else
        std::fill_n(state, n.values, T(0));
      for (int64_t p = n.parts - 1; p >= 0; --p) {
        int64_t at = (b * n.parts + p) * n.rows + row;
        T kept = std::exp(decay[at]), sum = 0;
        for (int64_t e = 0; e < n.values; ++e) {
          int64_t i = at * n.values + e;
          down[i] = state[e];
          sum += state[e] * before[i];
          state[e] = kept * state[e] + (in[0].defined() ? in[0].data<T>()[i] : T(0));
        }
        ddecay[at] = kept * sum;
      }
    });
  });
}

// States and their decays are never bf16.
DType scan_types(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a, int output) {
  for (size_t i = 0; i < in.size(); ++i)
    check(!in[i] || in[i]->dtype != DType::bf16, "[{}] operand {} is bf16, and states are f32 or f64: use cast()", op,
          i);
  return floating_types(op, in, a, output);
}
Rule scan_rule(std::span<const Shape* const> in, const Attributes&) {
  return {fmt::format("b[p]hd,b[p]hde,{}->b[p]hde,bhde", in[2] ? "bhde" : "")};
}
Rule scan_backward_rule(std::span<const Shape* const> in, const Attributes&) {
  return {fmt::format("{},{},b[p]hd,b[p]hde->b[p]hd,b[p]hde,bhde", in[0] ? "b[p]hde" : "", in[1] ? "bhde" : "")};
}
void scan_gradient(Gradient& g) {
  auto d = call_all(state_scan_backward_op, {&g.of_output(0), &g.of_output(1), &g.input(0), &g.output(0)});
  g.set(0, d[0]), g.set(1, d[1]);
  if (g.needs(2)) g.set(2, d[2]);
}

const GatedLinear half{0.5};
const SampleInput keys{2, 5, 4, 3}, values{2, 5, 4, 2}, states{2, 4, 3, 2};

}  // namespace

const Op gated_linear_attention_op = {
    .name = "gated_linear_attention",
    .functions = {function("gated_linear_attention(q, k, v, g, initial_state=none, scale=1/sqrt(d))",
                           "scale q_t^T S_t of the states S_t = diag(exp g_t) S_{t-1} + k_t v_t^T, and the last state",
                           [](Arguments& a) -> List {
                             auto [out, state] =
                                 gated_linear_attention(a.tensor(0), a.tensor(1), a.tensor(2), a.tensor(3),
                                                        {a.optional_tensor(4), a.number("scale", 0)});
                             return {out, state};
                           })},
    .rule = gated_rule,
    .passes = {linear_in({2, 4}), linear_in({1, 4}), passes({0}, Reduce::sum).only_to({0})},
    .types = gated_types,
    .optional = {4},
    .cpu = gated_kernel,
    .gradient = gated_gradient,
    .keeps = {.inputs = {0, 1, 2, 3, 4}},
    .sample = {{{keys, keys, values, keys, absent}, half}, {{keys, keys, values, keys, states}, half}}};
// Gradients with respect to all that the two others read.
const Op gated_linear_attention_backward_op = {
    .name = "gated_linear_attention_backward",
    .rule = backward_rule,
    .passes = {linear_in({0, 1})},
    .types = backward_types,
    .optional = {0, 1, 2, 6},
    .cpu = backward_kernel,
    .sample = {{{values, absent, keys, keys, values, keys, absent}, half},
               {{values, states, keys, keys, values, keys, states}, half},
               {{absent, states, absent, keys, values, keys, absent}, half}}};
const Op linear_state_op = {.name = "linear_state",
                            .rule = "...[s]hd,...[s]he,...[s]hd->...hde",
                            .passes = {linear_in({0}), linear_in({1})},
                            .types = state_types,
                            .cpu = state_kernel,
                            .gradient = state_gradient,
                            .keeps = {.inputs = {0, 1, 2}},
                            .sample = {{{keys, values, keys}}}};
const Op state_scan_op = {
    .name = "state_scan",
    .rule = scan_rule,
    .passes = {linear_in({1, 2})},
    .types = scan_types,
    .optional = {2},
    .cpu = scan_kernel,
    .gradient = scan_gradient,
    .keeps = {.inputs = {0}, .outputs = {0}},
    .sample = {{{{2, 3, 4, 3}, {2, 3, 4, 3, 2}, absent}}, {{{2, 3, 4, 3}, {2, 3, 4, 3, 2}, {2, 4, 3, 2}}}}};
const Op state_scan_backward_op = {.name = "state_scan_backward",
                                   .rule = scan_backward_rule,
                                   .passes = {linear_in({0, 1})},
                                   .types = scan_types,
                                   .optional = {0, 1},
                                   .cpu = scan_backward_kernel,
                                   .sample = {{{{2, 3, 4, 3, 2}, {2, 4, 3, 2}, {2, 3, 4, 3}, {2, 3, 4, 3, 2}}},
                                              {{absent, {2, 4, 3, 2}, {2, 3, 4, 3}, {2, 3, 4, 3, 2}}}}};

namespace {
constexpr const Op* gla_ops[] = {&gated_linear_attention_op, &gated_linear_attention_backward_op, &linear_state_op,
                                 &state_scan_op, &state_scan_backward_op};

constexpr const char* gla_name = "gated_linear_attention";

void check_shapes(const DistributedTensor& q, const DistributedTensor& k, const DistributedTensor& v,
                  const DistributedTensor& g, const DistributedTensor& state) {
  check(q.dims() == 4 && v.dims() == 4 && k.shape() == q.shape() && g.shape() == q.shape() &&
            Shape(v.shape().begin(), v.shape().end() - 1) == Shape(q.shape().begin(), q.shape().end() - 1),
        "[{}] q {}, k {}, g {} and v {}: q, k and g are [batch, sequence, heads, d], and v is [batch, sequence, heads, "
        "e]",
        gla_name, q, k, g, v);
  if (state.defined())
    check(state.shape() == Shape({q.size(0), q.size(2), q.size(3), v.size(3)}),
          "[{}] initial_state {} is not [batch, heads, d, e] {}", gla_name, state,
          Shape({q.size(0), q.size(2), q.size(3), v.size(3)}));
}

// The sequence lies in equal parts along an axis: each is a row of its own, of a dimension that is sharded.
std::tuple<DistributedTensor, DistributedTensor> over_parts(const DistributedTensor& q, const DistributedTensor& k,
                                                            const DistributedTensor& v, const DistributedTensor& g,
                                                            const DistributedTensor& state, double scale) {
  const MeshShape& mesh = q.mesh().shape();
  AxisSet axes = k.layout().split[1].set();
  int64_t parts = mesh.product(axes), length = q.size(1);
  check(length % parts == 0,
        "[{}] a sequence of {} does not divide evenly over {} ranks ({}): use another length or fewer ranks", gla_name,
        length, parts, mesh.names(axes));
  auto apart = [&](const DistributedTensor& x) {
    return view(x, {x.size(0), parts, length / parts, x.size(2), x.size(3)});
  };
  DistributedTensor qs = apart(q), ks = apart(k), vs = apart(v), gs = apart(g);
  DistributedTensor own = call(linear_state_op, {&ks, &vs, &gs}), decay = sum(gs, {2});
  // From a part of the sequence to a part of the keys and back: the ranks share the scan.
  auto moved = [&](const DistributedTensor& x, int dim) {
    Layout layout = x.layout();
    for (int axis : k.layout().split[1]) layout = layout.with(axis, Shard(dim));
    return layout;
  };
  std::vector<DistributedTensor> scanned =
      redistribute(std::array{decay, own}, std::array{moved(decay, 3), moved(own, 3)});
  std::vector<DistributedTensor> states = call_all(state_scan_op, {&scanned[0], &scanned[1], &state});
  DistributedTensor before = states[0].redistribute(moved(states[0], 1));
  DistributedTensor out = call(gated_linear_attention_op, {&qs, &ks, &vs, &gs, &before}, GatedLinear{scale});
  return {view(out, v.shape()), states[1]};
}
}  // namespace
const Cards gla_cards = gla_ops;

std::tuple<DistributedTensor, DistributedTensor> gated_linear_attention(const DistributedTensor& q,
                                                                        const DistributedTensor& k,
                                                                        const DistributedTensor& v,
                                                                        const DistributedTensor& g,
                                                                        const GatedLinearOptions& options) {
  check_defined(gla_name, q);
  check_defined(gla_name, k, 1);
  check_defined(gla_name, v, 2);
  check_defined(gla_name, g, 3);
  check_shapes(q, k, v, g, options.initial_state);
  double scale = options.scale != 0 ? options.scale : 1 / std::sqrt(double(q.size(3)));
  if (k.layout().split[1].count > 0) return over_parts(q, k, v, g, options.initial_state, scale);
  auto outputs = call_all(gated_linear_attention_op, {&q, &k, &v, &g, &options.initial_state}, GatedLinear{scale});
  return {outputs[0], outputs[1]};
}

}  // namespace dtensor::ops
