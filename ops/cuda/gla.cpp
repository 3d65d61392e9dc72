// The CUDA kernels of ops/layer/gla.cpp.
#include "ops/cuda/gla.h"

#include "ops/cuda/kernels.h"
#include "ops/family/kernel.h"
#include "ops/layer/gla.h"

namespace dtensor::cuda {
namespace {

using In = std::span<const Tensor>;
using Out = std::span<Tensor>;

const void* read(const Tensor& t) { return t.defined() ? t.bytes_data() : nullptr; }
void* write(Tensor t) { return t.defined() ? t.bytes_data() : nullptr; }

// k [..., s, h, d] and v [..., s, h, e]
LinearAttention shape_of(const Tensor& k, const Tensor& v, double scale) {
  return {k.dtype(),        rows_of(k, 3), k.size(k.dims() - 3), k.size(k.dims() - 2), k.shape().back(),
          v.shape().back(), scale};
}
DType wide(DType t) { return t == DType::bf16 ? DType::f32 : t; }

Tensor room(const Context& c, const LinearAttention& s, int64_t elements) {
  return Tensor(c.allocator, wide(s.dtype), {elements});
}

// q, k, v, g, state -> out, the last state
void attention_kernel(const Context& c, In in, Out out) {
  check_rows(c, in.first(4), {{0, 3}, {1, 3}, {2, 3}, {3, 3}});
  if (in[4].defined()) check_rows(c, in, {{0, 3}, {4, 3}});
  LinearAttention s = shape_of(in[1], in[2], c.attributes.as<ops::GatedLinear>().scale);
  Tensor states = room(c, s, s.states()), weights = room(c, s, s.weights());
  linear_attention(s,
                   {.q = read(in[0]),
                    .k = read(in[1]),
                    .v = read(in[2]),
                    .g = read(in[3]),
                    .first = read(in[4]),
                    .out = write(out[0]),
                    .last = write(out[1]),
                    .states = write(states),
                    .weights = write(weights)},
                   c.stream());
}

// k, v, g -> the last state
void state_kernel(const Context& c, In in, Out out) {
  check_rows(c, in, {{0, 3}, {1, 3}, {2, 3}});
  linear_attention(shape_of(in[0], in[1], 1),
                   {.k = read(in[0]), .v = read(in[1]), .g = read(in[2]), .last = write(out[0])}, c.stream());
}

// dout, dlast, q, k, v, g, state -> dk, dv, dg, and dq and dstate where there are those
void backward_kernel(const Context& c, In in, Out grad) {
  check_rows(c, in, {{3, 3}, {4, 3}, {5, 3}});
  for (int i : {0, 1, 2, 6})
    if (in[size_t(i)].defined()) check_rows(c, in, {{3, 3}, {i, 3}});
  size_t next = 3;
  Tensor dq = in[2].defined() ? grad[next++] : Tensor(), dfirst = in[6].defined() ? grad[next] : Tensor();
  LinearAttention s = shape_of(in[3], in[4], c.attributes.as<ops::GatedLinear>().scale);
  Tensor states = room(c, s, s.states()), gradients = room(c, s, s.states()), weights = room(c, s, s.weights()),
         dweights = room(c, s, s.weights());
  linear_attention_backward(s,
                            {.dout = read(in[0]),
                             .dlast = read(in[1]),
                             .q = read(in[2]),
                             .k = read(in[3]),
                             .v = read(in[4]),
                             .g = read(in[5]),
                             .first = read(in[6]),
                             .dq = write(dq),
                             .dk = write(grad[0]),
                             .dv = write(grad[1]),
                             .dg = write(grad[2]),
                             .dfirst = write(dfirst),
                             .states = write(states),
                             .gradients = write(gradients),
                             .weights = write(weights),
                             .dweights = write(dweights)},
                            c.stream());
}

// own [b,p,h,d,e]
StateScan scan_of(const Tensor& own) {
  return {own.dtype(), own.size(0), own.size(1), own.size(2) * own.size(3), own.size(4)};
}
// decay [b,p,h,d], own [b,p,h,d,e], initial [b,h,d,e] -> before [b,p,h,d,e], last [b,h,d,e]
void scan_kernel(const Context& c, In in, Out out) {
  state_scan(scan_of(in[1]), read(in[0]), read(in[1]), read(in[2]), write(out[0]), write(out[1]), c.stream());
}
// dbefore, dlast, decay, before -> ddecay, down, dinitial
void scan_backward_kernel(const Context& c, In in, Out grad) {
  state_scan_backward(scan_of(in[3]), read(in[0]), read(in[1]), read(in[2]), read(in[3]), write(grad[0]),
                      write(grad[1]), write(grad[2]), c.stream());
}

}  // namespace

extern const KernelTable gla_kernels = {{&ops::gated_linear_attention_op, attention_kernel},
                                        {&ops::gated_linear_attention_backward_op, backward_kernel},
                                        {&ops::linear_state_op, state_kernel},
                                        {&ops::state_scan_op, scan_kernel},
                                        {&ops::state_scan_backward_op, scan_backward_kernel}};

}  // namespace dtensor::cuda
