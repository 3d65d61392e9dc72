// The CUDA kernels of ops/layer/convolution.cpp.
#include "ops/cuda/convolution.h"

#include "ops/cuda/kernels.h"
#include "ops/family/kernel.h"
#include "ops/layer/convolution.h"

namespace dtensor::cuda {
namespace {

using In = std::span<const Tensor>;
using Out = std::span<Tensor>;

const void* pointer(const Tensor& t) { return t.defined() ? t.bytes_data() : nullptr; }

// Of the operands from `at` on: x [..., s, c], weight [c, w], before [..., p, c] of the same batch.
Convolution shape_of(const Context& c, In in, int at) {
  const Tensor &x = in[size_t(at)], &weight = in[size_t(at) + 1], &before = in[size_t(at) + 2];
  if (before.defined()) check_rows(c, in, {{at, 2}, {at + 2, 2}});
  return {x.dtype(),        rows_of(x, 2),  x.size(x.dims() - 2),
          x.shape().back(), weight.size(1), before.defined() ? before.size(before.dims() - 2) : 0};
}

// x, weight, before -> y
void convolution_kernel(const Context& c, In in, Out out) {
  convolution(shape_of(c, in, 0), in[0].bytes_data(), pointer(in[2]), in[1].bytes_data(), out[0].bytes_data(),
              c.stream());
}

// dy, x, weight, before -> dx, dweight, and dbefore where there is that
void convolution_backward_kernel(const Context& c, In in, Out grad) {
  check_rows(c, in, {{0, 2}, {1, 2}});
  Convolution s = shape_of(c, in, 1);
  Tensor room(c.allocator, s.dtype == DType::bf16 ? DType::f32 : s.dtype, {convolution_partials(s)});
  convolution_backward(s,
                       {.dy = in[0].bytes_data(),
                        .x = in[1].bytes_data(),
                        .before = pointer(in[3]),
                        .weight = in[2].bytes_data(),
                        .dx = grad[0].bytes_data(),
                        .dbefore = in[3].defined() ? grad[2].bytes_data() : nullptr,
                        .dweight = grad[1].bytes_data(),
                        .partial = room.bytes_data()},
                       c.stream());
}

}  // namespace

extern const KernelTable convolution_kernels = {{&ops::causal_convolution_op, convolution_kernel},
                                                {&ops::causal_convolution_backward_op, convolution_backward_kernel}};

}  // namespace dtensor::cuda
