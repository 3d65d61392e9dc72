// Apart from the other functions, because arguments beyond 1e5 are reduced in local memory: see ops/CMakeLists.txt.
#include "ops/cuda/elementwise.cuh"

namespace dtensor::cuda {
namespace {

struct Sine {
  template <class T>
  __device__ T operator()(T x) const {
    return ::sin(x);
  }
};
struct Cosine {
  template <class T>
  __device__ T operator()(T x) const {
    return ::cos(x);
  }
};

}  // namespace

bool sin(const Elementwise& e) { return floating<1>(e, Sine{}); }
bool cos(const Elementwise& e) { return floating<1>(e, Cosine{}); }

}  // namespace dtensor::cuda
