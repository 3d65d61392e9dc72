// Choosing algorithms by time, and the file that keeps the choice.
#include <fmt/format.h>
#include <algorithm>
#include <fstream>
#include <sstream>

#include "dtensor/local/bfloat16.h"
#include "ops/cuda/gemm_state.h"
#include "ops/cuda/timing.h"
#include "placement/error.h"

namespace dtensor::cuda {
namespace {

constexpr int most_algorithms = 16;

// Elements from the first to the last of an operand.
int64_t extent(int64_t rows, int64_t columns, int64_t ld, int64_t stride, int64_t batch) {
  return (batch - 1) * stride + (rows - 1) * ld + columns;
}
int64_t extent(const GemmOperand& x, int64_t rows, int64_t columns, int64_t batch) {
  return x.transposed ? extent(columns, rows, x.ld, x.stride, batch) : extent(rows, columns, x.ld, x.stride, batch);
}

// Operands of a product as often as it takes to read none from the cache, full of random numbers.
class Copies {
 public:
  Copies(const std::shared_ptr<Allocator>& allocator, const Product& p) : product_(p) {
    auto place = [&](int64_t elements, DType dtype) {
      int64_t at = bytes_;
      bytes_ += (elements * itemsize(dtype) + 255) / 256 * 256;
      return at;
    };
    a_ = place(extent(p.A, p.M, p.K, p.batch), p.A.dtype);
    b_ = place(extent(p.B, p.K, p.N, p.batch), p.B.dtype);
    int64_t c = extent(p.M, p.N, p.ldc, p.stride, p.batch);
    c_ = place(c, p.dtype);
    aux_ = place(p.aux ? c : 0, p.dtype);
    added_ = place(p.added ? c : 0, p.dtype);
    bias_ = place(p.bias ? p.N : 0, p.dtype);
    int64_t l2 = properties(current_device()).l2_bytes;
    count_ = std::clamp<int64_t>((4 * l2 + bytes_ - 1) / bytes_, 1, timed_samples * timed_launches);
    memory_ = Storage(allocator, count_ * bytes_);
    fill_random(memory_.data(), count_ * bytes_, allocator->stream());
  }

  Product operator[](int64_t i) const {
    std::byte* at = memory_.data() + i % count_ * bytes_;
    Product p = product_;
    p.A.data = at + a_, p.B.data = at + b_, p.C = at + c_;
    if (p.aux) p.aux = at + aux_;
    if (p.added) p.added = at + added_;
    if (p.bias) p.bias = at + bias_;
    return p;
  }

 private:
  Product product_;
  int64_t bytes_ = 0, a_, b_, c_, aux_, added_, bias_, count_;
  Storage memory_;
};

// Milliseconds; none where the algorithm refuses.
std::optional<double> measure(GemmState& state, const GemmPlan& plan, const cublasLtMatmulAlgo_t& algorithm,
                              const Copies& copies) {
  if (state.launch(plan, algorithm, copies[0]) != CUBLAS_STATUS_SUCCESS) return std::nullopt;
  return time_launches(state.allocator->stream(), [&](int i) { state.launch(plan, algorithm, copies[i]); });
}

// The first line of a file: algorithms are numbers whose meaning changes with both.
std::string made_for() {
  return fmt::format("cuBLASLt {} on {}", cublasLtGetVersion(), properties(current_device()).name);
}

using Algorithms = std::map<GemmKey, cublasLtMatmulAlgo_t>;

bool parse(const std::string& line, Algorithms& into) {
  std::istringstream text(line);
  GemmKey key;
  cublasLtMatmulAlgo_t algorithm;
  char equals = 0;
  for (int64_t& x : key) text >> x;
  text >> equals >> std::hex;
  for (uint64_t& x : algorithm.data) text >> x;
  if (!text || equals != '=' || !(text >> std::ws).eof()) return false;
  into[key] = algorithm;
  return true;
}

}  // namespace

void fill_random(std::byte* memory, int64_t bytes, StreamHandle stream) {
  std::vector<uint16_t> some(1 << 20);
  uint64_t state = 1;  // of Knuth's linear congruential generator
  for (uint16_t& x : some) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    x = BFloat16(float(int64_t(state) >> 40) * 0x1p-23f).bits;
  }
  int64_t done = std::min<int64_t>(bytes, int64_t(some.size() * sizeof some[0]));
  copy(memory, some.data(), done, stream);
  for (int64_t more; done < bytes; done += more)
    more = std::min(done, bytes - done), copy(memory + done, memory, more, stream);
}

int Gemm::tune() {
  int tuned = 0;
  for (auto& [key, plan] : state_->plans) {
    if (plan.measured || !plan.algorithm) continue;
    std::vector<cublasLtMatmulAlgo_t> list;
    state_->find_algorithms(plan, most_algorithms, list);
    Copies copies(state_->allocator, plan.product);
    double best = std::numeric_limits<double>::infinity();
    for (const cublasLtMatmulAlgo_t& algorithm : list)
      if (auto time = measure(*state_, plan, algorithm, copies); time && *time < best)
        best = *time, plan.algorithm = algorithm;
    plan.measured = true;
    ++tuned;
  }
  return tuned;
}

void Gemm::save(const std::string& path) const {
  Algorithms all = state_->loaded;
  for (const auto& [key, plan] : state_->plans)
    if (plan.measured) all[key] = *plan.algorithm;
  std::ofstream file(path);
  file << made_for() << "\n";
  for (const auto& [key, algorithm] : all)
    file << fmt::format("{} = {:x}\n", fmt::join(key, " "), fmt::join(algorithm.data, " "));
  file.close();
  check(bool(file), "[gemm] cannot write {}", path);
}

void Gemm::load(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  check(bool(std::getline(file, line)), "[gemm] cannot read {}", path);
  check(line == made_for(), "[gemm] {} is of \"{}\", and this is \"{}\": tune again, to another file", path, line,
        made_for());
  Algorithms all;
  for (int n = 2; std::getline(file, line); ++n)
    check(line.starts_with("attention ") || parse(line, all), "[gemm] line {} of {} is no algorithm: \"{}\"", n, path,
          line);
  for (const auto& [key, algorithm] : all) {
    state_->plans.erase(key);
    state_->loaded[key] = algorithm;
  }
}

}  // namespace dtensor::cuda
