#include "ops/core/in_f32.h"

namespace dtensor {
namespace {

constexpr int64_t grain = 1 << 14;  // elements that one thread converts at least

bool is_bf16(const Tensor& t) { return t.defined() && t.dtype() == DType::bf16; }

void convert_in_parallel(const Context& c, const Tensor& from, const Tensor& to) {
  if (from.device() != Device::cpu) return convert(from, to);
  Tensor x = from.view({from.numel()}), y = to.view({to.numel()});
  c.pool.parallel_for(from.numel(), grain, [&](int64_t begin, int64_t end, int) {
    convert(x.narrow(0, begin, end - begin), y.narrow(0, begin, end - begin));
  });
}

Tensor widened(const Context& c, const Tensor& t) {
  Tensor from = t.contiguous(), to(c.allocator, DType::f32, t.shape(), t.device());
  convert_in_parallel(c, from, to);
  return to;
}

}  // namespace

void run_in_f32(Kernel kernel, const Context& context, std::span<Tensor> inputs, std::span<Tensor> outputs,
                bool reads_outputs) {
  std::vector<Tensor> rounded(outputs.size());
  for (Tensor& in : inputs)
    if (is_bf16(in)) in = widened(context, in);
  for (size_t o = 0; o < outputs.size(); ++o) {
    if (!is_bf16(outputs[o])) continue;
    rounded[o] = outputs[o];
    outputs[o] = reads_outputs ? widened(context, outputs[o])
                               : Tensor(context.allocator, DType::f32, outputs[o].shape(), outputs[o].device());
  }
  kernel(context, inputs, outputs);
  for (size_t o = 0; o < outputs.size(); ++o) {
    if (!rounded[o].defined()) continue;
    convert_in_parallel(context, outputs[o], rounded[o]);
    outputs[o] = rounded[o];
  }
}

}  // namespace dtensor
