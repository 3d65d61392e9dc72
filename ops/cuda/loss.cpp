// The CUDA kernels of ops/layer/loss.cpp.
#include "ops/cuda/loss.h"

#include "ops/cuda/kernels.h"
#include "ops/family/kernel.h"
#include "ops/layer/loss.h"

namespace dtensor::cuda {
namespace {

using In = std::span<const Tensor>;
using Out = std::span<Tensor>;

int64_t ignore_index(const Context& c) { return c.attributes.as<ops::Ignore>().ignore_index; }
double smoothing_of(const Context& c) { return c.attributes.as<ops::Smoothed>().label_smoothing; }
// Of the factor v.
Targets targets_of(const Context& c, const Tensor& target) {
  Range v = c.range('v');
  return {target.bytes_data(), ignore_index(c), c.size('v'), v.begin, v.end};
}

void forward(const Context& c, In in, Out out) {
  check_rows(c, in, {{0, 1}, {1, 0}});
  cross_entropy_forward(c.stream(), in[0].dtype(),
                        {.rows = in[1].numel(),
                         .v = in[0].shape().back(),
                         .x = in[0].bytes_data(),
                         .targets = targets_of(c, in[1]),
                         .smoothing = smoothing_of(c),
                         .loss = out[0].bytes_data(),
                         .m = out[1].bytes_data(),
                         .log_sum = out[2].bytes_data(),
                         .counts = out[3].bytes_data()});
}

using SumOfMaximum = void (*)(StreamHandle, DType, const Terms&, const void*, void*);
template <SumOfMaximum sum>
void sum_of_maximum(const Context& c, In in, Out out) {
  check_rows(c, in, {{0, 1}, {1, 0}});
  Tensor room(c.allocator, DType::f64, {reduce_room / 8});
  Terms t{in[0].bytes_data(), in[1].numel(), in[0].shape().back(), 1, room.bytes_data()};
  sum(c.stream(), in[0].dtype(), t, in[1].bytes_data(), out[0].bytes_data());
}
void picked(const Context& c, In in, Out out) {
  check_rows(c, in, {{0, 1}, {1, 0}});
  pick(c.stream(), in[0].dtype(), in[1].numel(), in[0].shape().back(), in[0].bytes_data(), targets_of(c, in[1]),
       out[0].bytes_data());
}
void rows(const Context& c, In in, Out out) {
  check_rows(c, in, {{0, 0}, {1, 0}, {2, 0}, {3, 0}});
  if (in[4].defined()) check_rows(c, in, {{0, 0}, {4, 0}});
  Targets t{in[3].bytes_data(), ignore_index(c), c.attributes.as<ops::LossRows>().classes};
  cross_entropy_rows(c.stream(), in[0].dtype(), in[0].numel(), t, smoothing_of(c), in[0].bytes_data(),
                     in[1].bytes_data(), in[2].bytes_data(), in[4].bytes_data(), out[0].bytes_data(),
                     out[1].bytes_data());
}
void backward(const Context& c, In in, Out out) {
  check_rows(c, in, {{0, 1}, {1, 0}, {2, 0}, {3, 0}});
  Tensor scale = in[4], x = aligned(in[0]);
  if (scale.numel() != 1) scale = scale.as_strided(in[1].shape(), broadcast_strides(scale, in[1].shape())).contiguous();
  cross_entropy_backward(c.stream(), in[0].dtype(),
                         {.rows = in[1].numel(),
                          .v = in[0].shape().back(),
                          .x = x.bytes_data(),
                          .m = in[1].bytes_data(),
                          .log_sum = in[2].bytes_data(),
                          .scale = scale.bytes_data(),
                          .scale_stride = scale.numel() != 1,
                          .targets = targets_of(c, in[3]),
                          .smoothing = smoothing_of(c),
                          .dx = out[0].bytes_data()});
}

void scale_by_tensor(const Context& c, In in, Out out) {
  scaled(c.stream(), in[0].dtype(), out[0].dtype(), in[0].numel(), in[0].bytes_data(), in[1].bytes_data(),
         out[0].bytes_data());
}

}  // namespace

extern const KernelTable loss_kernels;
const KernelTable loss_kernels = {{&ops::cross_entropy_forward_op, forward},
                                  {&ops::sum_exp_op, sum_of_maximum<sum_exp>},
                                  {&ops::sum_below_op, sum_of_maximum<sum_below>},
                                  {&ops::pick_op, picked},
                                  {&ops::cross_entropy_rows_op, rows},
                                  {&ops::scaled_op, scale_by_tensor},
                                  {&ops::cross_entropy_backward_op, backward}};

}  // namespace dtensor::cuda
