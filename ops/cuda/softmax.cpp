// The CUDA kernels of ops/reduction/softmax.cpp.
#include "ops/cuda/softmax.h"

#include "ops/cuda/kernels.h"
#include "ops/family/dims.h"
#include "ops/reduction/softmax.h"

namespace dtensor::cuda {
namespace {

using In = std::span<const Tensor>;
using Out = std::span<Tensor>;

// Slices that begin at a multiple of 16 bytes, as outputs do.
ops::Slices slices(const Context& c, const Tensor& x) {
  ops::Slices s = ops::slices_of(x, ops::dims_of(c.attributes));
  s.x = aligned(s.x);
  return s;
}
template <class F>
void write(const Context& c, Tensor& out, F write) {
  ops::write_slices(c, out, ops::dims_of(c.attributes), write);
}

template <bool log>
void forward(const Context& c, In in, Out out) {
  ops::Slices s = slices(c, in[0]);
  write(c, out[0],
        [&](Tensor& y) { softmax(c.stream(), y.dtype(), log, s.count, s.n, s.x.bytes_data(), y.bytes_data()); });
}
template <bool log>
void shifted(const Context& c, In in, Out out) {
  ops::Slices s = slices(c, in[0]);
  std::byte* sum = (log ? in[2] : out[1]).bytes_data();
  write(c, out[0], [&](Tensor& y) {
    softmax_shifted(c.stream(), y.dtype(), log, s.count, s.n, s.x.bytes_data(), in[1].bytes_data(), sum,
                    y.bytes_data());
  });
}
template <bool log>
void backward(const Context& c, In in, Out out) {
  ops::Slices dy = slices(c, in[0]), y = slices(c, in[1]);
  write(c, out[0], [&](Tensor& dx) {
    softmax_backward(c.stream(), dx.dtype(), log, y.count, y.n, dy.x.bytes_data(), y.x.bytes_data(),
                     in.size() > 2 ? in[2].bytes_data() : nullptr, dx.bytes_data());
  });
}

}  // namespace

extern const KernelTable softmax_kernels;
const KernelTable softmax_kernels = {{&ops::softmax_op, forward<false>},
                                     {&ops::log_softmax_op, forward<true>},
                                     {&ops::exp_shifted_op, shifted<false>},
                                     {&ops::log_softmax_shifted_op, shifted<true>},
                                     {&ops::softmax_backward_op, backward<false>},
                                     {&ops::log_softmax_backward_op, backward<true>},
                                     {&ops::sharded_softmax_backward_op, backward<false>},
                                     {&ops::sharded_log_softmax_backward_op, backward<true>}};

}  // namespace dtensor::cuda
