#include "ops/core/widened.h"

#include "dtensor/local/bfloat16.h"

namespace dtensor {
namespace {

constexpr int64_t grain = 1 << 14;  // elements that one thread converts at least

bool is_bf16(const Tensor& t) { return t.defined() && t.dtype() == DType::bf16; }

template <class From, class To>
void convert(const Context& c, const Tensor& from, const Tensor& to) {
  const From* x = from.data<From>();
  To* y = to.data<To>();
  c.pool.parallel_for(from.numel(), grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) y[i] = To(float(x[i]));
  });
}

Tensor widened(const Context& c, const Tensor& t) {
  Tensor from = t.contiguous(), to(c.allocator, DType::f32, t.shape());
  convert<BFloat16, float>(c, from, to);
  return to;
}

}  // namespace

void run_widened(Kernel kernel, const Context& context, std::span<Tensor> inputs, std::span<Tensor> outputs,
                 bool reads_outputs) {
  std::vector<Tensor> rounded(outputs.size());
  for (Tensor& in : inputs)
    if (is_bf16(in)) in = widened(context, in);
  for (size_t o = 0; o < outputs.size(); ++o) {
    if (!is_bf16(outputs[o])) continue;
    rounded[o] = outputs[o];
    outputs[o] =
        reads_outputs ? widened(context, outputs[o]) : Tensor(context.allocator, DType::f32, outputs[o].shape());
  }
  kernel(context, inputs, outputs);
  for (size_t o = 0; o < outputs.size(); ++o) {
    if (!rounded[o].defined()) continue;
    convert<float, BFloat16>(context, outputs[o], rounded[o]);
    outputs[o] = rounded[o];
  }
}

}  // namespace dtensor
