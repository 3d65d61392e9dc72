// What .cu files share: launching, element types, 16-byte accesses, reductions in a fixed order. Included by .cu files
// only; these hold kernels and the functions that launch them, on plain pointers: what has to do with tensors is in the
// .cpp beside them, because nvcc does not take {fmt}.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dtensor/cuda/runtime.h"
#include "placement/dtype.h"

namespace dtensor::cuda {

using bf16 = __nv_bfloat16;

// kernel<<<grid, block, shared, stream>>>(arguments...). An empty grid is no launch.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, StreamHandle stream,
            Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared > 48 << 10) {  // more has to be asked for
    cudaError_t e = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                         cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
    if (e != cudaSuccess) fail_call("cudaFuncSetAttribute", int(e));
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared, config.stream = stream;
  cudaError_t e = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  if (e != cudaSuccess) fail_call("cudaLaunchKernelEx", int(e));
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks for n items of `per_block`, at most `most`: kernels walk the rest with a stride of the grid.
inline unsigned blocks_for(int64_t n, int64_t per_block, int64_t most = 132 * 16) {
  int64_t blocks = ceil_div(n, per_block);
  return unsigned(blocks < most ? blocks : most);
}

// a / b, neither negative. Divisions of 32 bits are several times faster.
__device__ inline int64_t quotient(int64_t a, int64_t b) {
  return (uint64_t(a | b) >> 32) == 0 ? int64_t(uint32_t(a) / uint32_t(b)) : a / b;
}

// Memory of the block whose size the launch gives.
template <class T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];
  return reinterpret_cast<T*>(dynamic_shared_memory);
}

// --- Element types. Arithmetic on bf16 is done in float and rounded once.

template <class T>
struct accumulate_type {
  using type = T;
};
template <>
struct accumulate_type<bf16> {
  using type = float;
};
template <class T>
using Accumulate = typename accumulate_type<T>::type;

template <class T>
__device__ inline Accumulate<T> load(const T& x) {
  return x;
}
template <>
__device__ inline float load<bf16>(const bf16& x) {
  return __bfloat162float(x);
}
template <class T>
__device__ inline T rounded(Accumulate<T> x) {
  return x;
}
template <>
__device__ inline bf16 rounded<bf16>(float x) {
  return __float2bfloat16(x);
}

// Calls f with the C++ type of a floating element type: f(T{}). `f` returns nothing. False for other types.
template <class F>
bool for_floating(DType t, F f) {
  switch (t) {
    case DType::f32:
      f(float{});
      return true;
    case DType::f64:
      f(double{});
      return true;
    case DType::bf16:
      f(bf16{});
      return true;
    default:
      return false;
  }
}
// The same for all types.
template <class F>
bool for_all_types(DType t, F f) {
  switch (t) {
    case DType::i64:
      f(int64_t{});
      return true;
    case DType::boolean:
      f(bool{});
      return true;
    default:
      return for_floating(t, f);
  }
}

// --- 16 bytes at once.

template <class T, int n = 16 / sizeof(T)>
struct alignas(sizeof(T) * n) Pack {
  T at[n];
  static constexpr int size = n;
};
template <class T, int n = 16 / sizeof(T)>
__device__ inline Pack<T, n> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, n>*>(from);
}
// As few instructions as can be: nvcc takes an assignment apart where the elements were computed one by one, down to
// stores of 2 bytes, of which a sector of 32 then takes 16.
template <class T, int n>
__device__ inline void store_pack(T* to, const Pack<T, n>& p) {
#ifdef __CUDA_ARCH__
  using Bytes = std::conditional_t<sizeof(p) % 16 == 0, uint4, std::conditional_t<sizeof(p) == 8, uint2, unsigned>>;
  if constexpr (sizeof(p) % sizeof(Bytes) == 0) {
    Bytes bytes[sizeof(p) / sizeof(Bytes)];
    memcpy(bytes, &p, sizeof(p));
    for (unsigned k = 0; k < sizeof(p) / sizeof(Bytes); ++k) __stwb(reinterpret_cast<Bytes*>(to) + k, bytes[k]);
    return;
  }
#endif
  *reinterpret_cast<Pack<T, n>*>(to) = p;
}
template <class T>
inline bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// --- Reductions, in an order that depends on the block's size alone: the same bits every time.

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {  // NaN wins
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a < b || b != b ? b : a;
  }
};
struct Min {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return b < a || b != b ? b : a;
  }
};

// Of the 32 lanes of a warp, to all of them.
template <class T, class Combine>
__device__ T warp_reduce(T x, Combine combine) {
  for (int step = 16; step > 0; step /= 2) x = combine(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}

// Of all threads of a block of `threads` (a multiple of 32), to all of them. May be called again at once.
template <int threads, class T, class Combine>
__device__ T block_reduce(T x, Combine combine, T identity) {
  static_assert(threads % 32 == 0 && threads <= 1024);
  __shared__ T of_warp[32];
  x = warp_reduce(x, combine);
  if constexpr (threads == 32) return x;
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  x = threadIdx.x % 32 < threads / 32 ? of_warp[threadIdx.x % 32] : identity;
  x = warp_reduce(x, combine);
  __syncthreads();
  return x;
}

}  // namespace dtensor::cuda
