// The CUDA kernels of rotary and rotary_pair in ops/layer/attention.cpp.
#include "ops/cuda/rotary.h"

#include "ops/cuda/kernels.h"
#include "ops/family/dims.h"
#include "ops/family/kernel.h"
#include "ops/layer/rotary.h"

namespace dtensor::cuda {
namespace {

void rotary_of_any(const Context& c, std::span<const Tensor> in, std::span<Tensor> out) {
  const ops::Rotary& attributes = c.attributes.as<ops::Rotary>();
  std::vector<double> frequencies = attributes.of(in[0].size(3));
  check(frequencies.size() <= most_rotary_pairs, "[rotary] {} pairs turn; on CUDA at most {} do", frequencies.size(),
        most_rotary_pairs);
  Range s = c.range('s');
  Rotary r{.batch = in[0].size(0),
           .positions = s.size(),
           .begin = s.begin,
           .d = in[0].size(3),
           .position = nullptr,
           .position_stride = 0,
           .table = nullptr,
           .frequencies = {},
           .pairs = int(frequencies.size()),
           .scale = attributes.scale,
           .inverse = attributes.inverse,
           .count = int(out.size()),
           .tensor = {}};
  std::copy(frequencies.begin(), frequencies.end(), r.frequencies);
  Tensor positions = in.back().defined() ? in.back().contiguous() : Tensor();
  if (positions.defined()) {
    r.position = reinterpret_cast<const int64_t*>(positions.bytes_data());
    r.position_stride = positions.dims() == 2 ? s.size() : 0;
  }
  // Of this call alone: what positions are is known to the device only, and may be other ones each time.
  Tensor table(c.allocator, ops::statistics_type(in[0].dtype()), {r.table_size()}), x[2];
  r.table = table.bytes_data();
  for (size_t i = 0; i < out.size(); ++i) {
    x[i] = with_whole_rows(in[i]);
    const Shape& strides = x[i].strides();
    r.tensor[i] = {x[i].bytes_data(), strides[0], strides[1], strides[2], out[i].bytes_data(), in[i].size(2)};
  }
  rotary(c.stream(), in[0].dtype(), r);
}

}  // namespace

extern const KernelTable rotary_kernels;
const KernelTable rotary_kernels = {{&ops::rotary_op, rotary_of_any}, {&ops::rotary_pair_op, rotary_of_any}};

}  // namespace dtensor::cuda
