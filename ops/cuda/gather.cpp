#include "ops/cuda/gather.h"

#include "ops/cuda/elementwise.h"
#include "ops/cuda/kernels.h"
#include "ops/shape/gather.h"

namespace dtensor::cuda {
namespace {

// x, [..., n, ...], indexed along AtIndex::dim; `index` has one dimension, or those of the slices.
Indexed indexed(const Context& c, const Tensor& x, const Tensor& index, const Tensor& slices) {
  int64_t dim = c.attributes.as<ops::AtIndex>().dim;
  Range here = c.range(char('a' + dim));
  Indexed i{c.stream(),
            slices.dtype(),
            1,
            x.size(int(dim)),
            1,
            here.begin,
            c.size(char('a' + dim)),
            slices.size(int(dim)),
            reinterpret_cast<const int64_t*>(index.bytes_data()),
            {}};
  for (int d = 0; d < x.dims(); ++d) (d < dim ? i.outer : i.inner) *= d == dim ? 1 : x.size(d);
  if (index.shape() == slices.shape())
    i.strides[0] = i.k * i.inner, i.strides[1] = i.inner, i.strides[2] = 1;
  else
    i.strides[1] = 1;
  return i;
}

// x, index -> slices
void take_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  take(indexed(c, in[0], in[1], out[0]), in[0].bytes_data(), out[0].bytes_data());
}

void convert(const Context& c, const Tensor& from, const Tensor& to) {
  Elementwise e;
  e.stream = c.stream(), e.type = from.dtype(), e.to = to.dtype();
  e.n = e.size[0] = from.numel();
  e.in[0].at = from.bytes_data(), e.in[0].stride[0] = 1, e.out[0] = to.bytes_data();
  cast(e);
}

// x, index, slices -> x; an absent x is zeros.
void add_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  bool convert_sum = out[0].dtype() == DType::bf16;
  Tensor sum = convert_sum ? Tensor(c.allocator, DType::f32, out[0].shape()) : out[0];
  if (!in[0].defined())
    fill(sum, 0);
  else if (convert_sum)
    convert(c, in[0], sum);
  else
    copy(in[0], sum);
  add_slices(indexed(c, sum, in[1], in[2]), in[2].bytes_data(), sum.bytes_data());
  if (convert_sum) convert(c, sum, out[0]);
}

// x, index, slices -> x, which is written in place
void put_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  put_slices(indexed(c, out[0], in[1], in[2]), in[2].bytes_data(), out[0].bytes_data());
}

void one_hot_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  one_hot(c.stream(), in[0].numel(), out[0].shape().back(), c.range('v').begin, c.size('v'),
          reinterpret_cast<const int64_t*>(in[0].bytes_data()), reinterpret_cast<int64_t*>(out[0].bytes_data()));
}

}  // namespace

extern const KernelTable gather_kernels = {{&ops::index_select_op, take_kernel}, {&ops::gather_op, take_kernel},
                                           {&ops::index_add_op, add_kernel},     {&ops::index_copy_op, put_kernel},
                                           {&ops::scatter_add_op, add_kernel},   {&ops::one_hot_op, one_hot_kernel}};

}  // namespace dtensor::cuda
