// Compiled without fused multiply-adds, to have the same bits as the CPU.
#include "dtensor/cuda/random.cuh"

#include <cmath>

#include "dtensor/distributions.h"

namespace dtensor::cuda {
namespace {

// A normal number takes two words: a counter of its own.
template <class T>
__global__ void normal_kernel(uint64_t key, __grid_constant__ const Part part, T* out, const Normal<T> normal) {
  int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < part.n; i += step) {
    int64_t run = i / part.run;
    Philox words(key, uint64_t(first_of_run(part, run) + i - run * part.run));
    out[i] = normal(words.word[0], words.word[1]);
  }
}

template <class T>
void normal_as(const RandomFill& to, double mean, double std) {
  launch(normal_kernel<T>, blocks_for(to.part.n, 256), 256, 0, to.stream, to.key, to.part, static_cast<T*>(to.out),
         Normal<T>{mean, std});
}
template <class T, class F>
void words_as(const RandomFill& to, const F& f) {
  if (to.part.n > 0)
    launch_words<T>(to.stream, {to.key}, PartRuns{to.part}, static_cast<const T*>(nullptr), static_cast<T*>(to.out), f);
}
template <class T>
void uniform_as(const RandomFill& to, double low, double high) {
  words_as<T>(to, Uniform<T>{low, high, std::nextafter(T(high), T(low))});
}

}  // namespace

void fill_normal(const RandomFill& to, double mean, double std) {
  to.type == DType::f64 ? normal_as<double>(to, mean, std) : normal_as<float>(to, mean, std);
}
void fill_uniform(const RandomFill& to, double low, double high) {
  to.type == DType::f64 ? uniform_as<double>(to, low, high) : uniform_as<float>(to, low, high);
}
void fill_bernoulli(const RandomFill& to, double p) {
  switch (to.type) {
    case DType::f64:
      return words_as<double>(to, Bernoulli<double>{p});
    case DType::i64:
      return words_as<int64_t>(to, Bernoulli<int64_t>{p});
    case DType::boolean:
      return words_as<bool>(to, Bernoulli<bool>{p});
    default:
      return words_as<float>(to, Bernoulli<float>{p});
  }
}

}  // namespace dtensor::cuda
