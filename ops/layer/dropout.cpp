#include "ops/layer/dropout.h"

#include "ops/cards.h"
#include "ops/cpu/drop.h"
#include "ops/family/dims.h"
#include "ops/functions.h"

namespace dtensor::ops {
namespace {

// "abc,,a,b->abc": x, step, rows, positions.
Rule dropout_rule(std::span<const Shape* const> in, const Attributes&) {
  std::string x = factors(in[0]->dims());
  return {x + ",," + (in[2] ? "a" : "") + "," + (in[3] ? "b" : "") + "->" + x};
}

// Where the elements of this rank's part are in the whole, in row-major order: of dimension d, those at i come at
// from[d][i].
std::vector<std::vector<int64_t>> global_offsets(const Context& c, std::span<const Tensor> in) {
  int dims = in[0].dims();
  std::vector<std::vector<int64_t>> from(static_cast<size_t>(dims));
  int64_t stride = 1;
  for (int d = dims - 1; d >= 0; --d) {
    char factor = char('a' + d);
    const Tensor index = d < 2 ? in[size_t(2 + d)] : Tensor();
    Range r = c.range(factor);
    for (int64_t i = 0; i < r.size(); ++i)
      from[size_t(d)].push_back((index.defined() ? index.data<int64_t>()[i] : r.begin + i) * stride);
    stride *= c.size(factor);
  }
  return from;
}

// x [...], step, rows, positions -> [...]
void dropout_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const Tensor& x = in[0];
  cpu::Drop drop{key_at_step(uint64_t(c.attributes.as<Dropout>().key), *in[1].data<int64_t>()),
                 c.attributes.as<Dropout>().p};
  auto from = global_offsets(c, in);
  bool runs = x.dims() > 2 || (x.dims() > 0 && !in[size_t(1 + x.dims())].defined());  // the last dimension is one
  int64_t n = runs ? x.shape().back() : 1, rows = n ? x.numel() / n : 0;
  for_floating(c, x.dtype(), [&]<class T>() {
    const T* values = x.data<T>();
    T* to = out[0].data<T>();
    int64_t grain = std::max<int64_t>(1, pointwise_grain / 16 / std::max<int64_t>(n, 1));
    c.pool.parallel_for(rows, grain, [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        int64_t at = runs ? from.back()[0] : 0, rest = row;
        for (int d = x.dims() - 1 - runs; d >= 0; --d) {
          at += from[size_t(d)][size_t(rest % x.size(d))];
          rest /= x.size(d);
        }
        drop.factors(at, n, to + row * n);
        for (int64_t i = row * n; i < (row + 1) * n; ++i) to[i] *= values[i];
      }
    });
  });
}

DType dropout_types(std::string_view op, std::span<const TensorSpec* const> in, const Attributes&, int) {
  check(is_floating(in[0]->dtype), "[{}] drops elements of floating types, not {}{}; use cast()", op,
        name(in[0]->dtype), in[0]->shape);
  return in[0]->dtype;
}

void dropout_gradient(Gradient& g) {
  g.set(0, call(dropout_op, {&g.of_output(), &g.input(1), &g.input(2), &g.input(3)}, g.attributes(), {g.wanted(0)}));
}

using Kind = SampleInput::Kind;
Sample sample(Shape shape, double p, bool rows = false, bool positions = false) {
  auto index = [&](bool there, int dim) {
    return there ? SampleInput(Kind::index, {shape[dim]}, 100) : SampleInput(Kind::absent, {});
  };
  return {{SampleInput(Kind::normal, shape), SampleInput(Kind::index, {}, 1000), index(rows, 0), index(positions, 1)},
          Dropout{p, 80}};  // a key with which the single element is kept
}

DistributedTensor dropped(const DistributedTensor& x, double p, const Draw& d) {
  return call(dropout_op, {&x, &d.step, &d.rows, &d.positions}, Dropout{p, d.key});
}

}  // namespace

const Op dropout_op = {
    .name = "dropout",
    .functions = {function("dropout(x, p=0.5, training=true, seed=0)", "zero with probability p, else x / (1 - p)",
                           [](Arguments& a) -> List {
                             return {dropout(a.tensor(0), a.number("p", 0.5),
                                             {.seed = uint64_t(a.integer("seed", 0)), .purpose = "dropout"},
                                             a.flag("training", true))};
                           })},
    .rule = dropout_rule,
    .passes = {linear_in({0})},
    .types = dropout_types,
    .optional = {2, 3},
    .cpu = dropout_kernel,
    .gradient = dropout_gradient,
    .keeps = {.inputs = {1, 2, 3}},
    .sample = {sample({5, 7}, 0.5), sample({2, 3, 4}, 0.25), sample({}, 0.5), sample({6}, 0.5, true),
               sample({5, 7}, 0.5, true), sample({5, 3}, 0.5, false, true), sample({2, 3, 4}, 0.25, true, true)}};

namespace {
constexpr const Op* dropout_ops[] = {&dropout_op};
}  // namespace
const Cards dropout_cards = dropout_ops;

void check_probability(std::string_view who, double p) {
  check(p >= 0 && p <= 1, "[{}] the probability {} is outside [0,1]", who, p);
}

std::optional<Draw> draw_from_scope(std::string_view who, const DeviceMesh& mesh) {
  RandomScope* scope = mesh.rank_state().random_scope;
  check(scope,
        "[{}] no RandomScope is open, which says whether this is training, and which step: open one, with "
        "{{.training = false}} for evaluation",
        who);
  if (!scope->training()) return {};
  return Draw{int64_t(scope->next_key("dropout")), scope->step().tensor(), scope->rows(), scope->positions()};
}

Draw draw_from_stream(std::string_view who, const DeviceMesh& mesh, const RandomStream& stream) {
  Rank& rank = mesh.rank_state();
  if (rank.device() == Device::cuda && cuda::Graph::is_capturing(rank.allocator()->stream()))
    fail(
        "[{}] a stream's step is the host's, and a captured graph would drop the same with each launch: open a "
        "RandomScope and give no stream",
        who);
  return {int64_t(stream.key_at_step_0()),
          DistributedTensor::distribute(Tensor::of<int64_t>({}, {stream.step}), mesh, Layout()),
          {},
          {}};
}

DistributedTensor dropout(const DistributedTensor& x, double p) {
  check_defined("dropout", x);
  check_probability("dropout", p);
  if (p == 0) return x;
  std::optional<Draw> d = draw_from_scope("dropout", x.mesh());
  if (!d) return x;
  if (d->rows.defined())
    check(x.dims() > 0 && x.size(0) == d->rows.size(0),
          "[dropout] x is {}, but the open RandomScope has {} rows: those of dimension 0", x, d->rows.size(0));
  if (x.dims() < 3) d->positions = {};
  if (d->positions.defined())
    check(x.size(1) == d->positions.size(0),
          "[dropout] x is {}, but the open RandomScope has {} positions: those of dimension 1", x,
          d->positions.size(0));
  return dropped(x, p, *d);
}

DistributedTensor dropout(const DistributedTensor& x, double p, const RandomStream& stream, bool training) {
  check_defined("dropout", x);
  check_probability("dropout", p);
  if (!training || p == 0) return x;
  return dropped(x, p, draw_from_stream("dropout", x.mesh(), stream));
}

}  // namespace dtensor::ops
