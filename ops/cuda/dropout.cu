#include "ops/cuda/dropout.h"

#include "dtensor/cuda/random.cuh"

namespace dtensor::cuda {
namespace {

template <class T>
struct Dropped {
  double p;
  Accumulate<T> kept;
  __device__ T operator()(uint32_t word, T x) const {
    return rounded<T>(load(x) * (unit_of(word) < p ? Accumulate<T>(0) : kept));
  }
};

}  // namespace

bool dropout(StreamHandle stream, DType type, const Part& part, const int64_t* key, double p, const void* x,
             void* out) {
  return for_floating(type, [&](auto t) {
    using T = decltype(t);
    launch_words<T>(stream, {0, key}, part, static_cast<const T*>(x), static_cast<T*>(out),
                    Dropped<T>{p, Accumulate<T>(1 / (1 - p))});
  });
}

}  // namespace dtensor::cuda
