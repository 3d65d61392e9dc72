#include "ops/reduce.h"

#include <cmath>
#include <numeric>

#include "ops/cpu/rows.h"
#include "ops/kernel.h"
#include "ops/pointwise.h"
#include "ops/view.h"

namespace dtensor::ops {
namespace {

std::vector<int64_t> normalized(const char* who, const std::vector<int64_t>& dims, int count) {
  std::vector<int64_t> out;
  for (int64_t d : dims) out.push_back(normalize_dim(who, d, count));
  std::sort(out.begin(), out.end());
  check(std::adjacent_find(out.begin(), out.end()) == out.end(), "[{}] a dimension is named twice in {}", who,
        fmt::join(dims, ","));
  if (dims.empty())
    for (int d = 0; d < count; ++d) out.push_back(d);
  return out;
}

// "abc->ac" for dims=1.
Rule reduce_rule(std::span<const Shape* const> in, const Attributes& a) {
  std::vector<int64_t> dims = normalized("sum", a.get<std::vector<int64_t>>("dims"), in[0]->dims());
  std::string from, to;
  for (int d = 0; d < in[0]->dims(); ++d) {
    from += char('a' + d);
    if (!std::binary_search(dims.begin(), dims.end(), d)) to += char('a' + d);
  }
  return {from + "->" + to};
}

struct Reduction {
  Tensor x;         // contiguous, the reduced dimensions all first or all last
  int64_t kept, n;  // elements of the result, terms of each
  bool leading;
  std::string factors;  // that are reduced
};

Reduction prepare(const Context& c, const Tensor& x) {
  std::vector<int64_t> dims = normalized("sum", c.attributes.get<std::vector<int64_t>>("dims"), x.dims());
  std::vector<int> order, reduced(dims.begin(), dims.end());
  for (int d = 0; d < x.dims(); ++d)
    if (!std::binary_search(dims.begin(), dims.end(), d)) order.push_back(d);
  Reduction r{{}, 1, 1, false, {}};
  for (int d : order) r.kept *= x.size(d);
  for (int d : reduced) r.n *= x.size(d), r.factors += char('a' + d);
  r.leading = !reduced.empty() && !order.empty() && reduced.back() == int(reduced.size()) - 1;
  order.insert(r.leading ? order.begin() : order.end(), reduced.begin(), reduced.end());
  r.x = x.permute(order).contiguous();
  return r;
}

void sum_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Reduction r = prepare(c, in[0]);
  if (out[0].dtype() == DType::i64) {
    const int64_t* x = r.x.data<int64_t>();
    int64_t* y = out[0].data<int64_t>();
    for (int64_t i = 0; i < r.kept; ++i) {
      y[i] = 0;
      for (int64_t k = 0; k < r.n; ++k) y[i] += r.leading ? x[k * r.kept + i] : x[i * r.n + k];
    }
    return;
  }
  int64_t l = c.leaves(r.factors);
  for_floating(c, out[0].dtype(), [&]<class T>() {
    const T* x = r.x.data<T>();
    T* y = out[0].data<T>();
    int64_t grain = std::max<int64_t>(64, pointwise_grain / std::max<int64_t>(r.n, 1) / 64 * 64);
    c.pool.parallel_for(r.kept, grain, [&](int64_t begin, int64_t end, int) {
      if (r.leading) return cpu::sum_rows(r.n, end - begin, x + begin, r.kept, y + begin, false, l);
      for (int64_t i = begin; i < end; ++i) y[i] = cpu::sum(r.n, x + i * r.n, l);
    });
  });
}

void amax_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Reduction r = prepare(c, in[0]);
  for_floating(c, out[0].dtype(), [&]<class T>() {
    const T* x = r.x.data<T>();
    T* y = out[0].data<T>();
    c.pool.parallel_for(r.kept, std::max<int64_t>(1, pointwise_grain / std::max<int64_t>(r.n, 1)),
                        [&](int64_t begin, int64_t end, int) {
                          for (int64_t i = begin; i < end; ++i) {
                            if (!r.leading) {
                              y[i] = cpu::max(r.n, x + i * r.n);
                              continue;
                            }
                            y[i] = -std::numeric_limits<T>::infinity();
                            for (int64_t k = 0; k < r.n; ++k) y[i] = std::max(y[i], x[k * r.kept + i]);
                          }
                        });
  });
}

// Squares of f32 are exact in f64, and so nearly is their sum: its order does not matter to f32 users of the result.
void sum_squares_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  for_floating(c, in[0].dtype(), [&]<class T>() {
    const T* x = in[0].data<T>();
    std::vector<double> part(size_t(c.pool.size()));
    c.pool.parallel_for(in[0].numel(), pointwise_grain, [&](int64_t begin, int64_t end, int worker) {
      double s[4] = {};
      int64_t i = begin;
      for (; i + 4 <= end; i += 4)
        for (int k = 0; k < 4; ++k) s[k] += double(x[i + k]) * double(x[i + k]);
      for (; i < end; ++i) s[0] += double(x[i]) * double(x[i]);
      part[size_t(worker)] = (s[0] + s[1]) + (s[2] + s[3]);
    });
    *out[0].data<double>() = std::accumulate(part.begin(), part.end(), 0.0);
  });
}

DType f64_type(std::string_view, std::span<const TensorSpec* const>, const Attributes&, int) { return DType::f64; }

// The result with its reduced dimensions back, of size 1.
Shape kept_shape(const Shape& shape, const std::vector<int64_t>& dims) {
  Shape s = shape;
  for (int64_t d : dims) s[int(d)] = 1;
  return s;
}

void sum_gradient(Gradient& g) {
  const Shape& shape = g.input_spec(0).shape;
  auto dims = normalized("sum", g.attributes().get<std::vector<int64_t>>("dims"), shape.dims());
  g.set(0, expand(reshape(g.of_output(), kept_shape(shape, dims)), shape));
}
void sum_squares_gradient(Gradient& g) {
  DistributedTensor d = cast(g.of_output(), g.input_spec(0).dtype);
  g.set(0, mul(mul(g.input(0), d), 2));
}

DistributedTensor reduce(const Op& op, const DistributedTensor& x, const std::vector<int64_t>& dims, bool keepdim) {
  std::vector<int64_t> all = normalized(op.name.data(), dims, x.dims());
  DistributedTensor y = call(op, {&x}, {{"dims", all}});
  return keepdim ? reshape(y, kept_shape(x.shape(), all)) : y;
}

using Dims = std::vector<int64_t>;
const std::vector<Sample> samples = {
    {{{4, 5}}, {{"dims", Dims{1}}}},    {{{4, 5, 3}}, {{"dims", Dims{0, 1}}}}, {{{4, 5, 3}}, {{"dims", Dims{1}}}},
    {{{7}}, {{"dims", Dims{0}}}},       {{{1, 5}}, {{"dims", Dims{0}}}},       {{{4, 5, 3}}, {{"dims", Dims{0, 2}}}},
    {{{4, 5}}, {{"dims", Dims{0, 1}}}}, {{{4, 0}}, {{"dims", Dims{1}}}},       {{{}}, {{"dims", Dims{}}}}};
std::vector<Sample> with_integers(std::vector<Sample> list) {
  list.push_back({{{SampleInput::Kind::index, {4, 5}, 9}}, {{"dims", Dims{0}}}});
  return list;
}

}  // namespace

const Op sum_op = {.name = "sum",
                   .rule = reduce_rule,
                   .linear = {{0}},
                   .strided = true,
                   .cpu = sum_kernel,
                   .gradient = sum_gradient,
                   .sample = with_integers(samples)};
// Not monotone in the sense of a card: a Partial(min) of several elements does not pass.
const Op amax_op = {.name = "amax",
                    .rule = reduce_rule,
                    .reduce = {Reduce::max},
                    .strided = true,
                    .cpu = amax_kernel,
                    .sample = samples};
const Op sum_squares_op = {.name = "sum_squares",
                           .rule = "...->",
                           .types = f64_type,
                           .cpu = sum_squares_kernel,
                           .gradient = sum_squares_gradient,
                           .keeps = {.inputs = {0}},
                           .sample = {{{{5, 3}}}, {{{0}}}}};

DistributedTensor sum(const DistributedTensor& x, const std::vector<int64_t>& dims, bool keepdim) {
  return reduce(sum_op, x, dims, keepdim);
}
DistributedTensor amax(const DistributedTensor& x, const std::vector<int64_t>& dims, bool keepdim) {
  return reduce(amax_op, x, dims, keepdim);
}
DistributedTensor mean(const DistributedTensor& x, const std::vector<int64_t>& dims, bool keepdim) {
  double n = 1;
  for (int64_t d : normalized("mean", dims, x.dims())) n *= double(x.shape()[int(d)]);
  return mul(sum(x, dims, keepdim), 1 / n);
}
DistributedTensor sum_squares(const DistributedTensor& x) { return call(sum_squares_op, {&x}); }

DistributedTensor sum_to(const DistributedTensor& x, const Shape& shape) {
  if (x.shape() == shape) return x;
  std::vector<int64_t> dims;
  int ahead = x.dims() - shape.dims();
  for (int d = 0; d < x.dims(); ++d)
    if (d < ahead || (shape[d - ahead] == 1 && x.shape()[d] != 1)) dims.push_back(d);
  DistributedTensor y = dims.empty() ? x : sum(x, dims);
  return reshape(y, shape);
}

}  // namespace dtensor::ops
