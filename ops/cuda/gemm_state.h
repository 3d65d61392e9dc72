// What gemm.cpp and gemm_tuning.cpp share.
#pragma once

#include <cublasLt.h>

#include <array>
#include <map>
#include <optional>
#include <vector>

#include "ops/cuda/gemm.h"

namespace dtensor::cuda {

// A handle of cuBLASLt that is destroyed with its owner.
template <class Handle, auto destroy>
struct Destroy {
  using pointer = Handle;
  void operator()(Handle h) const { destroy(h); }
};
template <class Handle, auto destroy>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroy<Handle, destroy>>;
using MatmulDesc = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using MatrixLayout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

// All of a product that its algorithm may depend on: everything but the addresses, of which it has the alignments.
using GemmKey = std::array<int64_t, 24>;

// How a product is computed.
struct GemmPlan {
  Product product;  // its addresses are those of the first call
  MatmulDesc desc;
  MatrixLayout a, b, c;  // in cuBLASLt's terms: columns first, so `a` is B and `b` is A
  Preference preference;
  std::optional<cublasLtMatmulAlgo_t> algorithm;  // none where cuBLASLt does not have the epilogue
  bool measured = false;                          // tuned, or from a file
};

struct GemmState {
  GemmState(std::shared_ptr<Allocator> allocator, int64_t largest);

  // Decides at the first call with a product of this key.
  GemmPlan& plan_of(std::string_view op, const Product& p);
  // The first choice of the heuristics first; an error where there is none.
  cublasStatus_t find_algorithms(const GemmPlan& plan, int most, std::vector<cublasLtMatmulAlgo_t>& list);
  cublasStatus_t launch(const GemmPlan& plan, const cublasLtMatmulAlgo_t& algorithm, const Product& p);
  // False where cuBLASLt does not have the epilogue.
  bool launch(std::string_view op, const Product& p);
  void run(std::string_view op, const Product& p);

  std::shared_ptr<Allocator> allocator;
  int64_t largest, decisions = 0;
  Storage workspace;
  Owned<cublasLtHandle_t, cublasLtDestroy> handle;
  std::map<GemmKey, GemmPlan> plans;
  std::map<GemmKey, cublasLtMatmulAlgo_t> loaded;  // from files
};

}  // namespace dtensor::cuda
