#include "ops/embedding.h"

#include "ops/kernel.h"

namespace dtensor::ops {
namespace {

DType table_type(std::string_view op, std::span<const TensorSpec* const> in, const Attributes&, int) {
  check(in[0]->dtype == DType::i64, "[{}] indices are i64, not {}{}", op, name(in[0]->dtype), to_string(in[0]->shape));
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

// ids, dy -> dweight: rows are added in the order of tokens, columns are split over threads.
void embedding_backward_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const int64_t* ids = in[0].data<int64_t>();
  int64_t n = in[0].numel(), d = in[1].shape().back();
  check_rows(c, in, {{0, 0}, {1, 1}});
  Range v = c.range('v');
  for_floating(c, in[1].dtype(), [&]<class T>() {
    const T* dy = in[1].data<T>();
    T* dw = out[0].data<T>();
    c.pool.parallel_for(d, std::max<int64_t>(16, pointwise_grain / std::max<int64_t>(n, 1) / 16 * 16),
                        [&](int64_t b, int64_t e, int) {
                          for (int64_t r = 0; r < v.size(); ++r) std::fill(dw + r * d + b, dw + r * d + e, T(0));
                          for (int64_t i = 0; i < n; ++i) {
                            check_id(c, ids[i]);
                            if (ids[i] < v.begin || ids[i] >= v.end) continue;
                            T* row = dw + (ids[i] - v.begin) * d;
                            for (int64_t j = b; j < e; ++j) row[j] += dy[i * d + j];
                          }
                        });
  });
}

Rule embedding_backward_rule(std::span<const Shape* const>, const Attributes& a) {
  Rule r{"...,...d->vd"};
  r.sizes = {{'v', a.get<int64_t>("num_embeddings")}};
  return r;
}

void embedding_gradient(Gradient& g) {
  if (!g.needs(1)) return;
  g.set(1, call(embedding_backward_op, {&g.input(0), &g.of_output()}, {{"num_embeddings", g.input_spec(1).shape[0]}},
                {g.wanted(1)}));
}
void embedding_backward_gradient(Gradient& g) {
  if (g.needs(1)) g.set(1, embedding(g.input(0), g.of_output()));
}

SampleInput ids(Shape s, int64_t bound) { return {SampleInput::Kind::index, s, bound}; }

}  // namespace

const Op embedding_op = {.name = "embedding",
                         .rule = "...,vd->...d",
                         .linear = {{1}},
                         .types = table_type,
                         .cpu = embedding_kernel,
                         .gradient = embedding_gradient,
                         .keeps = {.inputs = {0}},
                         .sample = {{{ids({4, 3}, 7), {7, 5}}}, {{ids({5}, 3), {3, 1}}}, {{ids({0}, 3), {3, 4}}}}};
const Op embedding_backward_op = {.name = "embedding_backward",
                                  .rule = embedding_backward_rule,
                                  .linear = {{1}},
                                  .types = gradient_type,
                                  .cpu = embedding_backward_kernel,
                                  .gradient = embedding_backward_gradient,
                                  .keeps = {.inputs = {0}},
                                  .sample = {{{ids({4, 3}, 7), {4, 3, 5}}, {{"num_embeddings", int64_t(7)}}}}};

DistributedTensor embedding(const DistributedTensor& ids, const DistributedTensor& weight) {
  return call(embedding_op, {&ids, &weight});
}

}  // namespace dtensor::ops
