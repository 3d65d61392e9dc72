#include "ops/cuda/gemm.h"

#include <algorithm>

#include "ops/core/call.h"
#include "ops/cuda/epilogue.h"
#include "ops/cuda/gemm_state.h"
#include "ops/cuda/kernels.h"
#include "placement/error.h"

namespace dtensor::cuda {
namespace {

constexpr int64_t workspace_bytes = 32 << 20;

std::string to_string(const Product& p) {
  auto operand = [](const GemmOperand& x, int64_t rows, int64_t columns) {
    return fmt::format("{}[{},{}]{} (ld {})", name(x.dtype), rows, columns, x.transposed ? " transposed" : "", x.ld);
  };
  return fmt::format("{} x {} -> {}[{},{}] (ld {}){}{}{}{}", operand(p.A, p.M, p.K), operand(p.B, p.K, p.N),
                     name(p.dtype), p.M, p.N, p.ldc, p.batch == 1 ? "" : fmt::format(", {} times", p.batch),
                     p.accumulate || p.added ? ", added" : "", p.bias ? ", bias" : "", p.gelu ? ", gelu" : "");
}

[[noreturn]] void fail_status(cublasStatus_t status, std::string_view op, const char* call, std::string_view what) {
  fail("[{}] cuBLASLt: {} of {} for {}", op, cublasLtGetStatusName(status), call, what);
}

cudaDataType type_of(DType t) { return t == DType::bf16 ? CUDA_R_16BF : t == DType::f64 ? CUDA_R_64F : CUDA_R_32F; }

cublasComputeType_t compute_type(const Product& p) {
  if (p.A.dtype == DType::f64) return CUBLAS_COMPUTE_64F;
  return p.tf32 && p.A.dtype == DType::f32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}

// The power of two, at most 256, that divides an address. 0 of none.
int64_t alignment(const void* p) {
  auto address = reinterpret_cast<uintptr_t>(p);
  return address ? int64_t(std::min<uintptr_t>(256, address & -address)) : 0;
}

GemmKey key_of(const Product& p) {
  return {int64_t(p.A.dtype),
          int64_t(p.B.dtype),
          int64_t(p.dtype),
          p.A.transposed,
          p.B.transposed,
          p.M,
          p.N,
          p.K,
          p.A.ld,
          p.B.ld,
          p.ldc,
          p.batch,
          p.A.stride,
          p.B.stride,
          p.stride,
          p.accumulate,
          compute_type(p),
          p.gelu,
          alignment(p.A.data),
          alignment(p.B.data),
          alignment(p.C),
          alignment(p.bias),
          alignment(p.aux),
          alignment(p.added)};
}

bool has_epilogue(const Product& p) { return p.bias || p.gelu; }

// cuBLASLt's GELU has fewer digits than float64; and aux is read and written in packs of 16 bytes.
bool may_fuse(const Product& p) {
  if (p.gelu && p.dtype == DType::f64) return false;
  return !p.aux || (p.ldc % 8 == 0 && p.stride % 8 == 0 && alignment(p.aux) >= 16);
}

uint32_t epilogue_of(const Product& p) {
  if (!p.gelu) return p.bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
  if (p.aux) return p.bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
  return p.bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
}

// The addresses of what the epilogue reads and writes.
cublasStatus_t set_addresses(const MatmulDesc& desc, const Product& p) {
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
  auto set = [&](cublasLtMatmulDescAttributes_t attribute, const void* address) {
    if (address && status == CUBLAS_STATUS_SUCCESS)
      status = cublasLtMatmulDescSetAttribute(desc.get(), attribute, &address, sizeof address);
  };
  set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p.aux);
  return status;
}

// Descriptors of a product; what cuBLASLt refuses is an error that names it.
class PlanMaker {
 public:
  PlanMaker(std::string_view op, const Product& p) : op_(op), p_(p) {}

  GemmPlan plan() const {
    auto operand = [&](const GemmOperand& x, int64_t rows, int64_t columns) {
      if (x.transposed) std::swap(rows, columns);
      return layout(x.dtype, rows, columns, x.ld, x.stride);
    };
    return {.product = p_,
            .desc = desc(),
            .a = operand(p_.B, p_.K, p_.N),
            .b = operand(p_.A, p_.M, p_.K),
            .c = layout(p_.dtype, p_.M, p_.N, p_.ldc, p_.stride),
            .preference = preference()};
  }

 private:
  void done(cublasStatus_t status, const char* call) const {
    if (status != CUBLAS_STATUS_SUCCESS) fail_status(status, op_, call, to_string(p_));
  }

  MatmulDesc desc() const {
    cublasLtMatmulDesc_t made = nullptr;
    cudaDataType scale = p_.A.dtype == DType::f64 ? CUDA_R_64F : CUDA_R_32F;
    done(cublasLtMatmulDescCreate(&made, compute_type(p_), scale), "cublasLtMatmulDescCreate");
    MatmulDesc desc(made);
    auto set = [&](cublasLtMatmulDescAttributes_t attribute, auto value) {
      done(cublasLtMatmulDescSetAttribute(made, attribute, &value, sizeof value), "cublasLtMatmulDescSetAttribute");
    };
    set(CUBLASLT_MATMUL_DESC_TRANSA, int32_t(p_.B.transposed ? CUBLAS_OP_T : CUBLAS_OP_N));
    set(CUBLASLT_MATMUL_DESC_TRANSB, int32_t(p_.A.transposed ? CUBLAS_OP_T : CUBLAS_OP_N));
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue_of(p_));
    if (p_.aux) set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, p_.ldc);
    if (p_.aux && p_.batch > 1) set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE, p_.stride);
    done(set_addresses(desc, p_), "cublasLtMatmulDescSetAttribute");
    return desc;
  }

  // Rows of ours are columns of cuBLASLt's.
  MatrixLayout layout(DType dtype, int64_t rows, int64_t columns, int64_t ld, int64_t stride) const {
    cublasLtMatrixLayout_t made = nullptr;
    done(cublasLtMatrixLayoutCreate(&made, type_of(dtype), uint64_t(columns), uint64_t(rows), ld),
         "cublasLtMatrixLayoutCreate");
    MatrixLayout layout(made);
    auto set = [&](cublasLtMatrixLayoutAttribute_t attribute, auto value) {
      done(cublasLtMatrixLayoutSetAttribute(made, attribute, &value, sizeof value), "cublasLtMatrixLayoutSetAttribute");
    };
    if (p_.batch > 1) {
      set(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, int32_t(p_.batch));
      set(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, stride);
    }
    return layout;
  }

  Preference preference() const {
    cublasLtMatmulPreference_t made = nullptr;
    done(cublasLtMatmulPreferenceCreate(&made), "cublasLtMatmulPreferenceCreate");
    Preference preference(made);
    auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      done(cublasLtMatmulPreferenceSetAttribute(made, attribute, &value, sizeof value),
           "cublasLtMatmulPreferenceSetAttribute");
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t(workspace_bytes));
    // Parts of a sum over K are added in float32, in a step of their own: never in C's type or in order of arrival.
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, uint32_t(alignment(p_.B.data)));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, uint32_t(alignment(p_.A.data)));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, uint32_t(alignment(p_.added ? p_.added : p_.C)));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, uint32_t(alignment(p_.C)));
    return preference;
  }

  std::string_view op_;
  const Product& p_;
};

// `count` of a product's rows, columns, terms of the sums or batch, from `begin` on.
Product part(const Product& p, int64_t Product::*size, int64_t begin, int64_t count) {
  Product q = p;
  q.*size = count;
  bool m = size == &Product::M, n = size == &Product::N, k = size == &Product::K;
  auto advanced = [&]<class P>(P address, DType dtype, int64_t stride) {
    return address ? P(uintptr_t(address) + uintptr_t(begin * stride * itemsize(dtype))) : nullptr;
  };
  auto stride_of = [&](const GemmOperand& x, bool along_rows, bool along_columns) {
    if (!along_rows && !along_columns) return m || n ? 0 : x.stride;
    return along_rows != x.transposed ? x.ld : 1;
  };
  int64_t c = m ? p.ldc : n ? 1 : k ? 0 : p.stride;
  q.A.data = advanced(p.A.data, p.A.dtype, stride_of(p.A, m, k));
  q.B.data = advanced(p.B.data, p.B.dtype, stride_of(p.B, k, n));
  q.C = advanced(p.C, p.dtype, c);
  q.aux = advanced(p.aux, p.dtype, c), q.added = advanced(p.added, p.dtype, c);
  if (n) q.bias = advanced(p.bias, p.dtype, 1);
  if (k && begin > 0) q.accumulate = true, q.added = nullptr;
  return q;
}

void finish(StreamHandle stream, const Product& p, const void* product) {
  run_epilogue(stream, p.dtype, {p.batch, p.M, p.N, p.ldc, p.stride, product, p.bias, p.gelu, p.aux, p.C});
}

}  // namespace

GemmState::GemmState(std::shared_ptr<Allocator> a, int64_t most)
    : allocator(std::move(a)), largest(most), workspace(allocator, workspace_bytes) {
  cublasLtHandle_t made = nullptr;
  cublasStatus_t status = cublasLtCreate(&made);
  if (status != CUBLAS_STATUS_SUCCESS) fail_status(status, "cuda", "cublasLtCreate", "this rank");
  handle.reset(made);
}

cublasStatus_t GemmState::find_algorithms(const GemmPlan& plan, int most, std::vector<cublasLtMatmulAlgo_t>& list) {
  std::vector<cublasLtMatmulHeuristicResult_t> results{size_t(most)};
  int found = 0;
  ++decisions;
  cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle.get(), plan.desc.get(), plan.a.get(), plan.b.get(), plan.c.get(),
                                     plan.c.get(), plan.preference.get(), most, results.data(), &found);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  for (int i = 0; i < found; ++i)
    if (results[size_t(i)].state == CUBLAS_STATUS_SUCCESS) list.push_back(results[size_t(i)].algo);
  return list.empty() ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
}

GemmPlan& GemmState::plan_of(std::string_view op, const Product& p) {
  GemmKey key = key_of(p);
  auto it = plans.find(key);
  if (it != plans.end()) return it->second;
  GemmPlan plan = PlanMaker(op, p).plan();
  if (auto from_file = loaded.find(key); from_file != loaded.end()) {
    cublasLtMatmulHeuristicResult_t result{};
    cublasStatus_t status = cublasLtMatmulAlgoCheck(handle.get(), plan.desc.get(), plan.a.get(), plan.b.get(),
                                                    plan.c.get(), plan.c.get(), &from_file->second, &result);
    if (status != CUBLAS_STATUS_SUCCESS)
      fail_status(status, op, "cublasLtMatmulAlgoCheck, of an algorithm that was loaded from a file,", to_string(p));
    plan.algorithm = from_file->second, plan.measured = true;
  } else {
    std::vector<cublasLtMatmulAlgo_t> list;
    cublasStatus_t status = find_algorithms(plan, 1, list);
    if (status == CUBLAS_STATUS_SUCCESS)
      plan.algorithm = list[0];
    else if (!has_epilogue(p))
      fail_status(status, op, "cublasLtMatmulAlgoGetHeuristic", to_string(p));
  }
  return plans.emplace(key, std::move(plan)).first->second;
}

cublasStatus_t GemmState::launch(const GemmPlan& plan, const cublasLtMatmulAlgo_t& algorithm, const Product& p) {
  cublasStatus_t status = set_addresses(plan.desc, p);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  double one = 1, zero = 0;
  float one_f = 1, zero_f = 0;
  bool f64 = p.A.dtype == DType::f64;
  const void *alpha = f64 ? static_cast<const void*>(&one) : &one_f,
             *nothing = f64 ? static_cast<const void*>(&zero) : &zero_f;
  return cublasLtMatmul(handle.get(), plan.desc.get(), alpha, p.B.data, plan.a.get(), p.A.data, plan.b.get(),
                        p.accumulate || p.added ? alpha : nothing, p.added ? p.added : p.C, plan.c.get(), p.C,
                        plan.c.get(), &algorithm, workspace.data(), workspace_bytes, allocator->stream());
}

bool GemmState::launch(std::string_view op, const Product& p) {
  const GemmPlan& plan = plan_of(op, p);
  if (!plan.algorithm) return false;
  cublasStatus_t status = launch(plan, *plan.algorithm, p);
  if (status != CUBLAS_STATUS_SUCCESS) fail_status(status, op, "cublasLtMatmul", to_string(p));
  return true;
}

void GemmState::run(std::string_view op, const Product& p) {
  if (p.M == 0 || p.N == 0 || p.batch == 0) return;
  for (auto size : {&Product::M, &Product::N, &Product::batch})
    if (p.*size > largest) {
      int64_t half = p.*size / 2;
      run(op, part(p, size, 0, half));
      return run(op, part(p, size, half, p.*size - half));
    }
  StreamHandle stream = allocator->stream();
  if (p.K == 0) {
    if (!p.accumulate || p.added || has_epilogue(p))
      finish(stream, p, p.added ? p.added : p.accumulate ? p.C : nullptr);
    return;
  }
  if (has_epilogue(p) && may_fuse(p) && p.K <= largest && launch(op, p)) return;
  Product plain = p;
  plain.bias = nullptr, plain.gelu = false, plain.aux = nullptr;
  for (int64_t k = 0; k < p.K; k += largest) launch(op, part(plain, &Product::K, k, std::min(largest, p.K - k)));
  if (has_epilogue(p)) finish(stream, p, p.C);
}

Gemm::Gemm(std::shared_ptr<Allocator> allocator, int64_t largest)
    : state_(std::make_unique<GemmState>(std::move(allocator), largest)) {}
Gemm::~Gemm() = default;
void Gemm::run(std::string_view op, const Product& p) { state_->run(op, p); }
int64_t Gemm::decisions() const { return state_->decisions; }

Gemm& gemm(Rank& rank) { return workspace_of(rank).get<Gemm>(); }

}  // namespace dtensor::cuda
