// Functions that CUDA's library computes.
#include "ops/cuda/elementwise.cuh"

namespace dtensor::cuda {

// Calls the function of that name.
#define FUNCTION(name)                   \
  namespace {                            \
  struct Of_##name {                     \
    template <class T>                   \
    __device__ T operator()(T x) const { \
      return ::name(x);                  \
    }                                    \
  };                                     \
  }
FUNCTION(exp)
FUNCTION(expm1)
FUNCTION(log)
FUNCTION(log1p)
FUNCTION(erf)
FUNCTION(floor)
FUNCTION(ceil)
FUNCTION(rint)  // to the nearest, ties to even
#undef FUNCTION

bool exp(const Elementwise& e) { return floating<1>(e, Of_exp{}); }
bool expm1(const Elementwise& e) { return floating<1>(e, Of_expm1{}); }
bool log(const Elementwise& e) { return floating<1>(e, Of_log{}); }
bool log1p(const Elementwise& e) { return floating<1>(e, Of_log1p{}); }
bool erf(const Elementwise& e) { return floating<1>(e, Of_erf{}); }
bool floor(const Elementwise& e) { return floating<1>(e, Of_floor{}); }
bool ceil(const Elementwise& e) { return floating<1>(e, Of_ceil{}); }
bool round(const Elementwise& e) { return floating<1>(e, Of_rint{}); }

}  // namespace dtensor::cuda
