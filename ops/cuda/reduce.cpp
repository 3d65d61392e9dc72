// The CUDA kernels of ops/reduction/reduce.cpp and ops/reduction/scan.cpp, and of ops/reduction/order.cpp those that
// are reductions.
#include "ops/cuda/reduce.h"

#include "ops/cuda/slices.h"
#include "ops/reduction/order.h"
#include "ops/reduction/reduce.h"
#include "ops/reduction/scan.h"

namespace dtensor::cuda {
namespace {

using In = std::span<const Tensor>;
using Out = std::span<Tensor>;

template <Reducing what>
void reduce_slices(const Context& c, In in, Out out) {
  Slices s(c, in[0]);
  reduce(c.stream(), what, in[0].dtype(), s.terms(c), out[0].bytes_data());
}
void sum_squares(const Context& c, In in, Out out) {
  Tensor room(c.allocator, DType::f64, {reduce_room / 8});
  Terms t{in[0].bytes_data(), 1, in[0].numel(), 1, room.bytes_data()};
  reduce(c.stream(), Reducing::sum_squares, in[0].dtype(), t, out[0].bytes_data());
}
void prod_parts(const Context& c, In in, Out out) {
  Slices s(c, in[0]);
  product_parts(c.stream(), in[0].dtype(), s.terms(c), out[0].bytes_data(), out[1].bytes_data());
}
void prod_backward(const Context& c, In in, Out out) {
  Slices s(c, in[1]);
  s.write(c, out[0], [&](Tensor& dx) {
    product_backward(c.stream(), in[1].dtype(), s.terms(), in[0].bytes_data(), in[2].bytes_data(), in[3].bytes_data(),
                     dx.bytes_data());
  });
}
void count_ties(const Context& c, In in, Out out) {
  Slices s(c, in[0]);
  ties(c.stream(), in[0].dtype(), s.terms(c), in[1].bytes_data(), out[0].bytes_data());
}
void amax_backward(const Context& c, In in, Out out) {
  Slices s(c, in[1]);
  s.write(c, out[0], [&](Tensor& dx) {
    ties_backward(c.stream(), in[1].dtype(), s.terms(), in[0].bytes_data(), in[2].bytes_data(), dx.bytes_data());
  });
}

void cumulative_sum(const Context& c, In in, Out out) {
  Slices s(c, in[0]);
  s.write(c, out[0], [&](Tensor& y) {
    cumsum(c.stream(), in[0].dtype(), s.terms(), c.attributes.as<ops::Scan>().reverse, y.bytes_data());
  });
}

template <bool largest>
void arg(const Context& c, In in, Out out) {
  Slices s(c, in[0]);
  first_extreme(c.stream(), in[0].dtype(), s.terms(c), largest, out[0].bytes_data());
}
void find_first_index(const Context& c, In in, Out out) {
  Slices s(c, in[0]);
  GlobalDims dims{};
  for (char f : ops::factors_in(ops::dims_of(c.attributes))) {
    dims.begin[dims.count] = c.range(f).begin;
    dims.local[dims.count] = c.range(f).size();
    dims.global[dims.count++] = c.size(f);
  }
  first_index(c.stream(), in[0].dtype(), s.terms(c), dims, in[1].bytes_data(), out[0].bytes_data());
}

}  // namespace

extern const KernelTable reduce_kernels;
const KernelTable reduce_kernels = {{&ops::sum_op, reduce_slices<Reducing::sum>},
                                    {&ops::count_nonzero_op, reduce_slices<Reducing::count_nonzero>},
                                    {&ops::prod_op, reduce_slices<Reducing::product>},
                                    {&ops::prod_parts_op, prod_parts},
                                    {&ops::prod_backward_op, prod_backward},
                                    {&ops::amax_op, reduce_slices<Reducing::max>},
                                    {&ops::amin_op, reduce_slices<Reducing::min>},
                                    {&ops::ties_op, count_ties},
                                    {&ops::amax_backward_op, amax_backward},
                                    {&ops::sum_squares_op, sum_squares},
                                    {&ops::cumsum_op, cumulative_sum},
                                    {&ops::argmax_op, arg<true>},
                                    {&ops::argmin_op, arg<false>},
                                    {&ops::first_index_op, find_first_index}};

}  // namespace dtensor::cuda
