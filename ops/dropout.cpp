#include "ops/dropout.h"

#include "ops/cpu/drop.h"
#include "ops/kernel.h"

namespace dtensor::ops {
namespace {

// x [...], key -> [...]
void dropout_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const Tensor& x = in[0];
  cpu::Drop drop{uint64_t(*in[1].data<int64_t>()), c.attributes.get<double>("p")};
  Shape whole, rows = x.dims() ? x.shape() : Shape{1};
  for (int d = 0; d < x.dims(); ++d) whole.push_back(c.size(char('A' + d)));
  std::array<Shape, 1> strides{contiguous_strides(whole)};  // of global indices
  int64_t first = 0, n = rows.back();
  for (int d = 0; d < x.dims(); ++d) first += c.range(char('A' + d)).begin * strides[0][d];
  for_floating(c, x.dtype(), [&]<class T>() {
    const T* from = x.data<T>();
    T* to = out[0].data<T>();
    int64_t grain = std::max<int64_t>(1, pointwise_grain / 16 / std::max<int64_t>(n, 1));
    c.pool.parallel_for(rows_of(x), grain, [&](int64_t begin, int64_t end, int) {
      for_rows<1>(rows, strides, begin, end, [&](int64_t row, const auto& at) {
        drop.factors(first + at[0], n, to + row * n);
        for (int64_t i = 0; i < n; ++i) to[row * n + i] *= from[row * n + i];
      });
    });
  });
}

DType dropout_types(std::string_view op, std::span<const TensorSpec* const> in, const Attributes&, int) {
  check(is_floating(in[0]->dtype), "[{}] drops elements of floating types, not {}{}; use cast()", op,
        name(in[0]->dtype), to_string(in[0]->shape));
  return in[0]->dtype;
}

void dropout_gradient(Gradient& g) {
  g.set(0, call(dropout_op, {&g.of_output(), &g.input(1)}, g.attributes(), {g.wanted(0)}));
}

Sample sample(Shape shape, double p) {
  using Kind = SampleInput::Kind;
  return {{SampleInput(Kind::normal, shape), SampleInput(Kind::index, {}, 1000)}, {{"p", p}}};
}

}  // namespace

const Op dropout_op = {.name = "dropout",
                       .rule = "...,->...",
                       .linear = {{0}},
                       .types = dropout_types,
                       .cpu = dropout_kernel,
                       .gradient = dropout_gradient,
                       .keeps = {.inputs = {1}},
                       .sample = {sample({5, 7}, 0.5), sample({2, 3, 4}, 0.25), sample({}, 0.5)}};

void check_probability(std::string_view who, double p) {
  check(p >= 0 && p <= 1, "[{}] the probability {} is outside [0,1]", who, p);
}

DistributedTensor stream_key(const DeviceMesh& mesh, const RandomStream& stream) {
  return DistributedTensor::distribute(Tensor::of<int64_t>({}, {int64_t(stream.key())}), mesh, Layout());
}

DistributedTensor dropout(const DistributedTensor& x, double p, const RandomStream& stream, bool training) {
  check_defined("dropout", x);
  check_probability("dropout", p);
  if (!training || p == 0) return x;
  DistributedTensor key = stream_key(x.mesh(), stream);
  return call(dropout_op, {&x, &key}, {{"p", p}});
}

}  // namespace dtensor::ops
