// The CUDA kernels of ops/layer/embedding.cpp.
#include "ops/cuda/embedding.h"

#include "ops/cuda/kernels.h"
#include "ops/family/kernel.h"
#include "ops/layer/embedding.h"

namespace dtensor::cuda {
namespace {

Ids ids_of(const Context& c, const Tensor& ids) {
  Range v = c.range('v');
  return {ids.bytes_data(), ids.numel(), v.begin, v.end, c.size('v')};
}
void forward(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  Tensor rows = out[0];
  if (rows.dtype() != in[1].dtype()) rows = Tensor(c.allocator, in[1].dtype(), out[0].shape(), Device::cuda);
  embedding(c.stream(), in[1].dtype(), ids_of(c, in[0]), in[1].size(1), in[1].bytes_data(), rows.bytes_data());
  if (rows.dtype() != out[0].dtype()) convert(rows, out[0]);
}
void backward(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  check_rows(c, in, {{0, 0}, {1, 1}});
  Ids ids = ids_of(c, in[0]);
  Tensor room(c.allocator, DType::f32, {embedding_room(ids)});
  embedding_backward(c.stream(), in[1].dtype(), ids, in[1].shape().back(), in[1].bytes_data(), out[0].bytes_data(),
                     room.bytes_data());
  int64_t padding = c.attributes.as<ops::TableSize>().padding_idx - ids.begin;
  if (padding < 0 || padding >= ids.end - ids.begin) return;
  Tensor row = out[0].narrow(0, padding, 1);
  zero(row.bytes_data(), row.bytes(), c.stream());
}

}  // namespace

extern const KernelTable embedding_kernels;
const KernelTable embedding_kernels = {{&ops::embedding_op, forward}, {&ops::embedding_backward_op, backward}};

}  // namespace dtensor::cuda
