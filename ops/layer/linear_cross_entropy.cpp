#include "ops/layer/loss.h"

#include "dtensor/creation.h"
#include "dtensor/redistribute.h"
#include "ops/cards.h"
#include "ops/family/dims.h"
#include "ops/family/samples.h"
#include "ops/functions.h"

namespace dtensor::ops {
namespace {

constexpr const char* self = "linear_cross_entropy";

// --- x times a number of the type of statistics, as another type: a gradient of bf16 is scaled in f32, rounded once

void scaled_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T *x = in[0].data<T>(), factor = *in[1].data<T>();
    T* y = out[0].data<T>();
    c.pool.parallel_for(in[0].numel(), pointwise_grain, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) y[i] = x[i] * factor;
    });
  });
}
DType scaled_type(std::string_view op, std::span<const TensorSpec* const> in, const Attributes& a, int) {
  DType t = rows_type(op, in, a, 0b10), to = a.as<Scaled>().dtype.value_or(t);
  check(statistics_type(to) == statistics_type(t), "[{}] {} becomes {}: use cast()", op, name(t), name(to));
  return to;
}
DistributedTensor scaled(const DistributedTensor& x, const DistributedTensor& factor, DType dtype) {
  return call(scaled_op, {&x, &factor}, Scaled{dtype});
}

// --- Chunks of rows

// `count` parts along dimension `dim`, which no axis splits.
struct Chunks {
  DistributedTensor hidden, target;
  int dim = 0;
  int64_t count = 1;
};

Chunks in_chunks(const DistributedTensor& hidden, const DistributedTensor& target, int64_t chunk_rows) {
  auto ranks = [&](int d) { return hidden.mesh().shape().product(hidden.layout().split[size_t(d)].set()); };
  int64_t rows = 1;  // of the rank that has the most
  int whole = -1, even = -1;
  for (int d = 0; d + 1 < hidden.dims(); ++d) {
    int64_t n = hidden.size(d);
    rows *= largest_piece(n, ranks(d));
    if (ranks(d) == 1 && (whole < 0 || n > hidden.size(whole))) whole = d;
    if (ranks(d) > 1 && n % ranks(d) == 0 && (even < 0 || n > hidden.size(even))) even = d;
  }
  int64_t count = largest_piece(rows, chunk_rows);
  if (count <= 1) return {hidden, target};
  if (whole >= 0 && (even < 0 || hidden.size(whole) >= count))
    return {hidden, target, whole, std::min(count, hidden.size(whole))};
  if (even < 0) return {hidden, target};
  Shape parts{ranks(even), -1};
  return {unflatten(hidden, even, parts), unflatten(target, even, parts), even + 1,
          std::min(count, hidden.size(even) / ranks(even))};
}

// Targets lie as the rows do, and no axis that splits rows splits the weight: each is moved once, not in every chunk.
void bring_together(const DistributedTensor& hidden, DistributedTensor& weight, DistributedTensor& target) {
  Layout of_weight = weight.layout(), of_target = hidden.layout();
  of_target.split[size_t(hidden.dims() - 1)] = {};
  for (int axis = 0; axis < hidden.mesh().shape().axes(); ++axis) {
    bool of_rows = of_target.sharded() & axis_bit(axis), of_features = !of_rows && of_weight[axis] == Shard(1);
    if (of_rows || (of_features && hidden.layout()[axis] != Shard(hidden.dims() - 1)))
      of_weight = of_weight.with(axis, Replicate());
  }
  auto moved = redistribute(std::vector{weight, target}, std::vector{of_weight, of_target}, {.reason = self});
  weight = moved[0], target = moved[1];
}

// hidden, weight, target -> loss, the gradients of a sum of losses for hidden and weight, count
std::vector<DistributedTensor> composite(std::span<const DistributedTensor* const> in, const Attributes& a) {
  const auto& options = a.as<LinearCrossEntropy>();
  DistributedTensor hidden = reduced_once(self, *in[0]), weight = reduced_once(self, *in[1]), target = *in[2];
  bring_together(hidden, weight, target);
  Chunks c = in_chunks(hidden, target, options.chunk_rows);
  bool gradients = options.gradients;
  Smoothed backward = options;
  DType precise = statistics_type(hidden.dtype());
  DistributedTensor one = full(hidden.mesh(), {precise, {}}, 1), loss, count, dweight;
  std::vector<DistributedTensor> dhidden;
  auto accumulate = [](DistributedTensor& total, const DistributedTensor& x) {
    total = total.defined() ? add(total, x) : x;
  };
  for (int64_t i = 0; i < c.count; ++i) {
    Range part = dtensor::chunk({0, c.count > 1 ? c.hidden.size(c.dim) : 0}, int(c.count), int(i));
    auto rows_of = [&](const DistributedTensor& x) {
      return c.count > 1 ? narrow(x, c.dim, part.begin, part.size()) : x;
    };
    DistributedTensor h = rows_of(c.hidden), t = rows_of(c.target), logits = reduced_once(self, linear(h, weight));
    auto rows = cross_entropy_rows(logits, t, backward);
    accumulate(loss, sum(rows[0]));
    accumulate(count, sum(rows[3]));
    if (!gradients) continue;
    DistributedTensor d = call(cross_entropy_backward_op, {&logits, &rows[1], &rows[2], &t, &one}, backward);
    dhidden.push_back(matmul(d, weight));
    accumulate(dweight, scaled(linear_weight_gradient(d, h), one, precise));
  }
  auto totals = reduced({loss, count});
  bool mean = options.reduction == Reduction::mean;
  std::vector<DistributedTensor> out{mean ? div(totals[0], totals[1]) : totals[0]};
  if (!gradients) return out;
  DistributedTensor all = dhidden.size() > 1 ? cat(dhidden, c.dim) : dhidden[0];
  out.insert(out.end(), {view(all, hidden.shape()), dweight, totals[1]});
  return out;
}

void gradient(Gradient& g) {
  bool mean = g.attributes().as<CrossEntropy>().reduction == Reduction::mean;
  // Of no targets that count, the loss is NaN and the gradient 0, as that of cross_entropy is.
  DistributedTensor scale = mean ? div(g.of_output(), clamp(g.output(3), 1)) : g.of_output();
  for (int i : {0, 1})
    if (g.needs(i)) g.set(i, scaled(g.output(i + 1), scale, g.input_spec(i).dtype));
}

LinearCrossEntropy options(int64_t chunk_rows, Reduction r, int64_t ignore = -100, double smoothing = 0) {
  return {{{{ignore}, smoothing}, r}, chunk_rows, true};
}

}  // namespace

const Op scaled_op = {.name = "scaled",
                      .rule = "...,->...",
                      .passes = {linear_in({0}), linear_in({1})},
                      .types = scaled_type,
                      .cpu = scaled_kernel,
                      .sample = {{{{4, 3}, {}}, Scaled{}}}};
const Op linear_cross_entropy_op = {
    .name = "linear_cross_entropy",
    .functions = {function(
        "linear_cross_entropy(hidden, weight, target, ignore_index=-100, reduction=mean, label_smoothing=0, "
        "chunk_rows=4096)",
        "cross_entropy of linear(hidden, weight), without all logits at a time",
        [](Arguments& a) -> List {
          return {linear_cross_entropy(a.tensor(0), a.tensor(1), a.tensor(2),
                                       {.ignore_index = a.integer("ignore_index", -100),
                                        .reduction = reduction_of(a),
                                        .label_smoothing = a.number("label_smoothing", 0),
                                        .chunk_rows = a.integer("chunk_rows", 4096)})};
        })},
    .composite = composite,
    .gradient = gradient,
    .keeps = {.outputs = {1, 2, 3}},
    .sample = {{{{4, 3, 5}, {7, 5}, ids({4, 3}, 7)}, options(4, Reduction::mean)},
               {{{4, 6, 3}, {5, 3}, ids({4, 6}, 5)}, options(1, Reduction::sum, 2)},
               {{{6, 3}, {4, 3}, ids({6}, 4)}, options(2, Reduction::mean, 1, 0.2)},
               {{{5, 2}, {3, 2}, ids({5}, 3)}, options(100, Reduction::sum)},
               {{{0, 3}, {4, 3}, ids({0}, 4)}, options(2, Reduction::sum)}}};

namespace {
constexpr const Op* linear_cross_entropy_ops[] = {&scaled_op, &linear_cross_entropy_op};
}  // namespace
const Cards linear_cross_entropy_cards = linear_cross_entropy_ops;

DistributedTensor linear_cross_entropy(const DistributedTensor& hidden, const DistributedTensor& weight,
                                       const DistributedTensor& target, const LinearCrossEntropyOptions& o) {
  check_defined("linear_cross_entropy", hidden);
  check_defined("linear_cross_entropy", weight, 1);
  check_defined("linear_cross_entropy", target, 2);
  check(hidden.dims() > 0 && weight.dims() == 2 && hidden.size(-1) == weight.size(1) && weight.size(0) > 0,
        "[linear_cross_entropy] hidden {} and weight {}: they are [..., k] and [classes, k]", hidden, weight);
  Shape rows(hidden.shape().begin(), hidden.shape().end() - 1);
  check(target.shape() == rows && target.dtype() == DType::i64,
        "[linear_cross_entropy] hidden {} and targets {}: one i64 target for each row", hidden, target);
  check(o.reduction != Reduction::none,
        "[linear_cross_entropy] reduction=none needs the logits of all rows: use cross_entropy(linear(...))");
  check(o.label_smoothing >= 0 && o.label_smoothing <= 1, "[linear_cross_entropy] label_smoothing {} is outside [0,1]",
        o.label_smoothing);
  check(o.chunk_rows > 0, "[linear_cross_entropy] chunk_rows={}: at least 1", o.chunk_rows);
  return call(
      linear_cross_entropy_op, {&hidden, &weight, &target},
      LinearCrossEntropy{
          {{{o.ignore_index}, o.label_smoothing}, o.reduction}, o.chunk_rows, hidden.mesh().rank_state().no_grad == 0});
}

}  // namespace dtensor::ops
