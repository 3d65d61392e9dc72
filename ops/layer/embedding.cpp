#include "ops/layer/embedding.h"

#include <algorithm>
#include <numeric>

#include "ops/cards.h"
#include "ops/cpu/rows.h"
#include "ops/family/kernel.h"
#include "ops/family/samples.h"
#include "ops/functions.h"

namespace dtensor::ops {
namespace {

DType table_type(std::string_view op, std::span<const TensorSpec* const> in, const Attributes&, int) {
  check(in[0]->dtype == DType::i64, "[{}] indices are i64, not {}{}", op, name(in[0]->dtype), in[0]->shape);
  return in[1]->dtype;
}
DType gradient_type(std::string_view, std::span<const TensorSpec* const> in, const Attributes&, int) {
  return in[1]->dtype;
}

void check_id(const Context& c, int64_t id) {
  check(id >= 0 && id < c.size('v'), "[{}] id {} is outside the vocabulary [0,{})", c.op, id, c.size('v'));
}

void embedding_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const int64_t* ids = in[0].data<int64_t>();
  int64_t d = in[1].size(1);
  Range v = c.range('v');
  for_floating(c, in[1].dtype(), [&]<class T>() {
    const T* w = in[1].data<T>();
    T* y = out[0].data<T>();
    c.pool.parallel_for(in[0].numel(), std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(d, 1)),
                        [&](int64_t b, int64_t e, int) {
                          for (int64_t i = b; i < e; ++i) {
                            check_id(c, ids[i]);
                            bool here = ids[i] >= v.begin && ids[i] < v.end;
                            if (here)
                              std::copy_n(w + (ids[i] - v.begin) * d, d, y + i * d);
                            else
                              std::fill_n(y + i * d, d, T(0));
                          }
                        });
  });
}

// The tokens of each row of the table that is here, in their order, and the leaf of the sum over tokens that each falls
// into: token i of n is in leaf k of l where k*n/l <= i < (k+1)*n/l.
struct TokensOfRows {
  std::vector<int64_t> begin;  // of row r in `tokens`; one more at the end
  std::vector<cpu::PickedRow> tokens;

  TokensOfRows(const Context& c, const int64_t* ids, int64_t n) {
    Range v = c.range('v');
    auto here = [&](int64_t id) { return id >= v.begin && id < v.end; };
    begin.resize(size_t(v.size() + 1));
    for (int64_t i = 0; i < n; ++i) {
      check_id(c, ids[i]);
      if (here(ids[i])) ++begin[size_t(ids[i] - v.begin + 1)];
    }
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    tokens.resize(size_t(begin.back()));
    std::vector<int64_t> next = begin;
    int64_t l = c.leaves_of_dots(), leaf = 0;
    for (int64_t i = 0; i < n; ++i) {
      while ((leaf + 1) * n / l <= i) ++leaf;
      if (here(ids[i])) tokens[size_t(next[size_t(ids[i] - v.begin)]++)] = {i, leaf};
    }
  }
};

// ids, dy -> dweight: each row is a sum over all tokens, by the law of sums, whose other terms are zeros. Threads have
// rows; one costs as much as a token of it.
void embedding_backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  int64_t d = in[1].shape().back(), rows = c.range('v').size();
  check_rows(c, in, {{0, 0}, {1, 1}});
  TokensOfRows by_row(c, in[0].data<int64_t>(), in[0].numel());
  auto cost_before = [&](int64_t r) { return r + by_row.begin[size_t(r)]; };
  auto first_row = [&](int64_t cost) {
    int64_t low = 0;
    for (int64_t high = rows; low < high;)
      if (int64_t middle = (low + high) / 2; cost_before(middle) < cost)
        low = middle + 1;
      else
        high = middle;
    return low;
  };
  for_floating(c, in[1].dtype(), [&]<class T>() {
    c.pool.parallel_for(cost_before(rows), std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(d, 1)),
                        [&](int64_t b, int64_t e, int) {
                          for (int64_t r = first_row(b); r < rows && cost_before(r) < e; ++r) {
                            int64_t first = by_row.begin[size_t(r)], count = by_row.begin[size_t(r + 1)] - first;
                            T* y = out[0].data<T>() + r * d;
                            if (count == 0)
                              std::fill_n(y, d, T(0));
                            else
                              cpu::sum_picked_rows(count, by_row.tokens.data() + first, d, in[1].data<T>(), d, y);
                          }
                        });
    int64_t padding = c.attributes.as<TableSize>().padding_idx - c.range('v').begin;
    if (padding >= 0 && padding < rows) std::fill_n(out[0].data<T>() + padding * d, d, T(0));
  });
}

Rule embedding_backward_rule(std::span<const Shape* const>, const Attributes& a) {
  Rule r{"...,...d->vd"};
  r.sizes = {{'v', a.as<TableSize>().num_embeddings}};
  return r;
}

void embedding_gradient(Gradient& g) {
  if (!g.needs(1)) return;
  TableSize table{g.input_spec(1).shape[0], g.attributes().as<Padding>().padding_idx};
  g.set(1, call(embedding_backward_op, {&g.input(0), &g.of_output()}, table, {g.wanted(1)}));
}
void embedding_backward_gradient(Gradient& g) {
  if (!g.needs(1)) return;
  DistributedTensor rows = embedding(g.input(0), g.of_output());
  int64_t padding = g.attributes().as<TableSize>().padding_idx;
  if (padding >= 0) rows = rows * unsqueeze(cast(ne(g.input(0), double(padding)), rows.dtype()), -1);
  g.set(1, rows);
}

}  // namespace

const Op embedding_op = {
    .name = "embedding",
    .functions = {function<embedding>("embedding(ids, weight, padding_idx=-1)", "the rows of weight at ids")},
    .rule = "...,vd->...d",
    .passes = {linear_in({1})},
    .types = table_type,
    .f32_sums = true,
    .cpu = embedding_kernel,
    .gradient = embedding_gradient,
    .keeps = {.inputs = {0}},
    .sample = {
        {{ids({4, 3}, 7), {7, 5}}, Padding{}}, {{ids({5}, 3), {3, 1}}, Padding{}}, {{ids({0}, 3), {3, 4}}, Padding{}}}};
const Op embedding_backward_op = {
    .name = "embedding_backward",
    .rule = embedding_backward_rule,
    .passes = {linear_in({1})},
    .types = gradient_type,
    .cpu = embedding_backward_kernel,
    .gradient = embedding_backward_gradient,
    .keeps = {.inputs = {0}},
    .sample = {{{ids({4, 3}, 7), {4, 3, 5}}, TableSize{7}}, {{ids({4, 3}, 7), {4, 3, 5}}, TableSize{7, 3}}}};

namespace {
constexpr const Op* embedding_ops[] = {&embedding_op, &embedding_backward_op};
}  // namespace
const Cards embedding_cards = embedding_ops;

DistributedTensor embedding(const DistributedTensor& ids, const DistributedTensor& weight, int64_t padding_idx) {
  check_defined("embedding", weight, 1);
  check(padding_idx >= -1 && (weight.dims() != 2 || padding_idx < weight.size(0)),
        "[embedding] padding_idx is {}, outside the {} rows of the table; -1 is none", padding_idx, weight.size(0));
  return call(embedding_op, {&ids, &weight}, Padding{padding_idx});
}

}  // namespace dtensor::ops
