#include "ops/layer/rotary.h"

#include <cmath>
#include <numeric>

#include "ops/cards.h"
#include "ops/cpu/fused.h"
#include "ops/family/kernel.h"
#include "ops/family/samples.h"

namespace dtensor::ops {

std::vector<double> Rotary::of(int64_t d) const {
  if (!frequencies.empty()) {
    check(2 * int64_t(frequencies.size()) <= d, "[rotary] {} frequencies turn {} elements, but heads have {}",
          frequencies.size(), 2 * frequencies.size(), d);
    return frequencies;
  }
  check(d % 2 == 0, "[rotary] heads of {} elements; pairs need an even number", d);
  std::vector<double> list(size_t(d / 2));
  for (size_t i = 0; i < list.size(); ++i) list[i] = std::pow(theta, -2.0 * double(i) / double(d));
  return list;
}

std::string positions_term(const Shape* positions, const char* sequence) {
  if (!positions) return "";
  return (positions->dims() == 2 ? "b" : "") + std::string(sequence);
}

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

// One tensor or several, of one sequence and head size, and the positions or nothing.
void rotary_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const Rotary& attributes = c.attributes.as<Rotary>();
  const Tensor& given = in.back();
  int64_t d = in[0].size(3), batch = in[0].size(0);
  Range s = c.range('s');
  std::vector<double> frequencies = attributes.of(d);
  auto pairs = int64_t(frequencies.size());
  std::vector<int64_t> positions = positions_of(s, given);
  int64_t next = given.defined() && given.dims() == 2 ? s.size() * pairs : 0;  // the next batch entry's angles
  auto strides = [](const Tensor& t) { return cpu::Strides{t.strides()[0], t.strides()[1], t.strides()[2]}; };
  for_floating(c, in[0].dtype(), [&]<class T>() {
    std::vector<T> cos(positions.size() * size_t(pairs)), sin(cos.size());
    c.pool.parallel_for(int64_t(positions.size()), std::max<int64_t>(1, pointwise_grain / 16 / std::max<int64_t>(d, 1)),
                        [&](int64_t b, int64_t e, int) {
                          cpu::rotary_table(e - b, positions.data() + b, pairs, frequencies.data(), attributes.scale,
                                            cos.data() + b * pairs, sin.data() + b * pairs);
                        });
    for (size_t i = 0; i < out.size(); ++i) {
      Tensor x = with_whole_rows(in[i]);
      const Tensor& y = out[i];
      int64_t heads = x.size(2),
              grain = std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(batch * heads * d, 1));
      c.pool.parallel_for(s.size(), grain, [&](int64_t b, int64_t e, int) {
        for (int64_t n = 0; n < batch; ++n)
          cpu::rotary(1, e - b, heads, d, pairs, x.data<T>() + n * x.strides()[0] + b * x.strides()[1], strides(x),
                      cos.data() + n * next + b * pairs, sin.data() + n * next + b * pairs, attributes.inverse,
                      y.data<T>() + n * y.strides()[0] + b * y.strides()[1], strides(y));
      });
    }
  });
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

Rotary turned_back(const Attributes& a) {
  Rotary r = a.as<Rotary>();
  r.inverse = !r.inverse;
  return r;
}
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

Rotary turn(bool inverse, std::vector<double> frequencies = {}, double scale = 1) {
  return {100, std::move(frequencies), scale, inverse};
}

}  // namespace

const Op rotary_op = {
    .name = "rotary",
    .functions = {function("rotary(x, positions=none, theta=10000, frequencies=theta^(-2i/d), scale=1)",
                           "pairs of elements turned by their position",
                           [](Arguments& a) -> List {
                             RotaryAngles angles{.theta = a.number("theta", 10000),
                                                 .frequencies = a.numbers("frequencies", std::vector<double>()),
                                                 .scale = a.number("scale", 1)};
                             return {rotary(a.tensor(0), angles, a.optional_tensor(1))};
                           })},
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
               {{{2, 5, 3, 4}, ids({5}, 100)}, turn(false, {}, 0.5)},
               {{{2, 5, 3, 7}, absent}, turn(false, {1, 0.1}, 1.5)},
               {{{2, 5, 3, 4}, ids({2, 5}, 100)}, turn(true, {1})}}};
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
               {{{2, 5, 6, 5}, {2, 5, 3, 5}, ids({2, 5}, 100)}, turn(false, {1, 0.1}, 1.5)}}};

namespace {
constexpr const Op* rotary_ops[] = {&rotary_op, &rotary_pair_op};
}  // namespace
const Cards rotary_cards = rotary_ops;

void check_positions(std::string_view who, std::string_view what, const DistributedTensor& positions, int64_t batch,
                     int64_t n) {
  if (!positions.defined()) return;
  const Shape& s = positions.shape();
  check(positions.dtype() == DType::i64 && (s == Shape{n} || s == Shape{batch, n}),
        "[{}] {} are {}, not i64[{}] or i64[{},{}]", who, what, positions, n, batch, n);
}

DistributedTensor rotary(const DistributedTensor& x, const RotaryAngles& a, const DistributedTensor& positions) {
  check_defined("rotary", x);
  if (x.dims() == 4) check_positions("rotary", "positions", positions, x.size(0), x.size(1));
  return call(rotary_op, {&x, &positions}, Rotary{a.theta, a.frequencies, a.scale});
}
DistributedTensor rotary(const DistributedTensor& x, double theta, const DistributedTensor& positions) {
  return rotary(x, RotaryAngles{theta}, positions);
}

std::tuple<DistributedTensor, DistributedTensor> rotary(const DistributedTensor& q, const DistributedTensor& k,
                                                        const RotaryAngles& a, const DistributedTensor& positions) {
  check_defined("rotary", q);
  check_defined("rotary", k, 1);
  if (q.dims() != 4 || k.dims() != 4 || q.layout().split[2] != k.layout().split[2])
    return {rotary(q, a, positions), rotary(k, a, positions)};
  check_positions("rotary", "positions", positions, q.size(0), q.size(1));
  auto outputs = call_all(rotary_pair_op, {&q, &k, &positions}, Rotary{a.theta, a.frequencies, a.scale});
  return {outputs[0], outputs[1]};
}
std::tuple<DistributedTensor, DistributedTensor> rotary(const DistributedTensor& q, const DistributedTensor& k,
                                                        double theta, const DistributedTensor& positions) {
  return rotary(q, k, RotaryAngles{theta}, positions);
}

}  // namespace dtensor::ops
