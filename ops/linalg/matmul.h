// Matrix products, in float32 with the same bits on any mesh (ops/cpu/gemm.h).
#pragma once

#include <optional>

#include "ops/core/call.h"

namespace dtensor::ops {

// The element type of a product; absent, that of the factors.
struct Product {
  std::optional<DType> dtype = {};
  static constexpr auto fields() { return std::tuple(field("dtype", &Product::dtype)); }
};

extern const Op matmul_op, linear_op, linear_add_op, linear_gelu_op, linear_weight_gradient_op;

// [..., m, k] x [..., k, n] -> [..., m, n]; leading dimensions broadcast. A vector [k] is a row on the left and a
// column on the right, whose dimension the result lacks: [k] x [k] is the dot product, of no dimension. f32 and f64.
DistributedTensor matmul(const DistributedTensor& a, const DistributedTensor& b);
// [b, m, k] x [b, k, n] -> [b, m, n]; nothing broadcasts.
DistributedTensor bmm(const DistributedTensor& a, const DistributedTensor& b);
// x [..., k], weight [n, k], bias [n] or absent -> [..., n]: x weight^T + bias, as torch.nn.functional.linear.
DistributedTensor linear(const DistributedTensor& x, const DistributedTensor& weight,
                         const DistributedTensor& bias = {});
// residual [..., n] + linear(x, weight, bias): on CUDA one kernel, which reads it where it would write.
DistributedTensor linear_add(const DistributedTensor& x, const DistributedTensor& weight,
                             const DistributedTensor& residual, const DistributedTensor& bias = {});
// gelu(linear(x, weight, bias), "tanh"): on CUDA one kernel.
DistributedTensor linear_gelu(const DistributedTensor& x, const DistributedTensor& weight,
                              const DistributedTensor& bias = {});
// dy [..., n], x [..., k] -> [n, k]: the sum over all leading dimensions of dy^T x, as elements of their type, or f32
// of bf16. Its kernels add to CallOptions::into.
DistributedTensor linear_weight_gradient(const DistributedTensor& dy, const DistributedTensor& x,
                                         std::optional<DType> dtype = {});

// For kernels of products.
// The last two dimensions of an operand: rows, or columns where transposed, that are contiguous and `ld` elements
// apart; a copy where neither are.
struct Matrix {
  Tensor t;
  bool transposed;
  int64_t ld;
};
Matrix matrix(const Tensor& t);
// y = a b with `leaves` leaves in each sum: y [..., m, n] contiguous, a [..., m, k] and b [..., k, n] of any strides,
// leading dimensions broadcast to y's. On the CPU and on CUDA.
void multiply(const Context& c, const Tensor& a, const Tensor& b, const Tensor& y, int64_t leaves);
// x in another shape, copied where its strides have no such view.
Tensor flattened(const Tensor& x, const Shape& shape);
// One floating type.
DType product_types(std::string_view op, std::span<const TensorSpec* const> in, const Attributes&, int output);

}  // namespace dtensor::ops
