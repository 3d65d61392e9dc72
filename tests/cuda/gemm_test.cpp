// Products on CUDA against plain loops, and the cards that they serve against their CPU kernels.
#include "ops/cuda/gemm.h"

#include <fmt/format.h>
#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "dtensor/launch.h"
#include "ops/all.h"
#include "ops/cards.h"
#include "ops/cuda/kernels.h"

using namespace dtensor;
using namespace dtensor::cuda;
using Catch::Contains;

namespace {

double rounded(double x, DType t) {
  return t == DType::f64 ? x : t == DType::f32 ? double(float(x)) : double(float(BFloat16(float(x))));
}

// Numbers in [-1, 1) that their type has.
class Random {
 public:
  std::vector<double> numbers(int64_t n, DType t) {
    std::vector<double> v(static_cast<size_t>(n));
    for (double& x : v) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      x = rounded(double(int64_t(state_) >> 40) * 0x1p-23, t);
    }
    return v;
  }

 private:
  uint64_t state_ = 1;
};

Tensor on_host(const std::vector<double>& v, DType t, const Shape& shape) {
  if (t == DType::f64) return Tensor::of<double>(shape, v);
  if (t == DType::f32) return Tensor::of<float>(shape, std::vector<float>(v.begin(), v.end()));
  std::vector<BFloat16> b;
  for (double x : v) b.push_back(BFloat16(float(x)));
  return Tensor::of<BFloat16>(shape, b);
}
Tensor on_host(const std::vector<double>& v, DType t) { return on_host(v, t, {int64_t(v.size())}); }

std::vector<double> numbers(const Tensor& t) {
  Tensor host = t.cpu().contiguous();
  std::vector<double> v;
  for (int64_t i = 0; i < host.numel(); ++i) v.push_back(element(host, i));
  return v;
}

// The largest difference, as a share of the largest number expected (at least 1).
double difference(const std::vector<double>& got, const std::vector<double>& expected) {
  REQUIRE(got.size() == expected.size());
  double largest = 1, worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    largest = std::max(largest, std::abs(expected[i]));
    worst = std::isnan(got[i]) ? INFINITY : std::max(worst, std::abs(got[i] - expected[i]));
  }
  return worst / largest;
}

double gelu(double x) { return x / 2 * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))); }

struct Types {
  DType in, out;
  double tolerance;
};
constexpr Types types[] = {{DType::f32, DType::f32, 1e-5},
                           {DType::f64, DType::f64, 1e-13},
                           {DType::bf16, DType::bf16, 1.5e-2},
                           {DType::bf16, DType::f32, 1e-5}};

// A product with numbers: all memory of each operand, `shift` elements from its begin on. Memory between the rows stays
// as it is.
struct Case {
  Types type;
  int64_t M, N, K, batch = 1;
  bool a_transposed = false, b_transposed = false;
  int64_t gap = 0, shift = 0;  // elements between rows; misalignment
  bool accumulate = false, bias = false, gelu = false, aux = false;

  std::string text() const {
    return fmt::format("{} -> {} [{},{},{}] x{} transposed {} {} gap {} shift {} accumulate {} bias {} gelu {} aux {}",
                       name(type.in), name(type.out), M, N, K, batch, a_transposed, b_transposed, gap, shift,
                       accumulate, bias, gelu, aux);
  }

  double run(Gemm& gemm, const std::shared_ptr<Allocator>& device) const {
    Random random;
    int64_t lda = (a_transposed ? M : K) + gap, ldb = (b_transposed ? K : N) + gap, ldc = N + gap;
    int64_t a_stride = (a_transposed ? K : M) * lda, b_stride = (b_transposed ? N : K) * ldb, stride = M * ldc;
    auto A = random.numbers(shift + batch * a_stride, type.in), B = random.numbers(shift + batch * b_stride, type.in),
         C = random.numbers(shift + batch * stride, type.out), add = random.numbers(shift + N, type.out), X = C;
    Tensor a = on_host(A, type.in).to(device), b = on_host(B, type.in).to(device), c = on_host(C, type.out).to(device),
           v = on_host(add, type.out).to(device), x = on_host(X, type.out).to(device);
    auto at = [&](const Tensor& t) { return t.bytes_data() + shift * itemsize(t.dtype()); };
    Product p{.M = M, .N = N, .K = K};
    p.A = {at(a), type.in, a_transposed, lda, a_stride}, p.B = {at(b), type.in, b_transposed, ldb, b_stride};
    p.C = at(c), p.dtype = type.out, p.ldc = ldc, p.stride = stride, p.batch = batch;
    p.accumulate = accumulate, p.gelu = gelu;
    if (bias) p.bias = at(v);
    if (aux) p.aux = at(x);
    gemm.run("test", p);
    for (int64_t i = 0; i < batch; ++i)
      for (int64_t m = 0; m < M; ++m)
        for (int64_t n = 0; n < N; ++n) {
          size_t to = size_t(shift + i * stride + m * ldc + n);
          double sum = accumulate ? C[to] : 0;
          for (int64_t k = 0; k < K; ++k)
            sum += A[size_t(shift + i * a_stride + (a_transposed ? k * lda + m : m * lda + k))] *
                   B[size_t(shift + i * b_stride + (b_transposed ? n * ldb + k : k * ldb + n))];
          if (bias) sum += add[size_t(shift + n)];
          if (aux) X[to] = sum;
          C[to] = gelu ? ::gelu(sum) : sum;
        }
    return std::max(difference(numbers(c), C), difference(numbers(x), X));
  }
};

// All forms of products of some sizes.
std::vector<Case> cases(std::initializer_list<std::array<int64_t, 3>> sizes) {
  std::vector<Case> list;
  for (const Types& t : types)
    for (auto [m, n, k] : sizes)
      for (int form = 0; form < 4; ++form)
        for (auto [gap, shift] : {std::array<int64_t, 2>{0, 0}, {3, 1}, {8, 0}})
          for (int64_t batch : {1, 3})
            for (bool accumulate : {false, true})
              for (int e = 0; e < 6; ++e)  // none, bias, gelu, both, both and what gelu was given, gelu and that
                list.push_back({t, m, n, k, batch, form % 2 == 1, form / 2 == 1, gap, shift, accumulate,
                                e == 1 || e == 3 || e == 4, e >= 2, e >= 4});
  return list;
}

struct OnCuda {
  std::shared_ptr<Rank> rank = Rank::single(Device::cuda);
  DeviceMesh mesh{*rank, "x=1"};
  DistributedTensor operator()(const Tensor& t) const { return DistributedTensor::distribute(t, mesh, Layout()); }
};
struct OnHost {
  std::shared_ptr<Rank> rank = Rank::single();
  DeviceMesh mesh{*rank, "x=1"};
  DistributedTensor operator()(const Tensor& t) const { return DistributedTensor::distribute(t, mesh, Layout()); }
};

// A file that is gone afterwards.
struct File {
  std::string path = (std::filesystem::temp_directory_path() / fmt::format("gemm_test_{}", fmt::ptr(this))).string();
  ~File() { std::filesystem::remove(path); }
  std::string text() const {
    std::stringstream s;
    s << std::ifstream(path).rdbuf();
    return s.str();
  }
  void write(const std::string& text) const { std::ofstream(path) << text; }
};

}  // namespace

TEST_CASE("gemm: products of all types, forms, gaps, alignments and epilogues are those of plain loops") {
  OnCuda on;
  Gemm& gemm = cuda::gemm(*on.rank);
  int wrong = 0;
  for (const Case& c :
       cases({{5, 7, 3}, {16, 24, 32}, {1, 1, 1}, {33, 1, 17}, {1, 8, 9}, {0, 3, 2}, {3, 0, 2}, {4, 8, 0}}))
    if (double d = c.run(gemm, on.rank->allocator()); !(d <= c.type.tolerance) && ++wrong < 10)
      UNSCOPED_INFO(c.text() << ": " << d);
  CHECK(wrong == 0);
}

TEST_CASE("gemm: what is larger than cuBLASLt counts is done in parts") {
  OnCuda on;
  Gemm gemm(on.rank->allocator(), 5);
  int wrong = 0;
  for (const Case& c : cases({{17, 3, 4}, {4, 13, 5}, {2, 3, 11}, {6, 6, 6}}))
    if (double d = c.run(gemm, on.rank->allocator()); !(d <= 2 * c.type.tolerance) && ++wrong < 10)
      UNSCOPED_INFO(c.text() << ": " << d);
  Case many{types[0], 2, 3, 4};
  many.batch = 11;
  CHECK(many.run(gemm, on.rank->allocator()) <= 1e-5);
  CHECK(wrong == 0);
}

TEST_CASE("gemm: an algorithm is decided once for each kind of product") {
  OnCuda on;
  Gemm& gemm = cuda::gemm(*on.rank);
  Case c{types[2], 16, 24, 32};
  int64_t decisions = gemm.decisions();
  auto decided = [&](const Case& each) {
    REQUIRE(each.run(gemm, on.rank->allocator()) < 0.1);
    int64_t before = std::exchange(decisions, gemm.decisions());
    return decisions - before;
  };
  CHECK(decided(c) == 1);
  CHECK(decided(c) == 0);
  Case other = c;
  other.K = 40;
  CHECK(decided(other) == 1);
  other = c, other.accumulate = true;
  CHECK(decided(other) == 1);
  other = c, other.bias = true;
  CHECK(decided(other) == 1);
  other = c, other.shift = 1;
  CHECK(decided(other) == 1);
  CHECK(decided(c) == 0);
  CHECK(&gemm == &cuda::gemm(*on.rank));
}

TEST_CASE("gemm: algorithms are tuned, saved, loaded, and refused where they are for another machine") {
  File file;
  Case small{types[0], 16, 24, 32}, other{types[2], 40, 8, 16};
  other.bias = other.gelu = other.aux = other.accumulate = true, other.batch = 3;
  std::string text;
  {
    OnCuda on;
    Gemm& gemm = cuda::gemm(*on.rank);
    CHECK(gemm.tune() == 0);
    for (const Case& c : {small, other}) c.run(gemm, on.rank->allocator());
    CHECK(gemm.tune() == 2);
    CHECK(gemm.tune() == 0);
    for (const Case& c : {small, other}) CHECK(c.run(gemm, on.rank->allocator()) <= c.type.tolerance);
    gemm.save(file.path);
    text = file.text();
    CHECK(std::count(text.begin(), text.end(), '\n') == 3);
    CHECK_THROWS_WITH(gemm.save("/nowhere/file"), Contains("[gemm] cannot write /nowhere/file"));
  }
  {
    OnCuda on;
    Gemm& gemm = cuda::gemm(*on.rank);
    gemm.load(file.path);
    for (const Case& c : {small, other}) CHECK(c.run(gemm, on.rank->allocator()) <= c.type.tolerance);
    CHECK(gemm.decisions() == 0);
    Case third = small;
    third.N = 8;
    third.run(gemm, on.rank->allocator());
    CHECK(gemm.tune() == 1);
    gemm.save(file.path);  // with those that were loaded
    CHECK(file.text().size() > text.size());
  }
  OnCuda on;
  Gemm& gemm = cuda::gemm(*on.rank);
  small.run(gemm, on.rank->allocator());
  int64_t decisions = gemm.decisions();
  gemm.load(file.path);  // takes the place of what was decided
  CHECK(small.run(gemm, on.rank->allocator()) <= small.type.tolerance);
  CHECK(gemm.tune() == 0);
  CHECK(gemm.decisions() == decisions);
  CHECK_THROWS_WITH(gemm.load("/nowhere/file"), Contains("[gemm] cannot read /nowhere/file"));
  file.write("cuBLASLt 1 on a lamp\n");
  CHECK_THROWS_WITH(gemm.load(file.path), Contains("is of \"cuBLASLt 1 on a lamp\", and this is \"cuBLASLt ") &&
                                              Contains("tune again, to another file"));
  std::string head = text.substr(0, text.find('\n') + 1);
  std::string first = text.substr(head.size(), text.find('\n', head.size()) - head.size());
  for (const std::string& line : {std::string("1 2 3"), std::string(), first + " 0"}) {
    file.write(head + line + "\n");
    CHECK_THROWS_WITH(gemm.load(file.path), Contains("[gemm] line 2 of ") && Contains(" is no algorithm: \"" + line));
  }
}

TEST_CASE("gemm: errors name the product and the status") {
  OnCuda on;
  Gemm& gemm = cuda::gemm(*on.rank);
  Tensor t(on.rank->allocator(), DType::f32, {64});
  Product p{.M = 2, .N = 3, .K = 4};
  p.A = {t.bytes_data(), DType::bf16, false, 4}, p.B = {t.bytes_data(), DType::f32, true, 4};
  p.C = t.bytes_data(), p.ldc = 3;
  CHECK_THROWS_WITH(
      gemm.run("matmul", p),  // the emulator has the first status, an H200 the second
      (Contains("[matmul] cuBLASLt: CUBLAS_STATUS_NOT_SUPPORTED of cublasLtMatmulAlgoGetHeuristic for ") ||
       Contains("[matmul] cuBLASLt: CUBLAS_STATUS_INVALID_VALUE of cublasLtMatmulAlgoGetHeuristic for ")) &&
          Contains("for bf16[2,4] (ld 4) x f32[4,3] transposed (ld 4) -> f32[2,3] (ld 3)"));
  auto host = Rank::single();
  CHECK_THROWS_WITH(cuda::gemm(*host), Contains("[workspace_of] rank 0 is on cpu"));
}

TEST_CASE("gemm: a graph replays a product") {
  OnCuda on;
  Gemm& gemm = cuda::gemm(*on.rank);
  const auto& device = on.rank->allocator();
  Random random;
  auto v = random.numbers(64, DType::f32);
  Tensor a = on_host(v, DType::f32).to(device), c = Tensor::zeros(device, DType::f32, {64}, Device::cuda);
  Product p{.M = 8, .N = 8, .K = 8};
  p.A = {a.bytes_data(), DType::f32, false, 8}, p.B = {a.bytes_data(), DType::f32, true, 8};
  p.C = c.bytes_data(), p.ldc = 8, p.accumulate = true;
  gemm.run("test", p);
  std::vector<double> once = numbers(c);
  Graph::begin(device->stream());
  gemm.run("test", p);
  Graph graph = Graph::end(device->stream());
  for (int i = 0; i < 3; ++i) graph.launch(device->stream());
  for (double& x : once) x *= 4;
  CHECK(difference(numbers(c), once) <= 1e-5);
}

TEST_CASE("cuda: cards of products are their CPU kernels") {
  struct Call {
    const char* function;
    std::vector<Shape> shapes;
    NamedValues values = {};
  };
  const Call calls[] = {
      {"matmul", {{5, 7}, {7, 3}}},
      {"matmul", {{2, 5, 7}, {7, 3}}},
      {"matmul", {{4, 1, 5, 7}, {3, 7, 8}}},
      {"matmul", {{4, 3, 5, 7}, {4, 1, 7, 8}}},
      {"matmul", {{2, 1, 3, 5, 7}, {1, 4, 1, 7, 8}}},
      {"matmul", {{7}, {7}}},
      {"matmul", {{3, 0}, {0, 4}}},
      {"matmul", {{0, 3, 4}, {0, 4, 2}}},
      {"bmm", {{3, 5, 7}, {3, 7, 2}}},
      {"linear", {{2, 5, 7}, {8, 7}, {8}}},
      {"linear", {{5, 7}, {8, 7}}},
      {"linear", {{5, 0}, {8, 0}, {8}}},
      {"linear_gelu", {{2, 5, 7}, {8, 7}, {8}}},
      {"linear_gelu", {{5, 7}, {3, 7}}},
      {"linear_gelu", {{4, 0}, {3, 0}, {3}}},
      {"einsum", {{2, 5, 3}, {4, 3, 5}}, {{"equation", std::string("abc,dcb->da")}}},
      {"einsum", {{2, 3, 5, 4}, {2, 6, 3, 4}}, {{"equation", std::string("abcd,aebd->eabc")}}},
  };
  OnCuda on;
  OnHost host;
  Random random;
  for (const Call& c : calls)
    for (DType t : {DType::f32, DType::f64})
      for (bool turned : {false, true}) {
        std::vector<DistributedTensor> here, there;
        for (const Shape& s : c.shapes) {
          Shape made = s;
          if (turned && s.dims() > 1) std::swap(made[s.dims() - 1], made[s.dims() - 2]);
          Tensor x = on_host(random.numbers(numel(s), t), t, made);
          auto view = [&](const DistributedTensor& d) { return made == s ? d : ops::transpose(d, -2, -1); };
          here.push_back(view(host(x))), there.push_back(view(on(x)));
        }
        auto run = [&](const std::vector<DistributedTensor>& list) {
          std::vector<const DistributedTensor*> in;
          for (const DistributedTensor& x : list) in.push_back(&x);
          return ops::call_function(c.function, in, c.values)[0];
        };
        DistributedTensor expected = run(here), got = run(there);
        INFO(c.function << " " << to_string(c.shapes[0]) << " " << name(t) << " turned " << turned);
        CHECK(got.shape() == expected.shape());
        CHECK(difference(numbers(got.local()), numbers(expected.local())) <= (t == DType::f32 ? 1e-5 : 1e-13));
      }
}

TEST_CASE("cuda: weight gradients of bf16 come in float32 and are added where they are") {
  OnCuda on;
  Random random;
  auto dy = random.numbers(15, DType::bf16), x = random.numbers(10, DType::bf16);
  DistributedTensor a = on(on_host(dy, DType::bf16, {5, 3})), b = on(on_host(x, DType::bf16, {5, 2}));
  std::vector<double> expected(6), twice;
  for (size_t n = 0; n < 3; ++n)
    for (size_t k = 0; k < 2; ++k)
      for (size_t i = 0; i < 5; ++i) expected[n * 2 + k] += dy[i * 3 + n] * x[i * 2 + k];
  for (double e : expected) twice.push_back(2 * e);
  DistributedTensor sum = ops::linear_weight_gradient(a, b, DType::f32);
  CHECK(sum.dtype() == DType::f32);
  CHECK(difference(numbers(sum.local()), expected) <= 1e-6);
  CHECK(ops::linear_weight_gradient(a, b).dtype() == DType::bf16);

  const std::byte* at = sum.local().bytes_data();
  DistributedTensor again = call(ops::linear_weight_gradient_op, {&a, &b}, ops::Product{DType::f32}, {.into = &sum});
  CHECK(again.id() == sum.id());
  CHECK(sum.local().bytes_data() == at);
  CHECK(difference(numbers(sum.local()), twice) <= 1e-6);
  // Now it has two handles, of which one must not change.
  DistributedTensor other = call(ops::linear_weight_gradient_op, {&a, &b}, ops::Product{DType::f32}, {.into = &sum});
  CHECK(other.id() != sum.id());
  CHECK(difference(numbers(other.local()), expected) <= 1e-6);
  CHECK(difference(numbers(again.local()), twice) <= 1e-6);
  CHECK_THROWS_WITH(ops::linear_weight_gradient(a, b, DType::f64),
                    Contains("[linear_weight_gradient] dtype=f64 of bf16 factors: it is theirs, or f32 of bf16"));
}

TEST_CASE("cuda: products of batches are added where they are") {
  OnCuda on;
  Random random;
  auto given = [&](const Shape& shape) {
    return on(on_host(random.numbers(numel(shape), DType::f32), DType::f32, shape));
  };
  DistributedTensor a = given({2, 3, 5, 7}), b = given({1, 3, 7, 4}), sum = ops::matmul(a, b);
  std::vector<double> twice = numbers(sum.local());
  for (double& x : twice) x *= 2;
  bool added = false;
  call(ops::matmul_op, {&a, &b}, {}, {.into = &sum, .accumulated = &added});
  CHECK(added);
  CHECK(difference(numbers(sum.local()), twice) <= 1e-6);
}

TEST_CASE("cuda: float32 products are exact to its rounding unless tf32 is allowed") {
  OnCuda on;
  std::vector<double> v(64, 1 + 0x1p-13);
  DistributedTensor x = on(on_host(v, DType::f32, {8, 8}));
  std::vector<double> expected(64, 8 * v[0] * v[0]);
  CHECK(difference(numbers(ops::matmul(x, x).local()), expected) <= 1e-6);
  int64_t decisions = cuda::gemm(*on.rank).decisions();
  on.rank->tf32 = true;
  CHECK(difference(numbers(ops::matmul(x, x).local()), expected) <= 1e-3);
  CHECK(cuda::gemm(*on.rank).decisions() == decisions + 1);
}
