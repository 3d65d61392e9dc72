#include "ops/cuda/epilogue.h"

#include "dtensor/cuda/launch.cuh"

namespace dtensor::cuda {
namespace {

constexpr int threads = 256;

template <class T>
__device__ T gelu_tanh(T x) {
  return x / (1 + exp(T(-1.5957691216057308) * (x + T(0.044715) * x * x * x)));
}

// A block takes row after row.
template <class T>
__global__ void epilogue_kernel(__grid_constant__ const Epilogue e) {
  auto product = static_cast<const T*>(e.product), bias = static_cast<const T*>(e.bias);
  auto aux = static_cast<T*>(e.aux), out = static_cast<T*>(e.out);
  for (int64_t row = blockIdx.x; row < e.batch * e.rows; row += gridDim.x) {
    int64_t begin = row / e.rows * e.stride + row % e.rows * e.ld;
    for (int64_t c = threadIdx.x; c < e.columns; c += threads) {
      Accumulate<T> x = product ? load(product[begin + c]) : Accumulate<T>(0);
      if (bias) x += load(bias[c]);
      if (aux) aux[begin + c] = rounded<T>(x);
      out[begin + c] = rounded<T>(e.gelu ? gelu_tanh(x) : x);
    }
  }
}

}  // namespace

void run_epilogue(StreamHandle stream, DType dtype, const Epilogue& e) {
  if (e.columns == 0) return;
  for_floating(dtype, [&](auto t) {
    using T = decltype(t);
    launch(epilogue_kernel<T>, blocks_for(e.batch * e.rows, 1), threads, 0, stream, e);
  });
}

}  // namespace dtensor::cuda
