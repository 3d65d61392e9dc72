// Scans over the states of parts of a sequence.
#include "dtensor/cuda/launch.cuh"
#include "ops/cuda/gla.h"

namespace dtensor::cuda {
namespace {

constexpr int threads = 256;

// An element of the state by thread.
template <class T>
__global__ void scan_kernel(StateScan s, const T* decay, const T* own, const T* first, T* before, T* last) {
  const int64_t each = s.rows * s.values, n = s.batch * each;
  for (int64_t i = blockIdx.x * int64_t(threads) + threadIdx.x; i < n; i += gridDim.x * int64_t(threads)) {
    const int64_t b = i / each, row = i % each / s.values;
    T state = first ? first[i] : T(0);
    for (int64_t p = b * s.parts; p < (b + 1) * s.parts; ++p) {
      const int64_t at = p * each + i % each;
      before[at] = state;
      state = std::exp(decay[p * s.rows + row]) * state + own[at];
    }
    last[i] = state;
  }
}

template <class T>
__global__ void scan_back_kernel(StateScan s, const T* dbefore, const T* dlast, const T* decay, T* down, T* dfirst) {
  const int64_t each = s.rows * s.values, n = s.batch * each;
  for (int64_t i = blockIdx.x * int64_t(threads) + threadIdx.x; i < n; i += gridDim.x * int64_t(threads)) {
    const int64_t b = i / each, row = i % each / s.values;
    T state = dlast ? dlast[i] : T(0);
    for (int64_t p = (b + 1) * s.parts - 1; p >= b * s.parts; --p) {
      const int64_t at = p * each + i % each;
      down[at] = state;
      state = std::exp(decay[p * s.rows + row]) * state + (dbefore ? dbefore[at] : T(0));
    }
    dfirst[i] = state;
  }
}

// ddecay = exp(decay) * sum(down * before) of each row; a warp has a row.
template <class T>
__global__ void decay_kernel(int64_t rows, int64_t values, const T* decay, const T* down, const T* before, T* ddecay) {
  constexpr int64_t warps = threads / 32;
  for (int64_t i = blockIdx.x * warps + threadIdx.x / 32; i < rows; i += gridDim.x * warps) {
    T sum = 0;
    for (int64_t e = threadIdx.x % 32; e < values; e += 32) sum += down[i * values + e] * before[i * values + e];
    sum = warp_reduce(sum, Sum());
    if (threadIdx.x % 32 == 0) ddecay[i] = std::exp(decay[i]) * sum;
  }
}

// f(T{}) of a state's type.
template <class F>
void for_state(DType t, F f) {
  if (t == DType::f64)
    f(double{});
  else
    f(float{});
}

}  // namespace

void state_scan(const StateScan& s, const void* decay, const void* own, const void* first, void* before, void* last,
                StreamHandle stream) {
  for_state(s.dtype, [&](auto type) {
    using T = decltype(type);
    launch(scan_kernel<T>, blocks_for(s.batch * s.rows * s.values, threads), threads, 0, stream, s,
           static_cast<const T*>(decay), static_cast<const T*>(own), static_cast<const T*>(first),
           static_cast<T*>(before), static_cast<T*>(last));
  });
}

void state_scan_backward(const StateScan& s, const void* dbefore, const void* dlast, const void* decay,
                         const void* before, void* ddecay, void* down, void* dfirst, StreamHandle stream) {
  for_state(s.dtype, [&](auto type) {
    using T = decltype(type);
    launch(scan_back_kernel<T>, blocks_for(s.batch * s.rows * s.values, threads), threads, 0, stream, s,
           static_cast<const T*>(dbefore), static_cast<const T*>(dlast), static_cast<const T*>(decay),
           static_cast<T*>(down), static_cast<T*>(dfirst));
    const int64_t rows = s.batch * s.parts * s.rows;
    launch(decay_kernel<T>, blocks_for(rows, threads / 32), threads, 0, stream, rows, s.values,
           static_cast<const T*>(decay), static_cast<const T*>(down), static_cast<const T*>(before),
           static_cast<T*>(ddecay));
  });
}

}  // namespace dtensor::cuda
