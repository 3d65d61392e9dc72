#include "ops/cuda/dropout.h"

#include "dtensor/cuda/part.h"
#include "ops/cuda/kernels.h"

namespace dtensor::cuda {
namespace {

// x [...], key -> [...]
void dropout_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const Tensor& x = in[0];
  Shape whole;
  Box box;
  for (box.dims = 0; box.dims < x.dims(); ++box.dims) {
    char factor = char('A' + box.dims);
    whole.push_back(c.size(factor)), box[box.dims] = c.range(factor);
  }
  auto* key = reinterpret_cast<const int64_t*>(in[1].bytes_data());
  if (!dropout(c.stream(), x.dtype(), part_of(whole, box), key, c.attributes.get<double>("p"), x.bytes_data(),
               out[0].bytes_data()))
    fail("[{}] has no CUDA kernel for {}", c.op, name(x.dtype()));
}

}  // namespace

extern const KernelTable dropout_kernels = {{"dropout", dropout_kernel}};

}  // namespace dtensor::cuda
