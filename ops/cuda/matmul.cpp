#include "ops/cuda/matmul.h"

#include "ops/cuda/gemm.h"
#include "ops/cuda/kernels.h"
#include "ops/family/kernel.h"
#include "ops/linalg/einsum.h"
#include "ops/linalg/matmul.h"

namespace dtensor::cuda {
namespace {

Gemm& gemm_of(const Context& c) { return c.workspace().get<Gemm>(); }

GemmOperand operand(const ops::Matrix& m) { return {m.t.bytes_data(), m.t.dtype(), m.transposed, m.ld}; }

// Leading dimensions, those that are walked alike made one.
struct Batch {
  int64_t size, a, b;  // strides in elements
};
std::vector<Batch> batches(const Tensor& a, const Tensor& b, const Shape& shape) {
  Shape of_a = broadcast_strides(a, shape), of_b = broadcast_strides(b, shape);
  std::vector<Batch> list;  // the innermost first
  for (int d = shape.dims() - 3; d >= 0; --d) {
    if (shape[d] == 1) continue;
    if (!list.empty() && of_a[d] == list.back().a * list.back().size && of_b[d] == list.back().b * list.back().size)
      list.back().size *= shape[d];
    else
      list.push_back({shape[d], of_a[d], of_b[d]});
  }
  return list;
}

// Launches p for all batches; the longest dimension is one launch.
void run(const Context& c, Product p, const std::vector<Batch>& list) {
  size_t longest = 0;
  int64_t launches = 1, matrix = p.M * p.N;
  for (size_t d = 0; d < list.size(); ++d)
    if (list[d].size > list[longest].size) longest = d;
  std::vector<int64_t> strides;  // of y
  for (const Batch& b : list) strides.push_back(matrix), matrix *= b.size, launches *= b.size;
  if (!list.empty()) {
    p.batch = list[longest].size, launches /= std::max<int64_t>(p.batch, 1);
    p.A.stride = list[longest].a, p.B.stride = list[longest].b, p.stride = strides[longest];
  }
  for (int64_t i = 0; i < launches; ++i) {
    int64_t rest = i, a = 0, b = 0, y = 0;
    for (size_t d = 0; d < list.size(); ++d) {
      if (d == longest) continue;
      int64_t at = rest % list[d].size;
      rest /= list[d].size;
      a += at * list[d].a, b += at * list[d].b, y += at * strides[d];
    }
    Product q = p;
    q.A.data = static_cast<const std::byte*>(p.A.data) + a * itemsize(p.A.dtype);
    q.B.data = static_cast<const std::byte*>(p.B.data) + b * itemsize(p.B.dtype);
    q.C = static_cast<std::byte*>(p.C) + y * itemsize(p.dtype);
    gemm_of(c).run(c.op, q);
  }
}

// x [..., K] W [N, K]^T, for y [..., N].
Product linear_product(const Context& c, std::span<const Tensor> in, const Tensor& y) {
  const Tensor &x = in[0], &w = in[1], &bias = in[2];
  Product p{.M = rows_of(x), .N = w.size(0), .K = w.size(1)};
  p.A = {x.bytes_data(), x.dtype(), false, p.K};
  p.B = {w.bytes_data(), w.dtype(), true, p.K};
  p.C = y.bytes_data(), p.dtype = y.dtype(), p.ldc = p.N;
  p.tf32 = c.tf32;
  if (bias.defined()) p.bias = bias.bytes_data();
  return p;
}

void linear(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  gemm_of(c).run(c.op, linear_product(c, in, out[0]));
}

void linear_add(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const Tensor list[] = {in[0], in[1], in[3]};
  check_rows(c, in, {{0, 1}, {2, 1}});
  Product p = linear_product(c, list, out[0]);
  p.added = in[2].bytes_data();
  gemm_of(c).run(c.op, p);
}

void linear_gelu(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Product p = linear_product(c, in, out[0]);
  p.gelu = true, p.aux = out[1].bytes_data();
  gemm_of(c).run(c.op, p);
}

void linear_weight_gradient(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const Tensor &dy = in[0], &x = in[1];
  check_rows(c, in, {{0, 1}, {1, 1}});
  Product p{.M = dy.shape().back(), .N = x.shape().back(), .K = rows_of(x)};
  p.A = {dy.bytes_data(), dy.dtype(), true, p.M};
  p.B = {x.bytes_data(), x.dtype(), false, p.N};
  p.C = out[0].bytes_data(), p.dtype = out[0].dtype(), p.ldc = p.N;
  p.tf32 = c.tf32, p.accumulate = c.accumulate;
  gemm_of(c).run(c.op, p);
}

// The card's own kernel, which leaves products to multiply() of the device.
template <const Op& op>
void by_multiply(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  op.cpu(c, in, out);
}

}  // namespace

void multiply(const Context& c, const Tensor& x, const Tensor& z, const Tensor& y) {
  ops::Matrix a = ops::matrix(x), b = ops::matrix(z);
  Product p{.M = y.size(y.dims() - 2), .N = y.shape().back(), .K = x.shape().back(), .A = operand(a), .B = operand(b)};
  p.C = y.bytes_data(), p.dtype = y.dtype(), p.ldc = p.N;
  p.tf32 = c.tf32, p.accumulate = c.accumulate;
  run(c, p, batches(a.t, b.t, y.shape()));
}

extern const KernelTable matmul_kernels;
const KernelTable matmul_kernels = {{&ops::matmul_op, by_multiply<ops::matmul_op>},
                                    {&ops::einsum_op, by_multiply<ops::einsum_op>},
                                    {&ops::linear_op, linear},
                                    {&ops::linear_add_op, linear_add},
                                    {&ops::linear_gelu_op, linear_gelu},
                                    {&ops::linear_weight_gradient_op, linear_weight_gradient}};

}  // namespace dtensor::cuda
