// Stands for CUDA's header of this name: what kernels see, compiled by g++. See tests/emulator/emulator.h.
#pragma once

#include <math.h>

#include <cstring>
#include <functional>
#include <source_location>
#include <tuple>
#include <type_traits>

#include <cuda_runtime_api.h>

#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __constant__
// One block at a time runs on a thread of the host, so a block's memory is that thread's.
#define __shared__ thread_local

#define EMULATOR_VECTORS(T, name, align2, align4)            \
  struct alignas(align2) name##2 {                           \
    T x, y;                                                  \
  };                                                         \
  struct alignas(align4) name##4 {                           \
    T x, y, z, w;                                            \
  };                                                         \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATOR_VECTORS(unsigned char, uchar, 2, 4)
EMULATOR_VECTORS(short, short, 4, 8)
EMULATOR_VECTORS(unsigned short, ushort, 4, 8)
EMULATOR_VECTORS(int, int, 8, 16)
EMULATOR_VECTORS(unsigned, uint, 8, 16)
EMULATOR_VECTORS(float, float, 8, 16)
EMULATOR_VECTORS(double, double, 16, 16)
EMULATOR_VECTORS(long long, longlong, 16, 16)
#undef EMULATOR_VECTORS

extern constinit thread_local uint3 threadIdx, blockIdx;
extern constinit thread_local dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulator {
// A place in the kernel.
#ifdef __cpp_lib_source_location
using Where = std::source_location;
#else  // clang 14, with the same built-in functions as g++, and one for the column
class Where {
 public:
  static constexpr Where current(const char* file = __builtin_FILE(), const char* function = __builtin_FUNCTION(),
                                 unsigned line = __builtin_LINE(), unsigned column = __builtin_COLUMN()) {
    Where w;
    w.file_ = file, w.function_ = function, w.line_ = line, w.column_ = column;
    return w;
  }
  const char* file_name() const { return file_; }
  const char* function_name() const { return function_; }
  unsigned line() const { return line_; }
  unsigned column() const { return column_; }

 private:
  const char *file_ = "", *function_ = "";
  unsigned line_ = 0, column_ = 0;
};
#endif

// Queues kernel() for every thread of every block.
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> thread);
void meet_block(Where where);
// The lanes of the mask meet and give their values; returned is that of lane `source`.
uint64_t meet_warp(unsigned mask, uint64_t value, unsigned source, Where where);
unsigned vote(unsigned mask, bool value, Where where);  // a bit for each lane
unsigned lane();

template <class T>
T shuffle(unsigned mask, T x, unsigned source, Where where) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof(T));
  bits = meet_warp(mask, bits, source, where);
  std::memcpy(&x, &bits, sizeof(T));
  return x;
}
}  // namespace emulator

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= 32764, "more than a kernel's parameters may take");
  std::tuple<std::decay_t<Parameters>...> copies(std::forward<Arguments>(arguments)...);
  return emulator::launch(*config, reinterpret_cast<const void*>(kernel),
                          [kernel, copies] { std::apply(kernel, copies); });
}
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <class... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(Parameters...), int threads,
                                                          size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, reinterpret_cast<const void*>(kernel), threads, shared);
}

inline void __syncthreads(emulator::Where where = emulator::Where::current()) { emulator::meet_block(where); }
inline void __syncwarp(unsigned mask = ~0u, emulator::Where where = emulator::Where::current()) {
  emulator::vote(mask, false, where);
}
inline unsigned __ballot_sync(unsigned mask, int x, emulator::Where where = emulator::Where::current()) {
  return emulator::vote(mask, x != 0, where);
}
inline int __any_sync(unsigned mask, int x, emulator::Where where = emulator::Where::current()) {
  return emulator::vote(mask, x != 0, where) != 0;
}
inline int __all_sync(unsigned mask, int x, emulator::Where where = emulator::Where::current()) {
  return emulator::vote(mask, x != 0, where) == mask;
}
// Of each `width` lanes; a lane whose source is outside of them gets its own value.
template <class T>
T __shfl_sync(unsigned mask, T x, int source, int width = 32, emulator::Where where = emulator::Where::current()) {
  unsigned begin = emulator::lane() & ~unsigned(width - 1);
  return emulator::shuffle(mask, x, begin | (unsigned(source) & unsigned(width - 1)), where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T x, int bits, int width = 32, emulator::Where where = emulator::Where::current()) {
  unsigned lane = emulator::lane(), end = (lane | unsigned(width - 1)) + 1, source = lane ^ unsigned(bits);
  return emulator::shuffle(mask, x, source < end ? source : lane, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = 32,
                   emulator::Where where = emulator::Where::current()) {
  unsigned lane = emulator::lane(), end = (lane | unsigned(width - 1)) + 1;
  return emulator::shuffle(mask, x, lane + by < end ? lane + by : lane, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = 32, emulator::Where where = emulator::Where::current()) {
  unsigned lane = emulator::lane(), begin = lane & ~unsigned(width - 1);
  return emulator::shuffle(mask, x, lane >= begin + by ? lane - by : lane, where);
}

template <class T>
T atomicAdd(T* at, std::type_identity_t<T> x) {
  static_assert(std::is_integral_v<T>, "sums of floats would depend on the order");
  return __atomic_fetch_add(at, x, __ATOMIC_RELAXED);
}
template <class T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> x) {
  __atomic_compare_exchange_n(at, &expected, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
template <class T>
T atomicMax(T* at, std::type_identity_t<T> x) {
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (old < x && !__atomic_compare_exchange_n(at, &old, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
template <class T>
T atomicMin(T* at, std::type_identity_t<T> x) {
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (x < old && !__atomic_compare_exchange_n(at, &old, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

template <class A, class B>
constexpr auto min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
constexpr auto max(A a, B b) {
  return a < b ? b : a;
}
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
#define __expf(x) expf(x)  // glibc declares functions of these names
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)

template <class To, class From>
To emulator_bits(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &x, sizeof(To));
  return to;
}
inline int __float_as_int(float x) { return emulator_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulator_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulator_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulator_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulator_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulator_bits<double>(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ typedef unsigned __int128 Wide;
  return (unsigned long long)(Wide(a) * b >> 64);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
