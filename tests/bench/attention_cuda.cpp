// Causal attention in bf16 with 32 query and 8 key heads, laid out as in the model: TFLOP/s, counting what a causal
// mask leaves (half of the square; the backward pass 2.5 times the forward one).
//
//     build/gpu/bench/attention_cuda [--json FILE] [--only d=64] [--calls N] [--tokens N]
//
// Then each engine that cuDNN proposes is timed for each of these calls.
#include <cmath>

#include "ops/cuda/tuning.h"
#include "tests/bench/cuda_timing.h"

using namespace dtensor;

namespace {

constexpr int64_t heads = 32, kv_heads = 8;

int program(const bench::Options& o) {
  bench::Gpu gpu;
  fmt::print("{}, {} tokens\n\n{:<16} {:>12} {:>9} {:>12} {:>9} {:>16} {:>9}\n", gpu.properties().name, o.tokens,
             "shape", "forward us", "TFLOP/s", "backward us", "TFLOP/s", "any order us", "TFLOP/s");
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (int64_t d : {64, 128})
    for (int64_t length : {1024, 2048, 4096, 8192}) {
      int64_t s = std::min(length, o.tokens);
      std::string name = fmt::format("d={} S={}", d, s);
      if (!o.wants(name)) continue;
      int64_t batch = std::max<int64_t>(1, o.tokens / s);
      auto random = [&](int64_t n) { return gpu.random(DType::bf16, {batch, s, n, d}); };
      DistributedTensor q = random(heads), k = random(kv_heads), v = random(kv_heads), gradient = random(heads), none;
      ops::Attention a{.causal = true, .scale = 1 / std::sqrt(double(d))};
      std::vector<DistributedTensor> out, gradients;
      double forward = gpu.median_us(o.calls, [&](int) {
        out = call_all(ops::attention_op, {&q, &k, &v, &none, &none, &none, &none, &none, &none, &none, &none}, a);
      });
      auto backward = [&](int) {
        gradients = call_all(ops::attention_backward_op,
                             {&gradient, &q, &k, &v, &out[0], &out[1], &none, &none, &none, &none, &none, &none},
                             ops::AttentionBackward{a, false});
      };
      double same_order = gpu.median_us(o.calls, backward);
      a.deterministic = false;
      double any_order = gpu.median_us(o.calls, backward);
      double flops = 2e-6 * double(batch) * heads * double(s) * double(s) * double(d);  // forward, in millions
      fmt::print("{:<16} {:>12.1f} {:>9.0f} {:>12.1f} {:>9.0f} {:>16.1f} {:>9.0f}\n", name, forward, flops / forward,
                 same_order, 2.5 * flops / same_order, any_order, 2.5 * flops / any_order);
      std::fflush(stdout);
      rows.push_back({{"name", name},
                      {"head_dim", d},
                      {"sequence", s},
                      {"batch", batch},
                      {"forward_tflops", flops / forward},
                      {"backward_tflops", 2.5 * flops / same_order},
                      {"backward_any_order_tflops", 2.5 * flops / any_order}});
    }
  fmt::print("\n");
  for (const std::string& line : cuda::tune(gpu.rank()).attention) fmt::print("{}\n", line);
  bench::write_json(o, gpu, "attention", rows);
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, program); }
