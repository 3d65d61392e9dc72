// TFLOP/s of the products of Llamas in bf16: forward, the gradient of the input and, added in float32, that of the
// weight; and their share of a product of 8192 x 8192 x 8192 in the same run. Random numbers that are not in the cache.
//
//     build/bench/gemm_cuda [--tokens N] [--tune-gemm FILE] [--json FILE]
//
// With --tune-gemm the algorithms are FILE's; without such a file they are tuned first, and it is written.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "ops/cuda/gemm.h"

using namespace dtensor;

namespace {

struct Options {
  int64_t tokens = 8192;
  std::string tune, json;
};

Options options(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; i += 2) {
    std::string name = argv[i];
    check(i + 1 < argc, "[gemm_cuda] {} needs a value", name);
    if (name == "--tokens")
      o.tokens = std::stoll(argv[i + 1]);
    else if (name == "--tune-gemm")
      o.tune = argv[i + 1];
    else if (name == "--json")
      o.json = argv[i + 1];
    else
      fail("[gemm_cuda] {} is no option: --tokens, --tune-gemm and --json are", name);
  }
  check(o.tokens > 0, "[gemm_cuda] --tokens {}: at least 1", o.tokens);
  return o;
}

struct Measured {
  std::string model, weight, direction;
  cuda::Product product;  // without addresses
  double us = 0, tflops = 0;
};

cuda::Product product(int64_t M, int64_t N, int64_t K, bool a_transposed, bool b_transposed, bool to_f32 = false) {
  cuda::Product p{.M = M, .N = N, .K = K};
  p.A = {nullptr, DType::bf16, a_transposed, a_transposed ? M : K};
  p.B = {nullptr, DType::bf16, b_transposed, b_transposed ? K : N};
  p.dtype = to_f32 ? DType::f32 : DType::bf16, p.ldc = N, p.accumulate = to_f32;
  return p;
}

// The products of one model: each weight [n, k] once.
std::vector<Measured> products(int64_t tokens) {
  struct Model {
    const char* name;
    int64_t d, q, kv, ffn, vocab;
  };
  constexpr Model models[] = {{"124M", 768, 768, 768, 2048, 32000},
                              {"350M", 1024, 1024, 1024, 2816, 32000},
                              {"1B", 2048, 2048, 512, 8192, 128256},
                              {"3B", 3072, 3072, 1024, 8192, 128256}};
  std::vector<Measured> list = {{"", "8192^3", "", product(8192, 8192, 8192, false, true)}};
  for (const Model& m : models) {
    struct Weight {
      const char* name;
      int64_t n, k;
    };
    for (auto [name, n, k] :
         {Weight{"q_proj", m.q, m.d}, Weight{"k_proj", m.kv, m.d}, Weight{"o_proj", m.d, m.q},
          Weight{"up_proj", m.ffn, m.d}, Weight{"down_proj", m.d, m.ffn}, Weight{"lm_head", m.vocab, m.d}}) {
      list.push_back({m.name, name, "forward", product(tokens, n, k, false, true)});
      list.push_back({m.name, name, "dgrad", product(tokens, k, n, false, false)});
      list.push_back({m.name, name, "wgrad", product(n, k, tokens, true, false, true)});
    }
  }
  return list;
}

int64_t padded(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// Memory full of random numbers of bf16, of which every use takes the next piece.
class Ring {
 public:
  Ring(Rank& rank, int64_t largest)
      : spare_(4 * cuda::properties(cuda::current_device()).l2_bytes), memory_(rank.allocator(), largest + spare_) {
    cuda::StreamHandle stream = rank.allocator()->stream();
    std::vector<uint16_t> some(1 << 20);
    uint64_t state = 1;  // of Knuth's linear congruential generator
    for (uint16_t& x : some) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      x = BFloat16(float(int64_t(state) >> 40) * 0x1p-23f).bits;
    }
    int64_t all = largest + spare_, done = std::min<int64_t>(all, int64_t(some.size() * 2));
    cuda::copy(memory_.data(), some.data(), done, stream);
    for (int64_t more; done < all; done += more)
      more = std::min(done, all - done), cuda::copy(memory_.data() + done, memory_.data(), more, stream);
  }

  std::byte* next(int64_t bytes) {
    if (at_ > spare_) at_ = 0;
    at_ += bytes;
    return memory_.data() + at_ - bytes;
  }

 private:
  int64_t spare_, at_ = 0;
  Storage memory_;
};

// Where products find their operands: results are never factors, or they would grow from one to the next.
class Operands {
 public:
  Operands(Rank& rank, const std::vector<Measured>& list)
      : factors_(rank, largest(list, factor_bytes)), results_(rank, largest(list, result_bytes)) {}

  cuda::Product place(cuda::Product p) {
    std::byte* a = factors_.next(factor_bytes(p));
    p.A.data = a, p.B.data = a + padded(p.M * p.K * 2);
    p.C = results_.next(result_bytes(p));
    return p;
  }

 private:
  static int64_t factor_bytes(const cuda::Product& p) { return padded(p.M * p.K * 2) + padded(p.K * p.N * 2); }
  static int64_t result_bytes(const cuda::Product& p) { return padded(p.M * p.N * itemsize(p.dtype)); }
  static int64_t largest(const std::vector<Measured>& list, int64_t (*bytes)(const cuda::Product&)) {
    int64_t most = 0;
    for (const Measured& m : list) most = std::max(most, bytes(m.product));
    return most;
  }

  Ring factors_, results_;
};

void measure(Rank& rank, Operands& operands, Measured& m) {
  constexpr int samples = 50, launches = 4;
  cuda::Gemm& gemm = cuda::gemm(rank);
  cuda::StreamHandle stream = rank.allocator()->stream();
  for (int i = 0; i < launches; ++i) gemm.run("gemm_cuda", operands.place(m.product));
  std::vector<double> times;
  cuda::Event begin(true), end(true);
  for (int s = 0; s < samples; ++s) {
    begin.record(stream);
    for (int i = 0; i < launches; ++i) gemm.run("gemm_cuda", operands.place(m.product));
    end.record(stream);
    end.synchronize();
    times.push_back(end.milliseconds_since(begin) / launches);
  }
  std::nth_element(times.begin(), times.begin() + samples / 2, times.end());
  m.us = times[samples / 2] * 1e3;
  m.tflops = 2.0 * double(m.product.M) * double(m.product.N) * double(m.product.K) / m.us * 1e-6;
}

void run(const Options& o) {
  auto rank = Rank::single(Device::cuda);
  std::vector<Measured> list = products(o.tokens);
  Operands operands(*rank, list);
  cuda::Gemm& gemm = cuda::gemm(*rank);
  if (!o.tune.empty() && std::filesystem::exists(o.tune)) {
    gemm.load(o.tune);
  } else if (!o.tune.empty()) {
    for (const Measured& m : list) gemm.run("gemm_cuda", operands.place(m.product));
    std::printf("tuned %d products\n", gemm.tune());
    gemm.save(o.tune);
  }
  nlohmann::ordered_json json = {{"device", cuda::properties(cuda::current_device()).name}, {"products", {}}};
  std::printf("%-6s %-10s %-8s %7s %7s %7s %10s %9s %6s\n", "model", "weight", "product", "M", "N", "K", "us",
              "TFLOP/s", "share");
  for (Measured& m : list) {
    measure(*rank, operands, m);
    double share = m.tflops / list[0].tflops;
    std::printf("%-6s %-10s %-8s %7lld %7lld %7lld %10.1f %9.1f %6.3f\n", m.model.c_str(), m.weight.c_str(),
                m.direction.c_str(), static_cast<long long>(m.product.M), static_cast<long long>(m.product.N),
                static_cast<long long>(m.product.K), m.us, m.tflops, share);
    json["products"].push_back({{"model", m.model},
                                {"weight", m.weight},
                                {"product", m.direction},
                                {"M", m.product.M},
                                {"N", m.product.N},
                                {"K", m.product.K},
                                {"us", m.us},
                                {"tflops", m.tflops},
                                {"share", share}});
  }
  if (o.json.empty()) return;
  std::ofstream file(o.json);
  file << json.dump(2) << "\n";
  file.close();
  check(bool(file), "[gemm_cuda] cannot write {}", o.json);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(options(argc, argv));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
