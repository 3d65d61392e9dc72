#include "ops/cuda/dropout.h"

#include "dtensor/cuda/part.h"
#include "ops/cuda/kernels.h"
#include "ops/layer/dropout.h"

namespace dtensor::cuda {
namespace {

// The part of the dimensions of x from `first` on.
Part rest_of(const Context& c, int first, int dims) {
  Shape whole;
  Box box;
  for (int d = first; d < dims; ++d) {
    char factor = char('a' + d);
    whole.push_back(c.size(factor)), box[box.dims++] = c.range(factor);
  }
  return part_of(whole, box);
}

const int64_t* pointer(const Tensor& t) {
  return t.defined() ? reinterpret_cast<const int64_t*>(t.bytes_data()) : nullptr;
}

// x [...], step, rows, positions -> [...]
void dropout_kernel(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const Tensor& x = in[0];
  int dims = x.dims();
  Dropping d{c.stream(), uint64_t(c.attributes.as<ops::Dropout>().key), pointer(in[1]),
             c.attributes.as<ops::Dropout>().p};
  bool done;
  if (!in[2].defined() && !in[3].defined()) {
    done = dropout(d, x.dtype(), rest_of(c, 0, dims), x.bytes_data(), out[0].bytes_data());
  } else {
    int64_t per_position = 1;
    for (int i = 2; i < dims; ++i) per_position *= c.size(char('a' + i));
    Range row = c.range('a'), position = dims > 1 ? c.range('b') : Range{0, 1};
    IndexedPart part{pointer(in[2]),
                     pointer(in[3]),
                     row.begin,
                     position.begin,
                     per_position * (dims > 1 ? c.size('b') : 1),
                     per_position,
                     row.size(),
                     position.size(),
                     rest_of(c, 2, dims)};
    done = dropout(d, x.dtype(), part, x.bytes_data(), out[0].bytes_data());
  }
  if (!done) fail("[{}] has no CUDA kernel for {}", c.op, name(x.dtype()));
}

}  // namespace

extern const KernelTable dropout_kernels = {{&ops::dropout_op, dropout_kernel}};

}  // namespace dtensor::cuda
