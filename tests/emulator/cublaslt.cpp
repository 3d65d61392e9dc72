// cuBLASLt's products. Sums go over k in its order; algorithms differ in whether they split it, and in the workspace
// that they need and write over, so that both have to be chosen as on a device.
#include <cublasLt.h>
#include <cuda_bf16.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "tests/emulator/state.h"

using namespace emulator;

struct cublasLtContext {};
struct cublasLtMatmulDescOpaque_t {
  cublasComputeType_t compute;
  cudaDataType_t scale;
  int32_t pointer_mode = CUBLASLT_POINTER_MODE_HOST, trans_a = CUBLAS_OP_N, trans_b = CUBLAS_OP_N;
  uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  void* bias = nullptr;
  int32_t bias_type = -1;  // -1: D's
  int64_t bias_stride = 0;
  void* aux = nullptr;
  int32_t aux_type = -1;
  int64_t aux_ld = 0, aux_stride = 0;
};
struct cublasLtMatrixLayoutOpaque_t {
  uint32_t type;
  uint64_t rows, cols;
  int64_t ld;
  int32_t order = CUBLASLT_ORDER_COL, batch = 1;
  int64_t stride = 0;

  size_t at(size_t row, size_t col) const {
    return order == CUBLASLT_ORDER_COL ? row + col * size_t(ld) : row * size_t(ld) + col;
  }
  bool is_valid() const {
    return rows > 0 && cols > 0 && batch > 0 && ld >= int64_t(order == CUBLASLT_ORDER_COL ? rows : cols);
  }
};
struct cublasLtMatmulPreferenceOpaque_t {
  uint32_t search = CUBLASLT_SEARCH_BEST_FIT, reduction_schemes = CUBLASLT_REDUCTION_SCHEME_MASK;
  uint64_t workspace = 0;
  uint32_t alignment[4] = {256, 256, 256, 256};
};

namespace {

using Desc = cublasLtMatmulDescOpaque_t;
using Layout = cublasLtMatrixLayoutOpaque_t;

size_t itemsize(uint32_t type) { return type == CUDA_R_64F ? 8 : type == CUDA_R_32F ? 4 : 2; }

// --- Attributes

struct Field {
  void* at = nullptr;
  size_t bytes = 0;
  Field() = default;
  template <class T>
  Field(T& value) : at(&value), bytes(sizeof(T)) {}
};

Field field(Desc& d, cublasLtMatmulDescAttributes_t attribute) {
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
      return d.compute;
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE:
      return d.scale;
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
      return d.pointer_mode;
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return d.trans_a;
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return d.trans_b;
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return d.epilogue;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return d.bias;
    case CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE:
      return d.bias_stride;
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
      return d.aux;
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
      return d.aux_ld;
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_BATCH_STRIDE:
      return d.aux_stride;
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE:
      return d.aux_type;
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return d.bias_type;
  }
  return {};
}
Field field(Layout& l, cublasLtMatrixLayoutAttribute_t attribute) {
  switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
      return l.type;
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
      return l.order;
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
      return l.rows;
    case CUBLASLT_MATRIX_LAYOUT_COLS:
      return l.cols;
    case CUBLASLT_MATRIX_LAYOUT_LD:
      return l.ld;
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
      return l.batch;
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
      return l.stride;
  }
  return {};
}
Field field(cublasLtMatmulPreferenceOpaque_t& p, cublasLtMatmulPreferenceAttributes_t attribute) {
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_SEARCH_MODE:
      return p.search;
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return p.workspace;
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return p.reduction_schemes;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return p.alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES];
  }
  return {};
}
cublasStatus_t set(Field f, const void* value, size_t bytes) {
  if (!f.at || !value || bytes != f.bytes) return CUBLAS_STATUS_INVALID_VALUE;
  return std::memcpy(f.at, value, bytes), CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t get(Field f, void* value, size_t bytes, size_t* written) {
  if (written) *written = f.bytes;
  if (bytes == 0 && written && f.at) return CUBLAS_STATUS_SUCCESS;  // only the size was asked for
  if (!f.at || !value || bytes != f.bytes) return CUBLAS_STATUS_INVALID_VALUE;
  return std::memcpy(value, f.at, bytes), CUBLAS_STATUS_SUCCESS;
}

// --- Algorithms

struct Algo {               // of a cublasLtMatmulAlgo_t
  uint32_t config[9] = {};  // by cublasLtMatmulAlgoConfigAttributes_t
  uint8_t log2_alignment[4] = {};
  uint32_t unused[6] = {};
};

enum AlgoId : uint32_t { streaming, splitting, plain, algo_count };

size_t workspace_of(const Algo& a, const Layout& d) {
  switch (a.config[CUBLASLT_ALGO_CONFIG_ID]) {
    case streaming:
      return 1024;
    case splitting:
      return d.rows * d.cols * size_t(d.batch) * 8;
    default:
      return 0;
  }
}

// --- What is possible

bool has(const Desc& d, uint32_t bits) { return (d.epilogue & bits) == bits; }
bool has_bias(const Desc& d) { return d.epilogue & (4 | 16 | 256 | 512); }
bool has_aux(const Desc& d) { return has(d, 128); }

cublasStatus_t check_types(const Desc& s, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
  bool is_double = s.compute == CUBLAS_COMPUTE_64F;
  if (s.scale != (is_double ? CUDA_R_64F : CUDA_R_32F) || a.type != b.type || c.type != d.type)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  if (is_double != (a.type == CUDA_R_64F) || is_double != (d.type == CUDA_R_64F)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (a.type == CUDA_R_32F && d.type != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (a.type == CUDA_R_16BF && s.compute != CUBLAS_COMPUTE_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t check_epilogue(const Desc& s, const Layout& d) {
  switch (s.epilogue) {
    case CUBLASLT_EPILOGUE_DEFAULT:
      return CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_EPILOGUE_BIAS:
      break;
    case CUBLASLT_EPILOGUE_GELU:
    case CUBLASLT_EPILOGUE_GELU_BIAS:
    case CUBLASLT_EPILOGUE_GELU_AUX:
    case CUBLASLT_EPILOGUE_GELU_AUX_BIAS:
    case CUBLASLT_EPILOGUE_DGELU:
    case CUBLASLT_EPILOGUE_DGELU_BGRAD:
    case CUBLASLT_EPILOGUE_BGRADA:
    case CUBLASLT_EPILOGUE_BGRADB:
      if (d.type == CUDA_R_64F) return CUBLAS_STATUS_NOT_SUPPORTED;
      break;
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  if (d.order == CUBLASLT_ORDER_ROW) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (has_aux(s) && (s.aux_ld < int64_t(d.rows) || s.aux_ld % 8 || s.aux_stride % 8))
    return CUBLAS_STATUS_INVALID_VALUE;
  return CUBLAS_STATUS_SUCCESS;
}

size_t depth(const Desc& s, const Layout& a) { return s.trans_a == CUBLAS_OP_N ? a.cols : a.rows; }

cublasStatus_t check(const Desc* s, const Layout* a, const Layout* b, const Layout* c, const Layout* d) {
  if (!s || !a || !b || !c || !d) return CUBLAS_STATUS_INVALID_VALUE;
  for (const Layout* l : {a, b, c, d})
    if (!l->is_valid() || l->batch != d->batch) return CUBLAS_STATUS_INVALID_VALUE;
  size_t m = s->trans_a == CUBLAS_OP_N ? a->rows : a->cols, n = s->trans_b == CUBLAS_OP_N ? b->cols : b->rows;
  size_t k = s->trans_b == CUBLAS_OP_N ? b->rows : b->cols;
  if (k != depth(*s, *a) || d->rows != m || d->cols != n || c->rows != m || c->cols != n || c->order != d->order)
    return CUBLAS_STATUS_INVALID_VALUE;
  if (s->pointer_mode != CUBLASLT_POINTER_MODE_HOST) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (cublasStatus_t status = check_types(*s, *a, *b, *c, *d)) return status;
  return check_epilogue(*s, *d);
}

cublasStatus_t check_algo(const Algo& a, const Desc& s, const Layout& la) {
  uint32_t id = a.config[CUBLASLT_ALGO_CONFIG_ID], parts = a.config[CUBLASLT_ALGO_CONFIG_SPLITK_NUM];
  if (id >= algo_count) return CUBLAS_STATUS_INVALID_VALUE;
  bool possible = id == splitting
                      ? parts == 2 && depth(s, la) > 1 &&
                            a.config[CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME] == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE
                      : parts <= 1;
  return possible ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

// --- The product

template <class S>
S load(const void* from, uint32_t type, size_t i) {
  switch (type) {
    case CUDA_R_64F:
      return S(static_cast<const double*>(from)[i]);
    case CUDA_R_32F:
      return S(static_cast<const float*>(from)[i]);
    default:
      return S(float(static_cast<const __nv_bfloat16*>(from)[i]));
  }
}
template <class S>
void store(void* to, uint32_t type, size_t i, S x) {
  switch (type) {
    case CUDA_R_64F:
      static_cast<double*>(to)[i] = double(x);
      break;
    case CUDA_R_32F:
      static_cast<float*>(to)[i] = float(x);
      break;
    default:
      static_cast<__nv_bfloat16*>(to)[i] = float(x);
  }
}

float tf32(float x) { return std::bit_cast<float>((std::bit_cast<uint32_t>(x) + 0x1000) & ~0x1fffu); }

// GELU by tanh, and its derivative.
template <class S>
S gelu(S x) {
  return x / 2 * (1 + std::tanh(S(0.7978845608028654) * (x + S(0.044715) * x * x * x)));
}
template <class S>
S gelu_gradient(S x) {
  S t = std::tanh(S(0.7978845608028654) * (x + S(0.044715) * x * x * x));
  return (1 + t) / 2 + x / 2 * (1 - t * t) * S(0.7978845608028654) * (1 + 3 * S(0.044715) * x * x);
}

struct Product {
  Desc desc;
  Layout a_layout, b_layout, c_layout, d_layout;
  const void *a, *b, *c;
  void* d;
  double alpha, beta;
  uint32_t splits;

  template <class S>
  void run() const {
    for (size_t i = 0; i < size_t(d_layout.batch); ++i) run_one<S>(i);
  }

 private:
  // op(X) of batch i: `inner` runs fastest.
  template <class S>
  std::vector<S> packed(const void* from, const Layout& l, bool rows_inner, size_t i) const {
    std::vector<S> out(l.rows * l.cols);
    size_t inner = rows_inner ? l.rows : l.cols, outer = rows_inner ? l.cols : l.rows;
    for (size_t o = 0; o < outer; ++o)
      for (size_t r = 0; r < inner; ++r) {
        size_t at = rows_inner ? l.at(r, o) : l.at(o, r);
        S x = load<S>(from, l.type, at + i * size_t(l.stride));
        if constexpr (std::is_same_v<S, float>)
          if (desc.compute == CUBLAS_COMPUTE_32F_FAST_TF32) x = tf32(x);
        out[o * inner + r] = x;
      }
    return out;
  }

  template <class S>
  void run_one(size_t batch) const {
    size_t m = d_layout.rows, n = d_layout.cols, k = depth(desc, a_layout);
    std::vector<S> left = packed<S>(a, a_layout, desc.trans_a == CUBLAS_OP_N, batch);   // [k][m]
    std::vector<S> right = packed<S>(b, b_layout, desc.trans_b == CUBLAS_OP_N, batch);  // [n][k]
    std::vector<S> sums(m * n), part(splits > 1 ? m * n : 0);                           // [n][m]
    size_t half = splits > 1 ? k / 2 : k;
    multiply(left.data(), right.data(), sums.data(), m, n, k, 0, half);
    if (splits > 1) {
      multiply(left.data(), right.data(), part.data(), m, n, k, half, k);
      for (size_t i = 0; i < m * n; ++i) sums[i] += part[i];
    }
    if (desc.epilogue == CUBLASLT_EPILOGUE_BGRADA)
      bias_gradient<S>(batch, m, k, [&](size_t i, size_t p) { return left[p * m + i]; });
    if (desc.epilogue == CUBLASLT_EPILOGUE_BGRADB)
      bias_gradient<S>(batch, n, k, [&](size_t j, size_t p) { return right[j * k + p]; });
    for (size_t j = 0; j < n; ++j)
      for (size_t i = 0; i < m; ++i) sums[j * m + i] = finish(sums[j * m + i], i, j, batch);
    if (desc.epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD)
      bias_gradient<S>(batch, m, n, [&](size_t i, size_t j) { return sums[j * m + i]; });
  }

  template <class S>
  static void multiply(const S* left, const S* right, S* sums, size_t m, size_t n, size_t k, size_t begin, size_t end) {
    constexpr size_t rows = 256;  // of which four columns' sums stay in the cache
    for (size_t i0 = 0; i0 < m; i0 += rows)
      for (size_t j0 = 0; j0 < n; j0 += 4)
        for (size_t p = begin; p < end; ++p) {
          const S* l = left + p * m + i0;
          size_t count = std::min(rows, m - i0);
          for (size_t j = j0; j < std::min(j0 + 4, n); ++j) {
            S r = right[j * k + p];
            S* out = sums + j * m + i0;
            for (size_t i = 0; i < count; ++i) out[i] += l[i] * r;
          }
        }
  }

  // Everything behind the sum, in the order of the documentation.
  template <class S>
  S finish(S sum, size_t i, size_t j, size_t batch) const {
    size_t at = d_layout.at(i, j) + batch * size_t(d_layout.stride);
    S x = S(alpha) * sum;
    if (beta != 0) x += S(beta) * load<S>(c, c_layout.type, c_layout.at(i, j) + batch * size_t(c_layout.stride));
    if (has(desc, CUBLASLT_EPILOGUE_BIAS)) x += load<S>(desc.bias, bias_type(), i + batch * size_t(desc.bias_stride));
    uint32_t aux_type = desc.aux_type < 0 ? d_layout.type : uint32_t(desc.aux_type);
    size_t aux_at = i + j * size_t(desc.aux_ld) + batch * size_t(desc.aux_stride);
    if (has(desc, CUBLASLT_EPILOGUE_DGELU)) {
      x *= gelu_gradient(load<S>(desc.aux, aux_type, aux_at));
    } else if (has(desc, CUBLASLT_EPILOGUE_GELU)) {
      if (has_aux(desc)) store(desc.aux, aux_type, aux_at, x);
      x = gelu(x);
    }
    store(d, d_layout.type, at, x);
    return x;
  }

  uint32_t bias_type() const { return desc.bias_type < 0 ? d_layout.type : uint32_t(desc.bias_type); }

  template <class S, class F>
  void bias_gradient(size_t batch, size_t count, size_t terms, F term) const {
    for (size_t i = 0; i < count; ++i) {
      S sum = 0;
      for (size_t p = 0; p < terms; ++p) sum += term(i, p);
      store(desc.bias, bias_type(), i + batch * size_t(desc.bias_stride), sum);
    }
  }
};

size_t bytes_of(const Layout& l) {
  return (l.at(l.rows - 1, l.cols - 1) + 1 + size_t(l.batch - 1) * size_t(l.stride)) * itemsize(l.type);
}

bool is_aligned(const void* p, size_t to) { return reinterpret_cast<uintptr_t>(p) % to == 0; }

}  // namespace

const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH:
      return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR:
      return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
  return "unknown";
}
const char* cublasLtGetStatusString(cublasStatus_t status) { return cublasLtGetStatusName(status); }
size_t cublasLtGetVersion() { return 130100; }

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess) return CUBLAS_STATUS_NOT_INITIALIZED;
  return *handle = new cublasLtContext, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { return delete handle, CUBLAS_STATUS_SUCCESS; }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute, cudaDataType_t scale) {
  return *desc = new Desc{compute, scale}, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) { return delete desc, CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  return desc ? set(field(*desc, attribute), value, bytes) : CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatmulDescGetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                                              void* value, size_t bytes, size_t* written) {
  return desc ? get(field(*desc, attribute), value, bytes, written) : CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, uint64_t rows,
                                          uint64_t cols, int64_t ld) {
  return *layout = new Layout{uint32_t(type), rows, cols, ld}, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  return delete layout, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void* value,
                                                size_t bytes) {
  return layout ? set(field(*layout, attribute), value, bytes) : CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatrixLayoutGetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, void* value, size_t bytes,
                                                size_t* written) {
  return layout ? get(field(*layout, attribute), value, bytes, written) : CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  return *preference = new cublasLtMatmulPreferenceOpaque_t, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  return delete preference, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    size_t bytes) {
  return preference ? set(field(*preference, attribute), value, bytes) : CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatmulPreferenceGetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, void* value,
                                                    size_t bytes, size_t* written) {
  return preference ? get(field(*preference, attribute), value, bytes, written) : CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t results[], int* returned) {
  *returned = 0;
  if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (!preference || requested < 1 || !results) return CUBLAS_STATUS_INVALID_VALUE;
  if (cublasStatus_t status = check(desc, a, b, c, d)) return status;
  for (uint32_t id = 0; id < algo_count && *returned < requested; ++id) {
    Algo algo;
    algo.config[CUBLASLT_ALGO_CONFIG_ID] = id;
    algo.config[CUBLASLT_ALGO_CONFIG_SPLITK_NUM] = id == splitting ? 2 : 1;
    if (id == splitting) algo.config[CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME] = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    for (int i = 0; i < 4; ++i)  // accesses of 16 bytes where the caller says that they are possible
      algo.log2_alignment[i] = uint8_t(std::countr_zero(std::min(16u, preference->alignment[i])));
    if (id == splitting && !(preference->reduction_schemes & CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)) continue;
    size_t workspace = workspace_of(algo, *d);
    if (workspace > preference->workspace || check_algo(algo, *desc, *a) != CUBLAS_STATUS_SUCCESS) continue;
    results[(*returned)++] = {std::bit_cast<cublasLtMatmulAlgo_t>(algo), workspace, CUBLAS_STATUS_SUCCESS, 1, {}};
  }
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoInit(cublasLtHandle_t handle, cublasComputeType_t, cudaDataType_t, cudaDataType_t,
                                      cudaDataType_t, cudaDataType_t, cudaDataType_t, int id,
                                      cublasLtMatmulAlgo_t* algo) {
  if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (id < 0 || id >= int(algo_count) || !algo) return CUBLAS_STATUS_INVALID_VALUE;
  Algo a;
  a.config[CUBLASLT_ALGO_CONFIG_ID] = uint32_t(id);
  return *algo = std::bit_cast<cublasLtMatmulAlgo_t>(a), CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                       cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t* algo, cublasLtMatmulHeuristicResult_t* result) {
  if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (!algo || !result) return CUBLAS_STATUS_INVALID_VALUE;
  if (cublasStatus_t status = check(desc, a, b, c, d)) return status;
  if (cublasStatus_t status = check_algo(std::bit_cast<Algo>(*algo), *desc, *a)) return status;
  *result = {*algo, workspace_of(std::bit_cast<Algo>(*algo), *d), CUBLAS_STATUS_SUCCESS, 1, {}};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoConfigSetAttribute(cublasLtMatmulAlgo_t* algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute, const void* value,
                                                    size_t bytes) {
  if (!algo || size_t(attribute) >= 9) return CUBLAS_STATUS_INVALID_VALUE;
  Algo a = std::bit_cast<Algo>(*algo);
  cublasStatus_t status = set(a.config[attribute], value, bytes);
  return *algo = std::bit_cast<cublasLtMatmulAlgo_t>(a), status;
}
cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute, void* value,
                                                    size_t bytes, size_t* written) {
  if (!algo || size_t(attribute) >= 9) return CUBLAS_STATUS_INVALID_VALUE;
  Algo a = std::bit_cast<Algo>(*algo);
  return get(a.config[attribute], value, bytes, written);
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                              const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo, void* workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
  if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (cublasStatus_t status = check(desc, a_layout, b_layout, c_layout, d_layout)) return status;
  if (!alpha || !beta || !a || !b || !d) return CUBLAS_STATUS_INVALID_VALUE;
  Algo chosen;
  chosen.config[CUBLASLT_ALGO_CONFIG_ID] = plain;
  if (algo) chosen = std::bit_cast<Algo>(*algo);
  if (cublasStatus_t status = check_algo(chosen, *desc, *a_layout)) return status;
  size_t needed = workspace_of(chosen, *d_layout);
  if (needed > workspace_bytes || (needed && (!workspace || !is_aligned(workspace, 16))))
    return CUBLAS_STATUS_INVALID_VALUE;
  bool is_double = desc->compute == CUBLAS_COMPUTE_64F;
  auto scalar = [&](const void* p) {
    return is_double ? *static_cast<const double*>(p) : *static_cast<const float*>(p);
  };
  Product product{
      *desc, *a_layout, *b_layout, *c_layout,     *d_layout,    a,
      b,     c,         d,         scalar(alpha), scalar(beta), chosen.config[CUBLASLT_ALGO_CONFIG_SPLITK_NUM]};
  if ((product.beta != 0 && !c) || (has_bias(*desc) && !desc->bias) || (has_aux(*desc) && !desc->aux))
    return CUBLAS_STATUS_INVALID_VALUE;
  const void* operands[] = {a, b, product.beta != 0 ? c : d, d};
  for (int i = 0; i < 4; ++i)
    if (!is_aligned(operands[i], size_t(1) << chosen.log2_alignment[i])) return CUBLAS_STATUS_NOT_SUPPORTED;

  cudaError_t e = call([&](Lock& lock) {
    std::string outside;
    auto check_inside = [&](const char* name, const void* at, size_t bytes) {
      if (!find_allocation(at, bytes)) outside = std::string("cublasLtMatmul: not in CUDA's memory: ") + name;
    };
    check_inside("A", a, bytes_of(*a_layout));
    check_inside("B", b, bytes_of(*b_layout));
    check_inside("D", d, bytes_of(*d_layout));
    if (product.beta != 0) check_inside("C", c, bytes_of(*c_layout));
    if (needed) check_inside("workspace", workspace, needed);
    return give(lock, stream, [=] {
      if (!outside.empty()) throw std::runtime_error(outside);
      if (needed) std::memset(workspace, 0xff, needed);
      is_double ? product.run<double>() : product.run<float>();
    });
  });
  return e == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
