// What bounds everything else on this GPU: the rate of a copy on the device, bytes read and written, and that of a
// large bf16 product on random numbers (on zeros it would be faster: less switches).
//
//     build/gpu/bench/ceilings_cuda [--json FILE] [--calls N]
#include "tests/bench/cuda_timing.h"

using namespace dtensor;

namespace {

int program(const bench::Options& o) {
  bench::Gpu gpu;
  double copy = gpu.copy_rate(o.calls, o.copy_bytes());
  fmt::print("{}\ndevice copy                   {:>8.0f} GB/s, read and written\n", gpu.properties().name, copy);
  const int64_t n = std::min<int64_t>(8192, o.tokens);
  DistributedTensor x = gpu.random(DType::bf16, {n, n}), w = gpu.random(DType::bf16, {n, n}), y;
  double us = gpu.median_us(o.calls, [&](int) { y = ops::linear(x, w); });
  double flops = 2e-6 * double(n) * n * n / us;
  fmt::print("bf16 product {}^3           {:>8.0f} TFLOP/s on random numbers\n", n, flops);
  bench::write_json(o, gpu, "ceilings",
                    {{{"name", "device copy"}, {"gb_per_s", copy}},
                     {{"name", fmt::format("bf16 product {}^3", n)}, {"tflops", flops}}});
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, program); }
