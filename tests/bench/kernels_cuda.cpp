// The library's own CUDA kernels as shares of the copy rate, which bounds them: every input is read once and every
// output written once. Shapes are those of a Llama of 1.2 billion parameters on 16384 tokens.
//
//     build/gpu/bench/kernels_cuda [--json FILE] [--only TEXT] [--calls N] [--tokens N]
#include <functional>

#include "ops/cuda/optim.h"
#include "tests/autograd.h"
#include "tests/bench/cuda_timing.h"

using namespace dtensor;
using bench::Gpu;
using bench::Tensors;

namespace {

constexpr int64_t hidden = 2048, ffn = 8192, heads = 32, kv_heads = 8, head_dim = 64, vocab = 32000;
constexpr double eps = 1e-5, theta = 500000;

struct Case {
  std::string name;
  std::function<Tensors()> inputs;             // made once per set, not timed
  std::function<Tensors(const Tensors&)> run;  // the outputs
  double least_bytes = 0;                      // 0: of the inputs and the outputs
};

double bytes_of(const Tensors& tensors) {
  double bytes = 0;
  for (const DistributedTensor& t : tensors)
    if (t.defined()) bytes += double(t.local().bytes());
  return bytes;
}

Tensors call(const Op& op, const Tensors& inputs, const Attributes& attributes = {}) {
  std::vector<const DistributedTensor*> pointers;
  for (const DistributedTensor& t : inputs) pointers.push_back(&t);
  return call_all(op, pointers, attributes);
}

// Inputs of a norm, followed by what its gradient needs of a forward pass.
void add_norms(std::vector<Case>& list, Gpu& gpu, int64_t tokens) {
  auto rows = [&gpu, tokens] { return gpu.random(DType::bf16, {tokens, hidden}); };
  auto weight = [&gpu] { return gpu.random(DType::bf16, {hidden}); };
  list.push_back({"RMSNorm",
                  [=] {
                    return Tensors{rows(), weight()};
                  },
                  [](const Tensors& t) { return Tensors{ops::rms_norm(t[0], t[1], eps)}; }});
  list.push_back({"RMSNorm backward",
                  [=] {
                    Tensors t{rows(), weight()};
                    return Tensors{rows(), t[0], t[1], call(ops::rms_norm_op, t, ops::RmsNorm{eps})[1]};
                  },
                  [](const Tensors& t) { return call(ops::rms_norm_backward_op, t); }});
  list.push_back({"add + RMSNorm",
                  [=] {
                    return Tensors{rows(), rows(), weight()};
                  },
                  [](const Tensors& t) { return call(ops::add_rms_norm_op, t, ops::RmsNorm{eps}); }});
  list.push_back({"add + RMSNorm backward",
                  [=] {
                    Tensors t{rows(), rows(), weight()}, out = call(ops::add_rms_norm_op, t, ops::RmsNorm{eps});
                    return Tensors{rows(), out[1], t[2], out[2], rows()};
                  },
                  [](const Tensors& t) { return call(ops::add_rms_norm_backward_op, t); }});
  list.push_back({"LayerNorm",
                  [=] {
                    return Tensors{rows(), weight(), weight()};
                  },
                  [](const Tensors& t) { return Tensors{ops::layer_norm(t[0], {hidden}, t[1], t[2])}; }});
}

void add_pointwise(std::vector<Case>& list, Gpu& gpu, int64_t tokens) {
  auto rows = [&gpu, tokens](int64_t columns) {
    return [&gpu, tokens, columns] { return gpu.random(DType::bf16, {tokens, columns}); };
  };
  auto wide = rows(ffn), narrow = rows(hidden);
  auto queries = [&gpu, tokens](int64_t n) { return gpu.random(DType::bf16, {1, tokens, n, head_dim}); };
  for (bool inverse : {false, true})
    list.push_back(
        {inverse ? "rotary backward" : "rotary",
         [=] {
           return Tensors{queries(heads), queries(kv_heads)};
         },
         [=](const Tensors& t) {
           return call(ops::rotary_pair_op, {t[0], t[1], {}}, ops::Rotary{.theta = theta, .inverse = inverse});
         }});
  list.push_back({"SwiGLU",
                  [=] {
                    return Tensors{wide(), wide()};
                  },
                  [](const Tensors& t) { return Tensors{ops::swiglu(t[0], t[1])}; }});
  list.push_back({"SwiGLU backward",
                  [=] {
                    return Tensors{wide(), wide(), wide()};
                  },
                  [](const Tensors& t) { return call(ops::swiglu_backward_op, t); }});
  list.push_back({"add",
                  [=] {
                    return Tensors{narrow(), narrow()};
                  },
                  [](const Tensors& t) { return Tensors{ops::add(t[0], t[1])}; }});
  list.push_back(
      {"gelu", [=] { return Tensors{wide()}; }, [](const Tensors& t) { return Tensors{ops::gelu(t[0], "tanh")}; }});
  list.push_back({"cast f32 to bf16",
                  [&gpu, tokens] {
                    return Tensors{gpu.random(DType::f32, {tokens, ffn})};
                  },
                  [](const Tensors& t) { return Tensors{ops::cast(t[0], DType::bf16)}; }});
  list.push_back({"cast bf16 to f32", [=] { return Tensors{wide()}; },
                  [](const Tensors& t) { return Tensors{ops::cast(t[0], DType::f32)}; }});
}

// Strided copies, reductions, softmax.
void add_rows(std::vector<Case>& list, Gpu& gpu, int64_t tokens) {
  auto wide = [&gpu, tokens] { return Tensors{gpu.random(DType::bf16, {tokens, ffn})}; };
  auto copied = [](const DistributedTensor& x, std::vector<int> order) {
    Tensor t = x.local().permute(order).contiguous();
    return Tensors{DistributedTensor::from_local(t, x.mesh(), {}, t.shape())};
  };
  list.push_back({"copy, transposed", wide, [=](const Tensors& t) { return copied(t[0], {1, 0}); }});
  list.push_back({"copy, heads first",
                  [&gpu, tokens] {
                    return Tensors{gpu.random(DType::bf16, {1, tokens, heads, head_dim})};
                  },
                  [=](const Tensors& t) {
                    return copied(t[0], {0, 2, 1, 3});
                  }});
  list.push_back({"sum of rows", wide, [](const Tensors& t) { return Tensors{ops::sum(t[0], {1})}; }});
  list.push_back({"sum of columns", wide, [](const Tensors& t) { return Tensors{ops::sum(t[0], {0})}; }});
  list.push_back({"sum of all", wide, [](const Tensors& t) { return Tensors{ops::sum(t[0])}; }});
  list.push_back({"amax of rows", wide, [](const Tensors& t) { return Tensors{ops::amax(t[0], {1})}; }});
  list.push_back({"softmax", wide, [](const Tensors& t) { return Tensors{ops::softmax(t[0], 1)}; }});
  list.push_back({"log_softmax", wide, [](const Tensors& t) { return Tensors{ops::log_softmax(t[0], 1)}; }});
}

// The two ends of the model.
void add_vocabulary(std::vector<Case>& list, Gpu& gpu, int64_t tokens) {
  int64_t rows = std::max<int64_t>(1, tokens / 2);
  double logits = 2.0 * double(rows) * vocab;
  list.push_back({"cross entropy, forward and backward",
                  [&gpu, rows] {
                    return Tensors{gpu.random(DType::bf16, {rows, vocab}), gpu.random_ids({rows}, vocab)};
                  },
                  [](const Tensors& t) {
                    testing::Autograd autograd(t[0].mesh().rank_state());
                    autograd.watch(t[0]);
                    autograd.backward(ops::cross_entropy(t[0], t[1]));
                    return Tensors{autograd.gradient(t[0])};
                  },
                  2 * logits});  // read once, the gradient written once
  auto ids = [&gpu, tokens] { return gpu.random_ids({tokens}, vocab); };
  double row_bytes = 2.0 * double(tokens) * hidden, table = 2.0 * vocab * hidden;
  list.push_back({"embedding",
                  [=, &gpu] {
                    return Tensors{ids(), gpu.random(DType::bf16, {vocab, hidden})};
                  },
                  [](const Tensors& t) { return Tensors{ops::embedding(t[0], t[1])}; },
                  2 * row_bytes + 8 * double(tokens)});
  list.push_back({"embedding backward",
                  [=, &gpu] {
                    return Tensors{ids(), gpu.random(DType::bf16, {tokens, hidden})};
                  },
                  [](const Tensors& t) { return call(ops::embedding_backward_op, t, ops::TableSize{vocab}); },
                  row_bytes + table + 8 * double(tokens)});
}

// 40 parameters with all that AdamW keeps of them.
void add_optimizer(std::vector<Case>& list, Gpu& gpu, int64_t tokens) {
  constexpr int count = 40;
  int64_t n = 1024 * tokens;
  double all = double(count) * double(n);
  auto address = [](const DistributedTensor& t) { return reinterpret_cast<float*>(t.local().bytes_data()); };
  list.push_back({"AdamW, 40 tensors in one launch",
                  [&gpu, n] {
                    Tensors t;
                    for (int i = 0; i < count; ++i) {
                      for (int k = 0; k < 2; ++k) t.push_back(gpu.random(DType::f32, {n}));  // value, gradient
                      for (int k = 0; k < 2; ++k) t.push_back(ops::square(t.back()));        // positive states
                      t.push_back(gpu.random(DType::bf16, {n}));
                    }
                    t.push_back(zeros(gpu.mesh(), SpecOrText(DType::f64, {})));  // the norm
                    t.push_back(zeros(gpu.mesh(), SpecOrText(DType::f32, {3})));
                    return t;
                  },
                  [&gpu, n, address](const Tensors& t) {
                    std::vector<cuda::AdamWTensor> tensors;
                    for (size_t i = 0; i < count; ++i)
                      tensors.push_back({address(t[5 * i]), address(t[5 * i + 1]), address(t[5 * i + 2]),
                                         address(t[5 * i + 3]), address(t[5 * i + 4]), n});
                    cuda::adamw(gpu.stream(), tensors.data(), count, {0.9f, 0.99f, 1e-8f},
                                reinterpret_cast<const cuda::AdamWNumbers*>(address(t[5 * count + 1])),
                                reinterpret_cast<const double*>(address(t[5 * count])), 1.0f);
                    return Tensors{};
                  },
                  30 * all});  // value, both states read and written, the gradient read, the bf16 copy written
  list.push_back({"sum of squares, 40 tensors",
                  [&gpu, n] {
                    Tensors t;
                    for (int i = 0; i < count; ++i) t.push_back(gpu.random(DType::f32, {n}));
                    return t;
                  },
                  [&gpu, n, address](const Tensors& t) {
                    std::vector<cuda::ConstTensor> tensors;
                    for (const DistributedTensor& x : t) tensors.push_back({address(x), n});
                    DistributedTensor scratch =
                        empty(gpu.mesh(), SpecOrText(DType::f64, {cuda::sum_squares_scratch(tensors.data(), count)}));
                    DistributedTensor out = empty(gpu.mesh(), SpecOrText(DType::f64, {}));
                    cuda::sum_squares(gpu.stream(), DType::f32, tensors.data(), count,
                                      reinterpret_cast<double*>(address(scratch)),
                                      reinterpret_cast<double*>(address(out)));
                    return Tensors{out};
                  },
                  4 * all});
}

// The microseconds and the least bytes of one case.
std::pair<double, double> measure(Gpu& gpu, const Case& c, int calls) {
  std::vector<Tensors> sets{c.inputs()};
  Tensors out = c.run(sets[0]);
  double bytes = c.least_bytes > 0 ? c.least_bytes : bytes_of(sets[0]) + bytes_of(out);
  for (int n = gpu.sets(bytes_of(sets[0])); int(sets.size()) < n;) sets.push_back(c.inputs());
  std::vector<Tensors> kept(sets.size());  // outputs rotate too
  double us =
      gpu.median_us(calls, [&](int i) { kept[size_t(i) % sets.size()] = c.run(sets[size_t(i) % sets.size()]); });
  return {us, bytes};
}

int program(const bench::Options& o) {
  Gpu gpu;
  double ceiling = gpu.copy_rate(o.calls, o.copy_bytes());
  fmt::print("{}: a copy of {} MiB moves {:.0f} GB/s, read and written\n\n{:<38} {:>10} {:>10} {:>9} {:>8}\n",
             gpu.properties().name, o.copy_bytes() >> 20, ceiling, "kernel", "MB", "us", "GB/s", "of copy");
  std::vector<Case> cases;
  add_norms(cases, gpu, o.tokens);
  add_pointwise(cases, gpu, o.tokens);
  add_rows(cases, gpu, o.tokens);
  add_vocabulary(cases, gpu, o.tokens);
  add_optimizer(cases, gpu, o.tokens);
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  int failed = 0;
  for (const Case& c : cases) {
    if (!o.wants(c.name)) continue;
    try {
      auto [us, bytes] = measure(gpu, c, o.calls);
      double rate = 1e-3 * bytes / us;
      fmt::print("{:<38} {:>10.1f} {:>10.1f} {:>9.0f} {:>7.1f}%\n", c.name, bytes / 1e6, us, rate,
                 100 * rate / ceiling);
      rows.push_back({{"name", c.name}, {"bytes", bytes}, {"us", us}, {"gb_per_s", rate}, {"share", rate / ceiling}});
    } catch (const Error& e) {
      fmt::print("{:<38} failed: {}\n", c.name, e.what());
      rows.push_back({{"name", c.name}, {"error", e.what()}});
      ++failed;
    }
    std::fflush(stdout);
  }
  bench::write_json(o, gpu, "kernels", rows);
  return failed > 0;
}

}  // namespace

int main(int argc, char** argv) { return bench::run(argc, argv, program); }
