#include "ops/cuda/rearrange.h"

#include "ops/cuda/kernels.h"
#include "ops/shape/reading.h"
#include "ops/shape/rearrange.h"

namespace dtensor::cuda {
namespace {

static_assert(max_read_dims >= max_dims);

template <std::vector<ops::Reading> (*readings)(const Context&, const Tensor&, const Tensor&)>
void read_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  std::vector<ReadDimension> dims;
  for (const ops::Reading& r : readings(c, in[0], out[0]))
    dims.push_back({out[0].size(int(dims.size())), r.stride, r.first, r.size, r.backwards});
  read_anew(c.stream(), itemsize(out[0].dtype()), int(dims.size()), dims.data(), in[0].bytes_data(),
            out[0].bytes_data());
}

// x [..., rows, columns]
template <bool lower>
void triangle_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const Tensor& y = out[0];
  int64_t rows = y.size(y.dims() - 2), columns = y.size(y.dims() - 1), n = 1;
  for (int d = 0; d < y.dims() - 2; ++d) n *= y.size(d);
  int64_t diagonal = ops::clamped_diagonal(c) + c.range('r').begin - c.range('c').begin;
  triangle(c.stream(), itemsize(y.dtype()), n, rows, columns, diagonal, lower, in[0].bytes_data(), y.bytes_data());
}

}  // namespace

extern const KernelTable rearrange_kernels = {{&ops::repeat_op, read_kernel<ops::repeat_readings>},
                                              {&ops::flip_op, read_kernel<ops::flip_readings>},
                                              {&ops::roll_op, read_kernel<ops::roll_readings>},
                                              {&ops::tril_op, triangle_kernel<true>},
                                              {&ops::triu_op, triangle_kernel<false>}};

}  // namespace dtensor::cuda
