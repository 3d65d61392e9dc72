// Gated linear attention in bf16, as large models have it, beside our causal attention of as many channels: nanoseconds
// per token, which the first one's do not change with the length.
//
//     build/gpu/bench/linear_attention_cuda [--json FILE] [--only S=8192] [--calls N] [--tokens N]
#include <cmath>

#include "tests/bench/cuda_timing.h"

using namespace dtensor;

namespace {

constexpr int64_t heads = 4, keys = 128, values = 256;  // of the 340M model
constexpr int64_t attention_heads = 16, head_dim = 64;

int program(const bench::Options& o) {
  bench::Gpu gpu;
  fmt::print("{}, {} tokens, ns per token\n\n{:<10} {:>14} {:>10} {:>14} {:>10}\n", gpu.properties().name, o.tokens,
             "length", "linear forward", "backward", "causal forward", "backward");
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (int64_t length = 2048; length <= 32768; length *= 2) {
    int64_t s = std::min(length, o.tokens), batch = std::max<int64_t>(1, o.tokens / s);
    std::string name = fmt::format("S={}", s);
    if (!o.wants(name)) continue;
    auto random = [&](int64_t n, int64_t d) { return gpu.random(DType::bf16, {batch, s, n, d}); };
    auto ns = [&](auto f) { return gpu.median_us(o.calls, f) * 1e3 / double(batch * s); };
    DistributedTensor none, q = random(heads, keys), k = random(heads, keys), v = random(heads, values),
                            dout = random(heads, values),
                            g = ops::mul(ops::softplus(ops::cast(random(heads, keys), DType::f32)), -1.0 / 16);
    ops::GatedLinear a{1 / std::sqrt(double(keys))};
    double linear = ns([&](int) { call_all(ops::gated_linear_attention_op, {&q, &k, &v, &g, &none}, a); });
    double linear_backward = ns([&](int) {
      call_all(ops::gated_linear_attention_backward_op, {&dout, &none, &q, &k, &v, &g, &none}, a);
    });
    q = random(attention_heads, head_dim), k = random(attention_heads, head_dim);
    v = random(attention_heads, head_dim), dout = random(attention_heads, head_dim);
    ops::Attention b{.causal = true, .scale = 1 / std::sqrt(double(head_dim))};
    std::vector<DistributedTensor> out;
    double causal = ns([&](int) {
      out = call_all(ops::attention_op, {&q, &k, &v, &none, &none, &none, &none, &none, &none, &none, &none}, b);
    });
    double causal_backward = ns([&](int) {
      call_all(ops::attention_backward_op,
               {&dout, &q, &k, &v, &out[0], &out[1], &none, &none, &none, &none, &none, &none},
               ops::AttentionBackward{b, false});
    });
    fmt::print("{:<10} {:>14.1f} {:>10.1f} {:>14.1f} {:>10.1f}\n", name, linear, linear_backward, causal,
               causal_backward);
    std::fflush(stdout);
    rows.push_back({{"name", name},
                    {"sequence", s},
                    {"batch", batch},
                    {"linear_forward_ns", linear},
                    {"linear_backward_ns", linear_backward},
                    {"causal_forward_ns", causal},
                    {"causal_backward_ns", causal_backward}});
  }
  bench::write_json(o, gpu, "linear_attention", rows);
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, program); }
