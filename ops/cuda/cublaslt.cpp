// The functions of cuBLASLt that are used here, as calls of the library, which is opened at the first of them: programs
// start where it is missing, and the first product says so.
#include <cublasLt.h>
#include <fmt/format.h>

#include "dtensor/shared_library.h"

namespace {

const dtensor::SharedLibrary& library() {
  static const dtensor::SharedLibrary opened(
      "cublasLt", fmt::format("libcublasLt.so.{}", CUBLAS_VER_MAJOR),
      fmt::format("install cuBLAS of CUDA {}, or add its folder to LD_LIBRARY_PATH", CUBLAS_VER_MAJOR));
  return opened;
}

template <class F>
F* find(const char* name) {
  F* function;
  library().get(name, function);
  return function;
}

}  // namespace

#define FORWARD(result, name, parameters, arguments)            \
  result name parameters {                                      \
    static const auto function = find<decltype(::name)>(#name); \
    return function arguments;                                  \
  }

using Handle = cublasLtHandle_t;
using Desc = cublasLtMatmulDesc_t;
using Layout = cublasLtMatrixLayout_t;
using Preference = cublasLtMatmulPreference_t;
using Algo = cublasLtMatmulAlgo_t;
using Result = cublasLtMatmulHeuristicResult_t;
using Status = cublasStatus_t;

FORWARD(size_t, cublasLtGetVersion, (), ())
FORWARD(const char*, cublasLtGetStatusName, (Status status), (status))
FORWARD(Status, cublasLtCreate, (Handle * handle), (handle))
FORWARD(Status, cublasLtDestroy, (Handle handle), (handle))
FORWARD(Status, cublasLtMatmulDescCreate, (Desc * desc, cublasComputeType_t compute, cudaDataType_t scale),
        (desc, compute, scale))
FORWARD(Status, cublasLtMatmulDescDestroy, (Desc desc), (desc))
FORWARD(Status, cublasLtMatmulDescSetAttribute,
        (Desc desc, cublasLtMatmulDescAttributes_t name, const void* value, size_t bytes), (desc, name, value, bytes))
FORWARD(Status, cublasLtMatrixLayoutCreate,
        (Layout * layout, cudaDataType type, uint64_t rows, uint64_t columns, int64_t leading),
        (layout, type, rows, columns, leading))
FORWARD(Status, cublasLtMatrixLayoutDestroy, (Layout layout), (layout))
FORWARD(Status, cublasLtMatrixLayoutSetAttribute,
        (Layout layout, cublasLtMatrixLayoutAttribute_t name, const void* value, size_t bytes),
        (layout, name, value, bytes))
FORWARD(Status, cublasLtMatmulPreferenceCreate, (Preference * preference), (preference))
FORWARD(Status, cublasLtMatmulPreferenceDestroy, (Preference preference), (preference))
FORWARD(Status, cublasLtMatmulPreferenceSetAttribute,
        (Preference preference, cublasLtMatmulPreferenceAttributes_t name, const void* value, size_t bytes),
        (preference, name, value, bytes))
FORWARD(Status, cublasLtMatmulAlgoGetHeuristic,
        (Handle handle, Desc desc, Layout a, Layout b, Layout c, Layout d, Preference preference, int most,
         Result* results, int* count),
        (handle, desc, a, b, c, d, preference, most, results, count))
FORWARD(Status, cublasLtMatmulAlgoCheck,
        (Handle handle, Desc desc, Layout a, Layout b, Layout c, Layout d, const Algo* algo, Result* result),
        (handle, desc, a, b, c, d, algo, result))
FORWARD(Status, cublasLtMatmul,
        (Handle handle, Desc desc, const void* alpha, const void* a, Layout a_layout, const void* b, Layout b_layout,
         const void* beta, const void* c, Layout c_layout, void* d, Layout d_layout, const Algo* algo, void* workspace,
         size_t workspace_bytes, cudaStream_t stream),
        (handle, desc, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algo, workspace,
         workspace_bytes, stream))
