// The emulated cuBLASLt against loops, and what it refuses.
#include <cublasLt.h>
#include <cuda_bf16.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <vector>

#include "dtensor/cuda/runtime.h"
#include "tests/emulator/emulator.h"

using namespace dtensor::cuda;
using Catch::Contains;

namespace {

struct Buffer {
  Buffer(size_t n, cudaDataType t) : size(n), type(t), host(n * bytes()), at(allocate(int64_t(n * bytes()))) {}
  Buffer(Buffer&&) = delete;
  ~Buffer() { release(at); }
  size_t bytes() const { return type == CUDA_R_64F ? 8 : type == CUDA_R_32F ? 4 : 2; }
  double get(size_t i) const {
    if (type == CUDA_R_64F) return reinterpret_cast<const double*>(host.data())[i];
    if (type == CUDA_R_32F) return double(reinterpret_cast<const float*>(host.data())[i]);
    return double(float(reinterpret_cast<const __nv_bfloat16*>(host.data())[i]));
  }
  void set(size_t i, double x) {
    if (type == CUDA_R_64F)
      reinterpret_cast<double*>(host.data())[i] = x;
    else if (type == CUDA_R_32F)
      reinterpret_cast<float*>(host.data())[i] = float(x);
    else
      reinterpret_cast<__nv_bfloat16*>(host.data())[i] = x;
  }
  void fill(int seed) {
    for (size_t i = 0; i < size; ++i) set(i, double((int(i) * 7 + seed * 5) % 11 - 5) / 4);
    put();
  }
  void put() { cudaMemcpy(at, host.data(), host.size(), cudaMemcpyDefault); }
  void fetch() { cudaMemcpy(host.data(), at, host.size(), cudaMemcpyDefault); }

  size_t size;
  cudaDataType type;
  std::vector<char> host;  // what get() and set() see
  void* at;
};

struct Case {
  cudaDataType in = CUDA_R_32F, out = CUDA_R_32F;
  cublasOperation_t trans_a = CUBLAS_OP_N, trans_b = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  double beta = 0;
  cublasLtOrder_t order = CUBLASLT_ORDER_COL;
  int32_t batch = 1;
  size_t m = 5, n = 3, k = 4;
};

// A product of a Case, with leading dimensions larger than needed.
struct Problem {
  explicit Problem(const Case& the_case)
      : c(the_case),
        lda(9),
        ldd(c.order == CUBLASLT_ORDER_COL ? c.m + 3 : c.n + 3),
        a(9 * 9 * 2, c.in),
        b(9 * 9 * 2, c.in),
        d(ldd * 9 * 2, c.out),
        before(d.size, c.out),
        bias(16, c.out),
        aux(16 * 9 * 2, c.out),
        workspace(1 << 14, CUDA_R_32F) {
    a.fill(1), b.fill(2), d.fill(3), before.fill(3), bias.fill(4), aux.fill(5);
    bool is_double = c.in == CUDA_R_64F;
    cublasLtCreate(&handle);
    cublasLtMatmulDescCreate(&desc, is_double ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                             is_double ? CUDA_R_64F : CUDA_R_32F);
    set(CUBLASLT_MATMUL_DESC_TRANSA, c.trans_a);
    set(CUBLASLT_MATMUL_DESC_TRANSB, c.trans_b);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, c.epilogue);
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.at);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux.at);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, int64_t(16));
    set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, int64_t(16 * 9));
    bool ta = c.trans_a == CUBLAS_OP_T, tb = c.trans_b == CUBLAS_OP_T;
    la = layout(c.in, ta ? c.k : c.m, ta ? c.m : c.k, lda);
    lb = layout(c.in, tb ? c.n : c.k, tb ? c.k : c.n, lda);
    ld = layout(c.out, c.m, c.n, ldd);
    cublasLtMatmulPreferenceCreate(&preference);
    uint64_t most = workspace.size * 4;
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most, 8);
  }
  ~Problem() {
    cublasLtMatmulPreferenceDestroy(preference);
    for (auto l : {la, lb, ld}) cublasLtMatrixLayoutDestroy(l);
    cublasLtMatmulDescDestroy(desc);
    cublasLtDestroy(handle);
  }

  template <class T>
  void set(cublasLtMatmulDescAttributes_t attribute, T value) {
    REQUIRE(cublasLtMatmulDescSetAttribute(desc, attribute, &value, sizeof(value)) == CUBLAS_STATUS_SUCCESS);
  }
  cublasLtMatrixLayout_t layout(cudaDataType type, size_t rows, size_t cols, size_t leading) {
    cublasLtMatrixLayout_t l;
    cublasLtMatrixLayoutCreate(&l, type, rows, cols, int64_t(leading));
    auto order = int32_t(c.order);
    int64_t stride = 9 * int64_t(leading);
    cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_ORDER, &order, 4);
    cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &c.batch, 4);
    cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, 8);
    return l;
  }
  std::vector<cublasLtMatmulHeuristicResult_t> algorithms() {
    std::vector<cublasLtMatmulHeuristicResult_t> results(8);
    int count = 0;
    status = cublasLtMatmulAlgoGetHeuristic(handle, desc, la, lb, ld, ld, preference, 8, results.data(), &count);
    results.resize(size_t(count));
    return results;
  }
  cublasStatus_t run(const cublasLtMatmulAlgo_t* algo, size_t workspace_bytes, const void* left) {
    float alpha_f = 2, beta_f = float(c.beta);
    double alpha_d = 2, beta_d = c.beta;
    bool is_double = c.in == CUDA_R_64F;
    const void* alpha = is_double ? static_cast<void*>(&alpha_d) : &alpha_f;
    const void* beta = is_double ? static_cast<void*>(&beta_d) : &beta_f;
    return cublasLtMatmul(handle, desc, alpha, left, la, b.at, lb, beta, d.at, ld, d.at, ld, algo, workspace.at,
                          workspace_bytes, stream.handle());
  }

  size_t index(size_t row, size_t col, size_t leading) const {
    return c.order == CUBLASLT_ORDER_COL ? row + col * leading : row * leading + col;
  }
  double left(size_t g, size_t i, size_t p) const {
    return a.get(81 * g + (c.trans_a == CUBLAS_OP_T ? index(p, i, lda) : index(i, p, lda)));
  }
  double right(size_t g, size_t p, size_t j) const {
    return b.get(81 * g + (c.trans_b == CUBLAS_OP_T ? index(j, p, lda) : index(p, j, lda)));
  }
  // Before the activation.
  double expected(size_t g, size_t i, size_t j, double bias_i) const {
    double sum = 0;
    for (size_t p = 0; p < c.k; ++p) sum += left(g, i, p) * right(g, p, j);
    return 2 * sum + c.beta * before.get(9 * ldd * g + index(i, j, ldd)) + (c.epilogue & 4 ? bias_i : 0);
  }

  Case c;
  size_t lda, ldd;
  Buffer a, b, d, before, bias, aux, workspace;
  Stream stream;
  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t la, lb, ld;
  cublasLtMatmulPreference_t preference = nullptr;
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
};

double gelu(double x) { return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }
double gelu_gradient(double x) { return (gelu(x + 1e-5) - gelu(x - 1e-5)) / 2e-5; }

void check_values(const Case& c, const cublasLtMatmulHeuristicResult_t& chosen) {
  Problem p(c);
  std::vector<double> bias, aux;
  for (size_t i = 0; i < p.bias.size; ++i) bias.push_back(p.bias.get(i));
  for (size_t i = 0; i < p.aux.size; ++i) aux.push_back(p.aux.get(i));
  REQUIRE(p.run(&chosen.algo, chosen.workspaceSize, p.a.at) == CUBLAS_STATUS_SUCCESS);
  synchronize(p.stream.handle());
  for (Buffer* b : {&p.d, &p.bias, &p.aux}) b->fetch();
  double tolerance = c.out == CUDA_R_16BF ? 1e-2 : 1e-5;
  auto near = [&](double x) { return Approx(x).epsilon(tolerance).margin(tolerance); };
  for (size_t g = 0; g < size_t(c.batch); ++g)
    for (size_t j = 0; j < c.n; ++j)
      for (size_t i = 0; i < c.m; ++i) {
        double x = p.expected(g, i, j, bias[i]);
        size_t in_aux = 16 * 9 * g + 16 * j + i;
        if (c.epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS) CHECK(p.aux.get(in_aux) == near(x));
        if (c.epilogue & 32) x = gelu(x);
        if (c.epilogue == CUBLASLT_EPILOGUE_DGELU) x *= gelu_gradient(aux[in_aux]);
        CHECK(p.d.get(9 * p.ldd * g + p.index(i, j, p.ldd)) == near(x));
      }
  bool of_a = c.epilogue == CUBLASLT_EPILOGUE_BGRADA, of_b = c.epilogue == CUBLASLT_EPILOGUE_BGRADB;
  for (size_t i = 0; i < (of_a ? c.m : of_b ? c.n : 0); ++i) {
    double sum = 0;
    for (size_t q = 0; q < c.k; ++q) sum += of_a ? p.left(0, i, q) : p.right(0, q, i);
    CHECK(p.bias.get(i) == near(sum));
  }
}

}  // namespace

TEST_CASE("emulator: products of every type, order, transposition and epilogue") {
  std::vector<Case> cases;
  for (auto [in, out] : {std::pair{CUDA_R_32F, CUDA_R_32F}, std::pair{CUDA_R_16BF, CUDA_R_32F},
                         std::pair{CUDA_R_16BF, CUDA_R_16BF}, std::pair{CUDA_R_64F, CUDA_R_64F}})
    for (auto ta : {CUBLAS_OP_N, CUBLAS_OP_T})
      for (auto tb : {CUBLAS_OP_N, CUBLAS_OP_T})
        for (auto order : {CUBLASLT_ORDER_COL, CUBLASLT_ORDER_ROW})
          cases.push_back({in, out, ta, tb, CUBLASLT_EPILOGUE_DEFAULT, 0.5, order, 2});
  for (auto e :
       {CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU_BIAS, CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
        CUBLASLT_EPILOGUE_DGELU, CUBLASLT_EPILOGUE_BGRADA, CUBLASLT_EPILOGUE_BGRADB})
    for (auto out : {CUDA_R_32F, CUDA_R_16BF}) cases.push_back({CUDA_R_16BF, out, CUBLAS_OP_T, CUBLAS_OP_N, e, 1});
  cases.push_back(
      {CUDA_R_32F, CUDA_R_32F, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, 0, CUBLASLT_ORDER_COL, 1, 1, 1, 1});
  for (const Case& c : cases) {
    auto algorithms = Problem(c).algorithms();
    REQUIRE(algorithms.size() == (c.k > 1 ? 3 : 2));
    for (const auto& a : algorithms) check_values(c, a);
  }
}

TEST_CASE("emulator: TF32 rounds the operands") {
  Case c;
  c.m = c.n = c.k = 1;
  for (auto [compute, expected] :
       {std::pair{CUBLAS_COMPUTE_32F, 2 * (1 + 0x1p-12)}, std::pair{CUBLAS_COMPUTE_32F_FAST_TF32, 2.0}}) {
    Problem p(c);
    p.set(CUBLASLT_MATMUL_DESC_COMPUTE_TYPE, compute);
    p.a.set(0, 1 + 0x1p-12), p.b.set(0, 1);
    p.a.put(), p.b.put();
    CHECK(p.run(nullptr, 0, p.a.at) == CUBLAS_STATUS_SUCCESS);
    synchronize(p.stream.handle());
    p.d.fetch();
    CHECK(p.d.get(0) == expected);
  }
}

TEST_CASE("emulator: cuBLASLt refuses what it cannot do") {
  Case c;
  Problem p(c);
  auto algo = p.algorithms().at(0);
  CHECK(algo.workspaceSize > 0);
  auto run = [&](size_t workspace) { return p.run(&algo.algo, workspace, p.a.at); };
  CHECK(run(algo.workspaceSize) == CUBLAS_STATUS_SUCCESS);
  CHECK(run(algo.workspaceSize - 1) == CUBLAS_STATUS_INVALID_VALUE);
  CHECK(p.run(&algo.algo, 1024, nullptr) == CUBLAS_STATUS_INVALID_VALUE);
  CHECK(p.run(&algo.algo, 1024, static_cast<char*>(p.a.at) + 4) == CUBLAS_STATUS_NOT_SUPPORTED);  // alignment
  CHECK(p.run(nullptr, 0, p.a.at) == CUBLAS_STATUS_SUCCESS);

  uint64_t none = 0;
  cublasLtMatmulPreferenceSetAttribute(p.preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &none, 8);
  CHECK(p.algorithms().size() == 1);
  CHECK(cublasLtMatmulPreferenceSetAttribute(p.preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &none, 4) ==
        CUBLAS_STATUS_INVALID_VALUE);
  auto refused = [&](cublasLtMatrixLayoutAttribute_t attribute, uint64_t value, size_t bytes) {
    uint64_t before = 0;
    cublasLtMatrixLayoutGetAttribute(p.la, attribute, &before, bytes, nullptr);
    cublasLtMatrixLayoutSetAttribute(p.la, attribute, &value, bytes);
    CHECK(p.algorithms().empty());
    cublasLtMatrixLayoutSetAttribute(p.la, attribute, &before, bytes);
    return p.status;
  };
  CHECK(refused(CUBLASLT_MATRIX_LAYOUT_LD, 4, 8) == CUBLAS_STATUS_INVALID_VALUE);
  CHECK(refused(CUBLASLT_MATRIX_LAYOUT_COLS, 5, 8) == CUBLAS_STATUS_INVALID_VALUE);
  CHECK(refused(CUBLASLT_MATRIX_LAYOUT_ROWS, 0, 8) == CUBLAS_STATUS_INVALID_VALUE);
  CHECK(refused(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, 2, 4) == CUBLAS_STATUS_INVALID_VALUE);
  CHECK(refused(CUBLASLT_MATRIX_LAYOUT_TYPE, CUDA_R_16BF, 4) == CUBLAS_STATUS_NOT_SUPPORTED);
  p.set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_GELU_AUX);
  p.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, int64_t(6));
  CHECK(p.algorithms().empty());
  CHECK(p.status == CUBLAS_STATUS_INVALID_VALUE);
}

TEST_CASE("emulator: a product of memory that is not the device's fails when it runs") {
  Problem p(Case{});
  alignas(16) float on_host[81] = {};
  CHECK(p.run(nullptr, 0, on_host) == CUBLAS_STATUS_SUCCESS);
  CHECK_THROWS_WITH(synchronize(p.stream.handle()), Contains("not in CUDA's memory: A"));
}
